import math
from dataclasses import replace

import pytest
import torch

from backend.attacks import nes
from backend.attacks.nes import NESSettings
from backend.attacks.pgd import PGDSettings
from backend.errors import UserError
from backend.evaluate.protocols.faithfulness import NEIGHBOUR_FALL, find_neighbour
from backend.explain.deletion import WHY_MISLEADING, CurveSettings, deletion_curves, fill_face
from backend.explain.pairs import PairSettings, measure_pair_sufficiency
from backend.explain.segments import rank_scores, segment_scores
from backend.explain.sufficiency import LEAD, SufficiencySettings, measure_sufficiency, random_masks
from backend.progress import finish
from tabs.explain_result import support_in_words
from tests.linear_toys import BatchRecorder, weighted_detector
from tests.toys import grey, hooks

SIZE, PIECE = 8, 16  # four square segments of 16 pixels
ALPHA, STEPS = 1 / 255, 4
SLOPES = (0.0, 0.5, 1.0, 2.0)  # weight of every value in each segment


def quarters():
    """Return four square segments (8, 8): 0 1 above 2 3."""
    half = torch.arange(SIZE) // 4
    return 2 * half[:, None] + half


def detector(constant=1.3):
    """Return a detector whose weight in segment i is SLOPES[i]; grey 0.5 gives the log-odds `constant`."""
    weights = torch.tensor(SLOPES)[quarters()]
    return weighted_detector(weights, constant=constant - 0.5 * 3 * float(weights.sum()))


FACE = torch.full((1, 3, SIZE, SIZE), 128 / 255)
BEFORE = 1.3 + 3 * PIECE * sum(SLOPES) * (128 / 255 - 0.5)
SALIENCY = torch.tensor([0.1, 0.3, 0.2, 0.4])[quarters()]  # ranks 3 1 2 0
SURE = NESSettings(probes=1500, iterations=STEPS, early_stop=False)  # so many probes that every sign is right
EXACT = PGDSettings(epsilon=16 / 255, alpha=ALPHA, steps=STEPS, random_start=False)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def after(*segments):
    """Return p_fake once the values of these segments have fallen by STEPS * ALPHA."""
    return sigmoid(BEFORE - 3 * PIECE * STEPS * ALPHA * sum(SLOPES[segment] for segment in segments))


def measure(saliency=SALIENCY, **settings):
    settings = {"attack": EXACT, "draws": 0} | settings
    return finish(measure_sufficiency(FACE, detector(), saliency, quarters(), SufficiencySettings(**settings)))


def test_sufficiency_computed_by_hand():
    result = measure()
    expected = torch.tensor([after(3), after(3, 1), after(3, 1, 2)])
    assert result.predicted == "fake" and result.p_before == pytest.approx(sigmoid(BEFORE), abs=1e-5)
    assert result.order.tolist() == [3, 1, 2, 0]
    assert torch.allclose(result.p_after, expected, atol=2e-4)
    assert torch.allclose(result.values, sigmoid(BEFORE) - expected, atol=2e-4)
    assert result.called_fake.tolist() == (expected >= 0.5).tolist() == [True, False, False]
    assert result.iterations.tolist() == [STEPS] * 3
    assert result.masks.flatten(1).sum(1).tolist() == [PIECE, 2 * PIECE, 3 * PIECE]
    assert "Sufficiency@3" in result.summary and "higher is better" in result.summary
    assert result.attack == "PGD" and "White-box" in result.summary


def test_nes_reaches_the_same_sufficiency_without_the_gradient():
    result = measure(attack=SURE, tops=(1,))
    assert result.p_after[0] == pytest.approx(after(3), abs=2e-4)
    assert result.attack == "NES" and "White-box" not in result.summary


def test_only_the_segments_change_and_every_attack_starts_from_the_face():
    result = measure(attack=NESSettings(iterations=3))
    changed = (result.images != FACE).any(1)
    assert not (changed & ~result.masks).any() and (changed & result.masks).flatten(1).any(1).all()


def test_all_attacks_share_their_batches():
    toy = detector()
    recorder = BatchRecorder(toy)
    settings = SufficiencySettings(attack=NESSettings(probes=5, iterations=1, batch=120), draws=3)
    result = finish(measure_sufficiency(FACE, toy, SALIENCY, quarters(), settings))
    # The verdict, then twelve attacks: a test, 10 probes each, and a test.
    assert recorder.batches == [1, 12, 120, 12]
    assert (result.image_count, result.call_count) == (145, 4)


def test_a_better_map_has_a_higher_sufficiency():
    good, bad = measure(torch.tensor(SLOPES)[quarters()]), measure(-torch.tensor(SLOPES)[quarters()])
    assert (good.values > bad.values).all() and bad.values[0] == pytest.approx(0, abs=1e-6)


