"""The noise of antithetic probes, and its division into batches."""

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

Noise = Literal["channel", "grey"]


def noise_source(seed: int, place: int, device: torch.device) -> torch.Generator:
    """Return the source of the noise of the face at a place in the batch; no other face draws from it."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + place)


def draw(source: torch.Generator, pairs: int, picture: Tensor, noise: Noise) -> Tensor:
    """Draw standard normal noise (pairs, 3, H, W) for a picture (3, H, W); grey noise is (pairs, 1, H, W)."""
    channels = len(picture) if noise == "channel" else 1
    return torch.randn(pairs, channels, *picture.shape[1:], generator=source, device=picture.device)


def batches(places: list[int], pairs: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """Divide the pairs of several faces into batches.

    Args:
        places: Which faces are asked about.
        pairs: How many pairs each face has.
        batch: How many pictures at most one batch has, at least 2.

    Yields:
        For every batch, the faces in it and how many of their pairs; both pictures of a pair are in one batch.
    """
    room = batch // 2
    work: list[tuple[int, int]] = []
    for place in places:
        left = pairs
        while left:
            taken = min(left, room)
            work.append((place, taken))
            left, room = left - taken, room - taken
            if not room:
                yield work
                work, room = [], batch // 2
    if work:
        yield work
