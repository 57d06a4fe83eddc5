"""Ways to make a detector call a fake real: the latent search and its rivals on pixels, in one form."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backend.attacks import fgsm, mifgsm, pgd
from backend.counterfactual import levels, traces
from backend.counterfactual.composite import COMPOSITES
from backend.counterfactual.search import SearchSettings, search
from backend.counterfactual.search_settings import Lengths
from backend.detectors.card import Detector
from backend.detectors.looking import Looking
from backend.errors import UserError
from backend.generators import inversion
from backend.progress import Job, finish
from backend.views import Source

ALL_LEVELS = ",".join(levels.LEVELS)
PIXELS: dict[str, tuple[Callable[..., Job[Any]], dict[str, Any]]] = {
    "fgsm": (fgsm.attack, {"paper000": fgsm.PAPER000, "standard": fgsm.FGSMSettings()}),
    "mifgsm": (mifgsm.attack, {"paper000": mifgsm.PAPER000, "standard": mifgsm.MIFGSMSettings()}),
    "pgd": (pgd.attack, {"paper000": pgd.PAPER000, "standard": pgd.PGDSettings()}),
}
METHODS = (*COMPOSITES, *PIXELS)
TITLES = {
    "reconstruction": "Counterfactual (reconstruction)",
    "transfer": "Counterfactual (transfer)",
    "fgsm": "FGSM",
    "mifgsm": "MIFGSM",
    "pgd": "PGD",
}


@dataclass(frozen=True, eq=False)
class Edited:
    """A face after an edit.

    Args:
        start: What the edit started from, (1, 3, H, W) in [0, 1]: the generator's inversion for `reconstruction`, the
            face itself for everything that adds to it.
        picture: The edited face, in 8 bits.
        steps: How many steps it took.
        change: Mean absolute change of the codes by level; None where no codes were searched.
        epsilon: Length of a step.
        seconds: Time taken.
    """

    start: Tensor
    picture: Tensor
    steps: int
    change: dict[str, float] | None
    epsilon: float
    seconds: float


def edit(
    method: str,
    face: Tensor,
    detector: Detector,
    *,
    level: str = ALL_LEVELS,
    factor: float = 1.0,
    steps: int = 100,
    kappa: float = 0.0,
    lengths: Lengths = "visible",
    variant: str = "paper000",
    source: Source | None = None,
) -> Edited:
    """Edit one aligned face (1, 3, H, W) in [0, 1] against a detector.

    Args:
        method: One of `METHODS`.
        face: The face.
        detector: What is to be convinced.
        level: Style levels that may change, for a latent search.
        factor: Multiplies the generator's own step, for a latent search.
        steps: Steps at most, for a latent search.
        kappa: Margin, for a latent search.
        lengths: How steps differ between rows, see `SearchSettings`, for a latent search.
        variant: `paper000` or `standard`, for attacks on pixels.
        source: The photo of the face, from which a detector that wants another crop is shown its own.
    """
    view = None if source is None else source.view(detector.card.template, detector.card.input_size)
    if method in PIXELS:
        attack, settings = PIXELS[method]
        asked = detector if view is None else Looking(detector, view)
        attacked = finish(attack(face, asked, settings[variant]))
        chosen = settings[variant]
        length = getattr(chosen, "alpha", chosen.epsilon)  # what FGSM calls epsilon is its step
        return Edited(face, attacked.images, int(attacked.iterations[0]), None, length, attacked.seconds)
    if method not in COMPOSITES:
        raise UserError(f"There is no method {method}.", f"Choose among: {', '.join(METHODS)}.")
    inverter = inversion.load()
    found = finish(
        search(
            inverter,
            detector,
            face,
            SearchSettings(
                levels=levels.parse(level),
                epsilon=inverter.epsilon * factor,
                lengths=lengths,
                steps=steps,
                kappa=kappa,
                composite=method,  # type: ignore[arg-type]
            ),
            view,
        )
    )
    change = traces.latent_change(found.codes_start, found.codes).levels
    return Edited(
        start=found.inversion if method == "reconstruction" else found.original,
        picture=found.counterfactual,
        steps=int(found.steps[0]),
        change={name: float(value[0]) for name, value in change.items()},
        epsilon=found.epsilon,
        seconds=found.seconds,
    )
