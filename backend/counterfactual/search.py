"""Search the style codes for the smallest change that makes a detector call a face real.

Artifact-Eraser, section 3.3, equations 2 to 4: steps of fixed length against the sign of the gradient of
(p_fake - 0)^2, on the rows that the levels open. The paper prints a plus; a plus raises that loss. Its steps are equal
in all rows; ours are shorter in those to which the generator reacts more (`step_lengths`). Each step is one forward
and one backward pass: the picture that is judged is the picture that is kept. Where drafts are enough for the steps
(`rendering.py`), a face that passes as a draft is drawn and judged exactly; if it does not pass as such, its search
goes on without drafts.
"""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backend.alignment import DetectorView
from backend.counterfactual.rendering import COMPOSITES, DTYPES, Composite, Precision, Renderer, as_saved, draft_effort
from backend.detectors import predict
from backend.detectors.base import THRESHOLD, UNCERTAIN_MARGIN, Detector
from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.generators.refinement import MOST_REFINE_STEPS, Refined, RefineSettings, Tuned, TuneSettings, refine, tune
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, frozen

LEVELS = ("S", "M", "D")

LEVEL_WORDS = {"S": "shape", "M": "features", "D": "details"}


def parse_levels(text: str) -> tuple[str, ...]:
    """Read levels as a person writes them, `S,M,D` or `md`, and return them in their order.

    Raises:
        UserError: A letter is none of the levels, or there is none.
    """
    letters = set(text.upper().replace(",", "").replace(" ", ""))
    if not letters or not letters <= set(LEVELS):
        raise UserError(f'"{text}" names no style levels.', "Use S, M and D, for example: S,M,D or M.")
    return tuple(level for level in LEVELS if level in letters)


def rows_of_level(level: str, rows: int) -> range:
    """Return the rows of one level: 4 + 4 + 4 of 12, 6 + 6 + 6 of 18; what is left over goes to D."""
    third, number = rows // 3, LEVELS.index(level)
    return range(number * third, rows if level == "D" else (number + 1) * third)


def level_mask(levels: Iterable[str], rows: int) -> Tensor:
    """Return a boolean mask (rows,) of the rows that the levels open."""
    opened = torch.zeros(rows, dtype=torch.bool)
    for level in levels:
        opened[list(rows_of_level(level, rows))] = True
    return opened


LONGEST_STEP = 20.0  # epsilons a step in a row that shows hardly at all


def step_lengths(inverter: Inverter, opened: list[int], lengths: str) -> Tensor:
    """Return the step of every open row in units of epsilon, (n,).

    The further a row changes the picture (`visibility.measure`), the shorter its step: random steps of these lengths
    change it as far in every row, and in all rows together as far as equal ones. Measured: the model card.

    Args:
        inverter: Generator and encoder; where its rows were not measured, all steps are equal.
        opened: The rows that the levels open.
        lengths: "visible", or "equal" for the paper's.
    """
    visibility = torch.tensor(inverter.visibility)[opened] if inverter.visibility else torch.zeros(0)
    if lengths == "equal" or not visibility.any():
        return torch.ones(len(opened))
    return (visibility.square().mean().sqrt() / visibility).clamp(max=LONGEST_STEP)


