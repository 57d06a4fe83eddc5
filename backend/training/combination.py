"""Choose which detectors make up the combined answer, how they are calibrated, and where its grades begin.

One half of the validation photographs, and the fakes made from them, choose; the other half sets the limits. Fakes of
kinds that no detector learned count beside fakes by others, so that knowing the project's own generator earns nothing.
The limits are those of split-conformal prediction (Vovk et al. 2005; Lei et al. 2018): of new pictures like those that
set a limit, at most the stated share is expected beyond it. They also hold for photographs that were saved again,
blurred, resized or taken from a compressed video.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from backend import face_packs, weights
from backend.detectors import combination, registry
from backend.detectors.combination import LARGEST, Combination, Member
from backend.detectors.inference import BatchedDetector
from backend.errors import UserError
from backend.images import like_photographs
from backend.progress import Job, Step, within
from backend.settings import validated
from backend.training.calibration import (
    SAME_SOURCES,
    SHORTCUT_CHANGES,
    UNCHANGED,
    VIDEO_CHANGE,
    change_photographs,
    fake_auc,
)
from backend.training.data import MEASURING_PART, WILD_PACKS, source_of
from backend.training.held_out import HELD_OUT_KINDS, make_held_out

COMMAND = "python -m backend train combination"
HALVES = 2  # of the photographs: one chooses, the other sets the limits
LOSS_STRENGTH = 1e4  # inverse of the penalty on the calibration's scale, which hardly counts


@validated
@dataclass(frozen=True)
class CombinationSettings:
    """Settings of the choice.

    Args:
        least_auc: Mean area under the ROC curve over the kinds of fakes from which a detector is a member.
        strong_alarms: Share of photographs that may pass as `strong`.
        mixed_alarms: Share of photographs that may pass as `mixed` or `strong`.
        none_misses: Share of fakes of kinds that no detector learned that may be graded `none`.
        seed: Of the fakes that are made.
    """

    least_auc: float = 0.6
    strong_alarms: float = 0.05
    mixed_alarms: float = 0.2
    none_misses: float = 0.1
    seed: int = 0


@dataclass(frozen=True)
class _Scored:
    """Log-odds (N,) by detector of some pictures, and which of them choose; the others set limits."""

    log_odds: Mapping[str, np.ndarray]
    chooses: np.ndarray
    sources: np.ndarray

    def part(self, *, chooses: bool, sources: tuple[str, ...] | None = None) -> dict[str, np.ndarray]:
        kept = self.chooses == chooses
        if sources is not None:
            kept &= np.isin(self.sources, sources)
        return {name: values[kept] for name, values in self.log_odds.items()}


def fit_combination(data: Path, settings: CombinationSettings) -> Job[Combination]:
    """Choose members, calibration and limits from the packs of faces in `data`.

    Raises:
        UserError: The packs are not there, or no detector tells fakes from photographs.
    """
    if not list(data.glob("real-val*.tar")) or not list(data.glob(f"{WILD_PACKS}.tar")):
        raise UserError(
            f"{data.name} lacks packs of validation photographs and of fakes by others.", "See the model card."
        )
    names = registry.loadable("embedded")
    photographs = face_packs.load_photographs(data, registry.EMBEDDED_SIZE, face_packs.VALIDATION_PACKS)
    wild = _measured_wild(data)
    made = yield from within(make_held_out(photographs, settings.seed), 0, 3)
    photographs = face_packs.Photographs(
        [*photographs.names, *wild["ciplab_real"].names],
        torch.cat([photographs.pictures, wild["ciplab_real"].pictures]),
    )
    yield Step(1, 3, "All detectors judge the photographs.")
    real = {
        change: _score(names, change_photographs(photographs.pictures, change), photographs.names)
        for change in (UNCHANGED, *SHORTCUT_CHANGES, VIDEO_CHANGE)
    }
    yield Step(2, 3, "All detectors judge the fakes.")
    fakes = {
        kind: _score(names, like_photographs(pictures), [photographs.names[index] for index in origins])
        for kind, (pictures, origins) in made.items()
    }
    others = {kind: _score(names, like_photographs(wild[kind].pictures), wild[kind].names) for kind in SAME_SOURCES}
    aucs = {name: _mean_auc(_single(name), real[UNCHANGED], fakes, others) for name in names}
    members = [_calibrate(name, real[UNCHANGED], fakes) for name in names if aucs[name] >= settings.least_auc]
    if not members:
        raise UserError("No detector tells these fakes from photographs.", "Train detectors first.")
    draft = Combination(tuple(members), 0.0, 0.0, 0.0, {})
    fitted = _with_limits(draft, real, fakes, settings)
    facts = {
        "command": COMMAND,
        "settings": asdict(settings),
        "candidates": {name: round(auc, 4) for name, auc in sorted(aucs.items(), key=lambda item: -item[1])},
        "measured": _measure(fitted, real, fakes, others),
    }
    yield Step(3, 3, "The combination is chosen.")
    return Combination(fitted.members, fitted.none_below, fitted.mixed_from, fitted.strong_above, facts)


def _measured_wild(data: Path) -> dict[str, face_packs.Photographs]:
    """Return the pictures by others that no detector learned from, by kind."""
    wild = face_packs.load_photographs(data, registry.EMBEDDED_SIZE, WILD_PACKS)
    measured = [index for index, name in enumerate(wild.names) if face_packs.falls_into_part(name, MEASURING_PART)]
    kinds = [wild.names[index].split("/")[0] for index in measured]
    return {
        kind: wild.subset([index for index, own in zip(measured, kinds, strict=True) if own == kind])
        for kind in dict.fromkeys(kinds)
    }


def _score(names: list[str], pictures: Tensor, files: list[str]) -> _Scored:
    values = pictures.float() / 255
    log_odds = {
        name: BatchedDetector(registry.load(name)).logit_fake_of_all(values).clamp(-LARGEST, LARGEST).double().numpy()
        for name in names
    }
    chooses = np.array([face_packs.falls_into_part(f"half {face_packs.base_name(file)}", HALVES) for file in files])
    return _Scored(log_odds, chooses, np.array([source_of(file) for file in files]))


def _single(name: str) -> Combination:
    return Combination((Member(name, 1.0, 0.0, ""),), 0.0, 0.0, 0.0, {})


def _joint(members: Combination, log_odds: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the combined scores (N,)."""
    parts = [member.scale * log_odds[member.name] + member.shift for member in members.members]
    return np.mean(parts, axis=0)


