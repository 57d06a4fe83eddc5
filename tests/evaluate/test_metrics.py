"""Metrics: published golden numbers, values computed by hand, and agreement with packages."""

import numpy as np
import pytest
import torch

from backend import similarity
from backend.evaluate.metrics import classification as c
from backend.evaluate.metrics import faithfulness, identity, likeness, naturalness, success
from backend.evaluate.metrics.base import METRICS, mean, mean_with_interval, proportion
from tests import pictures

UNIFORM = torch.from_numpy(np.random.RandomState(0).rand(256, 256, 3)).permute(2, 0, 1)[None]
GAUSSIAN = torch.from_numpy(0.5 + np.random.RandomState(0).randn(256, 256, 3) * 10 / 255).permute(2, 0, 1)[None]


def test_golden_noise_level_and_total_variation():
    assert float(naturalness.noise_level(UNIFORM)[0]) == pytest.approx(72.44084, rel=1e-4)
    assert float(naturalness.noise_level(GAUSSIAN)[0]) == pytest.approx(9.76473, rel=1e-4)
    assert float(naturalness.total_variation(UNIFORM)[0]) == pytest.approx(21736.262, rel=1e-4)


def test_total_variation_by_hand():
    picture = torch.zeros(1, 3, 2, 3)
    picture[0, :, 0, 0] = 10 / 255  # one vertical and one horizontal edge of 10 levels in every colour
    # Three colours of 10 squared, over 1 x 3 x 3 vertical and 2 x 2 x 3 horizontal differences.
    assert float(naturalness.total_variation(picture)[0]) == pytest.approx(300 / 9 + 300 / 12)


def test_a_flat_picture_has_no_noise():
    assert float(naturalness.noise_level(torch.full((1, 3, 32, 32), 0.5))[0]) == pytest.approx(0, abs=1e-6)


def test_attack_success_over_its_four_denominators_by_hand():
    # caught and turned; caught but turned by inversion alone; caught, not turned; never caught; caught only after
    # inversion and turned; exactly on the threshold, which is neither
    original = [0.9, 0.9, 0.9, 0.1, 0.2, 0.5]
    inversion = [0.8, 0.3, 0.9, 0.9, 0.9, 0.9]
    attacked = [0.1, 0.1, 0.6, 0.1, 0.1, 0.1]
    result = success.attack_success(original, inversion, attacked)
    assert (result.everything.value, result.everything.count) == (pytest.approx(1 / 6), 6)
    assert (result.detected.value, result.detected.count) == (pytest.approx(1 / 3), 3)
    assert (result.after_inversion.value, result.after_inversion.count) == (pytest.approx(1 / 5), 5)
    assert (result.both.value, result.both.count) == (pytest.approx(1 / 2), 2)
    assert success.transfer_rate(original, inversion, attacked) == result.both


def test_nothing_to_count_is_not_zero():
    result = success.attack_success([0.1], [0.1], [0.1])
    assert result.everything.value == 0
    assert result.both.value is None
    assert result.both.count == 0
    assert mean([None, float("nan")]).value is None


def test_wilson_interval_by_hand():
    # z = 1.959964: centre (p + z^2/2n) / (1 + z^2/n), half width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n)
    interval = proportion(8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.490162, abs=1e-5), pytest.approx(0.943318, abs=1e-5))
    none_of_ten = proportion(0, 10)
    assert none_of_ten.low == 0
    assert none_of_ten.high == pytest.approx(0.277533, abs=1e-5)


def test_mean_and_spread_by_hand():
    average = mean([1.0, None, 2.0, 3.0])
    assert (average.value, average.std, average.count) == (2.0, 1.0, 3)
    assert mean([4.0]).std is None


def test_values_that_are_all_equal_have_no_interval_rather_than_a_point():
    average = mean_with_interval([0.1] * 7 + [None], (0.0, 1.0))
    assert (average.value, average.count) == (pytest.approx(0.1), 7)
    assert average.low is average.high is None


# Two reals below and one above the fakes' lowest score.
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1]
SCORES = [0.1, 0.2, 0.45, 0.7, 0.4, 0.6, 0.8, 0.9, 0.95]


def test_accuracy_per_class_by_hand():
    assert c.accuracy_real(LABELS, SCORES).value == 0.75
    assert c.accuracy_fake(LABELS, SCORES).value == 0.8
    assert c.accuracy_fake([1], [0.5]).value == 1  # the threshold itself is called fake


