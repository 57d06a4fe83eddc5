"""The attacks by name, and the sets of detectors that they are measured against, one for each defence in training.

Defences: TR-Net, arXiv 2203.11433, section 5.3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from backend import weights
from backend.attacks import fgsm, ganprintr, mifgsm, noise, pgd
from backend.attacks.base import Attacked
from backend.detectors.base import Detector
from backend.errors import UserError
from backend.progress import Job
from backend.settings import SETTINGS
from backend.trace_removal import removal

TRNET_DETECTORS = ("xception", "patch_cnn", "dct_a", "f3net", "lf", "nf")  # the six of TR-Net


@dataclass(frozen=True)
class DefenceSet:
    """What a set of detectors was trained with.

    Args:
        name: As settings and files name it.
        title: For people, after "with" or "trained with".
        suffix: Ends the names of the set's entries in the registry of weights.
        training: The command that trains one detector NAME of the set.
    """

    name: str
    title: str
    suffix: str
    training: str


SHIPPED = "shipped"

_TRAIN_COMMAND = "python -m backend train detector NAME --data DIR --fakes DIR"

_INSTALL_OPTION = "--out NAME.safetensors --install"

DEFENCES: dict[str, DefenceSet] = {
    one.name: one
    for one in (
        DefenceSet("none", "no defence", "_plain", f"{_TRAIN_COMMAND} --defence none {_INSTALL_OPTION}"),
        DefenceSet("weak", "the weak defence", "_weak", f"{_TRAIN_COMMAND} --defence weak {_INSTALL_OPTION}"),
        DefenceSet(
            "strong", "the strong defence", "_strong", f"{_TRAIN_COMMAND} --adversarial ATTACK {_INSTALL_OPTION}"
        ),
        DefenceSet(SHIPPED, "the app's own defence", "", f"{_TRAIN_COMMAND} {_INSTALL_OPTION}"),
    )
}


def installed_with_defence(defence: str, detectors: Iterable[str]) -> dict[str, str]:
    """Return those of the detectors that a set has, with the names of their entries, paper 001's first.

    Args:
        defence: Name of the defence.
        detectors: Names of detectors as the shipped set has them.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known, given = weights.read_entries(), list(detectors)
    ordered = [name for name in TRNET_DETECTORS if name in given] + [
        name for name in given if name not in TRNET_DETECTORS
    ]
    entries = {name: name + DEFENCES[defence].suffix for name in ordered}
    return {name: entry for name, entry in entries.items() if entry in known}


Needs = Literal["nothing", "a white-box detector", "trained weights"]

AttackFunction = Callable[[Tensor, Detector, Any, Tensor | None], Job[Attacked]]

WHITE_BOX = "xception"  # the detector whose gradient TR-Net's paper uses for FGSM and PGD


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
    """

    name: str
    title: str
    paper: str
    needs: Needs
    function: AttackFunction
    settings: Any
    entry: str | None = None

    def available(self) -> bool:
        """Say whether its weights are installed, or it needs none."""
        if self.entry is None:
            return True
        return (SETTINGS.weights_dir / "registry.toml").exists() and self.entry in weights.read_entries()

    def at(self, strength: float) -> "Attack":
        """Return this attack with its change made larger or smaller; one that knows no strength stays as it is.

        Raises:
            UserError: The strength is out of range.
        """
        if strength == 1 or not hasattr(self.settings, "strength"):
            return self
        settings = replace(self.settings, strength=strength)
        return replace(self, title=f"{self.title}, strength {strength:g}", settings=settings)

    def applied(self) -> Any:
        """Return the settings of a run, those that trained weights decide among them.

        Raises:
            UserError: The attack's weights are missing.
        """
        return removal.applied_settings(self.settings) if self.entry == removal.TRNET_ENTRY else self.settings

    def run(self, images: Tensor, detector: Detector, mask: Tensor | None = None, *, seed: int = 0) -> Job[Attacked]:
        """Attack faces (N, 3, H, W) in [0, 1]; `detector` is the white box, and judges.

        Raises:
            UserError: The attack's weights are missing.
        """
        return self.function(images, detector, replace(self.settings, seed=seed), mask)


FRANK = "Frank et al. 2020, arXiv 2003.08685"

GOODFELLOW = "Goodfellow et al. 2015, arXiv 1412.6572"

DONG = "Dong et al. 2018, arXiv 1710.06081"

MADRY = "Madry et al. 2018, arXiv 1706.06083"

NEVES = "Neves et al. 2020, arXiv 1911.05351"

LIU = "Liu et al. 2022, arXiv 2203.11433"

ERASER = ", as in Artifact-Eraser, arXiv 2404.08341"

BOX: Needs = "a white-box detector"

TRAINED: Needs = "trained weights"

HALF, MORE, MOST = (
    removal.TRNetSettings(strength=one) for one in (0.5, 1.75, removal.STRONGEST_STRENGTH)
)  # 1.75 keeps a little more likeness than GANprintR

_ATTACK_TABLE = (
    Attack("noise", "Noise", FRANK, "nothing", noise.attack, noise.NoiseSettings()),
    Attack("fgsm", "FGSM", GOODFELLOW, BOX, fgsm.attack, fgsm.FGSMSettings()),
    Attack("mifgsm", "MIFGSM", DONG, BOX, mifgsm.attack, mifgsm.MIFGSMSettings()),
    Attack("pgd", "PGD", MADRY, BOX, pgd.attack, pgd.PGDSettings()),
    Attack("fgsm_paper000", "FGSM, iterative", GOODFELLOW + ERASER, BOX, fgsm.attack, fgsm.ARTIFACT_ERASER),
    Attack("mifgsm_paper000", "MIFGSM, unnormalised", DONG + ERASER, BOX, mifgsm.attack, mifgsm.ARTIFACT_ERASER),
    Attack("pgd_paper000", "PGD, 8 steps", MADRY + ERASER, BOX, pgd.attack, pgd.ARTIFACT_ERASER),
    Attack(
        "ganprintr",
        "GANprintR",
        NEVES,
        TRAINED,
        ganprintr.attack,
        ganprintr.GanprintrSettings(),
        ganprintr.GANPRINTR_ENTRY,
    ),
    Attack("trnet", "TR-Net", LIU, TRAINED, removal.attack_with_trnet, removal.TRNetSettings(), removal.TRNET_ENTRY),
    Attack("trnet_half", "TR-Net, half its change", LIU, TRAINED, removal.attack_with_trnet, HALF, removal.TRNET_ENTRY),
    Attack(
        "trnet_more",
        "TR-Net, 1.75 times its change",
        LIU,
        TRAINED,
        removal.attack_with_trnet,
        MORE,
        removal.TRNET_ENTRY,
    ),
    Attack(
        "trnet_most", "TR-Net, twice its change", LIU, TRAINED, removal.attack_with_trnet, MOST, removal.TRNET_ENTRY
    ),
)

ATTACKS: dict[str, Attack] = {attack.name: attack for attack in _ATTACK_TABLE}

COMPARED = (
    "noise",
    "fgsm",
    "mifgsm",
    "pgd",
    "ganprintr",
    "trnet",
)  # one form of each, in the order of the paper's tables

STRENGTHS = ("trnet_half", "trnet_more", "trnet_most")  # what more or less likeness costs or gains


def get_attack(name: str) -> Attack:
    """Return one attack, or say which exist.

    Raises:
        UserError: There is none of this name.
    """
    try:
        return ATTACKS[name]
    except KeyError:
        raise UserError(f"There is no attack named {name}.", f"Choose from: {', '.join(ATTACKS)}.") from None
