"""Search the style codes for the smallest change that makes a detector call a face real.

Artifact-Eraser, section 3.3, equations 2 to 4: steps of fixed length against the sign of the gradient of
(p_fake - 0)^2, on the rows that the levels open. The paper prints a plus; a plus raises that loss. Each step
is one forward and one backward pass: the picture that is judged is the picture that is kept.
"""

import math
import time
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backend.counterfactual import levels
from backend.counterfactual.composite import COMPOSITES, Composite, as_saved, compose
from backend.counterfactual.outcome import Search
from backend.detectors.card import UNCERTAIN_MARGIN, Detector
from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.generators.refinement import MOST_STEPS, Refined, RefineSettings, refine
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, frozen

THRESHOLD = 0.5  # p_fake below it is called real


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Args:
        levels: Style levels whose rows may change, of `S`, `M`, `D`.
        epsilon: Length of a step in every coordinate of a code; None takes the generator's own. A negative one
            climbs instead, which is useful as a check.
        steps: How many steps at most; no coordinate moves further than steps * epsilon.
        kappa: A face is done once p_real - p_fake passes this margin, in [0, 1).
        composite: How an edited code becomes a picture, see `composite.py`.
        seed: Recorded; the search draws nothing at random.
        loss: `mse` as in the paper; `log_odds` follows the slope before the sigmoid for every face.
        early_stop: Stop a face at its first success. Without it all steps are made and the last picture is kept.
        refine: Steps that bring the reconstruction closer to the face before the search begins; 0 makes none.
    """

    levels: tuple[str, ...] = levels.LEVELS
    epsilon: float | None = None
    steps: int = 100
    kappa: float = 2 * UNCERTAIN_MARGIN  # past it the verdict's word is real, and not uncertain
    composite: Composite = "transfer"
    seed: int = 0
    loss: Literal["mse", "log_odds"] = "mse"
    early_stop: bool = True
    refine: int = 0

    def check(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            UserError: A setting is out of its range.
        """
        if not self.levels or not set(self.levels) <= set(levels.LEVELS):
            raise UserError("No style level may change.", "Open at least one of S, M and D.")
        if self.epsilon is not None and (self.epsilon == 0 or not math.isfinite(self.epsilon)):
            raise UserError("A step must have a length.", "Use an epsilon other than 0, for example 0.002.")
        if self.composite not in COMPOSITES:
            raise UserError(f"There is no composite {self.composite}.", f"Use one of: {', '.join(COMPOSITES)}.")
        if self.loss not in ("mse", "log_odds"):
            raise UserError(f"There is no loss {self.loss}.", "Use mse or log_odds.")
        if self.steps < 1:
            raise UserError("A search needs at least one step.", "Use a number of steps from 1.")
        if not 0 <= self.kappa < 1:
            raise UserError(f"The margin {self.kappa:g} cannot be reached.", "Use one from 0 to below 1.")
        if not 0 <= self.refine <= MOST_STEPS:
            raise UserError(
                f"A reconstruction cannot be refined in {self.refine} steps.", f"Use 0 to {MOST_STEPS} steps."
            )

    @property
    def total(self) -> int:
        """Number of steps at most, with the inversion and its refinement."""
        return self.refine + self.steps + 1


def search(
    inverter: Inverter,
    detector: Detector,
    faces: Tensor,
    settings: SearchSettings | None = None,
    *,
    offset: Tensor | None = None,
) -> Job[Search]:
    """Search a counterfactual for each of several faces.

    Args:
        inverter: Generator and encoder.
        detector: What is to be convinced.
        faces: Aligned faces (N, 3, H, W) in [0, 1].
        settings: Settings of the search.
        offset: Where the search begins, (rows, 512) from the codes of every face: what was found for another picture
            of the same face. None begins at the codes.

    Yields:
        One step for every update of the reconstruction where it is refined, one for the inversion and one for every
        update of the search; the preview is the first face's picture of now.

    Returns:
        The result; on pictures rounded to 8 bits throughout.
    """
    settings = settings or SearchSettings()
    settings.check()
    started = time.perf_counter()
    total, done = settings.total, settings.refine
    with frozen(*inverter.modules(), detector):
        with MODEL_LOCK:
            faces = as_saved(faces.detach().to(inverter.latent_average.device))
            codes = inverter.invert(faces)
        refined = None
        if settings.refine:
            refined = yield from counted(refine(inverter, faces, codes, RefineSettings(settings.refine)), total)
        with MODEL_LOCK:
            state = _State(inverter, detector, faces, settings, codes, refined)
            if offset is not None:
                state.codes += offset.to(codes.device)
        yield Step(done, total, "The face was inverted.", state.inversion[:1].cpu(), state.values())
        for number in range(settings.steps + 1):
            if not state.active.any():
                break
            with MODEL_LOCK:
                state.judge_and_move(number)
            yield Step(done + number + 1, total, state.message(number), state.shown[:1].cpu(), state.values())
    return state.result(time.perf_counter() - started)


