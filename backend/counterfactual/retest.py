"""Ask the detectors that were not attacked."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from backend import verdicts
from backend.detectors import registry
from backend.detectors.card import verdict
from backend.runtime import MODEL_LOCK, device, frozen
from backend.views import Source

Scores = dict[str, tuple[Tensor, Tensor]]


def retest(
    original: Tensor,
    counterfactual: Tensor,
    attacked: str,
    detectors: Iterable[str] | None = None,
    sources: Source | Sequence[Source] | None = None,
) -> Scores:
    """Return p_fake before and after by every other detector.

    Args:
        original: Faces (N, 3, H, W) in [0, 1].
        counterfactual: The same faces as they are saved.
        attacked: Name of the detector that was searched against; it is left out.
        detectors: Names of the detectors to ask, by default all that can be loaded.
        sources: The photo of all faces, or one for each, from which detectors that want another crop are shown theirs.

    Returns:
        By name, p_fake (N,) of `original` and of `counterfactual`.
    """
    both = torch.cat([original, counterfactual]).to(device())
    twice = [*sources, *sources] if isinstance(sources, Sequence) else sources
    scores: Scores = {}
    for name in detectors if detectors is not None else registry.loadable():
        if name == attacked:
            continue
        detector = registry.load(name)
        with MODEL_LOCK, frozen(detector), torch.no_grad():
            p_fake = detector.p_fake(verdicts.seen_by(detector.card, both, twice)).cpu()
        scores[name] = (p_fake[: len(original)], p_fake[len(original) :])
    return scores


def in_words(scores: Mapping[str, tuple[float, float]]) -> str:
    """Say in one sentence how many of the others were turned along with it, for one face."""
    detected = [verdict(after) for before, after in scores.values() if verdict(before) == "fake"]
    if not scores:
        return "There is no other detector to ask."
    if not detected:
        return "No other detector called the face fake to begin with."
    real, uncertain = detected.count("real"), detected.count("uncertain")
    others = "1 other detector" if len(detected) == 1 else f"{len(detected)} other detectors"
    text = f"Of {others} that called it fake, {real} now {'calls' if real == 1 else 'call'} it real"
    return f"{text} and {uncertain} {'is' if uncertain == 1 else 'are'} uncertain." if uncertain else f"{text}."
