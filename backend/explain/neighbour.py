"""A face that looks and scores nearly as another does, to see whether a map stays as it is.

Stability as in the code of XAI-Deepfakes (Tsigos et al. 2024, arXiv 2404.18649): the attack on the highest segments is
stopped while the score has hardly moved and the verdict stands.
"""

from torch import Tensor

from backend.attacks import nes
from backend.attacks.nes import NESSettings
from backend.detectors.card import THRESHOLD, Detector
from backend.explain.segments import rank, segment_scores, top_mask
from backend.progress import Job, Running

TOPS = 3  # segments that the attack may change
MOST = 0.10  # by which p_fake may have fallen


def neighbour(
    face: Tensor, detector: Detector, saliency: Tensor, labels: Tensor, settings: NESSettings | None = None
) -> Job[Tensor | None]:
    """Attack the highest segments of a map with NES, and return the last picture whose p_fake fell by at most `MOST`.

    Args:
        face: (1, 3, H, W) in [0, 1].
        detector: Whose verdict the map explains.
        saliency: The map (H, W), higher where more speaks for the verdict.
        labels: Segments (H, W), from 0 without gaps.
        settings: Settings of the attack.

    Yields:
        The steps of the attack.

    Returns:
        The picture (1, 3, H, W), still called fake; None where already the first update went further, so that there
        is none but the face itself.

    Raises:
        UserError: A setting is out of its range.
    """
    labels = labels.cpu()
    mask = top_mask(labels, rank(segment_scores(saliency, labels)), TOPS)
    kept, least = None, None
    with Running(nes.attack(face, detector, settings, mask)) as running:
        for step in running:
            if step.preview is not None:  # one that was asked about
                p_fake = step.values["p_fake"]
                if least is None:  # the face itself
                    least = max(THRESHOLD, p_fake - MOST)
                elif p_fake >= least:
                    kept = step.preview
            yield step
    return kept
