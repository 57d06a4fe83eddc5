import dataclasses
import gc
import threading

import numpy as np
import pytest
import torch
from torch import nn

from backend import runtime
from backend.attacks.nes import NESSettings
from backend.detectors.base import Detector
from backend.errors import UserError
from backend.explain import photo
from backend.explain.base import EXPLAINERS, Inferences, MaskedFace
from backend.explain.explanation import ExplainSettings, MapFinished, compare_methods, explain
from backend.progress import finish
from tests.patch_toys import PATCH, face, in_patch, patch_detector, untextured
from tests.toys import grey, hooks, toy_detector

PERTURBING = ("lime", "shap", "sobol", "rise")
FEW = {"lime": 120, "shap": 120, "sobol": 4, "rise": 200, "gradcam": 1, "gradcampp": 1, "xrai": 4}


@pytest.fixture
def few_samples(monkeypatch):
    """Make the quick preset quicker still, for tests of something other than the map."""
    for name, samples in FEW.items():
        explainer = dataclasses.replace(EXPLAINERS[name], samples={**EXPLAINERS[name].samples, "quick": samples})
        monkeypatch.setitem(EXPLAINERS._items, name, explainer)


def ask(method="lime", picture=None, detector=None, reference_image=None, **options):
    picture = face() if picture is None else picture
    detector = detector or patch_detector()
    return finish(explain(picture, detector, ExplainSettings(method=method, **options), reference_image))


@pytest.mark.parametrize("reference", ["original", "adversarial"])
@pytest.mark.parametrize("method", PERTURBING)
def test_every_method_finds_the_patch(method, reference):
    image = untextured() if reference == "adversarial" else None
    result = ask(method, reference=reference, reference_image=image)
    assert not result.degenerate and in_patch(result.saliency), result.summary
    assert result.saliency.dtype == torch.float32 and result.saliency.shape == (64, 64)
    assert result.signed == (method in {"lime", "shap"})
    patch = torch.zeros(64, 64)
    patch[PATCH] = 1
    assert patch[result.labels == int(result.segment_scores.argmax())].mean() > 0.5
    assert result.reference == reference and result.reference_words


@pytest.mark.parametrize("method", EXPLAINERS)
def test_the_detector_is_left_as_it_was(method, few_samples):
    detector = patch_detector().train()
    ask(method, detector=detector, reference="original")
    assert detector.training and hooks(detector) == 0
    assert all(weight.requires_grad and weight.grad is None for weight in detector.parameters())


# Counts of Adv-XAI (2502.03957), table 3: calls and, from the code, pictures.
@pytest.mark.parametrize(
    ("method", "calls", "count"), [("lime", 200, 2000), ("shap", 45, 2000), ("sobol", 17, 2112), ("rise", 32, 4000)]
)
def test_counts_as_released(method, calls, count):
    detector = patch_detector()
    result = ask(method, detector=detector, reference="original", preset="as_released")
    assert result.explanation == Inferences(count, calls) == result.inferences
    # What the detector itself counted, without the verdicts on face and reference.
    assert detector.network.images == count + result.checks.images and result.checks.images == 2
    assert detector.network.calls == calls + result.checks.calls
    assert not result.degenerate and in_patch(result.saliency)


def test_a_second_softmax_only_where_the_released_code_has_one():
    p = torch.sigmoid(patch_detector().logit_fake(face())).item()
    for method, double_softmax in (("lime", True), ("shap", False), ("sobol", False), ("rise", True)):
        assert EXPLAINERS[method].double_softmax == double_softmax
    masked = MaskedFace(face(), untextured(), patch_detector(), double_softmax=True, bfloat16=False)
    once, other = torch.tensor([1 - p, p]).softmax(0)
    assert float(masked.ask(torch.ones(1, 64, 64))) == pytest.approx(float(other), abs=1e-6)
    assert once + other == pytest.approx(1)


@pytest.mark.parametrize("method", PERTURBING)
def test_a_reference_that_is_the_face_is_degenerate(method):
    result = ask(method, reference_image=face())
    assert result.degenerate and "the face itself" in result.reason and (result.saliency == 0).all()
    assert result.reason in result.summary and result.explanation == Inferences()


@pytest.mark.parametrize("reference", ["original", "adversarial"])
@pytest.mark.parametrize("method", PERTURBING)
def test_a_face_that_is_called_real_is_degenerate(method, reference):
    result = ask(method, untextured(), reference=reference)
    assert result.degenerate and "sees no signs of forgery to explain" in result.reason and (result.saliency == 0).all()
    assert result.inferences == Inferences()


