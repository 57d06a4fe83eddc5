"""The IR-SE50 body shared by e4e and ArcFace (Deng et al. 2019; squeeze-and-excitation of Hu et al. 2018)."""

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


def stem(width: float = 1.0) -> nn.Sequential:
    """Return the first layers, RGB to round(64 * width) channels at full size."""
    channels = round(64 * width)
    return nn.Sequential(nn.Conv2d(3, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.PReLU(channels))


def body(width: float = 1.0) -> nn.Sequential:
    """Return the 24 residual units, round(64 * width) to round(512 * width) channels at 1/16 of the size."""
    units = []
    inputs = round(64 * width)
    for channels, count in STAGES:
        outputs = round(channels * width)
        for unit in range(count):
            units.append(ResidualUnit(inputs, outputs, stride=2 if unit == 0 else 1))
            inputs = outputs
    return nn.Sequential(*units)
