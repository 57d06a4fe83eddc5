"""Measure detectors and their combined answer on faces that none of them learned from, for the rates on the page.

The folder holds `real.tar` and `fake.tar` with `real.csv` and `fake.csv`, which name every picture's kind or source.
Nothing may be chosen by these figures: members, limits and weights come from other faces.
"""

import csv
import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backend import face_packs, weights
from backend.detectors import combination, predict, registry
from backend.detectors.base import THRESHOLD
from backend.detectors.combination import GRADES, Combination
from backend.detectors.rates import COMBINED, MeasuredRates, Rate, StoredRates
from backend.errors import UserError
from backend.evaluate.metrics.classification import area_under_roc
from backend.evaluate.protocols.detectors import NO_CORRUPTION, corrupt_picture, parse_corruption
from backend.images import to_tensor
from backend.progress import Job, Step

BATCH = 40
ALL = "all"
CORRUPTIONS = ("jpeg 60", "resize 0.5", "blur 1", "h264 28")
ALARMS = 0.05  # false alarms at which the share of fakes that are found is given
SAME_SOURCES = {  # photographs that a kind of fake is compared with; other kinds are compared with all
    "stylegan_hard": ("ffhq",),
    "stylegan3": ("ffhq",),
    "london_swap_poisson": ("london", "london_original"),
    "london_swap_feather": ("london", "london_original"),
    "ffpp_deepfakes": ("ffpp_original",),
}
DRAWS = 2000  # of the bootstrap over cases
SWAPPED_PERSON, PERSON = re.compile(r"_t(\d{3})\d\d_"), re.compile(r"\D*(\d{3})")  # of the London set, in names


@dataclass(frozen=True)
class UnseenPicture:
    """One picture: its group (kind of fake or source of photographs), and the case that it belongs to."""

    name: str
    group: str
    fake: bool
    case: str


def measure_unseen(data: Path) -> Job[StoredRates]:
    """Ask all detectors about the faces in a folder, and count answers by kind and source.

    Raises:
        UserError: The folder is not of this form, or there is no combination that fits the weights.
    """
    combined = combination.read_combination()
    if combined is None:
        raise UserError(
            "There is no combined answer for these weights.", "Make one: python -m backend train combination"
        )
    pictures, content = _read_pictures(data)
    names = registry.loadable("embedded")
    scores = yield from _ask(content, sorted({*names, *combined.names}), "Unseen faces")
    joint = _joint_scores(scores, combined)
    answers = {name: _count_called(pictures, scores[name] >= THRESHOLD) for name in names}
    answers[COMBINED] = _count_called(pictures, joint > combined.strong_above)
    hashes = {name: weights.find_entry(name).sha256 for name in scores}
    digest = hashlib.sha256(b"".join(picture.tobytes() for picture in content)).hexdigest()
    facts = {"fakes": sum(p.fake for p in pictures), "photographs": sum(not p.fake for p in pictures), "hash": digest}
    robustness = yield from _measure_robustness(pictures, content, scores, combined)
    kinds = {name: _areas_by_kind(pictures, of_detector) for name, of_detector in {**scores, COMBINED: joint}.items()}
    overall = _overall(pictures, joint, combined) | {"auc_by_kind": kinds, "auc_after": robustness}
    return StoredRates(answers, overall, hashes, facts)


def _areas_by_kind(pictures: Sequence[UnseenPicture], scores: np.ndarray) -> dict[str, float]:
    """Return the area under the ROC curve of each kind of fake against photographs of its source, and of all."""
    groups, fake = np.array([picture.group for picture in pictures]), np.array([picture.fake for picture in pictures])
    areas = {ALL: float(area_under_roc(fake, scores) or 0.0)}
    for kind in dict.fromkeys(groups[fake]):
        own = np.isin(groups, SAME_SOURCES[kind]) if kind in SAME_SOURCES else ~fake
        chosen = (groups == kind) | own
        if own.any():
            areas[str(kind)] = float(area_under_roc(fake[chosen], scores[chosen]) or 0.0)
    return {kind: round(area, 4) for kind, area in areas.items()}


def _ask(content: Sequence[np.ndarray], names: Sequence[str], message: str) -> Job[dict[str, np.ndarray]]:
    """Return p_fake (N,) of pictures, uint8 (S, S, 3), by detector."""
    answers: dict[str, list[float]] = {name: [] for name in names}
    for start in range(0, len(content), BATCH):
        crops = torch.cat([to_tensor(picture) for picture in content[start : start + BATCH]])
        for name, values in predict.predict_p_fake(crops, list(names)).items():
            answers[name] += values
        yield Step(min(start + BATCH, len(content)), len(content), message)
    return {name: np.array(values) for name, values in answers.items()}


def _joint_scores(p_fake: Mapping[str, np.ndarray], combined: Combination) -> np.ndarray:
    """Return the combined scores (N,) of answers (N,) by detector."""
    columns = zip(*(p_fake[name] for name in combined.names), strict=True)
    return np.array([combined.score(dict(zip(combined.names, column, strict=True))) for column in columns])


