"""What a search found, as numbers, pictures and words."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from backend import verdicts
from backend.counterfactual.levels import WORDS

if TYPE_CHECKING:
    from backend.counterfactual.search_settings import SearchSettings
    from backend.generators.refinement import Refined
    from backend.generators.tuning import Tuned


@dataclass(frozen=True, eq=False)
class Search:
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
            call = verdicts.call(before, "this face")
            return f"The detector {self.detector} {call} ({before:.2f}), so there is nothing to turn."
        scores = f"from {before:.2f} to {after:.2f} (0 = real, 1 = fake)"
        rows = " and ".join(f"{level} ({WORDS[level]})" for level in self.settings.levels)
        where = f"changing the style levels {rows}" if len(self.settings.levels) > 1 else f"changing style level {rows}"
        steps = f"{int(self.steps[0])} step{'' if self.steps[0] == 1 else 's'} (epsilon {abs(self.epsilon):g})"
        if self.flipped[0]:
            call = verdicts.call(after)
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
