"""A linear generator and a linear detector, whose searches can be computed by hand."""

import torch
from torch import Tensor, nn

from backend.detectors.base import Card, Detector
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import Partial

ROWS, CODE = 12, 512
STEP = 0.1  # epsilon with which a step on all rows darkens a face by exactly DARKER
DARKER = 3 / 255


class ToyGenerator(nn.Module):
    """Every pixel is the sum over rows of gain * mean(code): one step on all rows moves it by DARKER in [0, 1]."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.size, self.rows = size, ROWS
        # A step moves the picture in [-1, 1] by STEP a row, and by half of it in [0, 1].
        self.gain = nn.Parameter(torch.full((ROWS,), 2 * DARKER / (STEP * ROWS)))

    def prefix(self, codes: Tensor, row: int, *, dtype: torch.dtype | None = None, offset: None = None) -> Partial:
        return Partial(row, self._sum(codes, 0, row), None)

    def resume(self, partial: Partial, codes: Tensor, *, resolution: int | None = None) -> Tensor:
        value = partial.features + self._sum(codes, partial.row, ROWS)
        return value[:, None, None, None].expand(-1, 3, self.size, self.size)

    def synthesize(self, codes: Tensor, *, resolution: int | None = None, offset: None = None) -> Tensor:
        return self.resume(self.prefix(codes, 0), codes)

    def _sum(self, codes: Tensor, start: int, end: int) -> Tensor:
        codes = codes if isinstance(codes, Tensor) else torch.stack(list(codes), dim=1)
        return (codes[:, start:end].mean(2) * self.gain[start:end]).sum(1)


class ToyEncoder(nn.Module):
    """Puts the mean brightness into every coordinate, so different faces have different codes."""

    input_size = 8

    def forward(self, faces: Tensor, lacking: Tensor | None = None) -> Tensor:
        return faces.mean((1, 2, 3))[:, None, None].expand(-1, ROWS, CODE)


class Brightness(nn.Module):
    """One logit: slope * (mean brightness - threshold), so brighter means more fake."""

    def __init__(self, slope: float, threshold: float) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 2, 1)  # for Grad-CAM: the mean of the colours, and its negative
        with torch.no_grad():
            self.features.weight.copy_(torch.tensor([1 / 3, -1 / 3])[:, None, None, None].expand(2, 3, 1, 1))
            self.features.bias.zero_()
        self.slope, self.threshold = slope, threshold

    def forward(self, images: Tensor) -> Tensor:
        return self.slope * (self.features(images)[:, :1].mean((2, 3)) - self.threshold)


def toy_inverter(size: int = 8) -> Inverter:
    return Inverter(ToyGenerator(size), ToyEncoder(), torch.zeros(ROWS, CODE), "toy generator", "embedded", STEP)


def toy_detector(slope: float = 20.0, threshold: float = 0.7, name: str = "toy", size: int = 8) -> Detector:
    card = Card(
        name=name,
        title="Toy",
        paper="",
        weights=name,
        input_size=size,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        outputs="one logit, fake high",
        cam_layer="features",
        trained_on="",
        licence="",
        errors=(),
        known_failures="",
    )
    return Detector(Brightness(slope, threshold), card)


def grey(*levels: int, size: int = 8) -> Tensor:
    """Return one even face for each 8-bit grey level."""
    return torch.stack([torch.full((3, size, size), level / 255) for level in levels])


def hooks(module: nn.Module) -> int:
    """Count what is hooked to a module and everything below it."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(child, kind)) for child in module.modules() for kind in kinds)
