"""Search the style codes for the smallest change that takes a face below a detector's threshold.

Artifact-Eraser, section 3.3, equations 2 to 4: steps of fixed length against the sign of the gradient of
(p_fake - 0)^2, on the rows that the levels open. The paper prints a plus, which would raise that loss. Its steps are
equal in all rows; ours are shorter in rows to which the generator reacts more (`step_lengths`). Each step is one
forward and one backward pass: the picture that is judged is the picture that is kept. Where drafts are enough for the
steps (`rendering.py`), a face that passes as a draft is drawn and judged exactly; if it then does not pass, its search
goes on without drafts.
"""

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from backend.alignment import DetectorView
from backend.counterfactual.rendering import Composite, Judge, Precision, Renderer, as_saved, draft_effort
from backend.detectors import predict
from backend.detectors.base import SCALE, THRESHOLD, UNSURE_MARGIN, Detector
from backend.detectors.inference import for_inference
from backend.errors import UserError
from backend.generators.inversion import Inverter
from backend.generators.refinement import (
    MOST_REFINE_STEPS,
    FeatureSettings,
    Refined,
    RefineSettings,
    Tuned,
    TuneSettings,
    refine,
    refine_features,
    tune,
)
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, frozen

LEVELS = ("S", "M", "D")
LEVEL_WORDS = {"S": "shape", "M": "features", "D": "details"}
StepLengths = Literal["visible", "equal"]
Loss = Literal["mse", "softplus", "log_odds"]
Inversion = Literal["codes", "features"]
LONGEST_STEP = 20.0  # epsilons, in a row that changes the picture hardly at all
HALF_PRECISION_SLOPE = 4096.0  # for float16, in which gradients of the usual size would round to zero


def parse_levels(text: str) -> tuple[str, ...]:
    """Read levels as a person writes them, such as `S,M,D` or `md`, and return them in the order of `LEVELS`.

    Raises:
        UserError: A letter is not a level, or the text is empty.
    """
    letters = set(text.upper().replace(",", "").replace(" ", ""))
    if not letters or not letters <= set(LEVELS):
        raise UserError(f'"{text}" names no style levels.', "Use S, M and D, for example: S,M,D or M.")
    return tuple(level for level in LEVELS if level in letters)


def rows_of_level(level: str, rows: int) -> range:
    """Return the rows of one level: each has a third of them, and the remainder goes to D."""
    third, number = rows // 3, LEVELS.index(level)
    return range(number * third, rows if level == "D" else (number + 1) * third)


def level_mask(levels: Iterable[str], rows: int) -> Tensor:
    """Return a boolean mask (rows,) of the rows that the levels open."""
    opened = torch.zeros(rows, dtype=torch.bool)
    for level in levels:
        opened[list(rows_of_level(level, rows))] = True
    return opened


def step_lengths(inverter: Inverter, opened: list[int], lengths: str) -> Tensor:
    """Return the step of every open row in units of epsilon, (n,).

    The more a row changes the picture (`visibility.measure`), the shorter its step: random steps of these lengths
    change the picture equally in every row, and all rows together as much as equal steps do (see the model card).

    Args:
        inverter: Generator and encoder; where the visibility of its rows was not measured, all steps are equal.
        opened: The rows that the levels open.
        lengths: "visible", or "equal" as in the paper.
    """
    visibility = torch.tensor(inverter.visibility)[opened] if inverter.visibility else torch.zeros(0)
    if lengths == "equal" or not visibility.any():
        return torch.ones(len(opened))
    return (visibility.square().mean().sqrt() / visibility).clamp(max=LONGEST_STEP)