StepLengths = Literal["visible", "equal"]


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Args:
        levels: Style levels whose rows may change, of `S`, `M`, `D`.
        epsilon: Length of a step in every coordinate of a code, before `lengths`; None takes the generator's own. A
            negative one climbs instead, which is useful as a check.
        lengths: `visible`: shorter in rows to which the generator reacts more and longer in the others, so that random
            steps would change the picture as far in every row, and together as far as steps of `epsilon` in all of
            them; a generator whose rows were never measured takes equal ones. `equal`: `epsilon` in every row, as in
            the paper.
        steps: How many steps at most; no coordinate moves further than that many steps of its row from where
            the search starts; a video starts each frame at the offset of the one before.
        kappa: A face is done once p_real - p_fake passes this margin, in [0, 1).
        composite: How an edited code becomes a picture, see `composite.py`.
        seed: Recorded; the search draws nothing at random.
        loss: `mse` as in the paper; `log_odds` follows the slope before the sigmoid for every face.
        early_stop: Stop a face at its first success. Without it all steps are made and the last picture is kept.
        refine: Steps that bring the reconstruction closer to the face before the search begins; 0 makes none.
        tune: Steps that tune a copy of the generator to the face before the search begins, after a refinement; 0 makes
            none.
        truncate: Draw no larger than the detector reads while searching, where the open rows allow it.
        precision: Type of the generator's and the detector's layers while searching; `auto` is float32, and on CUDA
            bfloat16 or float16 for drawings of 256 pixels and more.
    """

    levels: tuple[str, ...] = LEVELS
    epsilon: float | None = None
    lengths: StepLengths = "visible"
    steps: int = 100
    kappa: float = 2 * UNCERTAIN_MARGIN  # past it the verdict's word is real, and not uncertain
    composite: Composite = "transfer"
    seed: int = 0
    loss: Literal["mse", "log_odds"] = "mse"
    early_stop: bool = True
    refine: int = 0
    tune: int = 0
    truncate: bool = True
    precision: Precision = "auto"

    def check(self) -> None:
        """Refuse what cannot be searched.

        Raises:
            UserError: A setting is out of its range.
        """
        if not self.levels or not set(self.levels) <= set(LEVELS):
            raise UserError("No style level may change.", "Open at least one of S, M and D.")
        if self.epsilon is not None and (self.epsilon == 0 or not math.isfinite(self.epsilon)):
            raise UserError("A step must have a length.", "Use an epsilon other than 0, for example 0.002.")
        if self.lengths not in ("visible", "equal"):
            raise UserError(f"Steps cannot be {self.lengths}.", "Use visible or equal.")
        if self.composite not in COMPOSITES:
            raise UserError(f"There is no composite {self.composite}.", f"Use one of: {', '.join(COMPOSITES)}.")
        if self.loss not in ("mse", "log_odds"):
            raise UserError(f"There is no loss {self.loss}.", "Use mse or log_odds.")
        if self.precision not in ("auto", *DTYPES):
            raise UserError(f"There is no precision {self.precision}.", f"Use one of: auto, {', '.join(DTYPES)}.")
        if self.steps < 1:
            raise UserError("A search needs at least one step.", "Use a number of steps from 1.")
        if not 0 <= self.kappa < 1:
            raise UserError(f"The margin {self.kappa:g} cannot be reached.", "Use one from 0 to below 1.")
        if not 0 <= self.refine <= MOST_REFINE_STEPS:
            raise UserError(
                f"A reconstruction cannot be refined in {self.refine} steps.", f"Use 0 to {MOST_REFINE_STEPS} steps."
            )
        if not 0 <= self.tune <= MOST_REFINE_STEPS:
            raise UserError(
                f"A generator cannot be tuned in {self.tune} steps.", f"Use 0 to {MOST_REFINE_STEPS} steps."
            )

    @property
    def total(self) -> int:
        """Number of steps at most, with the inversion, its refinement and the tuning."""
        return self.refine + self.tune + self.steps + 1


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search over N faces; pictures are (N, 3, H, W) in [0, 1], rounded to 8 bits.

    Args:
        codes_start: Codes where the search began, (N, rows, 512): the encoder's, refined where this was asked for.
        codes: Codes of the counterfactuals.
        original: The faces.
        inversion: The generator's own drawing of them, before any change.
        counterfactual: The first picture that passed the margin; where none did, the one with the lowest p_fake.
        p_original: p_fake (N,) of `original`.
        p_inversion: p_fake (N,) of `inversion`.
        p_counterfactual: p_fake (N,) of `counterfactual`.
        flipped: Called fake before and real after, (N,).
        steps: Updates (N,) until a face passed; where it never did, all that were made.
        already_real: Called real to begin with, so not searched, (N,).
        flipped_by_inversion: Called real as soon as the generator has drawn it, (N,); such a success of the
            `reconstruction` composite is none of the search.
        used_log_odds: The sigmoid was saturated at some step, and the slope before it was followed, (N,).
        trajectory: p_fake (steps made + 1, N), the first row before any update; a face that is done keeps its value.
            Of drafts, until a face passed.
        epsilon: Step that was used; where lengths differ, an equal one that would change a picture as far.
        lengths: What it came to in every open row, (n,); all alike where steps are equal.
        measured: Whether it was known how visible the generator's rows are.
        level: Levels that were open, as `S,M,D`.
        resolution: Side in pixels of what was drawn while searching; what is handed back was drawn at `full_size`.
        full_size: Side in pixels of the generator's pictures.
        precision: Type of the layers while searching; what is handed back was judged in float32.
        fell_back: Passed as a draft but not as what would be handed back, so the search went on at full size and in
            float32, (N,).
        settings: Settings of the search.
        refined: How the reconstruction was refined, or None.
        tuned: How a copy of the generator was tuned, or None.
        generator: Name of the generator.
        detector: Name of the detector.
        torch: Version of PyTorch.
        seconds: Time taken.
    """

    codes_start: Tensor
    codes: Tensor
    original: Tensor
    inversion: Tensor
    counterfactual: Tensor
    p_original: Tensor
    p_inversion: Tensor
    p_counterfactual: Tensor
    flipped: Tensor
    steps: Tensor
    already_real: Tensor
    flipped_by_inversion: Tensor
    used_log_odds: Tensor
    trajectory: Tensor
    epsilon: float
    lengths: Tensor
    measured: bool
    level: str
    resolution: int
    full_size: int
    precision: str
    fell_back: Tensor
    settings: "SearchSettings"
    refined: "Refined | None"
    tuned: "Tuned | None"
    generator: str
    detector: str
    torch: str
    seconds: float

    @property
    def p_fake(self) -> dict[str, Tensor]:
        """Return the three scores (N,) under the names that the command line uses."""
        return {
            "original": self.p_original,
            "inversion": self.p_inversion,
            "counterfactual": self.p_counterfactual,
        }

    @property
    def row_lengths(self) -> tuple[float, ...]:
        """Return the step of every open row, to three digits."""
        return tuple(float(f"{value:.3g}") for value in self.lengths)

    @property
    def summary(self) -> str:
        """Say in plain words what happened."""
        return self._one() if len(self.flipped) == 1 else self._many()

    def _one(self) -> str:
        before, after = float(self.p_original[0]), float(self.p_counterfactual[0])
        if self.already_real[0]:
            call = predict.describe_call(before, "this face")
            return f"The detector {self.detector} {call} ({before:.2f}), so there is nothing to turn."
        scores = f"from {before:.2f} to {after:.2f} (0 = real, 1 = fake)"
        rows = " and ".join(f"{level} ({LEVEL_WORDS[level]})" for level in self.settings.levels)
        where = f"changing the style levels {rows}" if len(self.settings.levels) > 1 else f"changing style level {rows}"
        steps = f"{int(self.steps[0])} step{'' if self.steps[0] == 1 else 's'} (epsilon {abs(self.epsilon):g})"
        if self.flipped[0]:
            call = predict.describe_call(after)
            text = f"After {steps}, {where}, the detector {self.detector} {call}: p_fake went {scores}."
        else:
            text = f"{steps}, {where}, were not enough: for the detector {self.detector}, p_fake went {scores}."
        if self.settings.composite == "reconstruction" and self.flipped_by_inversion[0]:
            text += " It did so as soon as the generator had drawn the face, before any change was searched."
        if self.used_log_odds[0]:
            text += " The detector was so sure at first that its slope vanished; the log-odds showed the way."
        return text + self._rows() + self._drafts()

    def _many(self) -> str:
        searched = int((~self.already_real).sum())
        text = f"Of {len(self.flipped)} faces, the detector {self.detector} put {searched} on the side of fake; "
        text += f"{int(self.flipped.sum())} of these went over to the side of real."
        if self.flipped.any():
            text += f" The median took {int(self.steps[self.flipped].median())} steps (epsilon {abs(self.epsilon):g})."
        return text + self._rows() + self._drafts()

    def _rows(self) -> str:
        """Say that steps were equal, where others were asked for and the generator's rows were never measured."""
        if self.measured or self.settings.lengths == "equal" or self.already_real.all():
            return ""
        return " How visible this generator's rows are was not measured, so the steps were equal in all of them."

    def _drafts(self) -> str:
        """Say how the search drew, where that differs from what is shown."""
        how = [f"at {self.resolution} of {self.full_size} pixels"] if self.resolution < self.full_size else []
        how += [f"in {self.precision}"] if self.precision != "float32" else []
        if not how or self.already_real.all():
            return ""
        text = f" The search drew {' and '.join(how)}; the result was drawn and judged at full size in float32."
        if not self.fell_back.any():
            return text
        which = "There" if len(self.fell_back) == 1 else f"There, for {int(self.fell_back.sum())} of the faces,"
        return f"{text} {which} the verdict differed at first, so the search went on at full size."