class _State:
    """What a search knows between two steps; every tensor has one entry a face."""

    def __init__(
        self,
        inverter: Inverter,
        detector: Detector,
        faces: Tensor,
        settings: SearchSettings,
        codes: Tensor,
        refined: Refined | None,
    ) -> None:
        self.inverter, self.detector, self.settings = inverter, detector, settings
        self.faces, self.refined = faces, refined
        self.start = codes if refined is None else refined.codes
        self.epsilon = inverter.epsilon if settings.epsilon is None else settings.epsilon
        self.opened = levels.mask(settings.levels, inverter.rows).nonzero().flatten().tolist()
        with torch.no_grad():
            self.partial = inverter.begin(self.start, self.opened[0])
            self.drawn_start = inverter.synthesize_from(self.partial, self.start, clamp=False)
            self.inversion = as_saved(compose("reconstruction", self.faces, self.drawn_start, self.drawn_start))
            self.p_original = torch.sigmoid(detector.logit_fake(self.faces))
            self.p_inversion = torch.sigmoid(detector.logit_fake(self.inversion))
        own = settings.composite == "reconstruction"
        self.codes = self.start.clone()  # where the search is
        self.kept_codes = self.start.clone()  # what is handed back
        self.kept = (self.inversion if own else self.faces).clone()
        self.kept_p = (self.p_inversion if own else self.p_original).clone()
        self.shown = self.kept.clone()
        self.now_p = self.kept_p.clone()
        self.already_real = self.p_original < THRESHOLD
        self.active = ~self.already_real
        self.passed = torch.zeros_like(self.active)
        self.used_log_odds = torch.zeros_like(self.active)
        self.steps = torch.zeros_like(self.active, dtype=torch.long)
        self.trajectory: list[Tensor] = []

    def judge_and_move(self, number: int) -> None:
        """Draw and judge the active faces, keep or freeze them, and move those that go on."""
        chosen = self.active.nonzero().squeeze(1)
        last = number == self.settings.steps
        codes = self.codes[chosen]
        # One tensor a row, so that closed rows cost no gradient.
        rows = [codes[:, row].clone() for row in range(codes.shape[1])]
        leaves = [rows[row].requires_grad_(not last) for row in self.opened]
        partial = self.partial if self.active.all() else self.partial.select(chosen)
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.set_grad_enabled(not last):
            drawn = self.inverter.synthesize_from(partial, rows, clamp=False)
            composed = compose(self.settings.composite, self.faces[chosen], drawn, self.drawn_start[chosen])
            picture = as_saved(composed).contiguous(memory_format=torch.channels_last)  # faster convolutions
            logit = self.detector.logit_fake(picture)
        going = self._judge(number, chosen, codes, picture.detach(), logit.detach())
        self.trajectory.append(self.now_p.clone())
        if last or not going.any():
            return
        slope = torch.where(going, self._slope(chosen, logit.detach(), going), 0.0)
        gradients = torch.stack(torch.autograd.grad(logit, leaves, slope), dim=1)
        moved = codes.clone()
        moved[:, self.opened] -= self.epsilon * gradients.sign() * going[:, None, None]
        self.codes[chosen] = moved

    def _judge(self, number: int, chosen: Tensor, codes: Tensor, picture: Tensor, logit: Tensor) -> Tensor:
        """Take in the pictures of this step, and return which of the chosen faces go on."""
        p_fake = torch.sigmoid(logit)
        self.now_p[chosen], self.shown[chosen] = p_fake, picture
        # Before the first update the picture is one that was scored already; it is taken in all the same, since
        # another batch size may differ in the last bit.
        better = (p_fake <= self.kept_p[chosen]) | (number == 0) | (not self.settings.early_stop)
        kept = chosen[better]
        self.kept[kept], self.kept_codes[kept], self.kept_p[kept] = picture[better], codes[better], p_fake[better]
        passes = 1 - 2 * p_fake > self.settings.kappa
        first = ~self.passed[chosen]
        self.steps[chosen[first]] = number
        self.passed[chosen[passes]] = True
        if self.settings.early_stop:
            self.active[chosen[passes]] = False
            return ~passes
        return torch.ones_like(passes)

    def _slope(self, chosen: Tensor, logit: Tensor, going: Tensor) -> Tensor:
        """Return dL/dlogit (n,) of L = p^2, or 1 where a saturated sigmoid leaves none; both have one sign."""
        if self.settings.loss == "log_odds":
            return torch.ones_like(logit)
        p_fake = torch.sigmoid(logit)
        slope = 2 * p_fake * p_fake * (1 - p_fake)
        saturated = slope == 0
        self.used_log_odds[chosen[saturated & going]] = True
        return torch.where(saturated, 1.0, slope)

    def message(self, number: int) -> str:
        """Say where the search stands, for the progress line."""
        if len(self.faces) == 1:
            return f"Step {number}: p_fake is {float(self.now_p[0]):.2f}."
        done, wanted = int(self.passed.sum()), int((~self.already_real).sum())
        return f"Step {number}: {done} of {wanted} faces passed the margin."

    def values(self) -> dict[str, float]:
        """Return the numbers that curves show."""
        return {"p_fake": float(self.now_p.mean()), "active": float(self.active.sum())}

    def result(self, seconds: float) -> Search:
        """Gather the result on the CPU."""
        trajectory = torch.stack(self.trajectory) if self.trajectory else self.now_p[None]
        flipped = ~self.already_real & (self.kept_p < THRESHOLD)
        return Search(
            codes_start=self.start.cpu(),
            codes=self.kept_codes.cpu(),
            original=self.faces.cpu(),
            inversion=self.inversion.cpu(),
            counterfactual=self.kept.cpu(),
            p_original=self.p_original.cpu(),
            p_inversion=self.p_inversion.cpu(),
            p_counterfactual=self.kept_p.cpu(),
            flipped=flipped.cpu(),
            steps=self.steps.cpu(),
            already_real=self.already_real.cpu(),
            flipped_by_inversion=(~self.already_real & (self.p_inversion < THRESHOLD)).cpu(),
            used_log_odds=self.used_log_odds.cpu(),
            trajectory=trajectory.cpu(),
            epsilon=self.epsilon,
            level=",".join(self.settings.levels),
            settings=self.settings,
            refined=self.refined,
            generator=self.inverter.name,
            detector=self.detector.card.name,
            torch=torch.__version__,
            seconds=seconds,
        )
