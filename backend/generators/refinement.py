"""Bring a reconstruction closer to the face: refine its code, add what no code describes, or tune the generator.

Refinement moves the code by a few steps of Adam and keeps the generator. In feature space, an offset of the feature
maps and of the picture at 32 pixels is found beside the finer rows (BDInvert, Kang et al. 2021, arXiv 2109.10040);
the coarser rows stay, so that they can be edited. Tuning keeps the code and moves a copy of the generator (pivotal
tuning, Roich et al. 2021, sections 3.2 and 3.3); the shared one is never changed.
"""

import copy
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.alignment import resize_square
from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import FeatureOffset
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen
from backend.similarity import batch_psnr, batch_ssim, best_perceptual_distance

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


@dataclass(frozen=True)
class FeatureSettings:
    """Settings of a refinement in feature space; it draws nothing at random.

    Rates are the lengths of Adam's first steps, which fall to zero along a half cosine.

    Args:
        steps: From 1 to 500.
        rate: Of the feature maps, in their spreads.
        picture_rate: Of the picture at the size of the feature maps, which is about -1 to 1.
        row_rate: Of the finer rows, in spreads of the face's code around the average.
        penalty: Weight of the mean squared offset of the feature maps, in squared spreads: with a large offset, edits
            change the picture less.
        pull: Weight of the mean squared change of the finer rows, in squared spreads.
        structure: Weight of 1 - SSIM, beside the mean absolute and the mean squared error of the picture.
    """

    steps: int = 25
    rate: float = 0.2
    picture_rate: float = 0.05
    row_rate: float = 0.08
    penalty: float = 0.1
    pull: float = 0.1
    structure: float = 0.3

    def check(self) -> None:
        """Raise a UserError where a setting is out of its range."""
        RefineSettings(self.steps).check()
        values = (self.rate, self.picture_rate, self.row_rate, self.penalty, self.pull, self.structure)
        if not all(math.isfinite(value) and value >= 0 for value in values):
            raise UserError("Rates and weights must be at least 0.", "Leave them out for the defaults.")


@dataclass(frozen=True, eq=False)
class Refined:
    """Result of a refinement of N faces.

    Args:
        codes: Refined codes (N, rows, 512), from the step whose drawing was closest to the face.
        offset: What the faces have beside their codes, from the same step; None where only codes were refined.
        psnr_before: PSNR (N,) in dB of the inversion, at the generator's size.
        psnr_after: The same after the refinement; never lower.
        generator: Name of the generator.
    """

    codes: Tensor
    psnr_before: Tensor
    psnr_after: Tensor
    settings: RefineSettings | FeatureSettings
    generator: str
    seconds: float
    offset: FeatureOffset | None = None

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
    return (yield from _run(lambda: _CodeRefinement(inverter, faces, codes, settings), inverter, settings))


