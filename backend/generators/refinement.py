"""Bring a reconstruction closer to the face: refine its code, or tune a copy of the generator to it.

Refinement moves the code by a few steps of Adam and keeps the generator. Tuning keeps the code and moves a copy of the
generator (pivotal tuning, Roich et al. 2021, sections 3.2 and 3.3); the shared one is never changed.
"""

import copy
import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.alignment import resize_square
from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen
from backend.similarity import batch_psnr, best_perceptual_distance

MOST_REFINE_STEPS = 500
SMALLEST_SPREAD = 1e-3  # of a code, so that one at the average can move too


@dataclass(frozen=True)
class RefineSettings:
    """Settings of a refinement; it draws nothing at random.

    Args:
        steps: From 1 to 500.
        rate: Length of Adam's first steps, in spreads of the face's code around the average; it falls to zero along a
            half cosine.
        pull: Weight of the mean squared distance to the encoder's code, in squared spreads, beside the mean absolute
            and the mean squared error of the picture.
    """

    steps: int = 15
    rate: float = 0.08
    pull: float = 0.1

    def check(self) -> None:
        """Raise a UserError where a setting is out of its range."""
        if not 1 <= self.steps <= MOST_REFINE_STEPS:
            raise UserError(
                f"A reconstruction cannot be refined in {self.steps} steps.", f"Use 1 to {MOST_REFINE_STEPS} steps."
            )
        if not (math.isfinite(self.rate) and self.rate > 0 and math.isfinite(self.pull) and self.pull >= 0):
            raise UserError(
                "The rate must be greater than 0 and the pull at least 0.", "Leave them out for the defaults."
            )


@dataclass(frozen=True, eq=False)
class Refined:
    """Result of a refinement of N faces.

    Args:
        codes: Refined codes (N, rows, 512), from the step whose drawing was closest to the face.
        psnr_before: PSNR (N,) in dB of the inversion, at the generator's size.
        psnr_after: The same after the refinement; never lower.
        generator: Name of the generator.
    """

    codes: Tensor
    psnr_before: Tensor
    psnr_after: Tensor
    settings: RefineSettings
    generator: str
    seconds: float

    @property
    def summary(self) -> str:
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
        codes: Where to start, (N, rows, 512), from `inverter.invert`.
        settings: By default `RefineSettings()`.

    Yields:
        One step per update; the preview is the first face's drawing, `psnr` the mean PSNR in dB so far.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or RefineSettings()
    settings.check()
    started = time.perf_counter()
    with frozen(inverter.generator):
        state = _Refinement(inverter, faces, codes, settings)
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