HALF_PRECISION_SLOPE = 4096.0  # slope for float16, in which gradients of a usual size would round to zero


def search(
    inverter: Inverter,
    detector: Detector,
    faces: Tensor,
    settings: SearchSettings | None = None,
    view: DetectorView | None = None,
    *,
    offset: Tensor | None = None,
) -> Job[SearchResult]:
    """Search a counterfactual for each of several faces.

    Args:
        inverter: Generator and encoder.
        detector: What is to be convinced.
        faces: Aligned faces (N, 3, H, W) in [0, 1].
        settings: Settings of the search.
        view: What the detector sees of the faces, all of one photo; None where it sees the faces themselves.
        offset: Where the search begins, (rows, 512) from the codes of every face: what was found for another picture
            of the same face. None begins at the codes.

    Yields:
        One step for every update of the reconstruction where it is refined, of the generator where a copy of it is
        tuned, one for the inversion and one for every update of the search; the preview is the first face's picture
        of now.

    Returns:
        The result; on pictures rounded to 8 bits throughout.
    """
    settings = settings or SearchSettings()
    settings.check()
    started = time.perf_counter()
    total, done = settings.total, settings.refine + settings.tune
    with frozen(*inverter.modules(), detector):
        with MODEL_LOCK:
            faces = as_saved(faces.detach().to(inverter.latent_average.device))
            codes = inverter.invert(faces)
        refined = None
        if settings.refine:
            refined = yield from counted(refine(inverter, faces, codes, RefineSettings(settings.refine)), total)
            codes = refined.codes
        tuned = None
        if settings.tune:
            job = tune(inverter, faces, codes, TuneSettings(settings.tune, seed=settings.seed))
            tuned = yield from counted(job, total, settings.refine)
        with MODEL_LOCK:
            state = _SearchState(inverter, detector, faces, settings, codes, view, refined, tuned)
            if offset is not None:
                state.codes += offset.to(codes.device)
        yield Step(done, total, "The face was inverted.", state.inversion[:1].cpu(), state.values())
        for number in range(settings.steps + 1):
            if not state.active.any():
                break
            with MODEL_LOCK:
                state.judge_and_move(number)
            yield Step(done + number + 1, total, state.message(number), state.shown.cpu(), state.values())
        with MODEL_LOCK:
            state.settle()
    return state.result(time.perf_counter() - started)


