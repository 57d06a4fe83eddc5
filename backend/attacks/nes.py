"""NES: a black-box attack that estimates the gradient from answers alone (Ilyas et al. 2018, arXiv 1804.08598).

Algorithm 1 of Adv-XAI-Deepfakes (2502.03957), with the projection of Hussain et al. (2021, arXiv 2002.12749).
Every iteration asks the detector about pairs of pictures with the same noise added and subtracted, weights the noise
by the difference of the answers, and steps along the sign of the sum. A face stops once it is below the threshold.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backend.attacks.base import Attacked, attack_in_words, mask_region
from backend.attacks.pgd import PGDSettings
from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.inference import BatchedDetector
from backend.errors import UserError
from backend.progress import Job, Step

ProbeNoise = Literal["channel", "grey"]


def probe_noise_source(seed: int, place: int, device: torch.device) -> torch.Generator:
    """Return the random source of the face at this place in the batch; no other face uses it."""
    return torch.Generator(device).manual_seed(seed * 1_000_003 + place)


def draw_probe_noise(source: torch.Generator, pairs: int, picture: Tensor, noise: ProbeNoise) -> Tensor:
    """Draw standard normal noise (pairs, 3, H, W) for a picture (3, H, W); grey noise is (pairs, 1, H, W)."""
    channels = len(picture) if noise == "channel" else 1
    return torch.randn(pairs, channels, *picture.shape[1:], generator=source, device=picture.device)


def batch_probe_pairs(places: list[int], pairs: int, batch: int) -> Iterator[list[tuple[int, int]]]:
    """Divide the pairs of several faces into batches.

    Args:
        places: The faces' places in the batch.
        pairs: Pairs of each face.
        batch: Largest number of pictures in a batch, at least 2.

    Yields:
        For every batch, the faces in it and the number of their pairs; both pictures of a pair are in one batch.
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


NESMode = Literal["projected", "as_released"]
NESObjective = Literal["probability", "log_odds", "auto"]
NES_CHOICES = {"mode": get_args(NESMode), "objective": get_args(NESObjective), "noise": get_args(ProbeNoise)}
SATURATED = 11.5  # log-odds; beyond them a probability is within 1e-5 of 0 or 1, and its differences lose their bits


@dataclass(frozen=True)
class NESSettings:
    """Settings of the attack.

    Args:
        sigma: Standard deviation of the noise of a probe, in values of a picture in [0, 1].
        probes: Pairs of pictures an iteration; every iteration asks about 2 * probes + 1 pictures.
        alpha: Length of a step in every value.
        delta: How far any value may move in all. `as_released` applies it only as the upper bound of a single step, so
            it has no effect while alpha is smaller.
        iterations: The most that are made.
        mode: `projected` keeps the total change within delta and the picture in [0, 1]. `as_released` does neither,
            and counts sigma, alpha and delta in the detector's normalised units, as the released program does.
        objective: What is raised: `probability` of real; `log_odds` of real; `auto` takes the log-odds for a face
            while its probability is saturated. None is `auto`, or `probability` as released.
        noise: `channel` draws every value separately, `grey` one value a pixel for all three channels. None is
            `channel`, or `grey` as released.
        kappa: A face is done once p_real - p_fake exceeds this margin, in [0, 1).
        early_stop: Stop a face once it is done; otherwise every iteration is made.
        seed: A face's noise depends on it and on the face's place in the batch.
        batch: Largest number of pictures that the detector judges at once; None takes what suits the device.
    """

    sigma: float = 0.001
    probes: int = 40
    alpha: float = 1 / 255
    delta: float = 16 / 255
    iterations: int = 80
    mode: NESMode = "projected"
    objective: NESObjective | None = None
    noise: ProbeNoise | None = None
    kappa: float = 0.0
    early_stop: bool = True
    seed: int = 0
    batch: int | None = None

    def check(self) -> None:
        """Raise a UserError where a setting is out of its range."""
        for name, known in NES_CHOICES.items():
            if getattr(self, name) not in known and (name == "mode" or getattr(self, name) is not None):
                raise UserError(f"There is no {name} {getattr(self, name)}.", f"Use one of: {', '.join(known)}.")
        for name in ("sigma", "alpha", "delta"):
            length = getattr(self, name)
            if not (math.isfinite(length) and 0 < length <= 1):
                raise UserError(f"{name} is {length:g}.", "Use a value greater than 0 and at most 1.")
        for name in ("probes", "iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}.", "Use at least 1.")
        if not 0 <= self.kappa < 1:
            raise UserError(f"The margin {self.kappa:g} cannot be reached.", "Use at least 0 and less than 1.")
        if self.batch is not None and self.batch < 2:
            raise UserError(f"batch is {self.batch}.", "Use at least 2, for the two pictures of a pair.")