class _Refinement:
    """State of a refinement between two steps; every tensor has one entry per face."""

    def __init__(self, inverter: Inverter, faces: Tensor, codes: Tensor, settings: RefineSettings) -> None:
        self.inverter, self.settings = inverter, settings
        target = inverter.latent_average.device
        self.faces = resize_square(faces.detach().to(target), inverter.size)
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
        return self.start + self.spread * self.offset

    def move(self, number: int) -> None:
        """Draw the faces, keep the closest codes so far, and move the codes by one step."""
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
        """Take in the drawings (N, 3, S, S) in [0, 1] of the current codes."""
        self.drawn = drawn
        error = (drawn - self.faces).square().flatten(1).mean(dim=1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.kept_codes[better] = self.codes()[better]

    def psnr(self) -> Tensor:
        """Return the PSNR (N,) in dB of the closest drawings so far."""
        return -10 * torch.log10(self.error.clamp_min(1e-10))


MOST_TUNE_STEPS = 500
PERCEPTUAL_SIDE = 256  # largest side in pixels for perceptual comparisons, the size that such networks were trained on
LOCALITY_DISTANCE = 30.0  # from the tuned codes to those at which the drawings are preserved (section 3.3)


@dataclass(frozen=True)
class TuneSettings:
    """Settings of a tuning.

    Args:
        steps: From 1 to 500.
        rate: Adam's rate; it falls to zero along a half cosine.
        perceptual_weight: Weight of the perceptual distance beside the mean squared error, for pictures in [-1, 1].
        locality: Weight of the loss that preserves drawings of other codes; 0 leaves it out, the paper's is 0.1.
        seed: Of these other codes.
    """

    steps: int = 50
    rate: float = 3e-4
    perceptual_weight: float = 1.0
    locality: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise a UserError where a setting is out of its range."""
        if not 1 <= self.steps <= MOST_TUNE_STEPS:
            raise UserError(f"A generator cannot be tuned in {self.steps} steps.", f"Use 1 to {MOST_TUNE_STEPS} steps.")
        weights = (self.perceptual_weight, self.locality)
        if not (math.isfinite(self.rate) and self.rate > 0 and all(0 <= weight < math.inf for weight in weights)):
            raise UserError("The rate must be greater than 0, no weight below 0.", "Leave them out for the defaults.")


@dataclass(frozen=True, eq=False)
class Tuned:
    """Result of a tuning for N faces.

    Args:
        inverter: The same encoder with the tuned copy of the generator.
        psnr_before: PSNR (N,) in dB of the shared generator's drawings.
        psnr_after: The same of the copy's; on average never lower.
        perceptual: Name of the perceptual distance.
    """

    inverter: Inverter
    psnr_before: Tensor
    psnr_after: Tensor
    perceptual: str
    settings: TuneSettings
    seconds: float

    @property
    def summary(self) -> str:
        before, after = float(self.psnr_before.mean()), float(self.psnr_after.mean())
        average = " on average" if len(self.psnr_before) > 1 else ""
        if torch.equal(self.psnr_before, self.psnr_after):
            return (
                f"Tuning a copy of the generator to the face in {self.settings.steps} steps took {self.seconds:.0f} "
                f"seconds and gained nothing ({before:.1f} dB PSNR{average}), so the generator was used as it is."
            )
        return (
            f"A copy of the generator was tuned to the face in {self.settings.steps} steps, which took "
            f"{self.seconds:.0f} seconds and brought its drawing from {before:.1f} to {after:.1f} dB PSNR{average}."
        )


def tune(inverter: Inverter, faces: Tensor, codes: Tensor, settings: TuneSettings | None = None) -> Job[Tuned]:
    """Tune a copy of the generator so that it draws the faces from their codes.

    Args:
        inverter: Its generator is copied; neither it nor the encoder is changed.
        faces: Aligned faces (N, 3, H, W) in [0, 1]; the copy is tuned to all of them together.
        codes: Their codes (N, rows, 512).
        settings: By default `TuneSettings()`.

    Yields:
        One step per update; the preview is the first face's drawing, `psnr` the mean PSNR in dB before the update.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or TuneSettings()
    settings.check()
    started = time.perf_counter()
    with MODEL_LOCK:
        state = _Tuning(inverter, faces, codes, settings)
    for number in range(settings.steps):
        with MODEL_LOCK:
            drawn = state.move(number)
        psnr = float(batch_psnr(drawn, state.faces).mean())
        message = f"A copy of the generator is tuned to the face: {psnr:.1f} dB."
        yield Step(number + 1, settings.steps, message, drawn[:1].cpu(), {"psnr": psnr})
    with MODEL_LOCK:
        tuned, before, after = state.finish()
    return Tuned(tuned, before.cpu(), after.cpu(), state.perceptual.name, settings, time.perf_counter() - started)


class _Tuning:
    def __init__(self, inverter: Inverter, faces: Tensor, codes: Tensor, settings: TuneSettings) -> None:
        self.shared, self.settings = inverter, settings
        target = inverter.latent_average.device
        self.faces = resize_square(faces.detach().to(target), inverter.size)
        self.codes = codes.detach().to(target)
        self.generator = copy.deepcopy(inverter.generator).eval().requires_grad_(False)
        # The mapping network is not used for given codes.
        self.weights = [weight for name, weight in self.generator.named_parameters() if not name.startswith("style.")]
        for weight in self.weights:
            weight.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.weights, settings.rate)
        self.perceptual = best_perceptual_distance()
        with torch.no_grad():
            self.before = batch_psnr(inverter.synthesize(self.codes), self.faces)

    def move(self, number: int) -> Tensor:
        """Draw the faces in [0, 1], move the weights by one step, and return the drawings."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.rate * (1 + math.cos(math.pi * number / self.settings.steps)) / 2
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.enable_grad():
            drawn = self.generator.synthesize(self.codes)
            loss = self._distance(drawn, self.faces * 2 - 1)
            if self.settings.locality:
                loss = loss + self.settings.locality * self._locality(number)
            gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        for weight, gradient in zip(self.weights, gradients, strict=True):
            weight.grad = gradient
        self.optimizer.step()
        return ((drawn.detach() + 1) / 2).clamp(0, 1)

    @torch.no_grad()
    def finish(self) -> tuple[Inverter, Tensor, Tensor]:
        """Return the inverter with the frozen copy, or the shared one without a gain, and the PSNR before and after."""
        for weight in self.weights:
            weight.grad = None
        self.generator.requires_grad_(False)
        tuned = self.shared.with_generator(self.generator)
        after = batch_psnr(tuned.synthesize(self.codes), self.faces)
        if not after.mean() > self.before.mean():
            return self.shared, self.before, self.before
        return tuned, self.before, after

    def _distance(self, drawn: Tensor, target: Tensor) -> Tensor:
        side = min(drawn.shape[-1], PERCEPTUAL_SIDE)
        small = [F.interpolate(pictures, size=(side, side), mode="area") for pictures in (drawn, target)]
        perceptual = self.perceptual.distance(*small).mean()
        return F.mse_loss(drawn, target) + self.settings.perceptual_weight * perceptual

    def _locality(self, number: int) -> Tensor:
        """Return the distance of the copy's drawing from the shared one's, for a random code near the first face's."""
        randomness = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + number)
        z = torch.randn(1, self.generator.style_dim, generator=randomness).to(self.codes)
        with torch.no_grad():
            away = self.shared.generator.mapping(z)[:, None] - self.codes[:1]
            near = self.codes[:1] + LOCALITY_DISTANCE * away / away.flatten(1).norm()
            target = self.shared.generator.synthesize(near)
        return self._distance(self.generator.synthesize(near), target)
