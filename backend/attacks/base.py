"""What attacks share: their result, where pixels may change, and steps against the gradient of the log-odds.

FGSM, MIFGSM and PGD are white-box attacks: they see the gradient of the detector. Every face is attacked, even one that
is below the threshold from the start, because other detectors may judge it afterwards.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import torch
from torch import Tensor

from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.inference import for_inference
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen

# `artifact_eraser` is the form of Artifact-Eraser's code (arXiv 2404.08341); `paper000` is its former name.
AttackVariant = Annotated[
    Literal["standard", "artifact_eraser"],
    pydantic.BeforeValidator(lambda name: "artifact_eraser" if name == "paper000" else name),
]
PixelLength = Annotated[float, pydantic.Field(ge=0, le=1)]  # in values of a picture; 8/255 is 8 of 255 grey levels
Count = Annotated[int, pydantic.Field(ge=1)]
AttackMove = Callable[[Tensor, Tensor], Tensor]  # pictures and their gradient to the next pictures


@dataclass(frozen=True)
class Attacked:
    """Faces after an attack and one detector's verdicts on them.

    Args:
        images: Attacked faces (N, 3, H, W) in [0, 1] on the CPU. Attacks whose pictures are saved round changed pixels
            to 8 bits; NES does not, and as released it may leave [0, 1].
        p_before: Probability of fake (N,) in [0, 1] before the attack.
        p_after: Probability of fake (N,) in [0, 1] of `images`.
        flipped: Whether a face that was called fake is below the threshold now (N,).
        already_real: Whether a face was below the threshold from the start (N,).
        iterations: Updates of each face (N,).
        image_count: Pictures that the detector judged.
        call_count: Batches that it judged them in.
        settings: Settings of the attack, including its seed.
        summary: What happened, one paragraph in plain words.
    """

    images: Tensor
    p_before: Tensor
    p_after: Tensor
    flipped: Tensor
    already_real: Tensor
    iterations: Tensor
    image_count: int
    call_count: int
    settings: Any
    seconds: float
    summary: str


def mask_region(mask: Tensor | None, images: Tensor) -> Tensor | None:
    """Return a mask as booleans (N or 1, 1, H, W) on the images' device; None where everything may change.

    Args:
        mask: 1 or True where pixels may change, (H, W), (1, H, W) or (N, 1, H, W).
        images: (N, 3, H, W).

    Raises:
        ValueError: The mask differs from the images in size or number.
    """
    if mask is None:
        return None
    region = mask.reshape(-1, 1, *mask.shape[-2:]).to(images.device) > 0
    if region.shape[-2:] != images.shape[-2:] or len(region) not in (1, len(images)):
        raise ValueError(f"a mask of shape {tuple(mask.shape)} does not fit images {tuple(images.shape)}")
    return region


def restore_outside(attacked: Tensor, original: Tensor, region: Tensor | None) -> Tensor:
    """Return attacked pictures as they are saved: in [0, 1], in 8 bits, and bit-exact originals outside the region."""
    saved = (attacked.detach().clamp(0, 1) * 255).round() / 255
    return saved if region is None else torch.where(region, saved, original)


@torch.no_grad()
def judge_attack(
    title: str,
    original: Tensor,
    attacked: Tensor,
    detector: Detector,
    settings: object,
    *,
    started: float,
    iterations: int = 1,
    image_count: int = 0,
    call_count: int = 0,
) -> Attacked:
    """Judge faces before and after an attack, and return the result on the CPU.

    Args:
        title: Name of the attack for people.
        original: Faces (N, 3, H, W) in [0, 1].
        attacked: The attacked faces, as they are saved.
        detector: The judge.
        settings: Settings of the attack.
        started: `time.perf_counter()` at the start of the attack.
        iterations: Updates of every face.
        image_count: Pictures that the detector has judged so far.
        call_count: Batches that it judged them in.
    """
    before, after = detector.p_fake(original).cpu(), detector.p_fake(attacked).cpu()
    already_real = before < THRESHOLD
    flipped = ~already_real & (after < THRESHOLD)
    return Attacked(
        images=attacked.cpu(),
        p_before=before,
        p_after=after,
        flipped=flipped,
        already_real=already_real,
        iterations=torch.full((len(attacked),), iterations),
        image_count=image_count + 2 * len(attacked),
        call_count=call_count + 2,
        settings=settings,
        seconds=time.perf_counter() - started,
        summary=attack_in_words(title, detector.card.title, original, attacked, already_real, flipped, before, after),
    )


def attack_in_words(
    title: str,
    detector: str,
    original: Tensor,
    attacked: Tensor,
    already_real: Tensor,
    flipped: Tensor,
    before: Tensor,
    after: Tensor,
) -> str:
    """Describe in plain words what an attack did; arguments as in `judge_attack`."""
    levels = float((attacked - original).abs().max() * 255) if attacked.numel() else 0.0
    change = f"No pixel moved by more than {levels:.3g} of 255 grey levels."
    if len(attacked) == 1:
        text = f"{title}: p_fake by {detector} went from {float(before[0]):.2f} to {float(after[0]):.2f}. {change}"
        return f"{text} The face was below the detector's threshold to begin with." if bool(already_real[0]) else text
    fake = int((~already_real).sum())
    flips = f"{int(flipped.sum())} of {fake} faces that {detector} called fake are below its threshold now"
    return f"{title}: {flips}; {len(attacked) - fake} were below it to begin with. {change}"


def project_to_box(images: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """Return the pictures nearest to `images` within `epsilon` of the original in every value, and in [0, 1]."""
    return (original + (images - original).clamp(-epsilon, epsilon)).clamp(0, 1)


def descend_log_odds(
    title: str,
    images: Tensor,
    detector: Detector,
    settings: Any,
    move: AttackMove,
    *,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Job[Attacked]:
    """Make `settings.steps` moves against the gradient and judge the pictures as they are saved.

    Args:
        title: Name of the attack for people.
        images: Faces (N, 3, H, W) in [0, 1].
        detector: The target and the judge.
        settings: Settings of the attack, with `steps` and `variant`: `standard` descends the log-odds of fake, which
            never saturate; `artifact_eraser` descends the squared error (p_fake - 0)^2, whose gradient is 0 where
            p_fake is 1 in float32: such a face does not move.
        move: One step; `gradient` is that of the loss, 0 outside the mask.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.
        start: Pictures to start from, on the detector's device; by default the faces.
    """
    started = time.perf_counter()
    original = images.detach().to(detector.mean.device)
    region = mask_region(mask, original)
    fast = for_inference(detector)
    current, steps = original if start is None else start, settings.steps
    with frozen(detector, fast):
        for number in range(1, steps + 1):
            if region is not None:
                current = torch.where(region, current, original)
            with MODEL_LOCK:
                logit, gradient = _gradient(fast, current, settings.variant)
                if region is not None:
                    gradient = gradient * region
                current = move(current, gradient)
            p_fake = float(torch.sigmoid(logit).mean())
            message = f"Step {number} of {steps}: p_fake was {p_fake:.2f}."
            preview = restore_outside(current[:1], original[:1], None if region is None else region[:1])
            yield Step(number, steps, message, preview.cpu(), {"p_fake": p_fake, "log_odds": float(logit.mean())})
        with MODEL_LOCK:
            attacked = restore_outside(current, original, region)
            return judge_attack(
                title,
                original,
                attacked,
                detector,
                settings,
                started=started,
                iterations=steps,
                image_count=steps * len(original),
                call_count=steps,
            )


def _gradient(detector: Detector, images: Tensor, variant: AttackVariant) -> tuple[Tensor, Tensor]:
    """Return log-odds (N,) and the gradient of each face's loss (N, 3, H, W)."""
    with torch.enable_grad():
        leaf = images.detach().contiguous(memory_format=torch.channels_last).requires_grad_()  # faster convolutions
        logit = detector.logit_fake(leaf)
        loss = logit if variant == "standard" else torch.sigmoid(logit).square()
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return logit.detach(), gradient
