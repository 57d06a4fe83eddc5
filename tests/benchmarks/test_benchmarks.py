"""The table of speeds: its rows, its runner and its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import KEPT, OUT, Measured, _good, _keep, read_figures, table
from benchmarks.rows import ROWS

ROOT = Path(__file__).resolve().parent.parent.parent


def figures(ratio: float, difference: float | None = None, machine: str = "A machine; torch 2.") -> Measured:
    return Measured((ratio - 0.5, ratio, ratio + 0.5), (ratio, 1.0), 100.0, difference, 5, "2026-01-02", machine)


def test_a_row_is_good_where_it_is_fast_enough_and_both_sides_agree():
    asked = ROWS["lime"].at_least
    assert _good(ROWS["lime"], figures(asked, 1e-4))
    assert not _good(ROWS["lime"], figures(asked - 0.1, 1e-4))
    assert not _good(ROWS["lime"], figures(asked, 1e-2))
    assert not _good(ROWS["lime"], figures(asked, float("nan")))
    assert _good(ROWS["busy"], figures(1 / 3)) and not _good(ROWS["busy"], figures(1 / 3.1))


def test_the_page_names_every_row_and_says_what_was_not_measured():
    text = table({name: figures(2.0) for name in ROWS})
    assert all(row.work in text and row.peer in text for row in ROWS.values())
    assert "| not measured |" in table({}).split(ROWS["ray"].work)[1]
    assert "not measured" in text and "A machine; torch 2." in text and "(1)" not in text


def test_rows_of_two_machines_are_told_apart():
    text = table({"lime": figures(2.0), "shap": figures(3.0, machine="Another.")})
    assert "(1) A machine; torch 2." in text and "(2) Another." in text
    assert "5, 2026-01-02 (2)" in text


def test_figures_are_kept_row_by_row(tmp_path):
    _keep("shap", figures(3.0, 1e-6), tmp_path / "figures.json")
    _keep("lime", figures(2.0), tmp_path / "figures.json")
    _keep("shap", figures(4.0), tmp_path / "figures.json")
    assert read_figures(tmp_path / "figures.json") == {"lime": figures(2.0), "shap": figures(4.0)}


def test_the_stored_page_is_that_of_the_stored_figures():
    assert OUT.read_text(encoding="utf-8") == table(read_figures(KEPT))


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_side_takes_a_turn_for_every_line(side, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "verdicts", "--quick", "--serve", side, "--folder", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, input="\n\n", capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 2 and all(answer["seconds"] > 0 and answer["memory"] > 0 for answer in answers)
    assert (tmp_path / f"{side}.npy").is_file()
