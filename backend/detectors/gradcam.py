"""Grad-CAM (Selvaraju et al. 2017) and Grad-CAM++ maps of a detector, computed by the package `grad-cam`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from backend.detectors.base import DIRECTION_WORDS, Detector
from backend.errors import UserError
from backend.runtime import MODEL_LOCK, frozen

CamVariant = Literal["Grad-CAM", "Grad-CAM++"]
NEGLIGIBLE = 1e-6  # of the map's own largest absolute value: rounding, not evidence


@dataclass(frozen=True, eq=False)
class CamMap:
    """Grad-CAM of N pictures.

    Args:
        maps: float32 (N, H, W) in [0, 1], each scaled to its own maximum; zero where `empty`.
        empty: (N,), True where nothing in the picture speaks for the class; scaling would show noise at full strength.
        layer: Name of the layer that was read, empty where there is none.
        missing: Why there are no maps, in words; empty where there are some.
    """

    maps: np.ndarray
    empty: np.ndarray
    towards: str
    layer: str
    missing: str = ""

    @property
    def note(self) -> str:
        if self.missing:
            return self.missing
        speaks = DIRECTION_WORDS[self.towards]
        if self.empty[0]:
            return f"At this layer, nothing in the picture speaks {speaks}; there is no map to show."
        return f"Bright regions speak {speaks} at the layer {self.layer}; brightness compares within one map."


class _LogOdds(nn.Module):
    """A detector in the form that the package expects: pictures to a matrix of scores."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.logit_fake(images)[:, None]


@cache
def _raw_method(variant: CamVariant) -> type:
    """Return a method of the package that also keeps the raw map, before it is cut off at zero and stretched.

    Where the detector also judged mirror images, which follow the pictures, their maps are flipped back and added.
    """
    from pytorch_grad_cam import GradCAM, GradCAMPlusPlus  # takes seconds to import

    method = {"Grad-CAM": GradCAM, "Grad-CAM++": GradCAMPlusPlus}[variant]

    class RawMethod(method):  # type: ignore[misc, valid-type]
        raw: np.ndarray
        mirrored = False

        def get_cam_image(self, *arguments: Any, **options: Any) -> np.ndarray:
            self.raw = super().get_cam_image(*arguments, **options)
            if self.mirrored:
                maps, mirrored_maps = np.split(self.raw, 2)
                self.raw = maps + mirrored_maps[:, :, ::-1]
            return self.raw

    return RawMethod


def grad_cam(
    detector: Detector,
    images: Tensor,
    towards: Literal["fake", "real"] = "fake",
    variant: CamVariant = "Grad-CAM",
) -> CamMap:
    """Map which regions of pictures (N, 3, H, W) in [0, 1] speak for a class, from the detector's log-odds.

    Raises:
        UserError: The detector has no layer to read.
    """
    sign = 1.0 if towards == "fake" else -1.0
    target: Callable[[Tensor], Tensor] = lambda scores: sign * scores[0]  # noqa: E731
    with MODEL_LOCK, frozen(detector), torch.enable_grad():
        cam = _raw_method(variant)(_LogOdds(detector), [detector.cam_module()])
        cam.mirrored = detector.card.mirrored
        try:
            # Frozen weights need no gradient, so the pictures must.
            maps = cam(images.detach().clone().requires_grad_(True), targets=[target] * len(images))
        finally:
            # Not left to the package's context manager, which swallows errors.
            cam.activations_and_grads.release()
    raw = cam.raw.reshape(len(images), -1)
    empty = ~(raw.max(axis=1) > NEGLIGIBLE * np.abs(raw).max(axis=1))  # True also for what is not a number
    maps = np.where(empty[:, None, None], 0.0, maps).astype(np.float32)
    return CamMap(maps, empty, towards, detector.card.cam_layer)


def grad_cam_or_reason(detector: Detector, images: Tensor, towards: Literal["fake", "real"] = "fake") -> CamMap:
    """Return what `grad_cam` does, or empty maps with the reason for a detector without a layer."""
    try:
        return grad_cam(detector, images, towards)
    except UserError as error:
        count, _, height, width = images.shape
        return CamMap(np.zeros((count, height, width), np.float32), np.ones(count, bool), towards, "", error.message)
