"""Where a detector says that a picture was forged: the second head of detectors that have one, drawn as a map."""

import torch
from torch.nn import functional as F

from backend.explain.base import EXPLAINERS, Question, RawMap, register_explainer
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen


@register_explainer(
    "mask",
    title="Forgery mask",
    about="Asks the detector itself where the picture was forged; only the self-blend detector learned to say.",
    signed=False,
    needs="forward_with_mask",
    order=90,
)
def forgery_mask(question: Question) -> Job[RawMap]:
    """Explain with the probability that each part was forged or, for `real`, that it was not."""
    masked = question.masked
    network = masked.detector.network
    if not EXPLAINERS["mask"].can_explain(masked.detector):
        title = masked.detector.card.title
        return RawMap(torch.zeros(masked.size), empty=f"{title} did not learn to say where a picture was forged.")
    with MODEL_LOCK, frozen(masked.detector), torch.no_grad():
        _, parts = network.forward_with_mask(masked.detector.prepare(masked.face))  # type: ignore[operator]
        shares = torch.sigmoid(parts if masked.towards == "fake" else -parts)
        saliency = F.interpolate(shares, masked.size, mode="bilinear", align_corners=False)
    masked.count(images=1, calls=1)
    yield Step(1, 1, "The detector said where the picture was forged.")
    return RawMap(saliency[0, 0].float().cpu())
