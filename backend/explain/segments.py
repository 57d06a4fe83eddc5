"""Segments of a face, the mean of a map in each, and the parts of the face they lie in.

SLIC superpixels (Achanta et al. 2012) with the settings of Adv-XAI-Deepfakes (2502.03957): one division for all
methods. Segments are numbered from 0, without gaps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from backend.errors import UserError
from backend.faces import part_masks

COMPACTNESS, ITERATIONS = 10.0, 10
# Noise merges segments. Of 277 photographs cut into about 50, the fewest were 25 and the largest had 0.15 of the face.
FEWEST = 0.3  # of the number of segments that was requested
LARGEST, TIMES = 0.25, 8.0  # share of the face in one segment, or this many times the usual size
SHARE = 0.25  # of a segment's pixels that a part of the face must hold to be named


def slic_segments(face: Tensor, count: int = 50) -> Tensor:
    """Divide a face (3, H, W) in [0, 1] into about `count` segments of similar colour; 50 give about 42.

    Returns:
        int64 (H, W) on the CPU, from 0 without gaps.

    Raises:
        UserError: There are far fewer, or one is far too large, as in a face full of noise.
    """
    from skimage.segmentation import slic

    picture = np.ascontiguousarray(face.detach().cpu().permute(1, 2, 0).numpy())
    numbers = slic(
        picture,
        n_segments=count,
        compactness=COMPACTNESS,
        sigma=0,
        max_num_iter=ITERATIONS,
        convert2lab=True,
        start_label=1,
        channel_axis=-1,
    )
    _, labels = np.unique(numbers, return_inverse=True)
    segments = torch.from_numpy(labels.reshape(numbers.shape)).long()
    sizes = segment_sizes(segments)
    if len(sizes) < FEWEST * count or sizes.max() > max(LARGEST, TIMES / count) * segments.numel():
        raise UserError(
            f"This face cannot be divided into about {count} segments: there are {len(sizes)} of very different sizes.",
            "Use a photo with less noise.",
        )
    return segments


def segment_sizes(labels: Tensor) -> Tensor:
    """Return how many pixels each segment has, int64 (S,), for segments (H, W)."""
    return torch.bincount(labels.flatten())


def segment_scores(saliency: Tensor, labels: Tensor) -> Tensor:
    """Return the mean of a map (H, W) in each segment, float64 (S,) on the CPU; `labels` run from 0 without gaps.

    Raises:
        ValueError: Map and segments have different sizes.
    """
    if saliency.shape != labels.shape:
        raise ValueError(f"a map {tuple(saliency.shape)} does not fit segments {tuple(labels.shape)}")
    flat = labels.cpu().flatten()
    sums = torch.bincount(flat, weights=saliency.detach().cpu().double().flatten())
    return sums / segment_sizes(flat)


def rank_scores(scores: Tensor) -> Tensor:
    """Return the indices of scores (S,) from the highest to the lowest, int64 (S,); of equal ones, the last first."""
    return scores.argsort(stable=True).flip(0)


def top_mask(labels: Tensor, order: Tensor | Sequence[int], k: int) -> Tensor:
    """Return the union of the first `k` segments of an order as booleans (H, W), for segments (H, W)."""
    return torch.isin(labels, torch.as_tensor(order[:k], device=labels.device))


def segment_parts(labels: Tensor, landmarks: np.ndarray) -> list[tuple[str, ...]]:
    """Name the parts of the face that each segment lies in.

    Args:
        labels: int64 (H, W), from 0 without gaps.
        landmarks: (5, 2), x and y in crop pixels: left and right eye, nose, left and right corner of the mouth.

    Returns:
        For every segment, the names out of `backend.faces.FACE_PARTS` that hold at least `SHARE` of it, the largest
        share first; if there is none, the name with the largest share.
    """
    masks = part_masks(landmarks, (labels.shape[0], labels.shape[1]))
    flat, sizes = labels.cpu().flatten(), segment_sizes(labels.cpu())
    names = list(masks)
    inside = torch.stack(
        [torch.bincount(flat[torch.from_numpy(mask.ravel())], minlength=len(sizes)) for mask in masks.values()], dim=1
    )
    shares = inside / sizes[:, None]
    parts = []
    for share in shares:
        order = share.argsort(descending=True, stable=True).tolist()
        parts.append(tuple(names[place] for place in order if share[place] >= SHARE) or (names[order[0]],))
    return parts


def places_in_words(order: Sequence[int], parts: Sequence[tuple[str, ...]], *, numbered: bool = False) -> str:
    """Say where segments lie, in the order given: "eyes; nose and cheeks"; `numbered` puts 1, 2, ... before them."""
    places = [" and ".join(parts[segment]) for segment in order]
    return "; ".join(f"{number} {place}" if numbered else place for number, place in enumerate(places, start=1))
