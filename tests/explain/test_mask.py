"""The map of detectors that say where a picture was forged."""

import pytest
import torch
from torch import Tensor

from backend.explain.explanation import ExplainSettings, compare_methods, explain, map_variants
from backend.progress import finish
from tests.patch_toys import face, patch_detector

LOGITS = (-3.0, 2.0)  # elsewhere, and in the corner that the toy calls forged


def masked_detector():
    """Return the detector of the patch with a second head, which marks one corner of four by four parts."""
    detector = patch_detector()

    def forward_with_mask(pictures: Tensor) -> tuple[Tensor, Tensor]:
        parts = torch.full((len(pictures), 1, 4, 4), LOGITS[0])
        parts[:, :, 0, 0] = LOGITS[1]
        return detector.network(pictures), parts

    detector.network.forward_with_mask = forward_with_mask
    return detector


@pytest.mark.parametrize("towards", ["fake", "real"])
def test_the_map_is_the_probability_that_the_detector_gives_each_part(towards):
    explanation = finish(explain(face(), masked_detector(), ExplainSettings("mask", towards=towards)))
    sign = 1 if towards == "fake" else -1
    corner, elsewhere = (torch.tensor(sign * logit).sigmoid() for logit in reversed(LOGITS))
    assert explanation.saliency[2, 2] == pytest.approx(float(corner), abs=1e-4)
    assert explanation.saliency[60, 60] == pytest.approx(float(elsewhere), abs=1e-4)
    assert not explanation.signed


def test_a_detector_without_a_mask_says_so_and_is_compared_without_one():
    plain = patch_detector()
    explanation = finish(explain(face(), plain, ExplainSettings("mask")))
    assert explanation.degenerate and "did not learn to say where" in explanation.reason
    assert "mask" not in dict(map_variants(plain)) and "mask" in dict(map_variants(masked_detector()))
    assert len(map_variants(plain)) == 11


def test_all_maps_include_the_mask_where_there_is_one(monkeypatch):
    monkeypatch.setattr("backend.explain.explanation.map_variants", lambda _detector: [("mask", "original")])
    compared = finish(compare_methods(face(), masked_detector()))
    assert [explanation.settings.method for explanation in compared.done] == ["mask"]
