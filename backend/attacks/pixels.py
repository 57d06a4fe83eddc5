"""What attacks on pixels share: where they may change, the 8 bits that are saved, and the verdict on them."""

import time

import torch
from torch import Tensor

from backend.attacks.result import Attacked
from backend.detectors.card import THRESHOLD, Detector


def inside(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """Return a mask as booleans (N or 1, 1, H, W) on the images' device; None where everything may change.

    Args:
        mask: 1 or True where pixels may change, (H, W), (1, H, W) or (N, 1, H, W).
        images: (N, 3, H, W).

    Raises:
        ValueError: The mask has another size than the images, or says nothing for some of them.
    """
    if mask is None:
        return None
    region = mask.reshape(-1, 1, *mask.shape[-2:]).to(images.device) > 0
    if region.shape[-2:] != images.shape[-2:] or len(region) not in (1, len(images)):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit images {tuple(images.shape)}")
    return region


def put_back(made: Tensor, original: Tensor, region: Tensor | None) -> Tensor:
    """Return attacked pictures as they are saved: in [0, 1], in 8 bits, and bit-exact originals outside the region."""
    saved = (made.detach().clamp(0, 1) * 255).round() / 255
    return saved if region is None else torch.where(region, saved, original)


@torch.no_grad()
def judged(
    title: str,
    original: Tensor,
    made: Tensor,
    detector: Detector,
    settings: object,
    *,
    started: float,
    iterations: int = 1,
    image_count: int = 0,
    call_count: int = 0,
) -> Attacked:
    """Ask the detector before and after, and gather the result on the CPU.

    Args:
        title: Name of the attack for people.
        original: Faces (N, 3, H, W) in [0, 1].
        made: The attacked ones, as they are saved.
        detector: What judges.
        settings: Settings of the attack.
        started: `time.perf_counter()` at its beginning.
        iterations: Updates that every face went through.
        image_count: Pictures that the detector was asked about until now.
        call_count: Batches that it was asked in until now.
    """
    before, after = detector.p_fake(original).cpu(), detector.p_fake(made).cpu()
    already_real = before < THRESHOLD
    flipped = ~already_real & (after < THRESHOLD)
    return Attacked(
        images=made.cpu(),
        p_before=before,
        p_after=after,
        flipped=flipped,
        already_real=already_real,
        iterations=torch.full((len(made),), iterations),
        image_count=image_count + 2 * len(made),
        call_count=call_count + 2,
        settings=settings,
        seconds=time.perf_counter() - started,
        summary=told(title, detector.card.title, original, made, already_real, flipped, before, after),
    )


def told(
    title: str,
    detector: str,
    original: Tensor,
    made: Tensor,
    already_real: Tensor,
    flipped: Tensor,
    before: Tensor,
    after: Tensor,
) -> str:
    """Say in plain words what an attack did; arguments as those of `judged`, on one device each."""
    levels = float((made - original).abs().max() * 255) if made.numel() else 0.0
    change = f"No pixel moved by more than {levels:.3g} of 255 grey levels."
    if len(made) == 1:
        told = f"{title}: p_fake by {detector} went from {float(before[0]):.2f} to {float(after[0]):.2f}. {change}"
        return f"{told} The face was called real to begin with." if bool(already_real[0]) else told
    fake = int((~already_real).sum())
    called = f"{int(flipped.sum())} of {fake} faces that {detector} called fake are called real now"
    return f"{title}: {called}; {len(made) - fake} were called real to begin with. {change}"