def test_random_segments_have_the_same_size():
    masks = torch.zeros(3, SIZE, SIZE, dtype=torch.bool)
    masks[0, :3, :3], masks[1, :4, :5], masks[2] = True, True, True
    drawn = random_masks(quarters(), masks, 20, seed=1)
    assert drawn.shape == (20, 3, SIZE, SIZE)
    assert (drawn.flatten(2).sum(2) == masks.flatten(1).sum(1)).all()
    assert torch.equal(drawn, random_masks(quarters(), masks, 20, seed=1))
    assert not torch.equal(drawn, random_masks(quarters(), masks, 20, seed=2))
    assert (drawn[:, 0] <= drawn[:, 1]).all()  # one ranking a draw
    first = {int(quarters()[mask].unique()) for mask in drawn[:, 0]}  # 9 pixels: part of one segment
    assert first == {0, 1, 2, 3}


def test_random_sufficiency_is_that_of_the_random_segments():
    result = measure(draws=6)
    assert result.random_values.shape == (6, 3)
    for mask, fall in zip(result.random_masks[:, 0], result.random_values[:, 0], strict=True):
        (segment,) = quarters()[mask].unique().tolist()
        assert float(fall) == pytest.approx(sigmoid(BEFORE) - after(segment), abs=2e-4)
    assert torch.allclose(result.random_mean, result.random_values.mean(0))
    assert "random segments" in result.summary and result.random_mean[2] < result.values[2]
    beaten = int((result.random_values[:, 2] < result.values[2]).sum())
    assert beaten > 0 and f"better than {beaten} of 6 random rankings" in result.summary


def test_a_map_no_better_than_chance_is_called_so():
    assert "no better than chance" in measure(-SALIENCY, tops=(1,), draws=6).summary


def test_a_neighbour_is_the_last_picture_whose_score_has_hardly_moved():
    toy, attack = detector(), NESSettings(iterations=20)
    near = finish(find_neighbour(FACE, toy, SALIENCY, quarters(), attack))
    before, after = (float(toy.p_fake(face)) for face in (FACE, near))
    assert before - NEIGHBOUR_FALL <= after < before
    lowest = int(rank_scores(segment_scores(SALIENCY, quarters()))[-1])
    changed = (near != FACE).any(1)[0]
    assert not changed[quarters() == lowest].any() and changed[quarters() != lowest].any()
    assert float(finish(nes.attack(FACE, toy, attack)).p_after) < before - NEIGHBOUR_FALL  # it would have gone further
    assert (
        finish(find_neighbour(FACE, detector(-1.0), SALIENCY, quarters(), attack)) is None
    )  # called real to begin with
    close = detector(0.1)  # so near to the threshold that the verdict turns before p_fake has fallen by as much
    assert float(close.p_fake(finish(find_neighbour(FACE, close, SALIENCY, quarters(), attack)))) >= 0.5


def test_a_small_lead_counts_for_nothing():
    result = measure(tops=(1,), draws=2)
    fall = float(result.values)
    for lead, sentence in (
        (LEAD + 0.01, "supports the map"),
        (LEAD - 0.01, "is too close to tell whether the map is right"),
        (-0.01, "does not support the map"),
    ):
        variant = replace(result, random_values=torch.full((2, 1), fall - lead))
        assert variant.lead == pytest.approx(lead, abs=1e-6) and support_in_words(variant.lead) == sentence
        assert ("too small to count" in variant.summary) == (0 < lead < LEAD)
    assert measure(tops=(1,), draws=0).lead is None


def test_a_face_that_is_called_real_is_not_attacked():
    toy = detector(constant=-1.0)
    recorder = BatchRecorder(toy)
    result = finish(measure_sufficiency(FACE, toy, SALIENCY, quarters()))
    assert recorder.batches == [1] and result.already_real
    assert (result.values == 0).all() and torch.equal(result.images, FACE.repeat(3, 1, 1, 1))
    assert "not called fake" in result.summary


def test_too_few_positive_segments_have_no_result():
    saliency = torch.tensor([-0.1, 0.3, -0.2, 0.4])[quarters()]
    result = measure(saliency, positive_only=True, draws=2)
    assert result.values.isnan().all() and result.random_values.isnan().all() and not result.masks.any()
    enough = measure(saliency, positive_only=True, draws=2, tops=(1, 2))
    assert enough.values.isfinite().all() and "Sufficiency@2" in enough.summary
    without_positive = measure(-SALIENCY, positive_only=True)
    assert without_positive.values.isnan().all() and "Too few segments" in without_positive.summary
    assert measure(tops=(4, 5)).values.isnan().tolist() == [False, True]


def test_an_even_map_is_called_arbitrary():
    assert measure(torch.ones(SIZE, SIZE)).arbitrary and not measure().arbitrary
    assert "order means nothing" in measure(torch.ones(SIZE, SIZE)).summary


