import dataclasses
import time

import pytest
import torch

from backend.attacks import nes
from backend.attacks.nes import (
    AS_RELEASED,
    NESSettings,
    batch_probe_pairs,
    draw_probe_noise,
    probe_noise_source,
    white_box_settings,
)
from backend.errors import UserError
from backend.progress import finish
from tests.linear_toys import BatchRecorder, weighted_detector
from tests.toys import grey, hooks, toy_detector

ALPHA, DELTA = 1 / 255, 16 / 255


def run(images, detector, mask=None, **settings):
    return finish(nes.attack(images, detector, NESSettings(**settings), mask))


def never():
    """Return a detector that calls everything fake."""
    return toy_detector(slope=4.0, threshold=-1.0)


@pytest.mark.parametrize(
    ("detector", "iterations", "calls"),
    [(never(), 5, 405), (toy_detector(), 80, 1), (never(), 60, 4860)],
    ids=["never flips", "real from the start", "sixty iterations"],
)
def test_golden_call_counts_as_released(detector, iterations, calls):
    recorder = BatchRecorder(detector)
    result = finish(nes.attack(grey(128), detector, dataclasses.replace(AS_RELEASED, iterations=iterations)))
    assert result.released_calls == calls
    # What was really asked: the same pictures in batches, and the verdict on the last iterate where there is one.
    verdict = int(calls > 1)
    assert result.image_count == sum(recorder.batches) == calls + verdict
    assert result.call_count == len(recorder.batches) < max(2, calls / 20)
    assert result.already_real.tolist() == [calls == 1] and result.flipped.tolist() == [False]


def test_as_released_is_grey_and_bounds_nothing():
    result = run(grey(6), never(), mode="as_released", iterations=60)
    change = result.images - grey(6)
    assert torch.equal(change[:, 0], change[:, 1]) and torch.equal(change[:, 0], change[:, 2])
    assert change.abs().max() > DELTA and result.images.min() < 0
    assert "never fell below the threshold" in result.summary


def test_as_released_counts_in_the_units_of_the_detector():
    detector = weighted_detector(torch.full((8, 8), 0.01), constant=5.0, std=0.25)
    for mode, length in (("as_released", ALPHA * 0.25), ("projected", ALPHA)):
        change = run(grey(128), detector, mode=mode, iterations=1).images - grey(128)
        assert torch.allclose(change.abs(), torch.tensor(length), atol=1e-6)


@pytest.mark.parametrize("level", [0, 3, 128, 255])
def test_projection_keeps_the_change_and_the_range(level):
    result = run(grey(level), never(), iterations=40, alpha=3 / 255)
    assert (result.images - grey(level)).abs().max() <= DELTA + 1e-6
    assert result.images.min() >= 0 and result.images.max() <= 1
    if level == 128:
        assert (result.images - grey(level)).abs().max() >= DELTA - 1e-6  # it is reached, so it is what bounds


def test_outside_the_mask_nothing_changes():
    face = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[2:5, 3:6] = True
    for mode in ("projected", "as_released"):
        result = run(face, never(), mask, mode=mode, iterations=3)  # odd, so no two steps cancel
        assert torch.equal(result.images[..., ~mask], face[..., ~mask])
        assert (result.images[..., mask] != face[..., mask]).all()


def test_probes_show_the_mask_only():
    face, mask, captured = grey(128), torch.zeros(8, 8), []
    mask[:2] = 1
    detector = never()
    detector.network.register_forward_pre_hook(lambda _, images: captured.append(images[0].clone()))
    run(face, detector, mask, iterations=1)
    probes = torch.cat([pictures for pictures in captured if len(pictures) > 1])
    assert len(probes) == 80
    assert torch.equal(probes[:, :, 2:], face[:, :, 2:].expand(80, -1, -1, -1))
    assert (probes[:, :, :2] != face[:, :, :2]).float().mean() > 0.95


def test_each_face_has_its_own_mask():
    masks = torch.zeros(2, 1, 8, 8)
    masks[0, :, :4], masks[1, :, 4:] = 1, 1
    changed = (run(grey(128, 128), never(), masks, iterations=1).images != 128 / 255).any(1)
    assert torch.equal(changed, masks[:, 0].bool())


def test_probes_are_antithetic():
    captured = []
    detector = never()
    detector.network.register_forward_pre_hook(lambda _, images: captured.append(images[0].clone()))
    run(grey(128), detector, iterations=1, probes=4, sigma=0.01)
    plus, minus = captured[1].chunk(2)
    assert torch.allclose((plus + minus) / 2, grey(128).expand(4, -1, -1, -1), atol=1e-6)
    assert (plus - minus).std() == pytest.approx(0.02, rel=0.1)


def test_grey_noise_is_one_value_a_pixel():
    source = probe_noise_source(0, 0, torch.device("cpu"))
    assert draw_probe_noise(source, 5, grey(1)[0], "grey").shape == (5, 1, 8, 8)
    coloured = draw_probe_noise(source, 5, grey(1)[0], "channel")
    assert coloured.shape == (5, 3, 8, 8) and not torch.equal(coloured[:, 0], coloured[:, 1])


def test_signs_agree_with_the_gradient_of_a_linear_detector():
    weights = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.02
    detector = weighted_detector(weights, constant=2.0)

    def agreement(probes):
        change = run(grey(128, size=16), detector, iterations=1, probes=probes).images - grey(128, size=16)
        return float((change[0].sign() == -weights.sign()).float().mean())

    # A coordinate's sign is right with probability Phi(sqrt(probes) |w| / ||w||), here 0.58 and 0.87 on average.
    assert 0.53 < agreement(40) < 0.65 and agreement(2000) > 0.8