AS_RELEASED = NESSettings(mode="as_released")


@dataclass(frozen=True)
class NESAttacked(Attacked):
    """Faces after the attack; `image_count` and `call_count` include the final verdict.

    Args:
        used_log_odds: Whether a face followed its log-odds at some iteration (N,).
        released_calls: Calls that the released program makes for the same iterations: one picture a call, a test
            before every update, and none after the last.
    """

    used_log_odds: Tensor
    released_calls: int


def white_box_settings(settings: NESSettings) -> PGDSettings:
    """Return PGD with the same budget: a shortcut for detectors whose gradient is known, 2 * probes calls cheaper.

    It is another attack: it sees the gradient, does not stop early, and rounds to 8 bits. Results that used it must
    say so.
    """
    return PGDSettings(settings.delta, settings.alpha, settings.iterations, settings.seed, random_start=False)


def attack(
    images: Tensor, detector: Detector, settings: NESSettings | None = None, mask: Tensor | None = None
) -> Job[NESAttacked]:
    """Attack faces (N, 3, H, W) in [0, 1] one by one, using the detector's answers alone.

    Pixels may change where `mask`, (H, W) or (N, 1, H, W), is 1; everywhere by default.

    Yields:
        One step a batch; `values` where an iteration ended.

    Raises:
        UserError: A setting is out of its range.
    """
    settings = settings or NESSettings()
    settings.check()
    started = time.perf_counter()
    state = _NESState(images, detector, settings, mask)
    for number in range(settings.iterations + 1):
        state.test(number)
        yield Step(number, settings.iterations, state.message(), state.current[:1].cpu(), state.values())
        if number == settings.iterations or not state.active.any():
            break
        for _ in state.estimate():
            yield Step(number, settings.iterations, state.message())
        state.move()
    return state.result(time.perf_counter() - started)