def refine_features(
    inverter: Inverter,
    faces: Tensor,
    codes: Tensor,
    settings: FeatureSettings | None = None,
    start: FeatureOffset | None = None,
) -> Job[Refined]:
    """Find what the faces have beside their codes, and finer rows, so that the generator draws the faces closely.

    Args:
        inverter: Its generator is used; its encoder is not.
        faces: Aligned faces (N, 3, H, W) in [0, 1].
        codes: Codes (N, rows, 512), from `inverter.invert`; rows that act before the offset stay as they are.
        settings: By default `FeatureSettings()`.
        start: Where the offset starts; None begins without one.

    Yields:
        As `refine`.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or FeatureSettings()
    settings.check()
    return (yield from _run(lambda: _FeatureRefinement(inverter, faces, codes, settings, start), inverter, settings))


def _run(
    begin: Callable[[], "_Refinement"], inverter: Inverter, settings: RefineSettings | FeatureSettings
) -> Job[Refined]:
    started = time.perf_counter()
    with frozen(inverter.generator):
        with MODEL_LOCK:
            state = begin()
        for number in range(settings.steps):
            with MODEL_LOCK:
                state.move(number)
            message = f"The reconstruction is brought closer: {state.psnr().mean():.1f} dB."
            yield Step(number + 1, settings.steps, message, state.drawn[:1].cpu(), {"psnr": float(state.psnr().mean())})
        with MODEL_LOCK, torch.no_grad():
            state.look(state.draw())
    return Refined(
        codes=state.kept_codes,
        psnr_before=state.before.cpu(),
        psnr_after=state.psnr().cpu(),
        settings=settings,
        generator=inverter.name,
        seconds=time.perf_counter() - started,
        offset=state.kept_offset,
    )


class _Refinement(ABC):
    """State of a refinement between two steps; every tensor has one entry per face.

    `rates` are the lengths of Adam's first steps on each of the `moved` tensors.
    """

    rates: Sequence[float]
    moved: Sequence[Tensor]
    kept_offset: FeatureOffset | None = None

    def __init__(self, inverter: Inverter, faces: Tensor, codes: Tensor, steps: int) -> None:
        self.inverter, self.steps = inverter, steps
        target = inverter.latent_average.device
        self.faces = resize_square(faces.detach().to(target), inverter.size)
        self.start = codes.detach().to(target)
        spread = (self.start - inverter.latent_average).flatten(1).std(dim=1)
        self.spread = spread.clamp_min(SMALLEST_SPREAD)[:, None, None]
        self.kept_codes = self.start.clone()
        self.error = torch.full_like(spread, float("inf"))
        self.before = torch.zeros_like(spread)
        self.drawn = self.faces

    @abstractmethod
    def codes(self) -> Tensor:
        """Return the current codes (N, rows, 512)."""

    @abstractmethod
    def draw(self) -> Tensor:
        """Draw the faces (N, 3, S, S) as they are now, unclamped."""

    @abstractmethod
    def penalties(self) -> Tensor:
        """Return what is added to the errors of the drawings, (N,)."""

    def errors(self, drawn: Tensor) -> Tensor:
        """Return how far unclamped drawings are from the faces, (N,)."""
        difference = (drawn - self.faces).flatten(1)
        return difference.abs().mean(dim=1) + difference.square().mean(dim=1)

    def optimise(self, moved: Sequence[Tensor], rates: Sequence[float]) -> None:
        self.moved, self.rates = moved, rates
        groups = [{"params": [tensor], "lr": rate} for tensor, rate in zip(moved, rates, strict=True)]
        self.optimizer = torch.optim.Adam(groups)

    def move(self, number: int) -> None:
        """Draw the faces, keep what was closest so far, and make one step."""
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.enable_grad():
            drawn = self.draw()
            # The sum over faces, so that each moves as it would alone.
            gradients = torch.autograd.grad((self.errors(drawn) + self.penalties()).sum(), list(self.moved))
        self.look(drawn.detach())
        if number == 0:
            self.before = self.psnr()
        for tensor, gradient in zip(self.moved, gradients, strict=True):
            tensor.grad = gradient
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * number / self.steps)) / 2
        self.optimizer.step()

    @torch.no_grad()
    def look(self, drawn: Tensor) -> None:
        """Take in the current drawings (N, 3, S, S)."""
        self.drawn = drawn.clamp(0, 1)
        error = (self.drawn - self.faces).square().flatten(1).mean(dim=1)
        better = error < self.error
        self.error = torch.where(better, error, self.error)
        self.keep(better)

    def keep(self, better: Tensor) -> None:
        """Keep the current state of some faces, (N,)."""
        self.kept_codes[better] = self.codes()[better]

    def psnr(self) -> Tensor:
        """Return the PSNR (N,) in dB of the closest drawings so far."""
        return -10 * torch.log10(self.error.clamp_min(1e-10))


class _CodeRefinement(_Refinement):
    def __init__(self, inverter: Inverter, faces: Tensor, codes: Tensor, settings: RefineSettings) -> None:
        super().__init__(inverter, faces, codes, settings.steps)
        self.settings = settings
        self.change = torch.zeros_like(self.start, requires_grad=True)
        self.optimise([self.change], [settings.rate])

    def codes(self) -> Tensor:
        return self.start + self.spread * self.change

    def draw(self) -> Tensor:
        return self.inverter.synthesize(self.codes(), clamp=False)

    def penalties(self) -> Tensor:
        return self.settings.pull * self.change.square().flatten(1).mean(dim=1)


class _FeatureRefinement(_Refinement):
    def __init__(
        self,
        inverter: Inverter,
        faces: Tensor,
        codes: Tensor,
        settings: FeatureSettings,
        start: FeatureOffset | None,
    ) -> None:
        super().__init__(inverter, faces, codes, settings.steps)
        self.settings = settings
        generator = inverter.generator
        self.row = generator.offset_row
        self.begun = inverter.begin(self.start, self.row)
        begin = start or generator.no_offset(len(codes))
        features = self.begun.features.flatten(1).std(dim=1)
        self.features_spread = features.clamp_min(SMALLEST_SPREAD)[:, None, None, None]
        self.features = (begin.features.to(self.start) / self.features_spread).requires_grad_()
        self.picture = begin.picture.to(self.start).clone().requires_grad_()
        self.change = torch.zeros_like(self.start[:, self.row :], requires_grad=True)
        self.optimise(
            [self.features, self.picture, self.change], [settings.rate, settings.picture_rate, settings.row_rate]
        )
        self.kept_offset: FeatureOffset = FeatureOffset(begin.features.clone(), begin.picture.clone())

    def codes(self) -> Tensor:
        return torch.cat([self.start[:, : self.row], self.start[:, self.row :] + self.spread * self.change], dim=1)

    def offset(self) -> FeatureOffset:
        return FeatureOffset(self.features_spread * self.features, self.picture)

    def draw(self) -> Tensor:
        return self.inverter.synthesize_from(replace(self.begun, offset=self.offset()), self.codes(), clamp=False)

    def errors(self, drawn: Tensor) -> Tensor:
        return super().errors(drawn) + self.settings.structure * (1 - batch_ssim(drawn, self.faces))

    def penalties(self) -> Tensor:
        offset, change = (part.square().flatten(1).mean(dim=1) for part in (self.features, self.change))
        return self.settings.penalty * offset + self.settings.pull * change

    def keep(self, better: Tensor) -> None:
        super().keep(better)
        offset = self.offset()
        self.kept_offset.features[better] = offset.features[better]
        self.kept_offset.picture[better] = offset.picture[better]


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
