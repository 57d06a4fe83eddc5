"""The IR-SE50 body shared by e4e and ArcFace (Deng et al. 2019; squeeze-and-excitation of Hu et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

STAGES = ((64, 3), (128, 4), (256, 14), (512, 3))  # channels and units; every stage halves the size


class SqueezeExcitation(nn.Module):
    """Rescale channels by a gate computed from their means."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
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

    def forward(self, features: Tensor) -> Tensor:  # noqa: D102
        return self.res_layer(features) + self.shortcut_layer(features)


def widths(width: float = 1.0) -> list[int]:
    """Return the channels of the four stages at a factor of the published ones."""
    return [round(channels * width) for channels, _ in STAGES]


def stem(channels: int = 64, inputs: int = 3) -> nn.Sequential:
    """Return the first layers at full size, from RGB or other inputs to the first stage's channels."""
    convolution = nn.Conv2d(inputs, channels, 3, 1, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.PReLU(channels))


def body(channels: Sequence[int] = tuple(widths())) -> nn.Sequential:
    """Return the 24 residual units, from the first of four stages' channels to the last at 1/16 of the size."""
    units = []
    inputs = channels[0]
    for outputs, (_, count) in zip(channels, STAGES, strict=True):
        for unit in range(count):
            units.append(ResidualUnit(inputs, outputs, stride=2 if unit == 0 else 1))
            inputs = outputs
    return nn.Sequential(*units)
