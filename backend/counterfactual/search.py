"""Search the style codes for the smallest change that makes a detector call a face real.

Artifact-Eraser, section 3.3, equations 2 to 4: steps of fixed length against the sign of the gradient of
(p_fake - 0)^2, on the rows that the levels open. The paper prints a plus; a plus raises that loss. Its steps are equal
in all rows; ours are shorter in those to which the generator reacts more (`step_lengths.py`). Each step is one forward
and one backward pass: the picture that is judged is the picture that is kept. Where drafts are enough for the steps
(`rendering.py`), a face that passes as a draft is drawn and judged exactly; if it does not pass as such, its search
goes on without drafts.
"""

import time

import torch
from torch import Tensor

from backend.counterfactual import levels
from backend.counterfactual.composite import as_saved
from backend.counterfactual.outcome import Search
from backend.counterfactual.rendering import Renderer, draft_effort
from backend.counterfactual.search_settings import SearchSettings
from backend.counterfactual.step_lengths import step_lengths
from backend.detectors.card import THRESHOLD, Detector
from backend.generators.inversion import Inverter
from backend.generators.refinement import Refined, RefineSettings, refine
from backend.generators.tuning import Tuned, TuneSettings, tune
from backend.progress import Job, Step, counted
from backend.runtime import MODEL_LOCK, frozen
from backend.views import View

LIFT = 4096.0  # slope for float16, in which gradients of a usual size would round to zero


def search(
    inverter: Inverter,
    detector: Detector,
    faces: Tensor,
    settings: SearchSettings | None = None,
    view: View | None = None,
    *,
    offset: Tensor | None = None,
) -> Job[Search]:
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
            state = _State(inverter, detector, faces, settings, codes, view, refined, tuned)
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


class _State:
    """What a search knows between two steps; every tensor has one entry a face."""

    def __init__(
        self,
        inverter: Inverter,
        detector: Detector,
        faces: Tensor,
        settings: SearchSettings,
        codes: Tensor,
        view: View | None,
        refined: Refined | None,
        tuned: Tuned | None,
    ) -> None:
        inverter = inverter if tuned is None else tuned.inverter
        self.inverter, self.detector, self.settings = inverter, detector, settings
        self.faces, self.refined, self.tuned = faces, refined, tuned
        self.start = codes
        self.epsilon = inverter.epsilon if settings.epsilon is None else settings.epsilon
        self.opened = levels.mask(settings.levels, inverter.rows).nonzero().flatten().tolist()
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
            slope = slope.sign() * LIFT
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
