"""What a search is asked for."""

import math
from dataclasses import dataclass
from typing import Literal

from backend.counterfactual import levels
from backend.counterfactual.composite import COMPOSITES, Composite
from backend.counterfactual.rendering import DTYPES, Precision
from backend.detectors.card import UNCERTAIN_MARGIN
from backend.errors import UserError
from backend.generators.refinement import MOST_STEPS

Lengths = Literal["visible", "equal"]


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

    levels: tuple[str, ...] = levels.LEVELS
    epsilon: float | None = None
    lengths: Lengths = "visible"
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
        if not self.levels or not set(self.levels) <= set(levels.LEVELS):
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
        if not 0 <= self.refine <= MOST_STEPS:
            raise UserError(
                f"A reconstruction cannot be refined in {self.refine} steps.", f"Use 0 to {MOST_STEPS} steps."
            )
        if not 0 <= self.tune <= MOST_STEPS:
            raise UserError(f"A generator cannot be tuned in {self.tune} steps.", f"Use 0 to {MOST_STEPS} steps.")

    @property
    def total(self) -> int:
        """Number of steps at most, with the inversion, its refinement and the tuning."""
        return self.refine + self.tune + self.steps + 1
