"""XRAI: regions grown by their integrated gradients (Kapishnikov et al. 2019, arXiv 1906.02825).

The gradients are ours and follow the log-odds, which do not saturate; the package `saliency` segments the face at
six scales and grows the regions.
"""

import numpy as np
import torch
from torch import Tensor

from backend.explain.base import Question, RawMap, register_explainer
from backend.progress import Job, Step

BATCH = 32  # pictures with their gradients at once


@register_explainer(
    "xrai",
    title="XRAI",
    about="Fades the face in from black and from white, adds up the gradients, and ranks whole regions by them.",
    signed=False,
    samples=(25, 100),  # steps from each baseline
    passes=6,
    order=70,
)
def xrai(question: Question) -> Job[RawMap]:
    """Explain with the mean attribution of the region that a pixel belongs to.

    `question.samples` is the number of steps from each of two uniform baselines: the darkest and the brightest value of
    the face.
    """
    face, steps = question.masked.face, question.samples
    total = 2 * steps + 1
    low, high = face.min(), face.max()
    if low == high:
        return RawMap(torch.zeros(question.masked.size), empty="The face is one uniform colour, so it has no regions.")
    attributions = []
    for number, value in enumerate((low, high)):
        sums = torch.zeros_like(face)
        difference = face - value
        for shares in torch.linspace(0, 1, steps, device=face.device).split(min(BATCH, question.masked.batch)):
            sums += question.masked.gradients(value + shares[:, None, None, None] * difference).sum(0)
            done = number * steps + round(float(shares[-1]) * (steps - 1)) + 1
            yield Step(done, total, f"XRAI: {done} of {2 * steps} gradients.")
        attributions.append(difference * sums / steps)
    merged = torch.stack(attributions).mean(0)[0]
    if not merged.isfinite().all() or not merged.any():
        return RawMap(
            torch.zeros(question.masked.size), empty="The detector's gradient is zero on the way to this face."
        )
    saliency = _grow(face[0], merged)
    yield Step(total, total, "XRAI: the regions are complete.")
    return RawMap(saliency)


def _grow(face: Tensor, attribution: Tensor) -> Tensor:
    """Grow regions in a face (3, H, W) by its attribution (3, H, W), and return the map (H, W)."""
    from saliency.core import XRAI

    picture, gradients = (tensor.permute(1, 2, 0).cpu().double().numpy() for tensor in (face, attribution))
    saliency = XRAI().GetMask(picture, call_model_function=None, base_attribution=gradients)
    return torch.from_numpy(np.ascontiguousarray(saliency, dtype=np.float32))
