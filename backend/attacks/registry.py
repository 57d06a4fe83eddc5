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
        needs: What an attacker must have.
        function: Takes images (N, 3, H, W) in [0, 1], a detector, settings or None, and a mask (None where every pixel
            may change; 1 where pixels may change, (H, W) or (N, 1, H, W)).
        settings: They have a `seed`.
        entry: Name of the weights that it needs in the registry.
        compared: Whether comparisons and tables include it; they show one form of each attack.
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
        """Return whether its weights are installed or it needs none."""
        if self.entry is None:
            return True
        return (SETTINGS.weights_dir / "registry.toml").exists() and self.entry in weights.read_entries()

    def with_strength(self, strength: float) -> "Attack":
        """Return this attack with a larger or smaller change; an attack without a strength stays as it is.

        Raises:
            UserError: The strength is out of range.
        """
        if strength == 1 or not hasattr(self.settings, "strength"):
            return self
        settings = replace(self.settings, strength=strength)
        return replace(self, title=f"{self.title}, strength {strength:g}", settings=settings)

    def final_settings(self) -> Any:
        """Return the settings of a run, including those that trained weights decide.

        Raises:
            UserError: The attack's weights are missing.
        """
        return self.settings if self.complete is None else self.complete(self.settings)

    def run(self, images: Tensor, detector: Detector, mask: Tensor | None = None, *, seed: int = 0) -> Job[Attacked]:
        """Attack faces (N, 3, H, W) in [0, 1]; `detector` is the white box and the judge.

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


def register_white_box(
    name: str, *, eraser: Any, eraser_title: str, order: float, **facts: Any
) -> Callable[[Registered], Registered]:
    """Return a decorator that registers a white-box attack, and its form in arXiv 2404.08341 as `NAME_artifact_eraser`.

    Args:
        name: Name of the published form.
        eraser: Settings of Artifact-Eraser's form.
        eraser_title: Name of Artifact-Eraser's form for people.
        order: Place of the published form in lists; the other one comes 30 later.
        facts: `title`, `paper` and `settings` of the published form.
    """
    facts["needs"] = "a white-box detector"
    paper = f"{facts['paper']}, as in Artifact-Eraser, arXiv 2404.08341"
    changed = {"title": eraser_title, "paper": paper, "settings": eraser, "compared": False}
    add_published = register_attack(name, order=order, **facts)
    add_eraser = register_attack(name + _SUFFIX, order=order + 30, **facts | changed)
    return lambda function: add_eraser(add_published(function))


def get_attack(name: str) -> Attack:
    """Return one attack; the names in old settings still work.

    Raises:
        UserError: There is no attack of this name.
    """
    return ATTACKS.find(name.replace(_FORMER_SUFFIX, _SUFFIX))


def compared_attacks() -> tuple[str, ...]:
    """Return the attacks of comparisons and tables: one form of each, in the order of TR-Net's tables."""
    return tuple(name for name, attack in ATTACKS.items() if attack.compared)


@dataclass(frozen=True)
class DefenceSet:
    """A set of detectors trained with the same defence.

    Args:
        name: As in settings and files.
        title: For people, after "with" or "trained with".
        suffix: Ends the names of the set's entries in the registry of weights.
        command: Trains the set's detector NAME.
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
    """Return the installed detectors of a defence set with the names of their entries, TR-Net's six first.

    Args:
        defence: A key of `DEFENCES`.
        detectors: Names in the shipped set.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    installed, names = weights.read_entries(), list(detectors)
    names.sort(key=lambda name: TRNET_DETECTORS.index(name) if name in TRNET_DETECTORS else len(TRNET_DETECTORS))
    entries = {name: name + DEFENCES[defence].suffix for name in names}
    return {name: entry for name, entry in entries.items() if entry in installed}