def test_ranking_by_hand():
    # Pairs (fake, real) ranked rightly: 0.4 beats 2, 0.6 beats 3, the other three beat all 4: 17 of 20.
    assert c.area_under_roc(LABELS, SCORES) == pytest.approx(17 / 20)
    # Precision at each fake from the top: 1/1, 2/2, 3/3, then 0.7 is real: 4/5, then 0.45 is real: 5/7.
    assert c.average_precision(LABELS, SCORES) == pytest.approx((1 + 1 + 1 + 4 / 5 + 5 / 7) / 5)


def test_equal_error_rate_by_hand():
    # At a threshold between 0.45 and 0.6, one real of four (0.25) and one fake of five (0.2) are wrong; at 0.7 the
    # misses are 2 of 5 and the false alarms 1 of 4. In between the ROC is horizontal at 0.25 false alarms.
    assert c.equal_error_rate(LABELS, SCORES) == pytest.approx(0.25)
    assert c.equal_error_rate([0, 1], [0.2, 0.8]) == 0
    assert c.equal_error_rate([0, 1], [0.8, 0.2]) == 1
    assert c.equal_error_rate([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9]) == pytest.approx(0.5)


def test_one_class_alone_has_no_ranking():
    assert c.area_under_roc([1, 1], [0.2, 0.8]) is None
    assert c.average_precision([0], [0.2]) is None
    assert c.equal_error_rate([], []) is None
    assert c.brier_score([], []) is None
    assert c.calibration_error([], []) is None


@pytest.mark.parametrize(("recall", "alarms"), [(1.0, 2), (0.8, 1), (0.9, 2), (0.6, 0), (0.2, 0)])
def test_false_alarms_at_recall_by_hand(recall, alarms):
    # All five fakes need a threshold of 0.4, with 0.45 and 0.7 above it; four need 0.6, with 0.7 above it.
    rate = c.false_alarms_at_recall(LABELS, SCORES, recall)
    assert (rate.value, rate.count) == (alarms / 4, 4)
    assert rate.low < rate.value < rate.high or alarms == 0


def test_recall_is_counted_exactly():
    scores = [k / 10 for k in range(1, 11)]
    rate = c.false_alarms_at_recall([1] * 10 + [0] * 10, scores + scores, 0.9)  # 0.9 * 10 is 9.000000000000002 at worst
    assert rate.value == 0.9


def test_calibration_by_hand():
    labels, scores = [0, 1, 1, 1], [0.05, 0.15, 0.95, 1.0]
    assert c.brier_score(labels, scores) == pytest.approx((0.05**2 + 0.85**2 + 0.05**2 + 0) / 4)
    assert c.reliability_bins(labels, scores) == [(0.05, 0.0, 1), (0.15, 1.0, 1), (0.975, 1.0, 2)]
    assert c.calibration_error(labels, scores) == pytest.approx((0.05 + 0.85 + 2 * 0.025) / 4)


def test_psnr_and_ssim():
    picture = np.full((32, 32, 3), 100, np.uint8)
    assert similarity.picture_psnr(picture, picture) is None
    assert similarity.picture_psnr(picture, picture + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert similarity.picture_ssim(picture, picture) == pytest.approx(1)
    assert similarity.picture_ssim(pictures.noise(32, 32), pictures.noise(32, 32, seed=1)) < 0.2


def test_lpips_says_why_it_is_not_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "not on this machine" in similarity.lpips_missing()
    with pytest.raises(RuntimeError, match="not measured"):
        similarity.batch_lpips(UNIFORM, UNIFORM)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / similarity.ALEXNET).write_bytes(b"not the weights")
    assert "damaged" in similarity.lpips_missing()
    assert METRICS["lpips"].missing()


def test_lpips_is_the_package_s(monkeypatch):
    torch.manual_seed(0)
    network = similarity.build_lpips(random=True)
    monkeypatch.setattr(similarity, "lpips_missing", lambda: None)
    monkeypatch.setattr(similarity, "load_once", lambda *_: network)
    first, second = torch.rand(2, 3, 64, 64), torch.rand(2, 3, 64, 64)
    expected = network(first * 2 - 1, second * 2 - 1).flatten()  # the package's own range is [-1, 1]
    torch.testing.assert_close(similarity.batch_lpips(first, second), expected, atol=1e-5, rtol=1e-5)
    assert similarity.batch_lpips(first, first).abs().max() == 0


