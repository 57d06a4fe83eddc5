"""The sets of detectors that are compared: one for each defence in their training (TR-Net, arXiv 2203.11433, 5.3)."""

from collections.abc import Iterable
from dataclasses import dataclass

from backend import weights
from backend.settings import SETTINGS

PAPER001 = ("xception", "patch_cnn", "dct_a", "f3net", "lf", "nf")  # the six of TR-Net


@dataclass(frozen=True)
class Defence:
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
_TRAIN = "python -m backend train detector NAME --data DIR --fakes DIR"
_INSTALL = "--out NAME.safetensors --install"
DEFENCES: dict[str, Defence] = {
    one.name: one
    for one in (
        Defence("none", "no defence", "_plain", f"{_TRAIN} --defence none {_INSTALL}"),
        Defence("weak", "the weak defence", "_weak", f"{_TRAIN} --defence weak {_INSTALL}"),
        Defence("strong", "the strong defence", "_strong", f"{_TRAIN} --adversarial ATTACK {_INSTALL}"),
        Defence(SHIPPED, "the app's own defence", "", f"{_TRAIN} {_INSTALL}"),
    )
}


def installed(defence: str, detectors: Iterable[str]) -> dict[str, str]:
    """Return those of the detectors that a set has, with the names of their entries, paper 001's first.

    Args:
        defence: Name of the defence.
        detectors: Names of detectors as the shipped set has them.
    """
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        return {}
    known, given = weights.entries(), list(detectors)
    ordered = [name for name in PAPER001 if name in given] + [name for name in given if name not in PAPER001]
    entries = {name: name + DEFENCES[defence].suffix for name in ordered}
    return {name: entry for name, entry in entries.items() if entry in known}
