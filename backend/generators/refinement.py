"""Bring inversions closer to their faces by a few steps of latent optimisation.

The encoder's codes are moved by Adam so that the drawing comes closer to the face (optimisation in W+: Abdal et al.
2019, section 3; from an encoder's codes, and held near them: Zhu et al. 2020, section 3.3). Codes far from those
that the encoder gives draw faces that no longer react to edits as faces do, so few steps are better than many.
"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen
from backend.views import resized

MOST_STEPS = 500
SMALLEST_SPREAD = 1e-3  # of a code, so that one at the average can move too


@dataclass(frozen=True)
class RefineSettings:
    """Settings of a refinement; it draws nothing at random.

    Args:
        steps: How many steps.
        rate: Length of Adam's first steps, in spreads of the face's own code around the average; it falls to zero
            along a half cosine.
        pull: Weight of the mean squared distance to the encoder's code, in squared spreads, beside the mean absolute
            and the mean squared error of the picture.
    """

    steps: int = 15
    rate: float = 0.08
    pull: float = 0.1

    def check(self) -> None:
        """Refuse what cannot be done.

        Raises:
            UserError: A setting is out of its range.
        """
        if not 1 <= self.steps <= MOST_STEPS:
            raise UserError(
                f"A reconstruction cannot be refined in {self.steps} steps.", f"Use 1 to {MOST_STEPS} steps."
            )
        if not (math.isfinite(self.rate) and self.rate > 0 and math.isfinite(self.pull) and self.pull >= 0):
            raise UserError("The rate must be above 0, and the pull not below.", "Leave them out for the usual ones.")


@dataclass(frozen=True, eq=False)
class Refined:
    """Result of a refinement of N faces.

    Args:
        codes: Refined codes (N, rows, 512); of all steps those whose drawing was closest to the face.
        psnr_before: PSNR (N,) in dB of the inversion, at the generator's size.
        psnr_after: The same after the refinement; never lower.
        settings: Settings of the refinement.
        generator: Name of the generator.
        seconds: Time taken.
    """

    codes: Tensor
    psnr_before: Tensor
    psnr_after: Tensor
    settings: RefineSettings
    generator: str
    seconds: float

    @property
    def summary(self) -> str:
        """Say in one sentence what was gained."""
        before, after = float(self.psnr_before.mean()), float(self.psnr_after.mean())
        average = " on average" if len(self.psnr_before) > 1 else ""
        return (
            f"In {self.settings.steps} steps, the reconstruction was brought closer to the face: "
            f"from {before:.1f} to {after:.1f} dB PSNR{average}."
        )


def refine(inverter: Inverter, faces: Tensor, codes: Tensor, settings: RefineSettings | None = None) -> Job[Refined]:
    """Move the codes of several faces so that the generator draws the faces more closely.

    Args:
        inverter: Its generator is used; its encoder is not.
        faces: Aligned faces (N, 3, H, W) in [0, 1].
        codes: Where to start, (N, rows, 512), as `inverter.invert` gives them.
        settings: Settings of the refinement.

    Yields:
        One step for every update; the preview is the first face's drawing, `psnr` the mean PSNR in dB so far.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or RefineSettings()
    settings.check()
    started = time.perf_counter()
    with frozen(inverter.generator):
        state = _State(inverter, faces, codes, settings)
        for number in range(settings.steps):
            with MODEL_LOCK:
                state.move(number)
            message = f"The reconstruction is brought closer: {state.psnr().mean():.1f} dB."
            yield Step(number + 1, settings.steps, message, state.drawn[:1].cpu(), {"psnr": float(state.psnr().mean())})
        with MODEL_LOCK, torch.no_grad():
            state.look(inverter.synthesize(state.codes()))
    return Refined(
        codes=state.kept_codes,
        psnr_before=state.before.cpu(),
        psnr_after=state.psnr().cpu(),
        settings=settings,
        generator=inverter.name,
        seconds=time.perf_counter() - started,
    )


class _State:
    """What a refinement knows between two steps; every tensor has one entry a face."""

    def __init__(self, inverter: Inverter, faces: Tensor, codes: Tensor, settings: RefineSettings) -> None:
        self.inverter, self.settings = inverter, settings
        target = inverter.latent_average.device
        self.faces = resized(faces.detach().to(target), inverter.size)
        self.start = codes.detach().to(target)
        spread = (self.start - inverter.latent_average).flatten(1).std(dim=1)
        self.spread = spread.clamp_min(SMALLEST_SPREAD)[:, None, None]
        self.offset = torch.zeros_like(self.start, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.offset], settings.rate)
        self.kept_codes = self.start.clone()
        self.error = torch.full_like(spread, float("inf"))
        self.before = torch.zeros_like(spread)
        self.drawn = self.faces

    def codes(self) -> Tensor:
        """Return where the codes are, (N, rows, 512)."""
        return self.start + self.spread * self.offset

    def move(self, number: int) -> None:
        """Draw the faces, keep what is closest so far, and move the codes by one step."""
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.enable_grad():
            drawn = self.inverter.synthesize(self.codes(), clamp=False)
            difference = (drawn - self.faces).flatten(1)
            pull = self.settings.pull * self.offset.square().flatten(1).mean(dim=1)
            # The sum over faces, so that each moves as it would alone.
            loss = (difference.abs().mean(dim=1) + difference.square().mean(dim=1) + pull).sum()
            (self.offset.grad,) = torch.autograd.grad(loss, self.offset)
        self.look(drawn.detach().clamp(0, 1))
        if number == 0:
            self.before = self.psnr()
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * (1 + math.cos(math.pi * number / self.settings.steps)) / 2
        self.optimizer.step()

    @torch.no_grad()
    def look(self, drawn: Tensor) -> None:
        """Take in the drawings (N, 3, S, S) in [0, 1] of the codes as they are."""
        self.drawn = drawn
        error = (drawn - self.faces).square().flatten(1).mean(dim=1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.kept_codes[better] = self.codes()[better]

    def psnr(self) -> Tensor:
        """Return the PSNR (N,) in dB of the closest drawings so far."""
        return -10 * torch.log10(self.error.clamp_min(1e-10))
