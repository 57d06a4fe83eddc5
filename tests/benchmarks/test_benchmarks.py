"""The table of speeds: its rows, its runner and its page."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.__main__ import Measured, _good, table
from benchmarks.rows import ROWS

ROOT = Path(__file__).resolve().parent.parent.parent


def test_a_ratio_is_that_of_a_turn_and_the_one_after_it():
    assert Measured([1, 2, 4], [4, 4, 4], 0, None).ratios() == (1, 2, 4)


def test_a_row_is_good_where_it_is_fast_enough_and_both_sides_agree():
    asked = ROWS["lime"].at_least
    assert _good(ROWS["lime"], Measured([1], [asked], 0, 1e-4))
    assert not _good(ROWS["lime"], Measured([1], [asked - 0.1], 0, 1e-4))
    assert not _good(ROWS["lime"], Measured([1], [asked], 0, 1e-2))
    assert not _good(ROWS["lime"], Measured([1], [asked], 0, float("nan")))
    assert _good(ROWS["busy"], Measured([3], [1], 0, None)) and not _good(ROWS["busy"], Measured([3.1], [1], 0, None))


def test_the_page_names_every_row_and_says_what_was_not_measured():
    measured = {name: Measured([1.0], [2.0], 100, None) for name in ROWS}
    text = table(measured, Namespace(quick=True, threads=2, runs=1))
    assert all(row.work in text and row.peer in text for row in ROWS.values())
    assert "| not measured |" in table({}, Namespace(quick=True, threads=2, runs=1)).split(ROWS["ray"].work)[1]
    assert "not measured" in text and "`python -m benchmarks --quick`" in text and "openvino" in text.lower()


@pytest.mark.slow
@pytest.mark.parametrize("side", ["ours", "theirs"])
def test_a_side_takes_a_turn_for_every_line(side, tmp_path):
    command = [sys.executable, "-m", "benchmarks", "verdicts", "--quick", "--serve", side, "--folder", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, input="\n\n", capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(answers) == 2 and all(answer["seconds"] > 0 and answer["memory"] > 0 for answer in answers)
    assert (tmp_path / f"{side}.npy").is_file()