def test_p_real_rises_and_a_face_stops_at_its_flip():
    curve = []
    attack = nes.attack(grey(185), toy_detector(), NESSettings())
    result = finish(attack, lambda step: curve.append(step.values["p_fake"]) if step.values else None)
    assert curve == sorted(curve, reverse=True)
    assert result.flipped.tolist() == [True] and curve[-1] < 0.5 <= curve[-2]
    assert result.iterations.tolist() == [len(curve) - 1] and 0 < len(curve) - 1 < 40
    assert result.p_before.item() == curve[0] and result.p_after.item() == curve[-1]
    assert result.released_calls == 81 * (len(curve) - 1) + 1


def test_the_margin_and_early_stop():
    plain = run(grey(181), toy_detector())
    wide = run(grey(181), toy_detector(), kappa=0.2)
    endless = run(grey(181), toy_detector(), early_stop=False, iterations=25)
    assert plain.p_after > 0.4 >= wide.p_after and plain.iterations < wide.iterations
    assert endless.iterations.tolist() == [25]


def test_faces_in_one_batch_stop_by_themselves():
    faces = grey(185, 181, 100, 250)
    together = run(faces, toy_detector(), iterations=30)
    alone = run(faces[:1], toy_detector(), iterations=30)
    assert together.iterations[0] == alone.iterations[0] and torch.equal(together.images[0], alone.images[0])
    assert together.iterations[1] < together.iterations[0] < 30
    assert together.already_real.tolist() == [False, False, True, False]
    assert torch.equal(together.images[2], faces[2]) and together.iterations[2] == 0
    assert together.iterations[3] == 30 and together.flipped.tolist() == [True, True, False, False]
    assert "1 never fell below the threshold" in together.summary


def test_a_saturated_detector_moves_with_the_log_odds_alone():
    detector = toy_detector(slope=1000.0, threshold=0.0)
    stuck = run(grey(255), detector, iterations=3, objective="probability")
    assert torch.equal(stuck.images, grey(255)) and stuck.used_log_odds.tolist() == [False]
    for objective in ("log_odds", "auto"):
        result = run(grey(255), detector, iterations=3, objective=objective)
        assert result.images.mean() < 1 - 0.2 / 255 and result.used_log_odds.tolist() == [True]
    assert not run(grey(200), toy_detector(), iterations=1).used_log_odds.any()


def test_same_seed_same_result():
    first, second = (run(grey(200, 210), toy_detector(), iterations=3, seed=4) for _ in range(2))
    other = run(grey(200, 210), toy_detector(), iterations=3, seed=5)
    assert torch.equal(first.images, second.images) and not torch.equal(first.images, other.images)
    assert not torch.equal(first.images[0] - first.images[0, 0, 0, 0], first.images[1] - first.images[1, 0, 0, 0])
    detector, state = toy_detector(), torch.random.get_rng_state()
    run(grey(200), detector, iterations=1)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_batch_changes_nothing():
    weights = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(3)) * 0.02
    detector = weighted_detector(weights, constant=2.0)
    large, small = (run(grey(128, size=16), detector, iterations=1, batch=batch).images for batch in (80, 6))
    assert (large == small).float().mean() > 0.99


def test_batches_keep_pairs_together():
    assert list(batch_probe_pairs([0, 2], 5, 8)) == [[(0, 4)], [(0, 1), (2, 3)], [(2, 2)]]
    assert list(batch_probe_pairs([1], 5, 3)) == [[(1, 1)]] * 5
    assert list(batch_probe_pairs([], 5, 8)) == []


def test_closing_stops_within_one_batch():
    detector = never()
    recorder = BatchRecorder(detector)
    attack = nes.attack(grey(128), detector, NESSettings(batch=8))
    calls = []
    for _ in range(7):
        next(attack)
        calls.append(len(recorder.batches))
    attack.close()
    assert calls == list(range(1, 8)) and len(recorder.batches) == 7
    assert max(recorder.batches) == 8


def test_the_detector_is_left_as_it_was():
    detector = never().train()
    result = run(grey(128), detector, iterations=1)
    assert detector.training and hooks(detector) == 0 and all(weight.requires_grad for weight in detector.parameters())
    assert not result.images.is_inference() and not result.images.requires_grad


def test_the_shortcut_has_the_same_budget():
    shortcut = white_box_settings(NESSettings(delta=4 / 255, alpha=2 / 255, iterations=7, seed=3))
    assert (shortcut.epsilon, shortcut.alpha, shortcut.steps, shortcut.seed) == (4 / 255, 2 / 255, 7, 3)
    assert not shortcut.random_start


@pytest.mark.parametrize(
    "wrong",
    [{"mode": "fast"}, {"noise": "blue"}, {"objective": "loss"}, {"sigma": 0.0}, {"alpha": -1.0}]
    + [{"delta": 2.0}, {"probes": 0}, {"iterations": 0}, {"kappa": 1.0}, {"batch": 1}],
)
def test_wrong_settings_are_refused(wrong):
    with pytest.raises(UserError):
        run(grey(128), never(), **wrong)


def test_seconds_are_those_of_the_attack():
    started = time.perf_counter()
    result = run(grey(128), never(), iterations=1)
    assert 0 < result.seconds <= time.perf_counter() - started
