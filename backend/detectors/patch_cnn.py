"""Patch-CNN (Chai et al. 2020, arXiv 2008.10588): Xception cut after an early block, with one verdict per patch."""

import torch
from torch import Tensor, nn

from backend.detectors.base import scale_channels
from backend.detectors.registry import register_detector


@register_detector(
    "patch_cnn",
    title="Patch-CNN",
    paper="Chai et al. 2020, arXiv 2008.10588",
    outputs="patch logits, fake then real",
    cam_layer="convout",
    embedded={"depth": 3, "width": 0.35},
    order=80,
)
class PatchCNN(nn.Module):
    """Xception cut after block `depth`, then a 1x1 convolution, under the published key names.

    Args:
        depth: How many blocks are kept, from 1 to 5; each patch sees 19, 43, 91, 187 or 283 pixels.
        width: Factor on all channels; 1.0 is the published network.
    """

    def __init__(self, depth: int = 2, width: float = 1.0) -> None:
        from timm.models.xception import Block  # importing timm takes seconds

        super().__init__()
        c32, c64, *blocks = (scale_channels(channels, width) for channels in (32, 64, 128, 256, 728, 728, 728))
        self.conv1 = nn.Conv2d(3, c32, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(c32)
        self.conv2 = nn.Conv2d(c32, c64, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(c64)
        self.depth = depth
        before = c64
        for number, channels in enumerate(blocks[:depth], start=1):
            repeats, stride = (2, 2) if number <= 3 else (3, 1)
            self.add_module(f"block{number}", Block(before, channels, repeats, stride, start_with_relu=number > 1))
            before = channels
        self.convout = nn.Conv2d(before, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_normal_(module.weight)

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, 2, h, w), fake then real, of every patch of faces (N, 3, S, S) in [-1, 1]."""
        features = torch.relu(self.bn1(self.conv1(faces)))
        features = torch.relu(self.bn2(self.conv2(features)))
        for number in range(1, self.depth + 1):
            features = self.get_submodule(f"block{number}")(features)
        return self.convout(features)
