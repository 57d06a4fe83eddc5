"""XRAI: regions grown by their integrated gradients (Kapishnikov et al. 2019, arXiv 1906.02825).

The gradients are ours and follow the log-odds, which do not saturate; the package `saliency` segments the face at
six scales and grows the regions.
"""

import numpy as np
import torch
from torch import Tensor

from backend.explain.base import Question, RawMap, register_explainer
from backend.progress import Job, Step

NAME = "XRAI"
BATCH = 32  # pictures with their gradients at once


@register_explainer(
    "xrai",
    title="XRAI",
    about="Fades the face in from black and from white, adds up the gradients, and ranks whole regions by them.",
    signed=False,
    sample="steps from each baseline",
    samples=(25, 100),
    passes=6,
    order=70,
)
def xrai(question: Question) -> Job[RawMap]:
    """Explain with the mean attribution of the region that a pixel belongs to.

    `question.samples` is the number of steps from each of two baselines: the darkest and the brightest value of the
    face, everywhere.

    Yields:
        One step a batch of gradients, and one for the regions.
    """
    face, steps = question.masked.face, question.samples
    total = 2 * steps + 1
    low, high = face.min(), face.max()
    if low == high:
        return RawMap(torch.zeros(question.masked.size), empty="The face is one even colour; it has no regions.")
    attributions = []
    for number, value in enumerate((low, high)):
        sums = torch.zeros_like(face)
        difference = face - value
        for shares in torch.linspace(0, 1, steps, device=face.device).split(min(BATCH, question.masked.batch)):
            sums += question.masked.gradients(value + shares[:, None, None, None] * difference).sum(0)
            done = number * steps + round(float(shares[-1]) * (steps - 1)) + 1
            yield Step(done, total, f"{NAME}: {done} of {2 * steps} gradients.")
        attributions.append(difference * sums / steps)
    merged = torch.stack(attributions).mean(0)[0]
    if not merged.isfinite().all() or not merged.any():
        return RawMap(torch.zeros(question.masked.size), empty="The detector's answer has no slope on the way here.")
    saliency = _grow(face[0], merged)
    yield Step(total, total, f"{NAME}: the regions have grown.")
    return RawMap(saliency)


def _grow(face: Tensor, attribution: Tensor) -> Tensor:
    """Return the map (H, W) of the package from a face and its attribution (3, H, W)."""
    from saliency.core import XRAI

    picture, attributed = (one.permute(1, 2, 0).cpu().double().numpy() for one in (face, attribution))
    grown = XRAI().GetMask(picture, call_model_function=None, base_attribution=attributed)
    return torch.from_numpy(np.ascontiguousarray(grown, dtype=np.float32))
