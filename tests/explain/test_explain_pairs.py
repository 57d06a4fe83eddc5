"""All methods on a real-fake pair, with a detector that calls a face real for its contrast in one patch."""

import dataclasses

import pytest
import torch

from backend.attacks.pgd import PGDSettings
from backend.errors import UserError
from backend.explain.base import EXPLAINERS, general_methods
from backend.explain.explanation import MapFinished
from backend.explain.pairs import PairComparisonSettings, PairSettings, compare_pair
from backend.explain.sufficiency import SufficiencySettings
from backend.progress import finish
from tests.patch_toys import face, in_patch, patch_detector, untextured
from tests.toys import hooks

FEW = {"lime": 120, "shap": 120, "sobol": 4, "rise": 200, "gradcam": 1, "gradcampp": 1, "xrai": 4}
PROOF = SufficiencySettings(attack=PGDSettings(16 / 255, 2 / 255, 16, random_start=False), draws=2)
SETTINGS = PairComparisonSettings(pair=PairSettings(segments=50, sufficiency=PROOF))


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    for name, samples in FEW.items():
        explainer = dataclasses.replace(EXPLAINERS[name], samples={**EXPLAINERS[name].samples, "quick": samples})
        monkeypatch.setitem(EXPLAINERS._items, name, explainer)


def detector():
    """Return a detector that calls the face with the chessboard real, and the one without it fake."""
    return patch_detector(slope=-3000.0)


def test_every_method_finds_what_makes_the_photo_real_and_turns_the_fake_there():
    known, steps, methods = detector(), [], list(general_methods())
    result = finish(compare_pair(face(), untextured(), known, SETTINGS), steps.append)
    assert result.both_right and [explanation.settings.method for explanation, _ in result.done] == methods
    random = result.random_mean
    for explanation, pair in result.done:
        assert not explanation.degenerate and in_patch(explanation.saliency), explanation.summary
        assert explanation.settings.towards == "real" and explanation.reference in {"original", None}
        # Most of the patch lies in one segment, which carries the fake over the threshold.
        assert pair.sufficiency.values[0] > 0.3 > random[0], explanation.title
    tested = torch.cat([pair.sufficiency.random_values for _, pair in result.done])
    assert torch.allclose(random, tested.mean(0)) and len(tested) == 2 * len(methods)
    finished = [step for step in steps if isinstance(step, MapFinished)]
    assert [step.explanation for step in finished] == [explanation for explanation, _ in result.done]
    assert all(
        step.values["sufficiency"] == float(pair.sufficiency.values[-1])
        for step, (_, pair) in zip(finished, result.done, strict=True)
    )
    numbers = [step.number for step in steps]
    assert numbers == sorted(numbers) and numbers[-1] == steps[-1].total
    assert "falls most for" in result.summary and "Random places" in result.summary and hooks(known) == 0


@pytest.mark.parametrize(("real", "fake"), [(untextured(), untextured()), (face(), face())])
def test_a_pair_with_a_wrong_verdict_is_not_explained(real, fake):
    known = detector()
    result = finish(compare_pair(real, fake, known))
    assert not result.both_right and result.done == () and result.random_mean.isnan().all()
    assert "another detector or another pair" in result.summary and known.network.images == 2


def test_maps_that_show_nothing_are_kept_and_not_tested():
    chosen = dataclasses.replace(SETTINGS, methods=("gradcam", "lime"))
    known = detector()
    known.card = dataclasses.replace(known.card, cam_layer="")
    result = finish(compare_pair(face(), untextured(), known, chosen))
    (cam, untested), (_, tested) = result.done
    assert cam.degenerate and untested is None and tested is not None
    assert "falls most for LIME" in result.summary


def test_stopping_takes_one_batch_and_sizes_must_fit():
    known = detector().train()
    job = compare_pair(face(), untextured(), known, SETTINGS)
    for _ in range(5):
        next(job)
    image_count = known.network.images
    job.close()
    assert known.network.images == image_count and known.training and hooks(known) == 0
    with pytest.raises(UserError, match="differ in size"):
        next(compare_pair(face(), face(32), known))
