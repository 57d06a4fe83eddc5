"""Xception (Chollet 2017; for faces Roessler et al. 2019), at its published size or slimmer, and its checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backend.detectors.base import scale_channels
from backend.detectors.registry import register_detector, register_published
from backend.weights import match_checkpoint

PAPER = "Chollet 2017, arXiv 1610.02357; for faces Roessler et al. 2019, arXiv 1901.08971"
UNUSED = "adjust_channel."  # DeepfakeBench saves these layers in every Xception and never runs them
DROPOUT_HEAD = "last_linear.1."  # how the head is called in a DeepfakeBench model with dropout before it


@register_detector("xception", title="Xception", paper=PAPER, cam_layer="act4", embedded={"width": 0.25}, order=10)
@register_published("xception_deepfakebench", title="Xception", paper=PAPER, cam_layer="act4")
class Xception(nn.Module):
    """Xception under the published key names (`conv1`, `block1` ... `block12`, `last_linear`).

    Args:
        width: Factor on all channels; 1.0 is the published network.
        classes: Number of logits; 0 leaves the head out.
        stride: Of the first convolution.
        dropout: Share of the pooled features dropped before the head, whose keys are then `last_linear.1.*`.
    """

    def __init__(
        self, width: float = 1.0, classes: int = 2, *, inputs: int = 3, stride: int = 2, dropout: float = 0.0
    ) -> None:
        from timm.models.xception import Block, SeparableConv2d  # importing timm takes seconds

        super().__init__()
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            scale_channels(channels, width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.conv1 = nn.Conv2d(inputs, c32, 3, stride=stride, bias=False)
        self.bn1 = nn.BatchNorm2d(c32)
        self.conv2 = nn.Conv2d(c32, c64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(c64)
        self.block1 = Block(c64, c128, 2, 2, start_with_relu=False)
        self.block2 = Block(c128, c256, 2, 2)
        self.block3 = Block(c256, c728, 2, 2)
        for number in range(4, 12):
            self.add_module(f"block{number}", Block(c728, c728, 3))
        self.block12 = Block(c728, c1024, 2, 2, grow_first=False)
        self.conv3 = SeparableConv2d(c1024, c1536, 3, 1, 1)
        self.bn3 = nn.BatchNorm2d(c1536)
        self.conv4 = SeparableConv2d(c1536, c2048, 3, 1, 1)
        self.bn4 = nn.BatchNorm2d(c2048)
        self.act4 = nn.ReLU()  # a module, not in place, so that Grad-CAM can read it
        head = nn.Linear(c2048, classes) if classes else nn.Identity()
        self.last_linear = nn.Sequential(nn.Dropout(dropout), head) if dropout else head
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stem(self, faces: Tensor) -> Tensor:
        """Return what block 1 takes (N, 64 * width, about S/2, S/2) for faces (N, inputs, S, S) in [-1, 1]."""
        features = torch.relu(self.bn1(self.conv1(faces)))
        return torch.relu(self.bn2(self.conv2(features)))

    def run_blocks(self, features: Tensor, first: int, last: int) -> Tensor:
        """Run the blocks from number `first` to number `last`, both included."""
        for number in range(first, last + 1):
            features = self.get_submodule(f"block{number}")(features)
        return features

    def finish(self, features: Tensor) -> Tensor:
        """Run what follows block 12, up to the last feature map."""
        features = torch.relu(self.bn3(self.conv3(features)))
        return self.act4(self.bn4(self.conv4(features)))

    def features(self, faces: Tensor) -> Tensor:
        """Return features (N, 2048 * width, about S/32, S/32) for faces (N, inputs, S, S) in [-1, 1]."""
        return self.finish(self.run_blocks(self.stem(faces), 1, 12))

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes) for faces (N, inputs, S, S) in [-1, 1]."""
        return self.last_linear(self.features(faces).mean((2, 3)))


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn DeepfakeBench's checkpoint into a state of `Xception()`; errors as in `match_checkpoint`."""
    return match_checkpoint(
        state,
        Xception,
        "DeepfakeBench's Xception",
        prefix="backbone.",
        unused=(UNUSED,),
        rename=lambda key: key.replace(DROPOUT_HEAD, "last_linear."),
    )