class _NESState:
    """State of an attack between two steps; every tensor has one entry a face."""

    def __init__(self, images: Tensor, detector: Detector, settings: NESSettings, mask: Tensor | None) -> None:
        self.settings, self.card = settings, detector.card
        self.judge = BatchedDetector(detector, settings.batch)
        self.original = images.detach().to(self.judge.device, torch.float32).contiguous()
        self.region = mask_region(mask, self.original)
        released = settings.mode == "as_released"
        self.objective = settings.objective or ("probability" if released else "auto")
        self.noise: ProbeNoise = settings.noise or ("grey" if released else "channel")
        # One unit of sigma, alpha and delta, in values of a picture: (3, 1, 1).
        self.unit = detector.std[0].detach() if released else torch.ones_like(detector.std[0])
        self.current = self.original.clone()
        self.gradient = torch.zeros_like(self.original)
        count = len(self.original)
        self.sources = [probe_noise_source(settings.seed, place, self.judge.device) for place in range(count)]
        self.logit = torch.zeros(count, device=self.judge.device)
        self.active = torch.ones_like(self.logit, dtype=torch.bool)
        self.used_log_odds = torch.zeros_like(self.active)
        self.iterations = torch.zeros_like(self.logit, dtype=torch.long)

    def test(self, number: int) -> None:
        """Judge the active faces, and stop those that are done."""
        chosen = self.active.nonzero().squeeze(1)
        self.logit[chosen] = self.judge.logit_fake_of_all(self.current[chosen])
        p_fake = torch.sigmoid(self.logit)
        if number == 0:
            self.p_before = p_fake.clone()
            self.active &= p_fake >= THRESHOLD
        elif self.settings.early_stop:
            self.active &= ~((p_fake < THRESHOLD) & (1 - 2 * p_fake > self.settings.kappa))

    def estimate(self) -> Iterator[None]:
        """Estimate the gradient of the active faces, and pause after every batch."""
        self.gradient.zero_()
        for work in batch_probe_pairs(self.active.nonzero().flatten().tolist(), self.settings.probes, self.judge.batch):
            noises, probes = [], []
            for place, pairs in work:
                noises.append(draw_probe_noise(self.sources[place], pairs, self.current[place], self.noise))
                probes.append(self._probes(place, noises[-1]))
            answers = self.judge.logit_fake(torch.cat(probes)).split([2 * pairs for _, pairs in work])
            for (place, _), noise, answer in zip(work, noises, answers, strict=True):
                added, subtracted = self._score(place, answer).chunk(2)
                self.gradient[place] += torch.tensordot(added - subtracted, noise, dims=1)
            yield

    def move(self) -> None:
        """Step along the sign of the gradient; the factor 1 / (2 * probes * sigma) changes no sign."""
        settings = self.settings
        step = (settings.alpha * self.gradient.sign()).clamp(max=settings.delta) * self.unit
        moved = self.current + step
        if settings.mode == "projected":
            moved = torch.minimum(torch.maximum(moved, self.original - settings.delta), self.original + settings.delta)
            moved = moved.clamp(0, 1)
        movable = self.active[:, None, None, None]
        if self.region is not None:
            movable = movable & self.region
        self.current = torch.where(movable, moved, self.current)
        self.iterations[self.active] += 1

    def _probes(self, place: int, noise: Tensor) -> Tensor:
        """Return the pictures (2 * pairs, 3, H, W) with the noise added and subtracted, inside the mask."""
        shift = self.settings.sigma * self.unit * noise
        if self.region is not None:
            shift = shift * self.region[place if len(self.region) > 1 else 0]
        return torch.cat([self.current[place] + shift, self.current[place] - shift])

    def _score(self, place: int, logit: Tensor) -> Tensor:
        """Return the objective for the answers about one face."""
        saturated = self.objective == "auto" and bool(self.logit[place].abs() > SATURATED)
        if saturated or self.objective == "log_odds":
            self.used_log_odds[place] = True
            return -logit
        return torch.sigmoid(-logit)

    def message(self) -> str:
        p_fake = torch.sigmoid(self.logit)
        if len(p_fake) == 1:
            number, most = int(self.iterations[0]), self.settings.iterations
            return f"Iteration {number} of {most}: p_fake is {float(p_fake[0]):.2f}."
        done = int((p_fake < THRESHOLD).sum())
        return f"Iteration {int(self.iterations.max())}: {done} of {len(p_fake)} faces are below the threshold."

    def values(self) -> dict[str, float]:
        return {
            "p_fake": float(torch.sigmoid(self.logit).mean()),
            "log_odds": float(self.logit.mean()),
            "active": float(self.active.sum()),
        }

    def result(self, seconds: float) -> NESAttacked:
        before, after = self.p_before.cpu(), torch.sigmoid(self.logit).cpu()
        already_real = before < THRESHOLD
        flipped = ~already_real & (after < THRESHOLD)
        original, attacked, iterations = self.original.cpu(), self.current.cpu(), self.iterations.cpu()
        released = (2 * self.settings.probes + 1) * iterations + (iterations < self.settings.iterations)
        summary = attack_in_words("NES", self.card.title, original, attacked, already_real, flipped, before, after)
        return NESAttacked(
            images=attacked,
            p_before=before,
            p_after=after,
            flipped=flipped,
            already_real=already_real,
            iterations=iterations,
            image_count=self.judge.images,
            call_count=self.judge.calls,
            settings=self.settings,
            seconds=seconds,
            summary=f"{summary} {_never_flipped_in_words(already_real, flipped)}".strip(),
            used_log_odds=self.used_log_odds.cpu(),
            released_calls=int(released.sum()),
        )


def _never_flipped_in_words(already_real: Tensor, flipped: Tensor) -> str:
    never = int((~already_real & ~flipped).sum())
    if not never:
        return ""
    if len(flipped) == 1:
        return "It never fell below the threshold: the picture is that of the last iteration."
    return f"{never} never fell below the threshold: their pictures are those of the last iteration."
