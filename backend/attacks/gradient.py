"""What FGSM, MIFGSM and PGD share: steps against the gradient of a detector's log-odds of fake.

The detector is white-box: the attack sees its gradient. Every face is attacked, also one that is called real to
begin with, because it may be judged by other detectors afterwards.
"""

import math
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from backend.attacks.pixels import inside, judged, put_back
from backend.attacks.result import Attacked
from backend.detectors.card import Detector
from backend.errors import UserError
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen

Variant = Literal["standard", "paper000"]
VARIANTS: tuple[Variant, ...] = ("standard", "paper000")
Move = Callable[[Tensor, Tensor], Tensor]  # pictures and their gradient to the next pictures


def check(variant: Variant, lengths: dict[str, float], steps: int) -> None:
    """Refuse settings with which nothing can be attacked.

    Raises:
        UserError: A setting is out of its range.
    """
    if variant not in VARIANTS:
        raise UserError(f"There is no variant {variant}.", f"Use one of: {', '.join(VARIANTS)}.")
    for name, value in lengths.items():
        if not (math.isfinite(value) and 0 <= value <= 1):
            raise UserError(f"{name} is {value:g}.", f"Use {name} from 0 to 1; 8/255 is 8 of 255 grey levels.")
    if steps < 1:
        raise UserError("An attack needs at least one step.", "Use a number of steps from 1.")


def project(images: Tensor, original: Tensor, epsilon: float) -> Tensor:
    """Return the pictures nearest to `images` within `epsilon` of the original in every value, and in [0, 1]."""
    return (original + (images - original).clamp(-epsilon, epsilon)).clamp(0, 1)


def descend(
    title: str,
    images: Tensor,
    detector: Detector,
    settings: object,
    move: Move,
    *,
    steps: int,
    variant: Variant,
    mask: Tensor | None = None,
    start: Callable[[Tensor], Tensor] | None = None,
) -> Job[Attacked]:
    """Make `steps` moves against the gradient and judge the pictures as they are saved.

    Args:
        title: Name of the attack for people.
        images: Faces (N, 3, H, W) in [0, 1].
        detector: What is attacked, and what judges.
        settings: Settings of the attack, for the result.
        move: One step; `gradient` is that of the loss, 0 outside the mask.
        steps: How many.
        variant: `standard` descends the log-odds of fake, which never saturate; `paper000` the squared error
            (p_fake - 0)^2, whose gradient is 0 for a face of p_fake 1 in float32: such a face does not move.
        mask: 1 where pixels may change, (H, W) or (N, 1, H, W); everywhere by default.
        start: From the original to the pictures to start from; the original itself by default.
    """
    started = time.perf_counter()
    original = images.detach().to(detector.mean.device)
    region = inside(mask, original)
    current = original if start is None else start(original)
    with frozen(detector):
        for number in range(1, steps + 1):
            if region is not None:
                current = torch.where(region, current, original)
            with MODEL_LOCK:
                logit, gradient = _gradient(detector, current, variant)
                if region is not None:
                    gradient = gradient * region
                current = move(current, gradient)
            p_fake = float(torch.sigmoid(logit).mean())
            message = f"Step {number} of {steps}: p_fake was {p_fake:.2f}."
            shown = put_back(current[:1], original[:1], None if region is None else region[:1])
            yield Step(number, steps, message, shown.cpu(), {"p_fake": p_fake, "log_odds": float(logit.mean())})
        with MODEL_LOCK:
            made = put_back(current, original, region)
            return judged(
                title,
                original,
                made,
                detector,
                settings,
                started=started,
                iterations=steps,
                image_count=steps * len(original),
                call_count=steps,
            )


def _gradient(detector: Detector, images: Tensor, variant: Variant) -> tuple[Tensor, Tensor]:
    """Return log-odds (N,) and the gradient of every face's own loss (N, 3, H, W)."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        logit = detector.logit_fake(leaf)
        loss = logit if variant == "standard" else torch.sigmoid(logit).square()
        (gradient,) = torch.autograd.grad(loss.sum(), leaf)
    return logit.detach(), gradient
