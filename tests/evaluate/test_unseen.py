"""Measuring on unseen faces: cases that are not independent, counts by group, and refusals."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from backend.errors import UserError
from backend.evaluate import unseen
from backend.evaluate.unseen import UnseenPicture, case_of, measure_unseen
from backend.progress import finish
from tests.test_detection import TOY


@pytest.mark.parametrize(
    ("name", "group", "case"),
    [
        ("london_004_03.jpg", "london", "london 004"),
        ("london_154m.jpg", "london", "london 154"),
        ("london_original/004_03.jpg", "london_original", "london 004"),
        ("london_swap_feather/0133_t12803_s06803_feather.jpg", "london_swap_feather", "london 128"),
        ("ffpp_deepfakes/519_0000.jpg", "ffpp_deepfakes", "ffpp"),
        ("ffpp_original/519_0384.jpg", "ffpp_original", "ffpp"),
        ("stylegan3/a.jpg", "stylegan3", "stylegan3/a.jpg"),
    ],
)
def test_frames_of_a_clip_and_pictures_of_a_person_are_one_case(name: str, group: str, case: str) -> None:
    assert case_of(name, group) == case


def test_answers_are_counted_by_group() -> None:
    pictures = [
        UnseenPicture("a", "stylegan3", True, "a"),
        UnseenPicture("b", "stylegan3", True, "b"),
        UnseenPicture("c", "london", False, "london 1"),
        UnseenPicture("d", "london", False, "london 1"),
    ]
    counted = unseen._count_called(pictures, np.array([True, False, True, True]))
    (fake,), (photograph,) = counted.fakes, counted.photographs
    assert (fake.group, fake.called, fake.count, fake.cases) == ("stylegan3", 1, 2, 2)
    assert (photograph.group, photograph.called, photograph.count, photograph.cases) == ("london", 2, 2, 1)


def test_the_overall_figures_of_scores_that_separate_perfectly() -> None:
    pictures = [UnseenPicture(str(i), "stylegan3" if i < 20 else "london", i < 20, str(i)) for i in range(60)]
    scores = np.array([5.0] * 20 + [-5.0] * 40)
    overall = unseen._overall(pictures, scores, TOY)
    assert overall["auc"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert overall["found_at_5"]["value"] == 1.0 and overall["fakes_among_none"]["value"] == 0.0
    assert overall["grades"] == {
        "stylegan3": {"none": 0, "few": 0, "mixed": 0, "strong": 20},
        "london": {"none": 40, "few": 0, "mixed": 0, "strong": 0},
    }


def test_scores_that_say_nothing_leave_half_fakes_among_no_signs() -> None:
    pictures = [UnseenPicture(str(i), "stylegan3" if i % 2 else "london", bool(i % 2), str(i)) for i in range(60)]
    overall = unseen._overall(pictures, np.repeat(np.linspace(-3, 3, 30), 2), TOY)
    assert overall["auc"]["value"] == pytest.approx(0.5)
    assert overall["auc"]["low"] < 0.5 < overall["auc"]["high"]
    assert overall["fakes_among_none"]["value"] == pytest.approx(0.5)


def test_kinds_are_compared_with_photographs_of_their_own_source() -> None:
    groups = ["london_swap_feather", "stylegan3", "diffusion_sd3", "london", "ffhq", "celeba"]
    pictures = [UnseenPicture(str(i), group, i < 3, str(i)) for i, group in enumerate(groups)]
    areas = unseen._areas_by_kind(pictures, np.array([2.0, 3.0, 4.5, 1.0, 5.0, 4.0]))
    assert areas == {
        "all": pytest.approx(4 / 9, abs=1e-4),
        "london_swap_feather": 1.0,
        "stylegan3": 0.0,
        "diffusion_sd3": pytest.approx(2 / 3, abs=1e-4),
    }


def _write_pack(folder: Path, pack: str, column: str, rows: list[tuple[str, str, str]]) -> None:
    with (folder / f"{pack}.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", column, "label"])
        writer.writerows(rows)
    with tarfile.open(folder / f"{pack}.tar", "w") as packed:
        for number, (name, _, _) in enumerate(rows):
            buffer = io.BytesIO()
            Image.fromarray(np.full((128, 128, 3), 10 * number, np.uint8)).save(buffer, "JPEG")
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            packed.addfile(info, io.BytesIO(buffer.getvalue()))


def test_a_folder_is_measured_as_a_whole(tmp_path: Path) -> None:
    _write_pack(tmp_path, "real", "source", [("london_001_03.jpg", "london", "")])
    fakes = [("stylegan3/a.jpg", "stylegan3", "fake"), ("ffpp_original/1_0.jpg", "ffpp_original", "real")]
    _write_pack(tmp_path, "fake", "kind", fakes)
    measured = finish(measure_unseen(tmp_path))
    assert measured.data["fakes"] == 1 and measured.data["photographs"] == 2
    for answer in measured.answers.values():
        assert [rate.group for rate in answer.fakes] == ["stylegan3"]
        assert [rate.group for rate in answer.photographs] == ["london", "ffpp_original"]
    members = measured.overall["members"]
    assert set(measured.overall["auc_after"]) == {*members, "combined"}
    for areas in measured.overall["auc_after"].values():
        assert list(areas) == ["none", *unseen.CORRUPTIONS]


def test_another_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks real\.tar"):
        finish(measure_unseen(tmp_path))
