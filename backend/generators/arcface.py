"""ArcFace identity features (Deng et al. 2019) and their body, IR-SE50, which e4e shares (Hu et al. 2018)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import weights
from backend.runtime import device

Box = tuple[float, float, float, float]  # left, top, right, bottom, in sides of the picture

ARCFACE_ENTRY, ARCFACE_SIDE = "arcface", 112
# Recognition networks were trained on eyes 0.315 of the side apart, at 0.46 of the height. The first box is that of e4e
# and of Artifact-Eraser (rows 35 to 223 and columns 32 to 220 of 256); the second follows from the template.
RECOGNITION_BOXES: dict[str, Box] = {
    "ffhq": (32 / 256, 35 / 256, 220 / 256, 223 / 256),
    "embedded": (0.0794, 0.0323, 0.9206, 0.8735),
}
IR_SE_STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units; every stage halves the size


class SqueezeExcitation(nn.Module):
    """Rescale channels by a gate computed from their means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        gate = self.fc2(torch.relu(self.fc1(features.mean((2, 3), keepdim=True))))
        return features * torch.sigmoid(gate)


class ResidualUnit(nn.Module):
    """Pre-activation residual unit with squeeze-and-excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.shortcut_layer: nn.Module
        if inputs == outputs:
            self.shortcut_layer = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            SqueezeExcitation(outputs),
        )

    def forward(self, features: Tensor) -> Tensor:
        return self.res_layer(features) + self.shortcut_layer(features)


def ir_se_widths(width: float = 1.0) -> list[int]:
    """Return the channels of the four stages; a width of 1.0 gives the published ones."""
    return [round(channels * width) for channels, _ in IR_SE_STAGES]


def ir_se_stem(channels: int = 64, inputs: int = 3) -> nn.Sequential:
    """Return the first layers, at full size and with the first stage's channels."""
    convolution = nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.PReLU(channels))


def ir_se_body(channels: Sequence[int] = tuple(ir_se_widths())) -> nn.Sequential:
    """Return the 24 residual units, given the channels of the four stages; the last has 1/16 of the size."""
    units, inputs = [], channels[0]
    for outputs, (_, count) in zip(channels, IR_SE_STAGES, strict=True):
        for unit in range(count):
            units.append(ResidualUnit(inputs, outputs, stride=2 if unit == 0 else 1))
            inputs = outputs
    return nn.Sequential(*units)


class ArcFace(nn.Module):
    """Identity network with the published key names: faces to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layer = ir_se_stem()
        self.body = ir_se_body()
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512), nn.Dropout(0.6), nn.Flatten(), nn.Linear(512 * 7 * 7, 512), nn.BatchNorm1d(512)
        )

    def forward(self, faces: Tensor) -> Tensor:
        """Return unit-norm features (N, 512) of faces (N, 3, 112, 112) in [-1, 1]."""
        return F.normalize(self.output_layer(self.body(self.input_layer(faces))))


def find_arcface() -> Callable[[Tensor, str], Tensor] | None:
    """Return the network if it was fetched, or None.

    It takes aligned faces (N, 3, S, S) in [0, 1] and the name of their template, and returns unit-norm features
    (N, 512) on this process's device; differentiable.
    """
    entry = weights.read_entries().get(ARCFACE_ENTRY)
    if entry is None or not entry.path.is_file():
        return None
    network = weights.load_into(ArcFace(), ARCFACE_ENTRY).requires_grad_(requires_grad=False).to(device())
    return lambda faces, template: network(crop_for_recognition(faces, template, ARCFACE_SIDE).to(device()) * 2 - 1)


def crop_for_recognition(faces: Tensor, template: str, side: int) -> Tensor:
    """Crop aligned faces (N, 3, S, S) to what recognition networks expect, (N, 3, side, side)."""
    size = faces.shape[-1]
    left, top, right, bottom = (round(edge * size) for edge in RECOGNITION_BOXES[template])
    crop = faces[..., top:bottom, left:right]
    if crop.shape[-1] >= side:
        return F.adaptive_avg_pool2d(crop, side)
    return F.interpolate(crop, size=(side, side), mode="bilinear", align_corners=False)
