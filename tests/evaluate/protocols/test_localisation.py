"""The protocol that compares maps with what was forged, on a detector that reads one patch alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from backend import images
from backend.detectors import registry
from backend.errors import UserError
from backend.evaluate.protocols import localisation
from backend.evaluate.protocols.base import configure_protocol, make_item
from backend.evaluate.protocols.localisation import MIDDLE, RANDOM, LocalisationProtocol
from backend.progress import finish
from tests.patch_toys import PATCH, face, patch_detector, untextured

DATA = SimpleNamespace(by_name={"a.png": SimpleNamespace(source="celeba")})


@pytest.fixture
def protocol(monkeypatch):
    """Ask a toy in place of every detector, by one map; the chessboard of its patch is what was forged."""
    detector = patch_detector()
    monkeypatch.setattr(registry, "load", lambda _name: detector)
    monkeypatch.setattr(registry, "loadable", lambda *_: ["patch"])
    monkeypatch.setattr(registry, "card", lambda _name: detector.card)
    monkeypatch.setattr("backend.explain.explanation.map_variants", lambda *_: [("gradcam", "original")])
    mask = np.zeros((64, 64), dtype=bool)
    mask[PATCH] = True
    monkeypatch.setattr(localisation, "make_swap", lambda *_: (images.to_array(face()), mask))
    return configure_protocol(LocalisationProtocol, "quick", {"detectors": ["patch"]})


def test_a_map_that_marks_the_forged_part_overlaps_with_it_and_controls_do_not(protocol):
    rows = finish(protocol.run_item(make_item("a.png", detector="patch"), DATA))
    by_method = {row["method"]: row for row in rows}
    assert list(by_method) == ["gradcam", RANDOM, MIDDLE]
    shown, random, middle = (by_method[name] for name in by_method)
    assert shown["iou"] == 1.0 and shown["pointing"] and shown["auc"] > 0.99
    assert random["iou"] < 0.3
    # The sixteen cells nearest to the middle are four by four about it; two by two of them are among the forged ones.
    assert middle["iou"] == pytest.approx(4 / 28, abs=0.08)
    assert {row["forged"] for row in rows} == {1 / 16} and {row["source"] for row in rows} == {"celeba"}
    (table,) = protocol.tables(rows * 3)
    assert [row[1] for row in table.rows] == ["Grad-CAM", RANDOM, MIDDLE]
    finding = protocol.finding(rows * 3)
    assert "Of 1 maps, Grad-CAM of patch overlaps best with what was forged: 1.00 (3 swaps);" in finding
    assert protocol.plots(rows)[0].alt.startswith("Overlap of maps")


def test_a_swap_that_is_not_called_fake_is_left_out_with_its_reason(protocol, monkeypatch):
    monkeypatch.setattr(
        localisation, "make_swap", lambda *_: (images.to_array(untextured()), np.ones((64, 64), dtype=bool))
    )
    with pytest.raises(UserError, match="does not call this swap fake"):
        finish(protocol.run_item(make_item("a.png", detector="patch"), DATA))


def test_a_swap_changes_the_marked_part_alone(monkeypatch):
    crops = {name: np.full((128, 128, 3), level, np.uint8) for name, level in (("a", 90), ("b", 160))}
    points = torch.tensor([[46.0, 54], [82, 54], [64, 76], [50, 94], [78, 94]])
    monkeypatch.setattr(localisation, "crop_face", lambda _data, name, **_: SimpleNamespace(crop=crops[name]))
    monkeypatch.setattr(
        localisation.fakes, "find_landmarks", lambda faces: (points.expand(len(faces), 5, 2), torch.ones(len(faces)))
    )
    data = SimpleNamespace(reals=[SimpleNamespace(name=name) for name in crops])
    for seed in range(4):
        picture, mask = localisation.make_swap(data, "a", seed)
        assert picture.shape == (128, 128, 3) and 0.05 < mask.mean() < 0.6
        assert np.abs(picture[:8].astype(int) - 90).max() <= 2 and not mask[:8].any()
    monkeypatch.setattr(localisation.fakes, "find_landmarks", lambda faces: (points[None], torch.zeros(len(faces))))
    with pytest.raises(UserError, match="No landmarks"):
        localisation.make_swap(data, "a", 0)