@pytest.mark.parametrize("method", PERTURBING)
def test_a_constant_answer_is_degenerate(method, few_samples):
    class Constant(nn.Module):
        def forward(self, images):  # rounding is all that varies
            return 2 + 1e-7 * images.mean((2, 3))[:, :1]

    detector = Detector(Constant(), toy_detector(size=64).card).eval()
    result = ask(method, detector=detector, reference_image=untextured())
    assert result.degenerate and "stays at 0.88" in result.reason
    assert (result.saliency == 0).all() and (photo.relative_map(result) == 0).all()


def test_the_verdict_real_can_be_explained_with_the_usual_fill(few_samples):
    result = ask("rise", untextured(), towards="real", reference="original")
    assert "against a forgery" in result.summary  # the neutral colour is below the threshold, too
    refused = ask("rise", untextured(), towards="real")
    assert refused.degenerate and "called fake" in refused.reason


@pytest.mark.parametrize("method", PERTURBING)
def test_the_batch_does_not_matter_and_the_seed_does(method, few_samples):
    small_batch, large_batch = (ask(method, reference_image=untextured(), batch=batch) for batch in (11, 64))
    assert (small_batch.saliency - large_batch.saliency).abs().max() < 1e-5 * small_batch.saliency.abs().max() + 1e-6
    assert small_batch.explanation.calls > large_batch.explanation.calls
    repeated = ask(method, reference_image=untextured(), batch=11)
    assert torch.equal(small_batch.saliency, repeated.saliency)
    if method in {"lime", "rise"}:
        assert not torch.equal(
            small_batch.saliency, ask(method, reference_image=untextured(), batch=11, seed=1).saliency
        )


@pytest.mark.parametrize("method", (*PERTURBING, "xrai"))
def test_stopping_takes_one_batch(method, few_samples):
    detector, threads = patch_detector().train(), threading.active_count()
    job = explain(
        face(), detector, ExplainSettings(method=method, reference="original", batch=16 if method != "xrai" else 2)
    )
    counts = []
    for _ in range(3):
        step = next(job)
        counts.append(detector.network.images)
    job.close()
    assert detector.network.images == counts[-1] and step.number < step.total
    assert max(counts[1] - counts[0], counts[2] - counts[1]) <= 16
    assert detector.training and hooks(detector) == 0 and threading.active_count() == threads


def test_the_attack_is_made_counted_and_stopped():
    detector = toy_detector(slope=8.0)
    settings = ExplainSettings(method="rise", attack=NESSettings(probes=20, iterations=40), segments=4)
    picture = grey(181)
    steps = []
    result = finish(explain(picture, detector, settings), steps.append)
    assert result.reference_flipped and result.p_reference < 0.5 < result.p_fake
    assert (
        result.attack.images > 10
        and "NES" in result.summary
        and result.inferences == result.attack + result.explanation
    )
    assert (result.reference_image - picture).abs().max() <= 16 / 255 + 1e-6
    numbers = [step.number for step in steps]
    assert numbers == sorted(numbers) and numbers[-1] == steps[-1].total
    reused = finish(explain(picture, detector, settings, result.reference_image))
    assert torch.equal(reused.saliency, result.saliency) and reused.attack == Inferences()


def test_a_reference_that_never_flipped_is_flagged(few_samples):
    result = ask(attack=NESSettings(probes=2, iterations=1))
    assert result.reference_flipped is False and "trust this map less" in result.summary


def test_the_shortcut_is_labelled(few_samples):
    result = ask(shortcut=True)
    assert result.reference_flipped and "White-box shortcut" in result.summary and in_patch(result.saliency)


def test_fifty_explanations_leave_nothing_behind(few_samples):
    detector, picture, image = patch_detector(), face(), untextured()

    def tensors():
        gc.collect()
        return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

    for number in range(51):
        ask(PERTURBING[number % 4], picture, detector, image)
        if number == 4:
            before = tensors()
    assert tensors() == before


def test_compare_all_attacks_once_and_gives_eleven_maps(few_samples):
    detector, face_ = patch_detector(), face()
    steps = []
    settings = ExplainSettings(attack=NESSettings(probes=4, iterations=3), segments=30)
    compared = finish(compare_methods(face_, detector, settings), steps.append)
    assert [(result.settings.method, result.reference) for result in compared.done] == [
        *((name, reference) for name in PERTURBING for reference in ("original", "adversarial")),
        *((name, None) for name in ("gradcam", "gradcampp", "xrai")),
    ]
    finished = [step.explanation for step in steps if isinstance(step, MapFinished)]
    assert finished == list(compared.done)
    assert all(result.attack == Inferences() for result in compared.done)
    images = {
        id(result.reference_image): result.reference_image
        for result in compared.done
        if result.reference == "adversarial"
    }
    assert all(torch.equal(image, compared.attacked.images) for image in images.values())
    assert compared.inferences.images == compared.attack.images + sum(
        result.explanation.images for result in compared.done
    )
    numbers = [step.number for step in steps]
    assert numbers == sorted(numbers) and numbers[-1] == steps[-1].total
    assert "maps show something" in compared.summary and hooks(detector) == 0


