"""Xception (Chollet 2017; for faces Roessler et al. 2019), at its published size or slimmer, and its checkpoints."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backend.errors import UserError

PREFIX = "backbone."
UNUSED = "adjust_channel."  # DeepfakeBench saves these layers in every Xception and never runs them
DROPOUT_HEAD = "last_linear.1."  # how the head is called in a DeepfakeBench model with dropout before it


def scaled(channels: int, width: float) -> int:
    """Return `channels * width`, rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))


class Xception(nn.Module):
    """Xception under the published key names (`conv1`, `block1` ... `block12`, `last_linear`).

    Args:
        width: Factor on all channels; 1.0 is the published network.
        classes: Number of logits.
    """

    def __init__(self, width: float = 1.0, classes: int = 2) -> None:
        from timm.models.xception import Block, SeparableConv2d  # importing timm takes seconds

        super().__init__()
        c32, c64, c128, c256, c728, c1024, c1536, c2048 = (
            scaled(channels, width) for channels in (32, 64, 128, 256, 728, 1024, 1536, 2048)
        )
        self.conv1 = nn.Conv2d(3, c32, 3, stride=2, bias=False)
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
        self.last_linear = nn.Linear(c2048, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def features(self, faces: Tensor) -> Tensor:
        """Return features (N, 2048 * width, about S/32, S/32) for faces (N, 3, S, S) in [-1, 1]."""
        features = torch.relu(self.bn1(self.conv1(faces)))
        features = torch.relu(self.bn2(self.conv2(features)))
        for number in range(1, 13):
            features = self.get_submodule(f"block{number}")(features)
        features = torch.relu(self.bn3(self.conv3(features)))
        return self.act4(self.bn4(self.conv4(features)))

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes) for faces (N, 3, S, S) in [-1, 1]."""
        return self.last_linear(self.features(faces).mean((2, 3)))


def from_deepfakebench(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn a DeepfakeBench Xception checkpoint into a state of `Xception()`, every key matched.

    Args:
        state: Keys `backbone.*` to tensors, as published.

    Raises:
        UserError: Keys are unknown or missing, or tensors have other shapes.
    """
    with torch.device("meta"):
        expected = Xception().state_dict()
    hint = "Use an Xception checkpoint of DeepfakeBench with two classes."
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.removeprefix(PREFIX)
        if key.startswith(PREFIX) and name.startswith(UNUSED):
            continue
        name = name.replace(DROPOUT_HEAD, "last_linear.")
        if not key.startswith(PREFIX) or name not in expected:
            raise UserError(f"The checkpoint has a tensor that Xception does not have: {key}.", hint)
        if value.shape != expected[name].shape:
            raise UserError(f"The checkpoint's tensor {key} has shape {tuple(value.shape)}, not Xception's.", hint)
        found[name] = value
    # Batch norm's step counter was not saved by old versions of torch, and no result depends on it.
    missing = [name for name in expected if name not in found and not name.endswith("num_batches_tracked")]
    if missing:
        raise UserError(f"The checkpoint lacks {len(missing)} tensors of Xception, first {PREFIX}{missing[0]}.", hint)
    return {name: found.get(name, torch.tensor(0)) for name in expected}