@dataclass(frozen=True)
class SearchSettings:
    """Settings of a search.

    Args:
        levels: Style levels whose rows may change.
        epsilon: Length of a step in every coordinate of a code, before `lengths`; None takes the generator's default.
            A negative one raises p_fake instead, which is useful as a check.
        lengths: `visible` adapts the step of each row, see `step_lengths`; `equal` takes `epsilon` in every row.
        steps: Maximum number of steps.
        kappa: A face is done once p_real - p_fake exceeds this margin, in [0, 1).
        composite: How an edited code becomes a picture, see `rendering.py`.
        seed: Of the tuning; the search itself is not random.
        loss: What steps lower, summed over the detectors. `mse`: p_fake squared, as in the paper; `softplus` of the
            log-odds, which also moves a detector that is sure; `log_odds` themselves.
        momentum: How much of the sum of earlier gradients, each divided by its mean size, counts at every step, as in
            MIFGSM (Dong et al. 2018, arXiv 1710.06081); 0 follows the last gradient alone.
        early_stop: Stop a face at its first success. Otherwise all steps are made and the last picture is kept.
        inversion: What stands for the face. `codes`: W+ codes, as in the paper; `features`: beside them what no code
            describes, see `refinement.py`.
        refine: Steps that bring the reconstruction closer to the face before the search; with 0, `codes` are used as
            the encoder gave them, and `features` take their usual number.
        tune: Steps that tune a copy of the generator to the face, after a refinement; 0 makes none.
        truncate: While searching, draw no larger than the detector's input, where the open rows allow it.
        precision: Type of the generator's and the detector's layers while searching; `auto` is float32, and on CUDA
            bfloat16 or float16 for drawings of 256 pixels and more.
    """

    levels: tuple[str, ...] = LEVELS
    epsilon: float | None = None
    lengths: StepLengths = "visible"
    steps: int = 100
    kappa: float = 2 * UNSURE_MARGIN  # beyond it the detector sees no signs, and is not unsure
    composite: Composite = "transfer"
    seed: int = 0
    loss: Loss = "mse"
    momentum: float = 0.0
    early_stop: bool = True
    inversion: Inversion = "codes"
    refine: int = 0
    tune: int = 0
    truncate: bool = True
    precision: Precision = "auto"

    def check(self) -> None:
        """Raise UserError where a setting is out of range."""
        if not self.levels or not set(self.levels) <= set(LEVELS):
            raise UserError("No style level may change.", "Open at least one of S, M and D.")
        if self.epsilon is not None and (self.epsilon == 0 or not math.isfinite(self.epsilon)):
            raise UserError("A step must have a length.", "Use an epsilon other than 0, for example 0.002.")
        choices = {"lengths": StepLengths, "composite": Composite, "loss": Loss, "precision": Precision}
        choices |= {"inversion": Inversion}
        for name, literal in choices.items():
            if getattr(self, name) not in get_args(literal):
                problem = f'The setting {name} cannot be "{getattr(self, name)}".'
                raise UserError(problem, f"Use one of: {', '.join(get_args(literal))}.")
        if not 0 <= self.momentum <= 1:
            raise UserError(f"A momentum of {self.momentum:g} is not possible.", "Use 0 to 1.")
        if self.steps < 1:
            raise UserError("A search needs at least one step.", "Use a number of steps from 1.")
        if not 0 <= self.kappa < 1:
            raise UserError(f"The margin {self.kappa:g} cannot be reached.", "Use at least 0 and less than 1.")
        if self.inversion == "features" and self.tune:
            raise UserError("A generator is tuned to codes alone.", "Leave out either the tuning or the features.")
        for purpose, steps in (("refine the reconstruction", self.refine), ("tune the generator", self.tune)):
            if not 0 <= steps <= MOST_REFINE_STEPS:
                raise UserError(f"{steps} steps cannot {purpose}.", f"Use 0 to {MOST_REFINE_STEPS} steps.")

    @property
    def total(self) -> int:
        """Maximum number of steps, with the inversion, its refinement and the tuning."""
        return self.refine_steps + self.tune + self.steps + 1

    @property
    def refine_steps(self) -> int:
        """Number of steps that bring the reconstruction closer."""
        return self.refine or (FeatureSettings.steps if self.inversion == "features" else 0)


Question = Literal["smallest", "visible", "paper"]
QUESTIONS: Mapping[Question, SearchSettings] = {
    # The smallest change that turns one detector, which people can hardly see.
    "smallest": SearchSettings(),
    # A change that one can see, and that detectors share which the search did not look at.
    "visible": SearchSettings(kappa=0.9, loss="softplus", momentum=1.0),
    # Artifact-Eraser, section 4.1.
    "paper": SearchSettings(lengths="equal", composite="reconstruction", early_stop=False),
}


