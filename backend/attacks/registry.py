"""The attacks by name, and the sets of detectors that they are measured against, one for each defence in training.

A new attack is a new file beside this one, whose function carries `@register_attack`. Defences: TR-Net, arXiv
2203.11433, section 5.3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from backend import weights
from backend.attacks.base import Attacked
from backend.detectors.base import Detector
from backend.progress import Job
from backend.registration import LAST, Registered, Registry
from backend.settings import SETTINGS

WHITE_BOX = "xception"  # the detector whose gradient TR-Net's paper uses for FGSM and PGD
TRNET_DETECTORS = ("xception", "patch_cnn", "dct_a", "f3net", "lf", "nf")  # the six of TR-Net
SHIPPED = "shipped"
_TRAIN_COMMAND = "python -m backend train detector NAME --data DIR --fakes DIR"
_INSTALL_OPTION = "--out NAME.safetensors --install"
_FORMER_SUFFIX, _SUFFIX = "_paper000", "_artifact_eraser"  # of names of attacks in old settings, and now

Needs = Literal["nothing", "a white-box detector", "trained weights"]
AttackFunction = Callable[[Tensor, Detector, Any, Tensor | None], Job[Attacked]]


@dataclass(frozen=True)
class Attack:
    """What is known of an attack before it runs.

    Args:
        name: The name that code and command line use.
        title: Name for people.
        paper: Where it was published.
        needs: What an attacker must have.
        function: `(images, detector, settings, mask)` to a job.
        settings: Its settings; they have a `seed`.
        entry: The weights that it needs, as the registry names them.
        compared: Whether comparisons and tables include it; of each attack, they show one form.
        complete: Adds to its settings what trained weights decide.
    """

    name: str
    title: str
    paper: str
    needs: Needs
    function: AttackFunction
    settings: Any
    entry: str | None = None
    compared: bool = True
    complete: Callable[[Any], Any] | None = None

    def available(self) -> bool:
        """Say whether its weights are installed, or it needs none."""
        if self.entry is None:
            return True
        return (SETTINGS.weights_dir / "registry.toml").exists() and self.entry in weights.read_entries()

    def with_strength(self, strength: float) -> "Attack":
        """Return this attack with its change made larger or smaller; one that knows no strength stays as it is.

        Raises:
            UserError: The strength is out of range.
        """
        if strength == 1 or not hasattr(self.settings, "strength"):
            return self
        settings = replace(self.settings, strength=strength)
        return replace(self, title=f"{self.title}, strength {strength:g}", settings=settings)

    def final_settings(self) -> Any:
        """Return the settings of a run, those that trained weights decide among them.

        Raises:
            UserError: The attack's weights are missing.
        """
        return self.settings if self.complete is None else self.complete(self.settings)

    def run(self, images: Tensor, detector: Detector, mask: Tensor | None = None, *, seed: int = 0) -> Job[Attacked]:
        """Attack faces (N, 3, H, W) in [0, 1]; `detector` is the white box, and judges.

        Raises:
            UserError: The attack's weights are missing.
        """
        return self.function(images, detector, replace(self.settings, seed=seed), mask)


# TR-Net is named, because attacks import nothing of trace removal.
ATTACKS = Registry[Attack]("attack", "backend.attacks", "backend.trace_removal.removal")


def register_attack(name: str, *, order: float = LAST, **facts: Any) -> Callable[[Registered], Registered]:
    """Return a decorator for a function `(images, detector, settings, mask)` that makes it an attack of this name.

    Args:
        name: The name that code and command line use.
        order: Place in lists.
        facts: Other fields of `Attack`.
    """
    return ATTACKS.register(name, lambda function: Attack(name, function=function, **facts), order)


def get_attack(name: str) -> Attack:
    """Return one attack; names of old settings are understood.

    Raises:
        UserError: There is none of this name.
    """
    return ATTACKS.find(name.replace(_FORMER_SUFFIX, _SUFFIX))


def compared_attacks() -> tuple[str, ...]:
    """Return the attacks of comparisons and tables: one form of each, in the order of TR-Net's tables."""
    return tuple(name for name, attack in ATTACKS.items() if attack.compared)


@dataclass(frozen=True)
class DefenceSet:
    """What a set of detectors was trained with.

    Args:
        name: As settings and files name it.
        title: For people, after "with" or "trained with".
        suffix: Ends the names of the set's entries in the registry of weights.
        command: Trains one detector NAME of the set.
    """

    name: str
    title: str
    suffix: str
    command: str


DEFENCES: dict[str, DefenceSet] = {
    defence.name: defence
    for defence in (
        DefenceSet("none", "no defence", "_plain", f"{_TRAIN_COMMAND} --defence none {_INSTALL_OPTION}"),
        DefenceSet("weak", "the weak defence", "_weak", f"{_TRAIN_COMMAND} --defence weak {_INSTALL_OPTION}"),
        DefenceSet(
            "strong", "the strong defence", "_strong", f"{_TRAIN_COMMAND} --adversarial ATTACK {_INSTALL_OPTION}"
        ),
        DefenceSet(SHIPPED, "the app's own defence", "", f"{_TRAIN_COMMAND} {_INSTALL_OPTION}"),
    )
}


def installed_with_defence(defence: str, detectors: Iterable[str]) -> dict[str, str]:
    """Return those of the detectors that a set has, with the names of their entries, TR-Net's six first.

    Args:
        defence: Name of the defence.
        detectors: Names of detectors as the shipped set has them.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    installed, names = weights.read_entries(), list(detectors)
    names.sort(key=lambda name: TRNET_DETECTORS.index(name) if name in TRNET_DETECTORS else len(TRNET_DETECTORS))
    entries = {name: name + DEFENCES[defence].suffix for name in names}
    return {name: entry for name, entry in entries.items() if entry in installed}