def test_the_same_seed_gives_the_same_result_and_leaves_no_hooks():
    toy = detector().train()
    settings = SufficiencySettings(attack=NESSettings(iterations=2), draws=2, seed=3)
    first, second = (finish(measure_sufficiency(FACE, toy, SALIENCY, quarters(), settings)) for _ in range(2))
    assert torch.equal(first.p_after, second.p_after) and torch.equal(first.random_p_after, second.random_p_after)
    assert toy.training and hooks(toy) == 0


def test_wrong_settings_are_refused():
    for wrong in ({"tops": ()}, {"tops": (0,)}, {"draws": -1}):
        with pytest.raises(UserError):
            measure(**wrong)
    with pytest.raises(ValueError, match="one face"):
        finish(measure_sufficiency(FACE.repeat(2, 1, 1, 1), detector(), SALIENCY, quarters()))


@pytest.mark.parametrize("by_segment", [True, False])
def test_curves_computed_by_hand(by_segment):
    settings = CurveSettings(fill="black", steps=4, by_segment=by_segment)
    curves = finish(deletion_curves(FACE, detector(), SALIENCY, quarters(), settings))
    assert torch.allclose(curves.fractions, torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]))
    worth = [3 * PIECE * SLOPES[segment] * 128 / 255 for segment in (3, 1, 2, 0)]
    removed = torch.tensor([sigmoid(BEFORE - sum(worth[:count])) for count in range(5)])
    put_in = torch.tensor([sigmoid(BEFORE - sum(worth[count:])) for count in range(5)])
    assert curves.predicted == "fake"
    assert torch.allclose(curves.deletion, removed, atol=1e-4)
    assert torch.allclose(curves.insertion, put_in, atol=1e-4)
    assert curves.deletion_auc == pytest.approx(float((removed[1:] + removed[:-1]).sum() / 8), abs=1e-4)
    assert curves.insertion_auc == pytest.approx(float((put_in[1:] + put_in[:-1]).sum() / 8), abs=1e-4)
    assert curves.image_count == 10 and curves.call_count == 2
    assert WHY_MISLEADING in curves.summary and "lower would be better" in curves.summary


def test_curves_of_a_real_face_follow_the_probability_of_real():
    curves = finish(deletion_curves(FACE, detector(constant=-3.0), SALIENCY))
    assert curves.predicted == "real" and curves.deletion[0] == curves.insertion[-1] > 0.9
    assert len(curves.fractions) == 51


def test_fills():
    face = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert (fill_face(face, "black") == 0).all()
    assert torch.allclose(fill_face(face, "mean"), face.mean((2, 3), keepdim=True))
    blurred = fill_face(face, "blur")
    assert blurred.shape == face.shape and blurred.std() < face.std() / 1.5
    assert torch.allclose(fill_face(grey(77), "blur"), grey(77), atol=1e-6)
    with pytest.raises(UserError):
        finish(deletion_curves(face, detector(), face[0, 0], settings=CurveSettings(fill="pink")))
    with pytest.raises(ValueError, match="segments are needed"):
        finish(deletion_curves(FACE, detector(), SALIENCY, settings=CurveSettings(by_segment=True)))


def pair(**settings):
    """Return the result of a pair in which the right half of the fake was brightened."""
    real, fake = torch.full((1, 3, 32, 32), 0.2), torch.full((1, 3, 32, 32), 0.2)
    fake[..., 16:] = 0.8
    weights = torch.zeros(32, 32)
    weights[:, 16:] = 0.01
    toy = weighted_detector(weights, constant=-10.0)
    chosen = PairSettings(segments=16, sufficiency=SufficiencySettings(attack=EXACT, draws=1), **settings)
    return finish(measure_pair_sufficiency(real, fake, toy, weights, chosen)), real, fake


@pytest.mark.parametrize("source", ["real", "fake"])
def test_a_pair_attacks_the_fake_where_the_map_of_the_real_photo_points(source):
    from backend.explain.segments import slic_segments

    result, real, fake = pair(segments_of=source)
    assert torch.equal(result.labels, slic_segments((real if source == "real" else fake)[0], 16))
    assert result.p_real_photo < 0.5 and result.sufficiency.predicted == "fake" and result.both_right
    assert result.sufficiency.masks[0, :, 16:].sum() > 0.9 * result.sufficiency.masks[0].sum()
    assert (result.sufficiency.values > 0).all()
    assert "On the fake" in result.summary and "no right verdict" not in result.summary


def test_a_pair_with_a_wrong_verdict_says_so():
    real = fake = torch.full((1, 3, 32, 32), 0.9)
    toy = weighted_detector(torch.full((32, 32), 0.01), constant=-5.0)
    chosen = PairSettings(segments=8, sufficiency=SufficiencySettings(attack=EXACT, draws=0))
    result = finish(measure_pair_sufficiency(real, fake, toy, torch.ones(32, 32), chosen))
    assert not result.both_right and "no right verdict" in result.summary
    with pytest.raises(UserError, match="differ in size"):
        finish(measure_pair_sufficiency(real, fake[..., :16], toy, torch.ones(32, 32), chosen))
