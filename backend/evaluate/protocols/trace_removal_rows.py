"""How tables and plots of the trace-removal protocol read its rows."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from backend.detectors.card import THRESHOLD
from backend.evaluate.metrics import traces
from backend.evaluate.metrics.metric import Estimate, mean
from backend.evaluate.rows import Row
from backend.trace_removal import sets
from backend.trace_removal.attacks import ATTACKS, STRENGTHS
from backend.trace_removal.references import REAL, References

if TYPE_CHECKING:
    from backend.evaluate.protocols.trace_removal import TraceRemovalConfig

NONE = "none"  # attack: the picture as it is


def of_kind(rows: Sequence[Row], kind: str) -> list[Row]:
    """Return the rows of verdicts, or those of measures."""
    return [row for row in rows if row["kind"] == kind]


def attacks(rows: Sequence[Row]) -> list[str]:
    """Return `none` and the attacks that fakes went through, in the order of the paper's tables."""
    found = {row["attack"] for row in rows if row["label"] == "fake"}
    order = [NONE, *ATTACKS]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


def without_strengths(rows: Sequence[Row]) -> list[Row]:
    """Return the rows without those of TR-Net at another strength than the one it was trained for."""
    return [row for row in rows if row["attack"] not in STRENGTHS]


def title(attack: str) -> str:
    """Return an attack's name for people."""
    if attack == NONE:
        return "no attack"
    return ATTACKS[attack].title if attack in ATTACKS else f"TR-Net {attack}"


def mean_of_six(verdicts: Sequence[Row], defence: str, attack: str, family: str = "") -> Estimate:
    """Return mean and deviation over fakes of the share of paper 001's six detectors that call them fake."""
    by_sample: dict[str, list[bool]] = {}
    for row in verdicts:
        wanted = (row["label"], row["defence"], row["attack"]) == ("fake", defence, attack)
        if wanted and row["detector"] in sets.PAPER001 and family in ("", row["family"]):
            by_sample.setdefault(row["sample"], []).append(row["p_fake"] >= THRESHOLD)
    return mean(float(np.mean(said)) for said in by_sample.values())


def groups(measured: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the measures of real pictures, and of fakes by attack, by what they are called."""
    found = {"real pictures": [row for row in measured if row["label"] == REAL]}
    for attack in attacks(measured):
        name = "fakes" if attack == NONE else title(attack)
        found[name] = [row for row in measured if row["label"] == "fake" and row["attack"] == attack]
    return {name: own for name, own in found.items() if own}


def feature_kinds(measured: Sequence[Row]) -> list[str]:
    """Return whose features were kept: `detector`, or TR-Net's discriminators."""
    names = dict.fromkeys(name for row in measured for name in row if name.startswith("features_"))
    return [name.removeprefix("features_") for name in names]


def real_power(measured: Sequence[Row], reference: References | None) -> tuple[np.ndarray, np.ndarray] | None:
    """Return mean and deviation (K,) of the power of real photographs in dB: stored ones, or those of the data."""
    stored = reference.power[REAL] if reference else None
    if stored is not None and measured and stored.shape[1:] == measured[0]["power"].shape:
        return stored[0], stored[1]
    own = [row["power"] for row in measured if row["label"] == REAL]
    return (np.mean(own, axis=0), np.std(own, axis=0)) if own else None


def real_spectrum(measured: Sequence[Row], reference: References | None) -> np.ndarray | None:
    """Return the mean spectrum of real photographs in dB: stored ones, or those of the data."""
    if reference and measured:
        import torch

        stored = traces.small(torch.from_numpy(reference.spectrum[REAL]))
        if stored.shape == measured[0]["spectrum"].shape:
            return stored
    own = [row["spectrum"].astype(np.float64) for row in measured if row["label"] == REAL]
    return np.mean(own, axis=0) if own else None


def mean_array(rows: Sequence[Row], column: str) -> np.ndarray:
    """Return the mean of an array over rows."""
    return np.asarray(np.mean([row[column].astype(np.float64) for row in rows], axis=0))


def defences_of(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> list[str]:
    """Return the defences of which at least one detector judged."""
    found = {row["defence"] for row in verdicts}
    return [name for name in config.defences if name in found]


def detectors_of(verdicts: Sequence[Row], config: "TraceRemovalConfig") -> list[str]:
    """Return the detectors that judged, those of TR-Net's paper first."""
    found = {row["detector"] for row in verdicts}
    return [name for name in dict.fromkeys((*sets.PAPER001, *config.detectors)) if name in found]


def judged(rows: Sequence[Row], defence: str, detector: str, attack: str) -> list[Row]:
    """Return what one detector says of the fakes after one attack."""
    wanted = (defence, detector, attack, "fake")
    return [row for row in rows if (row["defence"], row["detector"], row["attack"], row["label"]) == wanted]
