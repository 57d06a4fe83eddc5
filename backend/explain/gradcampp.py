"""Grad-CAM++ as an explanation (Chattopadhay et al. 2018, arXiv 1710.11063), by the package `grad-cam`."""

from backend.explain.base import Question, RawMap, register_explainer
from backend.explain.gradcam import activation_map
from backend.progress import Job


@register_explainer(
    "gradcampp",
    title="Grad-CAM++",
    about="As Grad-CAM, but weighs every place of the layer by itself, so that several small ones show.",
    signed=False,
    passes=3,
    order=60,
)
def gradcampp(question: Question) -> Job[RawMap]:
    """Explain with the last feature maps, weighted by their positive gradients pixel by pixel.

    Yields:
        One step.
    """
    return (yield from activation_map(question, "Grad-CAM++"))