def _measure_robustness(
    pictures: Sequence[UnseenPicture],
    content: Sequence[np.ndarray],
    unchanged: Mapping[str, np.ndarray],
    combined: Combination,
) -> Job[dict[str, dict[str, float]]]:
    """Return the area under the ROC curve by member, and of the combined answer, after each corruption."""
    fake = np.array([picture.fake for picture in pictures])
    areas: dict[str, dict[str, float]] = {name: {} for name in (*combined.names, COMBINED)}
    for text in (NO_CORRUPTION, *CORRUPTIONS):
        scores = {name: unchanged[name] for name in combined.names}
        if text != NO_CORRUPTION:
            kind, strength = parse_corruption(text)
            changed = [corrupt_picture(picture, kind, strength, seed=0, name="") for picture in content]
            scores = yield from _ask(changed, combined.names, f"Unseen faces after {text}")
        for name in combined.names:
            areas[name][text] = round(float(area_under_roc(fake, scores[name]) or 0.0), 4)
        areas[COMBINED][text] = round(float(area_under_roc(fake, _joint_scores(scores, combined)) or 0.0), 4)
    return areas


def _read_pictures(data: Path) -> tuple[list[UnseenPicture], list[np.ndarray]]:
    found: list[UnseenPicture] = []
    content: list[np.ndarray] = []
    for pack, column in (("real", "source"), ("fake", "kind")):
        if not all((data / f"{pack}.{suffix}").is_file() for suffix in ("tar", "csv")):
            raise UserError(f"{data.name} lacks {pack}.tar or {pack}.csv.", "Name a folder of unseen faces.")
        with (data / f"{pack}.csv").open(newline="", encoding="utf-8") as file:
            rows = {row["file"]: row for row in csv.DictReader(file)}
        for name, stored in face_packs.read_files(data, pack):
            row = rows[name]
            is_fake = row.get("label") == "fake"
            found.append(UnseenPicture(name, row[column], is_fake, case_of(name, row[column])))
            content.append(face_packs.decode_picture(stored, registry.EMBEDDED_SIZE))
    return found, content


def case_of(name: str, group: str) -> str:
    """Return what a picture shares with others that are not independent of it: its clip, its person, or its name."""
    if group.startswith("ffpp"):
        return "ffpp"
    if not group.startswith("london"):
        return name
    file = face_packs.base_name(name)
    person = SWAPPED_PERSON.search(file) or PERSON.match(file)
    return f"london {person[1]}" if person else name


def _count_called(pictures: Sequence[UnseenPicture], called: np.ndarray) -> MeasuredRates:
    rates: dict[bool, list[Rate]] = {True: [], False: []}
    for group, fake in dict.fromkeys((picture.group, picture.fake) for picture in pictures):
        chosen = [index for index, picture in enumerate(pictures) if picture.group == group]
        cases = len({pictures[index].case for index in chosen})
        rates[fake].append(Rate(group, int(called[chosen].sum()), len(chosen), cases))
    return MeasuredRates(tuple(rates[True]), tuple(rates[False]))


def _overall(pictures: Sequence[UnseenPicture], scores: np.ndarray, combined: Combination) -> dict[str, Any]:
    """Return how the combined answer separates all fakes from all photographs, with bootstrap intervals over cases."""
    fake = np.array([picture.fake for picture in pictures])
    grades = [combined.grade(score) for score in scores]
    none = np.array([grade == GRADES[0] for grade in grades])
    by_group: dict[str, Counter[str]] = {}
    for picture, grade in zip(pictures, grades, strict=True):
        by_group.setdefault(picture.group, Counter())[grade] += 1

    def measures(index: np.ndarray) -> dict[str, float]:
        labels, drawn, unseen = fake[index], scores[index], none[index]
        if labels.all() or not labels.any():  # a draw of few cases may lack fakes or photographs
            return dict.fromkeys(("auc", "found_at_5", "fakes_among_none"), float("nan"))
        limit = np.quantile(drawn[~labels], 1 - ALARMS)
        missed, kept = unseen[labels].mean(), unseen[~labels].mean()
        return {
            "auc": float(area_under_roc(labels, drawn) or 0.0),
            "found_at_5": float((drawn[labels] > limit).mean()),
            # Of as many fakes as photographs.
            "fakes_among_none": float(missed / (missed + kept)) if missed + kept else float("nan"),
        }

    values = measures(np.arange(len(pictures)))
    members: dict[str, list[int]] = {}
    for index, picture in enumerate(pictures):
        members.setdefault(picture.case, []).append(index)
    cases = [np.array(indices) for indices in members.values()]
    randomness = np.random.default_rng(0)
    draws = [
        measures(np.concatenate([cases[place] for place in randomness.integers(len(cases), size=len(cases))]))
        for _ in range(DRAWS)
    ]
    result: dict[str, Any] = {}
    for name, value in values.items():
        low, high = np.nanquantile([draw[name] for draw in draws], [0.025, 0.975])
        result[name] = {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}
    counted: Mapping[str, Any] = {
        group: {grade: counts[grade] for grade in GRADES} for group, counts in by_group.items()
    }
    return result | {"members": list(combined.names), "grades": counted}