def test_compare_all_of_a_real_face_makes_no_attack(few_samples):
    compared = finish(compare_methods(untextured(), patch_detector()))
    assert compared.attacked is None and len(compared.done) == 11
    assert all(result.degenerate for result in compared.done if result.reference)


def test_pictures_have_one_scale_and_say_it():
    result = ask(reference="original")
    values = photo.relative_map(result)
    assert np.abs(values).max() == 1 and values.dtype == np.float32
    crop = np.full((128, 128, 3), 128, np.uint8)
    assert photo.overlay_map(crop, result).shape == (128, 128, 3)
    assert (photo.overlay_map(crop, result, opacity=0) == crop).all()
    best = int(result.segment_scores.argmax())
    outlined = photo.outline_segments(crop, result.labels, [best])
    changed = (outlined != crop).any(2)
    assert 0 < changed.mean() < 0.2 and (outlined[changed] != 128).any()
    assert "Purple speaks for a forgery, orange against a forgery" in photo.scale_words(result)
    unsigned = ask("sobol", reference="original")
    assert photo.relative_map(unsigned).min() == 0 and photo.relative_map(unsigned).max() == 1
    assert photo.draw_scale(signed=True).shape == (16, 256, 3)
    empty = ask(reference_image=face())
    assert (photo.overlay_map(crop, empty) == crop).all() and "no map" in photo.scale_words(empty)
    difference = photo.reference_difference(face(), ask(reference_image=untextured()))
    assert difference.gain > 1 and str(difference.gain) in difference.caption
    # An attack may change less than a step of 8 bits, and this is shown too.
    little = photo.reference_difference(face(), ask(reference_image=face() - 0.3 / 255))
    assert little.largest == pytest.approx(0.3, abs=1e-3) and little.gain == 500
    assert "0.3 of 255" in little.caption and (little.picture != 247).any()
    assert photo.reference_difference(face(), result) is None


def test_bfloat16_is_used_where_it_agrees_and_the_result_says_so(monkeypatch, few_samples):
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda _device: True)
    dtypes = []
    detector = patch_detector(slope=300.0, threshold=0.0)
    detector.network.features.register_forward_hook(lambda _, __, output: dtypes.append(output.dtype))
    result = ask(detector=detector, attack=NESSettings(probes=2, iterations=1))
    assert result.precision.dtype == "bfloat16" and result.precision.deviation <= 1e-2
    assert "stay within" in result.precision.reason and result.record()["precision"]["dtype"] == "bfloat16"
    # The attack asks first, and always in float32.
    attacked = result.attack.calls
    assert set(dtypes[: 1 + attacked]) == {torch.float32} and torch.bfloat16 in dtypes[1 + attacked :]
    exact = ask(detector=detector, attack=NESSettings(probes=2, iterations=1), preset="as_released")
    assert exact.precision.dtype == "float32"


def test_bfloat16_is_refused_where_the_answer_moves(monkeypatch, few_samples):
    monkeypatch.setattr(runtime, "fast_bfloat16", lambda _device: True)
    contrast = float(patch_detector(slope=1.0, threshold=0.0).logit_fake(face()).detach()[0])
    steep = patch_detector(slope=3e5, threshold=contrast - 1e-6)  # eight bits of the contrast are too few for it
    result = ask(detector=steep, reference="original")
    assert result.precision.dtype == "float32" and result.precision.deviation == 0
    assert "would be off by up to" in result.precision.reason


def test_a_fallen_short_of_memory_halves_the_batch(monkeypatch):
    masked = MaskedFace(face(), untextured(), patch_detector(), bfloat16=False)
    masked.judge.batch = 32
    true = masked.judge.logit_fake

    def small_memory(images):
        if len(images) > 8:
            raise torch.cuda.OutOfMemoryError
        return true(images)

    monkeypatch.setattr(masked.judge, "logit_fake", small_memory)
    assert len(masked.ask(torch.ones(32, 64, 64))) == 32
    assert masked.batch == 8 and masked.inferences == Inferences(32, 4)


@pytest.mark.parametrize(
    "wrong",
    [{"method": "none"}, {"reference": "none"}, {"preset": "none"}, {"batch": 0}, {"segments": 1}, {"towards": "x"}],
)
def test_wrong_settings_give_one_sentence(wrong):
    with pytest.raises(UserError) as error:
        ask(**wrong)
    assert error.value.message and error.value.hint
