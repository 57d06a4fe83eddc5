"""What a hidden part of a face shows where no adversarial image stands in: each method's usual fill."""

import torch
from torch import Tensor

from backend.detectors.card import Detector

# Adv-XAI (2502.03957) blurs SHAP's faces of 224 pixels over 128.
BLUR_SIDE, BLUR_OF = 128, 224


def segment_means(face: Tensor, labels: Tensor) -> Tensor:
    """Paint every segment in its own mean colour: LIME's fill.

    Args:
        face: (1, 3, H, W) in [0, 1].
        labels: Segment of every pixel (H, W), from 0 without gaps.

    Returns:
        (1, 3, H, W).
    """
    flat, index = face[0].flatten(1).double(), labels.to(face.device).flatten()
    count = int(index.max()) + 1
    sizes = torch.bincount(index, minlength=count)
    sums = torch.zeros(len(flat), count, dtype=flat.dtype, device=flat.device).index_add_(1, index, flat)
    return (sums / sizes)[:, index].reshape(face.shape).to(face.dtype)


def blurred(face: Tensor, side: int | None = None) -> Tensor:
    """Blur a face with a box: SHAP's fill, and SOBOL's as its paper words it.

    Args:
        face: (1, 3, H, W) in [0, 1].
        side: Side of the box in pixels; None takes the share of the picture that 128 is of 224.
    """
    from scipy import ndimage

    side = side or max(2, round(face.shape[2] * BLUR_SIDE / BLUR_OF))
    # The border is mirrored without its edge pixel, as OpenCV's box filter does.
    blur = ndimage.uniform_filter(face.detach().cpu().double().numpy(), (1, 1, side, side), mode="mirror")
    return torch.from_numpy(blur).to(face)


def neutral(face: Tensor, detector: Detector) -> Tensor:
    """Return the colour that the detector's normalisation turns into 0, everywhere: RISE's fill."""
    return detector.mean.to(face).expand_as(face).contiguous()
