"""What saving a picture again does to it: the traces that come back are those that a removal only covered."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend import images, verdicts
from backend.detectors import registry
from backend.detectors.card import verdict
from backend.views import Source

Save = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True)
class Resave:
    """The verdicts after one way of saving again.

    Args:
        name: The name that programs use.
        title: Name for people.
        p_fake: By detector, the probability of fake in [0, 1] of the original and of the removal, both saved again.
    """

    name: str
    title: str
    p_fake: dict[str, tuple[float, float]]


def jpeg(quality: int) -> Save:
    """Return a function that encodes a picture as JPEG and decodes it."""
    return lambda image: _encoded(image, "JPEG", quality=quality)


def webp(quality: int) -> Save:
    """Return a function that encodes a picture as lossy WebP and decodes it."""
    return lambda image: _encoded(image, "WEBP", quality=quality)


def rescaled(factor: float) -> Save:
    """Return a function that resizes a picture by a factor, and back."""

    def save(image: Image.Image) -> Image.Image:
        small = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
        return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)

    return save


SAVES: dict[str, tuple[str, Save]] = {
    "jpeg_90": ("JPEG 90", jpeg(90)),
    "jpeg_75": ("JPEG 75", jpeg(75)),
    "webp_80": ("WebP 80", webp(80)),
    "half_size": ("half size and back", rescaled(0.5)),
}


def resave(
    original: np.ndarray, removed: np.ndarray, detectors: list[str] | None = None, source: Source | None = None
) -> list[Resave]:
    """Save a face and its removal again in every way, and ask the detectors (all loadable ones by default).

    Args:
        original: The face, uint8 (S, S, 3).
        removed: The same after TR-Net.
        detectors: Names of detectors.
        source: The photo of the face. A detector that wants another crop is then shown its own of it, with the removal
            in it; that crop is what is saved again.
    """
    names = detectors if detectors is not None else registry.loadable()
    both = torch.cat([images.to_tensor(original), images.to_tensor(removed)])
    found: dict[str, list[float]] = {}
    for alike in verdicts.by_crop(names).values():
        seen = [images.to_array(one) for one in verdicts.seen_by(registry.card(alike[0]), both, source)]
        made = [save(Image.fromarray(picture)) for _, save in SAVES.values() for picture in seen]
        found |= verdicts.p_fake(torch.cat([images.to_tensor(np.asarray(one)) for one in made]), alike)
    scores = {name: found[name] for name in names}
    return [
        Resave(name, title, {one: (values[2 * row], values[2 * row + 1]) for one, values in scores.items()})
        for row, (name, (title, _)) in enumerate(SAVES.items())
    ]


def in_words(before: Mapping[str, tuple[float, float]], after: list[Resave]) -> str:
    """Say in one sentence whether verdicts come back.

    Args:
        before: By detector, p_fake of the original and of the removal, not saved again.
        after: What `resave` returned.
    """
    left = [name for name, (original, removed) in before.items() if verdict(original) == "fake" != verdict(removed)]
    if not any(verdict(original) == "fake" for original, _ in before.values()):
        return "No detector called the face fake, so there is no verdict that saving again could bring back."
    if not left:
        return (
            "Every detector that called it fake still does, so there is no verdict that saving again could bring back."
        )
    counts = [f"{sum(verdict(one.p_fake[name][1]) == 'fake' for name in left)} after {one.title}" for one in after]
    which = "the one detector that no longer calls" if len(left) == 1 else f"the {len(left)} that no longer call"
    return f"Of {which} it fake, these do again when it is saved again: {', '.join(counts)}."


def record(after: list[Resave]) -> dict[str, Any]:
    """Return the verdicts as plain values for JSON, by way of saving and detector."""
    return {one.name: {name: {"original": a, "removed": b} for name, (a, b) in one.p_fake.items()} for one in after}


def _encoded(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")