@dataclass(frozen=True, eq=False)
class SearchResult:
    """Result of a search over N faces; pictures are (N, 3, H, W) in [0, 1], rounded to 8 bits.

    Args:
        codes_start: Codes where the search began, (N, rows, 512): the encoder's, refined where this was asked for.
        codes: Codes of the counterfactuals.
        inversion: The faces as the generator redraws them, before any change.
        counterfactual: The first picture that passed the margin; where none did, the one with the lowest p_fake.
        p_original: p_fake (N,) of `original`; likewise `p_inversion` and `p_counterfactual`.
        allies: The same three of each further detector that was searched against, by its name.
        flipped: Called fake before, and below the thresholds of all detectors that were searched against after, (N,).
        steps: Updates (N,) until a face passed; where it never did, all that were made.
        already_real: Called real at the start, so not searched, (N,).
        flipped_by_inversion: Called real as soon as the generator redraws it, (N,); with the `reconstruction`
            composite, such a success is not due to the search.
        used_log_odds: The sigmoid was saturated at some step, so the gradient before it was followed, (N,).
        trajectory: p_fake (steps made + 1, N), the highest of all detectors, the first row before any update; a face
            that is done keeps its value. Until a face passes, its values may come from drafts.
        epsilon: Step that was used; where lengths differ, the equal step that would change a picture as much.
        lengths: Step in every open row, (n,).
        measured: Whether the visibility of the generator's rows was known.
        level: Levels that were open, as `S,M,D`.
        resolution: Side in pixels of the drawings while searching; the results were drawn at `full_size`.
        full_size: Side in pixels of the generator's pictures.
        precision: Type of the layers while searching; the results were judged in float32.
        fell_back: Passed as a draft but not when drawn exactly, so the search went on at full size in float32, (N,).
        torch: Version of PyTorch.
    """

    codes_start: Tensor
    codes: Tensor
    original: Tensor
    inversion: Tensor
    counterfactual: Tensor
    p_original: Tensor
    p_inversion: Tensor
    p_counterfactual: Tensor
    allies: dict[str, tuple[Tensor, Tensor, Tensor]]
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
    settings: SearchSettings
    refined: Refined | None
    tuned: Tuned | None
    generator: str
    detector: str
    torch: str
    seconds: float

    @property
    def p_fake(self) -> dict[str, Tensor]:
        """The three scores (N,) under the names that the command line uses."""
        return {"original": self.p_original, "inversion": self.p_inversion, "counterfactual": self.p_counterfactual}

    @property
    def row_lengths(self) -> tuple[float, ...]:
        """The step in every open row, to three significant digits."""
        return tuple(float(f"{value:.3g}") for value in self.lengths)

    @property
    def summary(self) -> str:
        """What happened, in a few sentences."""
        return self._summarise_face() if len(self.flipped) == 1 else self._summarise_faces()

    def _summarise_face(self) -> str:
        before, after = float(self.p_original[0]), float(self.p_counterfactual[0])
        if self.already_real[0]:
            call = predict.describe_call(before, "this face")
            below = f"p_fake is {before:.2f}, below its threshold of {THRESHOLD:g}, so there is nothing to change."
            return f"The detector {self.detector} {call}: {below}"
        scores = f"from {before:.2f} to {after:.2f} {SCALE}"
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
            text += " The detector was so sure at first that its gradient vanished, so the log-odds were followed."
        return text + self._equal_steps_note() + self._draft_note()

    def _summarise_faces(self) -> str:
        searched = int((~self.already_real).sum())
        text = f"Of {len(self.flipped)} faces, the detector {self.detector} called {searched} fake; "
        text += f"{int(self.flipped.sum())} of these are below its threshold now."
        if self.flipped.any():
            text += f" The median took {int(self.steps[self.flipped].median())} steps (epsilon {abs(self.epsilon):g})."
        return text + self._equal_steps_note() + self._draft_note()

    def _equal_steps_note(self) -> str:
        if self.measured or self.settings.lengths == "equal" or self.already_real.all():
            return ""
        return " The visibility of this generator's rows was not measured, so the steps were equal in all of them."

    def _draft_note(self) -> str:
        how = [f"at {self.resolution} of {self.full_size} pixels"] if self.resolution < self.full_size else []
        how += [f"in {self.precision}"] if self.precision != "float32" else []
        if not how or self.already_real.all():
            return ""
        text = f" The search drew {' and '.join(how)}; the result was drawn and judged at full size in float32."
        if not self.fell_back.any():
            return text
        which = "There" if len(self.fell_back) == 1 else f"There, for {int(self.fell_back.sum())} of the faces,"
        return f"{text} {which} the verdict differed at first, so the search went on at full size."


