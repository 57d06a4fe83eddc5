"""Fakes of kinds that no shipped detector learned, made from photographs, to choose by.

A choice by kinds that were learned would favour detectors that know these kinds and little else. The kinds here share
neither the generator nor the way of blending with the training fakes:

- `morph`: the mean of two faces after both were warped to their mean landmarks (face morphing);
- `multiband`: another person's inner face, blended in a Laplacian pyramid (Burt and Adelson 1983);
- `autoencoder`: a copy by GANprintR's autoencoder, which learned photographs alone (Neves et al. 2020).
"""

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from backend import runtime
from backend.attacks.ganprintr import load_ganprintr
from backend.face_packs import Photographs
from backend.fakes import LandmarkedPhotographs, inner_face, warp_to
from backend.images import round_to_bytes
from backend.progress import Job, Step

HELD_OUT_KINDS = ("morph", "multiband", "autoencoder")
CANDIDATES = 6  # photographs among which the most similar pose is taken
BANDS = 4  # of the Laplacian pyramid
MORPH_SHARE = (0.35, 0.65)  # of the second face


def make_held_out(photographs: Photographs, seed: int) -> Job[dict[str, tuple[Tensor, np.ndarray]]]:
    """Make one fake of every kind from each photograph in which a face is found.

    Returns:
        By kind, pictures uint8 (N, 3, S, S), and the index of the photograph that each was made from (N,).
    """
    landmarks = LandmarkedPhotographs(photographs)
    made: dict[str, list[np.ndarray]] = {kind: [] for kind in HELD_OUT_KINDS[:-1]}
    origins: list[int] = []
    for index in range(len(landmarks)):
        points = landmarks.landmarks_of(index)
        randomness = np.random.default_rng([seed, index])
        partner = landmarks.similar_pose(index, randomness, CANDIDATES)
        if points is None or partner is None:
            continue
        face, other, other_points = landmarks.picture(index), landmarks.picture(partner[0]), partner[1]
        made["morph"].append(morph(face, points, other, other_points, float(randomness.uniform(*MORPH_SHARE))))
        made["multiband"].append(multiband_swap(face, points, other, other_points))
        origins.append(index)
        if index % 50 == 0:
            yield Step(index, len(landmarks), "Fakes of other kinds")
    stacked = {kind: torch.from_numpy(np.stack(fakes)).permute(0, 3, 1, 2) for kind, fakes in made.items()}
    chosen = np.array(origins)
    stacked["autoencoder"] = copy_by_autoencoder(photographs.pictures[torch.from_numpy(chosen)])
    return {kind: (pictures, chosen) for kind, pictures in stacked.items()}


def morph(
    first: np.ndarray, first_points: np.ndarray, second: np.ndarray, second_points: np.ndarray, share: float
) -> np.ndarray:
    """Mix two faces, uint8 (S, S, 3), at the mean of their landmarks (5, 2); `share` is the second's."""
    between = (1 - share) * first_points + share * second_points
    return round_to_bytes(
        (1 - share) * warp_to(first, first_points, between) + share * warp_to(second, second_points, between)
    )


def multiband_swap(target: np.ndarray, points: np.ndarray, source: np.ndarray, source_points: np.ndarray) -> np.ndarray:
    """Put the source's inner face on the target, uint8 (S, S, 3), each band of frequencies with an edge of its own."""
    warped, background = warp_to(source, source_points, points), target.astype(np.float64)
    inside = inner_face(points, target.shape[0])
    chosen = inside > 0.5
    warped += background[chosen].mean(0) - warped[chosen].mean(0)  # only the mean colour, unlike the training swaps
    mixed = np.zeros_like(background)
    for band in range(BANDS):
        last = band == BANDS - 1
        soft = ndimage.gaussian_filter(inside, 2.0**band)[..., None]
        layers = [picture if last else picture - _smooth(picture, 2.0**band) for picture in (warped, background)]
        mixed += soft * layers[0] + (1 - soft) * layers[1]
        warped, background = _smooth(warped, 2.0**band), _smooth(background, 2.0**band)
    return round_to_bytes(mixed)


@torch.no_grad()
def copy_by_autoencoder(pictures: Tensor) -> Tensor:
    """Return GANprintR's copies of uint8 pictures (N, 3, S, S)."""
    network = load_ganprintr()
    parts = [network(part.to(runtime.device()).float() / 255).clamp(0, 1).cpu() for part in pictures.split(32)]
    return (torch.cat(parts) * 255).round().byte()


def _smooth(picture: np.ndarray, deviation: float) -> np.ndarray:
    return ndimage.gaussian_filter(picture, (deviation, deviation, 0), mode="nearest")
