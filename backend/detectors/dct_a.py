"""DCT-A (Frank et al. 2020, arXiv 2003.08685): a shallow network on the log spectrum of the cosine transform."""

import torch
from torch import Tensor, nn

from backend.detectors.base import scale_channels
from backend.detectors.registry import EMBEDDED_SIZE, register_detector
from backend.signals import dct2

TINY = 1e-12  # keeps the logarithm of a coefficient finite


@register_detector(
    "dct_a",
    title="DCT-A",
    paper="Frank et al. 2020, arXiv 2003.08685",
    mean=0.0,
    std=1 / 255,
    embedded={"width": 1.0, "input_size": EMBEDDED_SIZE},
    family="frequency",
    order=90,
)
class DCTA(nn.Module):
    """The paper's small network; its standardisation is fitted to training pictures and stored with the weights.

    Args:
        input_size: Side of the pictures in pixels; a multiple of 4.
        width: Factor on the channels of the second to fourth convolution; 1.0 is the published network.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, input_size: int = 128, width: float = 1.0, classes: int = 2) -> None:
        super().__init__()
        c8, c16, c32 = (scale_channels(channels, width) for channels in (8, 16, 32))
        self.register_buffer("mean", torch.zeros(3, input_size, input_size))
        self.register_buffer("std", torch.ones(3, input_size, input_size))
        self.conv1 = nn.Conv2d(3, 3, 3, padding=1)
        self.conv2 = nn.Conv2d(3, c8, 3, padding=1)
        self.conv3 = nn.Conv2d(c8, c16, 3, padding=1)
        self.conv4 = nn.Conv2d(c16, c32, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.dense = nn.Linear(c32 * (input_size // 4) ** 2, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def log_spectrum(self, faces: Tensor) -> Tensor:
        """Return ln|DCT| (N, 3, S, S), not standardised, of faces (N, 3, S, S) in [0, 255]."""
        return dct2(faces).abs().add(TINY).log()

    def forward(self, faces: Tensor) -> Tensor:
        """Return logits (N, classes) for faces (N, 3, S, S) in [0, 255]."""
        features = (self.log_spectrum(faces) - self.mean) / self.std
        features = torch.relu(self.conv1(features))
        features = self.pool(torch.relu(self.conv2(features)))
        features = self.pool(torch.relu(self.conv3(features)))
        return self.dense(torch.relu(self.conv4(features)).flatten(1))
