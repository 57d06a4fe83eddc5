"""A detector that is one weighted sum of its pixels, so that what an attack can reach is known."""

import dataclasses

from torch import Tensor, nn

from backend.detectors.base import Detector
from tests.toys import toy_detector


class Weighted(nn.Module):
    """Logit: the sum over pixels and colours of weights * value, plus a constant."""

    def __init__(self, weights: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("weights", weights.expand(3, *weights.shape[-2:]).clone())
        self.constant = constant

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weights).sum((1, 2, 3))[:, None] + self.constant


def weighted_detector(weights: Tensor, constant: float = 0.0, std: float = 1.0) -> Detector:
    """Return a detector with weights (H, W) or (3, H, W), applied to pictures divided by `std`."""
    card = dataclasses.replace(toy_detector().card, input_size=weights.shape[-1], std=(std, std, std))
    return Detector(Weighted(weights, constant), card)


class BatchRecorder:
    """Counts what a detector's network is asked, batch by batch."""

    def __init__(self, detector: Detector) -> None:
        self.batches: list[int] = []
        detector.network.register_forward_pre_hook(lambda _, images: self.batches.append(len(images[0])))
