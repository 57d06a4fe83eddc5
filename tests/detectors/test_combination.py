"""The combined answer: toy members with hand-computed values, and what its words may never say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from backend import weights
from backend.detectors import combination, registry
from backend.detectors.combination import GRADE_MEANINGS, GRADE_WORDS, GRADES, Combination, Member, combine

CLAIM = re.compile(r"\b(?:is|are|probably|looks?|seems?)\s+(?:real|genuine|authentic|unaltered)\b", re.IGNORECASE)


def toy(*members: Member, limits: tuple[float, float, float] = (-1.0, 0.0, 2.0)) -> Combination:
    return Combination(members or (Member("xception", 1.0, 0.0, ""), Member("recce", 2.0, 1.0, "")), *limits, {})


def test_the_score_is_the_mean_of_calibrated_log_odds() -> None:
    # log-odds of 0.5 are 0, of 0.8 they are log 4; (0 + (2 log 4 + 1)) / 2
    score = toy().score({"xception": 0.5, "recce": 0.8})
    assert score == pytest.approx((2 * 1.3862943611 + 1) / 2)


@pytest.mark.parametrize(
    ("score", "grade"),
    [(-1.1, "none"), (-1.0, "few"), (-0.1, "few"), (0.0, "mixed"), (2.0, "mixed"), (2.1, "strong")],
)
def test_grades_begin_where_the_limits_say(score: float, grade: str) -> None:
    assert toy().grade(score) == grade


def test_the_grade_never_falls_as_the_score_rises() -> None:
    grades = [GRADES.index(toy().grade(score / 10)) for score in range(-50, 50)]
    assert grades == sorted(grades) and set(grades) == set(range(4))


def test_strong_is_where_the_probability_is_above_one_half() -> None:
    alone = toy(Member("xception", 1.0, 0.0, ""))
    for p_fake in (0.01, 0.3, 0.5, 0.8, 0.88, 0.89, 0.99):
        answer = combine({"xception": p_fake}, alone)
        assert answer is not None
        assert (answer.p_fake > 0.5) == (answer.grade == "strong")


@pytest.mark.parametrize("p_fake", [0.0, 1.0])
def test_certain_detectors_do_not_outvote_the_others_without_limit(p_fake: float) -> None:
    assert abs(combination.log_odds(p_fake)) == combination.LARGEST


def test_without_all_members_there_is_no_answer() -> None:
    assert combine({"xception": 0.9}, toy()) is None


def test_a_combination_is_read_as_it_was_written(tmp_path: Path) -> None:
    stored = replace(toy(), fitted={"command": "a command", "settings": {"seed": 0}})
    combination.write_combination(stored, tmp_path / "combination.json")
    assert combination._read(tmp_path / "combination.json") == stored


def test_disagreement_between_families_is_named() -> None:
    families = {name: registry.card(name).family for name in registry.loadable("embedded")}
    assert set(families.values()) == {"pixels", "frequency", "noise"}
    split = {name: 0.95 if family == "frequency" else 0.05 for name, family in families.items()}
    said = combination.describe_disagreement(split)
    assert said.startswith("The detectors disagree: those that look for regular patterns mostly see signs")
    for p_fake in (0.05, 0.5, 0.95):
        assert combination.describe_disagreement(dict.fromkeys(families, p_fake)) == ""


def test_no_words_of_an_answer_claim_that_a_picture_is_real() -> None:
    texts = [*GRADE_WORDS.values(), *GRADE_MEANINGS.values()]
    families = {name: registry.card(name).family for name in registry.loadable("embedded")}
    for one in combination.FAMILY_WORDS:
        split = {name: 0.95 if family == one else 0.05 for name, family in families.items()}
        texts.append(combination.describe_disagreement(split))
    assert all(texts)
    assert not [text for text in texts if CLAIM.search(text) or "real" in text.lower()]


def test_the_shipped_combination_fits_the_shipped_weights() -> None:
    shipped = combination.read_combination()
    assert shipped is not None and shipped.changed_members() == []
    assert shipped.none_below <= shipped.mixed_from <= shipped.strong_above
    assert all(member.scale > 0 for member in shipped.members)
    assert set(shipped.names) <= set(registry.loadable("embedded"))
    assert shipped.fitted["command"].startswith("python -m backend train combination")


def test_a_combination_for_other_weights_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = json.loads((combination.SETTINGS.weights_dir / combination.FILE).read_text(encoding="utf-8"))
    stored["members"][0]["sha256"] = "0" * 64
    changed = combination._read(_written(tmp_path, stored))
    assert changed is not None and changed.changed_members() == [stored["members"][0]["name"]]
    monkeypatch.setattr(combination, "_read", lambda _: changed)
    assert combination.read_combination() is None
    assert combine(dict.fromkeys(weights.read_entries(), 0.9)) is None


def _written(folder: Path, stored: dict) -> Path:
    path = folder / "combination.json"
    path.write_text(json.dumps(stored), encoding="utf-8")
    return path