@pytest.mark.parametrize("template", ["embedded", "ffhq"])
def test_identity_by_dlib(aligned_crops, template):
    pytest.importorskip("dlib", reason="dlib is optional (requirements-identity.txt)")
    recogniser = identity.best_recogniser()
    if recogniser is None or recogniser.name != "dlib ResNet v1":
        pytest.skip("needs dlib's files, and no better network")
    astronaut, hopper = aligned_crops["astronaut", template], aligned_crops["hopper", template]
    comparison = identity.compare_identity(astronaut, astronaut.flip(3), template)
    assert comparison.retained
    assert comparison.similarity > 0.98
    assert comparison.recogniser == "dlib ResNet v1"
    assert not identity.compare_identity(astronaut, hopper, template).retained
    assert identity.compare_identity(astronaut, astronaut, template).similarity == pytest.approx(1)


def test_identity_without_any_network_is_reported_in_words(monkeypatch):
    monkeypatch.setattr(identity, "best_recogniser", lambda: None)
    assert "neither ArcFace nor FaceNet" in identity.identity_missing()
    assert METRICS["identity"].missing() and METRICS["identity_retained"].missing()
    with pytest.raises(RuntimeError, match="not measured"):
        identity.compare_identity(UNIFORM, UNIFORM, "embedded")


def test_the_face_is_cut_as_e4e_does():
    picture = torch.arange(256 * 256, dtype=torch.float32).reshape(1, 1, 256, 256)
    expected = torch.nn.functional.adaptive_avg_pool2d(picture[..., 35:223, 32:220], 112)
    torch.testing.assert_close(identity.crop_for_recognition(picture, "ffhq", 112), expected)
    assert identity.crop_for_recognition(torch.rand(1, 3, 128, 128), "embedded", 160).shape == (1, 3, 160, 160)


def test_faithfulness_by_hand():
    assert faithfulness.accuracy_at_k([True, False, None, True]).value == pytest.approx(2 / 3)
    result = faithfulness.sufficiency_at_k([0.9, 0.8, None, 0.5], [0.1, 0.6, 0.3, None])
    assert (result.value, result.count) == (pytest.approx(0.5), 2)
    # Two values 0.6 apart: 12.7062 standard errors of 0.3 each way, cut at 1.
    assert (result.low, result.high) == (-1, 1)
    result = faithfulness.sufficiency_at_k([0.52, 0.50], [0.0, 0.0])
    assert (result.low, result.high) == (pytest.approx(0.51 - 0.127062), pytest.approx(0.51 + 0.127062))
    ramp = np.arange(12.0).reshape(3, 4)
    assert faithfulness.map_stability(ramp, 5 - 2 * ramp) == pytest.approx(-1)
    assert faithfulness.map_stability(ramp, ramp**2) == pytest.approx(
        np.corrcoef(ramp.ravel(), ramp.ravel() ** 2)[0, 1]
    )
    assert faithfulness.map_stability(ramp, np.ones((3, 4))) is None
    assert faithfulness.curve_area([0, 0.5, 1], [1.0, 0.5, 0.0]) == pytest.approx(0.5)


def test_every_metric_says_what_it_is():
    assert {
        "asr_all",
        "asr_detected",
        "asr_after_inversion",
        "asr_both",
        "transfer_rate",
        "tv",
        "esnle",
        "lpips",
    } <= set(METRICS)
    for name, metric in METRICS.items():
        assert metric.name == name
        assert metric.title
        assert metric.source
        assert metric.better in ("higher", "lower", "neither")
        assert metric.sentence.endswith(".")
        assert metric.sentence.count(". ") == 0  # one sentence
        assert callable(metric.function)


def test_kernel_distance_is_that_of_the_polynomial_kernel():
    first, second = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    # k(x, y) = (x . y / 2 + 1)^3: within the first (0 / 2 + 1)^3 = 1, within the second 1, across 1.5^3, 1, 1.5^3, 1.
    assert likeness.kernel_distance(first, second) == pytest.approx(1 + 1 - 2 * (1.5**3 + 1) / 2)
    same = np.random.default_rng(0).normal(size=(400, 8))
    drawn = likeness.kernel_distance_of_draws(same, same, 100)
    assert drawn.count == 10 and abs(drawn.value) < 3 * drawn.std
    assert likeness.kernel_distance_of_draws(same, same + 1, 100).value > 10 * drawn.std