def search(
    inverter: Inverter,
    detector: Detector,
    faces: Tensor,
    settings: SearchSettings | None = None,
    view: DetectorView | None = None,
    *,
    allies: Sequence[Judge] = (),
    offset: Tensor | None = None,
) -> Job[SearchResult]:
    """Search a counterfactual for each of several faces.

    Args:
        inverter: Generator and encoder.
        detector: The detector that should call the faces real.
        faces: Aligned faces (N, 3, H, W) in [0, 1].
        settings: None takes the defaults.
        view: The detector's crop of the faces, all of one photo; None where it sees the faces themselves.
        allies: Further detectors that should do so in the same picture.
        offset: Start of the search relative to the codes of every face, (rows, 512): the change found for another
            picture of the same face. None begins at the codes.

    Yields:
        One step for every update of the refinement, the tuning and the search, and one for the inversion; the preview
        is the current picture of the first face.
    """
    settings = settings or SearchSettings()
    settings.check()
    started = time.perf_counter()
    total, done = settings.total, settings.refine_steps + settings.tune
    judges = [Judge(for_inference(judge.detector), judge.view) for judge in (Judge(detector, view), *allies)]
    with frozen(*inverter.modules(), *(judge.detector for judge in judges)):
        with MODEL_LOCK:
            faces = as_saved(faces.detach().to(inverter.latent_average.device))
            codes = inverter.invert(faces)
        refined = None
        if settings.refine_steps:
            if settings.inversion == "features":
                closer = refine_features(inverter, faces, codes, FeatureSettings(settings.refine_steps))
            else:
                closer = refine(inverter, faces, codes, RefineSettings(settings.refine))
            refined = yield from counted(closer, total)
            codes = refined.codes
        tuned = None
        if settings.tune:
            job = tune(inverter, faces, codes, TuneSettings(settings.tune, seed=settings.seed))
            tuned = yield from counted(job, total, settings.refine_steps)
        with MODEL_LOCK:
            state = _SearchState(inverter, judges, faces, settings, codes, refined, tuned)
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
    """What a search knows between two steps; every tensor has one entry a face, and scores one column a detector."""

    def __init__(
        self,
        inverter: Inverter,
        judges: Sequence[Judge],
        faces: Tensor,
        settings: SearchSettings,
        codes: Tensor,
        refined: Refined | None,
        tuned: Tuned | None,
    ) -> None:
        inverter = inverter if tuned is None else tuned.inverter
        self.inverter, self.judges, self.settings = inverter, judges, settings
        self.faces, self.refined, self.tuned = faces, refined, tuned
        self.start = codes
        self.epsilon = inverter.epsilon if settings.epsilon is None else settings.epsilon
        self.opened = level_mask(settings.levels, inverter.rows).nonzero().flatten().tolist()
        lengths = step_lengths(inverter, self.opened, settings.lengths)
        self.lengths = (lengths * self.epsilon).to(codes.device)
        size, precision = max(judge.detector.card.input_size for judge in judges), settings.precision
        effort = draft_effort(inverter, size, self.opened, truncate=settings.truncate, precision=precision)
        self.renderer = Renderer(
            inverter,
            judges,
            faces,
            self.start,
            self.opened,
            settings.composite,
            effort,
            None if refined is None else refined.offset,
        )
        with torch.no_grad():
            self.inversion = self.renderer.inversion()
            self.p_original = torch.sigmoid(self.renderer.ask(self.faces))
            self.p_inversion = torch.sigmoid(self.renderer.ask(self.inversion))
        self.codes = self.start.clone()  # where the search is
        self.kept_codes = self.start.clone()  # what is handed back
        self.already_real = self.p_original[:, 0] < THRESHOLD
        drawn = ~self.already_real if settings.composite == "reconstruction" else torch.zeros_like(self.already_real)
        self.kept = torch.where(drawn[:, None, None, None], self.inversion, self.faces)
        self.kept_p = torch.where(drawn[:, None], self.p_inversion, self.p_original)
        self.momentum = torch.zeros(len(faces), len(self.opened), codes.shape[-1], device=codes.device)
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
        # Drafts first: faces that fail as exact drawings join the others at once.
        for draft in (True, False) if self.renderer.drafts else (False,):
            chosen = (self.active & (self.drafting == draft)).nonzero().squeeze(1)
            if len(chosen):
                self._advance(number, chosen, draft=draft)
        self.trajectory.append(self.now_p.amax(1))

    def _advance(self, number: int, chosen: Tensor, *, draft: bool) -> None:
        last = number == self.settings.steps
        codes = self.codes[chosen]
        # One tensor a row, so that closed rows cost no gradient.
        rows = [codes[:, row].clone() for row in range(codes.shape[1])]
        leaves = [rows[row].requires_grad_(not last) for row in self.opened]
        # Gradients are switched here and not around the loop: a generator would leak the switch to its caller.
        with torch.set_grad_enabled(not last):
            picture, logit = (self.renderer.sketch if draft else self.renderer.draw)(rows, chosen)
        unfinished = self._judge(number, chosen, codes, picture.detach(), logit.detach(), draft=draft)
        if last or not unfinished.any():
            return
        slope = torch.where(unfinished[:, None], self._slope(chosen, logit.detach(), unfinished), 0.0)
        if draft and self.renderer.effort.dtype == torch.float16:
            slope = slope.sign() * HALF_PRECISION_SLOPE
        gradients = torch.stack(torch.autograd.grad(logit, leaves, slope), dim=1)
        if draft:  # a gradient that overflows in half precision may be finite in float32
            unfinished = unfinished & self._end_drafts(~gradients.isfinite().flatten(1).all(1), chosen)
        direction = self._direction(chosen, gradients.nan_to_num())
        moved = codes.clone()
        moved[:, self.opened] -= self.lengths[:, None] * direction.sign() * unfinished[:, None, None]
        self.codes[chosen] = moved

    def _direction(self, chosen: Tensor, gradients: Tensor) -> Tensor:
        """Return what the next step goes against, from the gradients (n, open rows, 512) of the chosen faces."""
        if not self.settings.momentum:
            return gradients
        size = gradients.abs().mean((1, 2), keepdim=True).clamp_min(torch.finfo(gradients.dtype).tiny)
        self.momentum[chosen] = self.settings.momentum * self.momentum[chosen] + gradients / size
        return self.momentum[chosen]

    def _judge(
        self, number: int, chosen: Tensor, codes: Tensor, picture: Tensor, logit: Tensor, *, draft: bool
    ) -> Tensor:
        """Record the pictures of this step, and return which of the chosen faces go on."""
        p_fake = torch.sigmoid(logit)
        self.now_p[chosen] = p_fake
        self.shown = picture[:1] if chosen[0] == 0 else self.shown
        # The picture before the first update was scored already; it is recorded again, since another batch size may
        # change the last bit.
        worst = p_fake.amax(1)  # a picture is as good as it is to the detector that it turns least
        better = (worst <= self.kept_p[chosen].amax(1)) | (number == 0) | (not self.settings.early_stop)
        kept = chosen[better]
        self.kept_codes[kept], self.kept_p[kept], self.settled[kept] = codes[better], p_fake[better], not draft
        if not draft:
            self.kept[kept] = picture[better]
        passes = self._passes(p_fake)
        unfinished = torch.ones_like(passes)
        if draft:
            passes = passes & self._confirmed(chosen, passes & ~self.passed[chosen])
            unfinished = self.drafting[chosen]
        first = ~self.passed[chosen]
        self.steps[chosen[first]] = number
        self.passed[chosen[passes]] = True
        if self.settings.early_stop:
            self.active[chosen[passes]] = False
            return unfinished & ~passes
        return unfinished

    def _passes(self, p_fake: Tensor) -> Tensor:
        """Return which faces (n,) pass the margin by the scores (n, judges) of all detectors."""
        return (1 - 2 * p_fake > self.settings.kappa).all(1)

    def _confirmed(self, chosen: Tensor, new: Tensor) -> Tensor:
        """Draw exactly the faces that passed as drafts; those that then fail go on without drafts.

        Args:
            chosen: Faces that were drafted, (n,).
            new: Which of them passed just now, (n,).

        Returns:
            Which of the chosen faces may count as passed, (n,).
        """
        faces = chosen[new]
        if len(faces):
            self.kept_codes[faces] = self.codes[faces]
            self._draw_exactly(faces)
            self.now_p[faces] = self.kept_p[faces]
        return self._end_drafts(new & ~self._passes(self.kept_p[chosen]), chosen)

    def _end_drafts(self, failed: Tensor, chosen: Tensor) -> Tensor:
        """End the drafts of the chosen faces that `failed`, (n,), and return which did not, (n,)."""
        self.drafting[chosen[failed]] = False
        return ~failed

    @torch.no_grad()
    def _draw_exactly(self, faces: Tensor) -> None:
        picture, logit = self.renderer.draw(self.kept_codes[faces].unbind(1), faces)
        self.kept[faces], self.kept_p[faces], self.settled[faces] = picture, torch.sigmoid(logit), True
        self.shown = picture[:1] if faces[0] == 0 else self.shown

    def settle(self) -> None:
        """Draw and judge exactly what was kept only as a draft."""
        faces = (~self.settled).nonzero().squeeze(1)
        if len(faces):
            self._draw_exactly(faces)

    def _slope(self, chosen: Tensor, logit: Tensor, unfinished: Tensor) -> Tensor:
        """Return dL/dlogit (n, judges), or 1 where a saturated sigmoid makes it 0; both have the same sign."""
        if self.settings.loss == "log_odds":
            return torch.ones_like(logit)
        p_fake = torch.sigmoid(logit)
        slope = p_fake if self.settings.loss == "softplus" else 2 * p_fake * p_fake * (1 - p_fake)
        saturated = slope == 0
        self.used_log_odds[chosen[saturated.any(1) & unfinished]] = True
        return torch.where(saturated, 1.0, slope)

    def message(self, number: int) -> str:
        step = f"Step {number} of at most {self.settings.steps}"
        if len(self.faces) == 1:
            return f"{step}: p_fake is {float(self.now_p[0].amax()):.2f}."
        return f"{step}: {int(self.passed.sum())} of {int((~self.already_real).sum())} faces passed the margin."

    def values(self) -> dict[str, float]:
        """Return the numbers that the progress curves show."""
        return {"p_fake": float(self.now_p.amax(1).mean()), "active": float(self.active.sum())}

    def result(self, seconds: float) -> SearchResult:
        """Gather the result on the CPU."""
        trajectory = torch.stack(self.trajectory) if self.trajectory else self.now_p.amax(1)[None]
        flipped = ~self.already_real & (self.kept_p < THRESHOLD).all(1)
        scores = [values.cpu().unbind(1) for values in (self.p_original, self.p_inversion, self.kept_p)]
        names = [judge.detector.card.name for judge in self.judges]
        first, *others = zip(*scores, strict=True)
        return SearchResult(
            codes_start=self.start.cpu(),
            codes=self.kept_codes.cpu(),
            original=self.faces.cpu(),
            inversion=self.inversion.cpu(),
            counterfactual=self.kept.cpu(),
            p_original=first[0],
            p_inversion=first[1],
            p_counterfactual=first[2],
            allies=dict(zip(names[1:], others, strict=True)),
            flipped=flipped.cpu(),
            steps=self.steps.cpu(),
            already_real=self.already_real.cpu(),
            flipped_by_inversion=(~self.already_real & (self.p_inversion[:, 0] < THRESHOLD)).cpu(),
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
            detector=names[0],
            torch=torch.__version__,
            seconds=seconds,
        )