class _SearchState:
    """What a search knows between two steps; every tensor has one entry a face."""

    def __init__(
        self,
        inverter: Inverter,
        detector: Detector,
        faces: Tensor,
        settings: SearchSettings,
        codes: Tensor,
        view: DetectorView | None,
        refined: Refined | None,
        tuned: Tuned | None,
    ) -> None:
        inverter = inverter if tuned is None else tuned.inverter
        self.inverter, self.detector, self.settings = inverter, detector, settings
        self.faces, self.refined, self.tuned = faces, refined, tuned
        self.start = codes
        self.epsilon = inverter.epsilon if settings.epsilon is None else settings.epsilon
        self.opened = level_mask(settings.levels, inverter.rows).nonzero().flatten().tolist()
        lengths = step_lengths(inverter, self.opened, settings.lengths)
        self.lengths = (lengths * self.epsilon).to(codes.device)
        effort = draft_effort(
            inverter,
            detector.card.input_size,
            self.opened,
            truncate=settings.truncate,
            precision=settings.precision,
        )
        self.renderer = Renderer(inverter, detector, faces, self.start, self.opened, settings.composite, view, effort)
        with torch.no_grad():
            self.inversion = self.renderer.inversion()
            self.p_original = torch.sigmoid(self.renderer.ask(self.faces))
            self.p_inversion = torch.sigmoid(self.renderer.ask(self.inversion))
        self.codes = self.start.clone()  # where the search is
        self.kept_codes = self.start.clone()  # what is handed back
        self.already_real = self.p_original < THRESHOLD
        drawn = ~self.already_real if settings.composite == "reconstruction" else torch.zeros_like(self.already_real)
        self.kept = torch.where(drawn[:, None, None, None], self.inversion, self.faces)
        self.kept_p = torch.where(drawn, self.p_inversion, self.p_original)
        self.shown = self.kept[:1]
        self.now_p = self.kept_p.clone()
        self.active = ~self.already_real
        self.passed = torch.zeros_like(self.active)
        self.drafting = torch.full_like(self.active, self.renderer.drafts)
        self.settled = torch.ones_like(self.active)  # what is kept was drawn and judged exactly
        self.used_log_odds = torch.zeros_like(self.active)
        self.steps = torch.zeros_like(self.active, dtype=torch.long)
        self.trajectory: list[Tensor] = []

    def judge_and_move(self, number: int) -> None:
        """Draw and judge the active faces, keep or freeze them, and move those that go on."""
        # Drafts first: those that are found wanting are among the others at once.
        for draft in (True, False) if self.renderer.drafts else (False,):
            chosen = (self.active & (self.drafting == draft)).nonzero().squeeze(1)
            if len(chosen):
                self._advance(number, chosen, draft=draft)
        self.trajectory.append(self.now_p.clone())

    def _advance(self, number: int, chosen: Tensor, *, draft: bool) -> None:
        last = number == self.settings.steps
        codes = self.codes[chosen]
        # One tensor a row, so that closed rows cost no gradient.
        rows = [codes[:, row].clone() for row in range(codes.shape[1])]
        leaves = [rows[row].requires_grad_(not last) for row in self.opened]
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.set_grad_enabled(not last):
            picture, logit = (self.renderer.sketch if draft else self.renderer.draw)(rows, chosen)
        going = self._judge(number, chosen, codes, picture.detach(), logit.detach(), draft=draft)
        if last or not going.any():
            return
        slope = torch.where(going, self._slope(chosen, logit.detach(), going), 0.0)
        if draft and self.renderer.effort.dtype == torch.float16:
            slope = slope.sign() * HALF_PRECISION_SLOPE
        gradients = torch.stack(torch.autograd.grad(logit, leaves, slope), dim=1)
        if draft:  # what has no number in halves may have one in float32
            going = going & self._exactly_where(~gradients.isfinite().flatten(1).all(1), chosen)
        moved = codes.clone()
        moved[:, self.opened] -= self.lengths[:, None] * gradients.nan_to_num().sign() * going[:, None, None]
        self.codes[chosen] = moved

    def _judge(
        self, number: int, chosen: Tensor, codes: Tensor, picture: Tensor, logit: Tensor, *, draft: bool
    ) -> Tensor:
        """Take in the pictures of this step, and return which of the chosen faces go on."""
        p_fake = torch.sigmoid(logit)
        self.now_p[chosen] = p_fake
        self.shown = picture[:1] if chosen[0] == 0 else self.shown
        # Before the first update the picture is one that was scored already; it is taken in all the same, since
        # another batch size may differ in the last bit.
        better = (p_fake <= self.kept_p[chosen]) | (number == 0) | (not self.settings.early_stop)
        kept = chosen[better]
        self.kept_codes[kept], self.kept_p[kept], self.settled[kept] = codes[better], p_fake[better], not draft
        if not draft:
            self.kept[kept] = picture[better]
        passes = self._passes(p_fake)
        going = torch.ones_like(passes)
        if draft:
            passes = passes & self._confirmed(chosen, passes & ~self.passed[chosen])
            going = self.drafting[chosen]
        first = ~self.passed[chosen]
        self.steps[chosen[first]] = number
        self.passed[chosen[passes]] = True
        if self.settings.early_stop:
            self.active[chosen[passes]] = False
            return going & ~passes
        return going

    def _passes(self, p_fake: Tensor) -> Tensor:
        return 1 - 2 * p_fake > self.settings.kappa

    def _confirmed(self, chosen: Tensor, asked: Tensor) -> Tensor:
        """Draw exactly the faces that passed as drafts, and go on without drafts where they do not pass as such.

        Args:
            chosen: Faces that were drafted, (n,).
            asked: Which of them passed just now, (n,).

        Returns:
            Which of the chosen ones may count as passed, (n,).
        """
        faces = chosen[asked]
        if len(faces):
            self.kept_codes[faces] = self.codes[faces]
            self._draw_exactly(faces)
            self.now_p[faces] = self.kept_p[faces]
        return self._exactly_where(asked & ~self._passes(self.kept_p[chosen]), chosen)

    def _exactly_where(self, wanting: Tensor, chosen: Tensor) -> Tensor:
        """End the drafts of those of the chosen faces that are `wanting`, (n,), and return the others, (n,)."""
        self.drafting[chosen[wanting]] = False
        return ~wanting

    @torch.no_grad()
    def _draw_exactly(self, faces: Tensor) -> None:
        picture, logit = self.renderer.draw(self.kept_codes[faces].unbind(1), faces)
        self.kept[faces], self.kept_p[faces], self.settled[faces] = picture, torch.sigmoid(logit), True
        self.shown = picture[:1] if faces[0] == 0 else self.shown

    def settle(self) -> None:
        """Draw and judge exactly what is kept and was only drafted."""
        faces = (~self.settled).nonzero().squeeze(1)
        if len(faces):
            self._draw_exactly(faces)

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
        step = f"Step {number} of at most {self.settings.steps}"
        if len(self.faces) == 1:
            return f"{step}: p_fake is {float(self.now_p[0]):.2f}."
        done, wanted = int(self.passed.sum()), int((~self.already_real).sum())
        return f"{step}: {done} of {wanted} faces passed the margin."

    def values(self) -> dict[str, float]:
        """Return the numbers that curves show."""
        return {"p_fake": float(self.now_p.mean()), "active": float(self.active.sum())}

    def result(self, seconds: float) -> SearchResult:
        """Gather the result on the CPU."""
        trajectory = torch.stack(self.trajectory) if self.trajectory else self.now_p[None]
        flipped = ~self.already_real & (self.kept_p < THRESHOLD)
        return SearchResult(
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
            lengths=self.lengths.cpu(),
            measured=bool(self.inverter.visibility),
            level=",".join(self.settings.levels),
            resolution=self.renderer.effort.resolution,
            full_size=self.inverter.size,
            precision=self.renderer.effort.precision,
            fell_back=(~self.drafting & self.renderer.drafts).cpu(),
            settings=self.settings,
            refined=self.refined,
            tuned=self.tuned,
            generator=self.inverter.name,
            detector=self.detector.card.name,
            torch=torch.__version__,
            seconds=seconds,
        )
