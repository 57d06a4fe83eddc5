"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) and Grad-CAM++ (Chattopadhay et al. 2018, arXiv 1710.11063).

Both are computed by the package `grad-cam`.
"""

from typing import Literal

import torch

from backend.errors import UserError
from backend.explain.base import Question, RawMap, register_explainer
from backend.progress import Job, Step


@register_explainer(
    "gradcam",
    title="Grad-CAM",
    about="Reads from one layer of the network which places speak for the verdict.",
    signed=False,
    passes=3,
    order=50,
)
def gradcam(question: Question) -> Job[RawMap]:
    """Explain with the last feature maps, each weighted by the mean of its gradient."""
    return (yield from _activation_map(question, "Grad-CAM"))


@register_explainer(
    "gradcampp",
    title="Grad-CAM++",
    about="As Grad-CAM, but weighs every place of the layer by itself, so that several small ones show.",
    signed=False,
    passes=3,
    order=60,
)
def gradcampp(question: Question) -> Job[RawMap]:
    """Explain with the last feature maps, weighted by their positive gradients pixel by pixel."""
    return (yield from _activation_map(question, "Grad-CAM++"))


def _activation_map(question: Question, variant: Literal["Grad-CAM", "Grad-CAM++"]) -> Job[RawMap]:
    """Compute the map of one variant in one forward and one backward pass."""
    from backend.detectors.gradcam import grad_cam  # its package takes seconds to import

    masked = question.masked
    try:
        cam = grad_cam(masked.detector, masked.face, masked.towards, variant=variant)
    except UserError as error:  # a detector without a layer to read; other methods explain it
        return RawMap(torch.zeros(masked.size), empty=str(error))
    masked.count(images=1, calls=1)
    yield Step(1, 1, f"{variant}: read the gradients at the layer {cam.layer}.")
    return RawMap(torch.from_numpy(cam.maps[0]), empty=cam.note if cam.empty[0] else "")