def _aucs(
    members: Combination,
    real: _Scored,
    fakes: Mapping[str, _Scored],
    others: Mapping[str, _Scored],
    *,
    chooses: bool,
) -> dict[str, float]:
    """Return the area under the ROC curve by kind; fakes by others are compared with photographs of their source."""
    photographs = _joint(members, real.part(chooses=chooses))
    result = {kind: fake_auc(_joint(members, fake.part(chooses=chooses)), photographs) for kind, fake in fakes.items()}
    for kind, fake in others.items():
        alike = _joint(members, real.part(chooses=chooses, sources=SAME_SOURCES[kind]))
        result[kind] = fake_auc(_joint(members, fake.part(chooses=chooses)), alike)
    return result


def _mean_auc(
    members: Combination, real: _Scored, fakes: Mapping[str, _Scored], others: Mapping[str, _Scored]
) -> float:
    return float(np.mean(list(_aucs(members, real, fakes, others, chooses=True).values())))


def _calibrate(name: str, real: _Scored, fakes: Mapping[str, _Scored]) -> Member:
    """Fit scale and shift of a detector's log-odds (Platt 1999), photographs and each kind of fake weighing alike."""
    photographs = real.part(chooses=True)[name]
    parts = [fake.part(chooses=True)[name] for fake in fakes.values()]
    values = np.concatenate([photographs, *parts])
    labels = np.repeat([0, 1], [len(photographs), len(values) - len(photographs)])
    shares = [np.full(len(photographs), 0.5 / len(photographs))]
    shares += [np.full(len(part), 0.5 / len(parts) / len(part)) for part in parts]
    model = LogisticRegression(C=LOSS_STRENGTH).fit(
        values[:, None], labels, sample_weight=np.concatenate(shares) * len(values)
    )
    scale, shift = float(model.coef_[0, 0]), float(model.intercept_[0])
    return Member(name, float(f"{scale:.5g}"), float(f"{shift:.5g}"), weights.find_entry(name).sha256)


def upper_limit(scores: np.ndarray, share: float) -> float:
    """Return the score that a new picture like these (N,) exceeds with a probability of at most `share`."""
    place = int(np.ceil((len(scores) + 1) * (1 - share)))
    return float(np.sort(scores)[min(place, len(scores)) - 1])


def lower_limit(scores: np.ndarray, share: float) -> float:
    """Return the score that a new picture like these (N,) stays below with a probability of at most `share`."""
    return -upper_limit(-scores, share)


def _with_limits(
    members: Combination, real: Mapping[str, _Scored], fakes: Mapping[str, _Scored], settings: CombinationSettings
) -> Combination:
    photographs = [_joint(members, scored.part(chooses=False)) for scored in real.values()]
    strong, mixed = (
        max(upper_limit(scores, share) for scores in photographs)
        for share in (settings.strong_alarms, settings.mixed_alarms)
    )
    held_out = np.concatenate([_joint(members, fakes[kind].part(chooses=False)) for kind in HELD_OUT_KINDS])
    none = min(lower_limit(held_out, settings.none_misses), mixed)
    none, mixed, strong = (float(f"{limit:.5g}") for limit in (none, mixed, strong))
    return Combination(members.members, none, mixed, strong, {})


def _measure(
    fitted: Combination, real: Mapping[str, _Scored], fakes: Mapping[str, _Scored], others: Mapping[str, _Scored]
) -> dict[str, Any]:
    """Return what the half that set the limits says: counts, areas by kind, and shares by grade."""
    pictures = {f"photographs, {change}": scored.part(chooses=False) for change, scored in real.items()}
    pictures |= {kind: scored.part(chooses=False) for kind, scored in {**fakes, **others}.items()}
    groups: dict[str, dict[str, float]] = {}
    for group, log_odds in pictures.items():
        scores = _joint(fitted, log_odds)
        grades = [fitted.grade(score) for score in scores]
        shares: dict[str, float] = {grade: round(grades.count(grade) / len(grades), 4) for grade in combination.GRADES}
        groups[group] = {"count": len(scores), **shares}
    aucs = _aucs(fitted, real[UNCHANGED], fakes, others, chooses=False)
    return {"auc": {kind: round(auc, 4) for kind, auc in aucs.items()}, "grades": groups}
