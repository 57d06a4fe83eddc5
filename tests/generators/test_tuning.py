"""Pivotal tuning: closer drawings by a copy of the generator, and a shared generator that nothing touches."""

import copy

import pytest
import torch

from backend import runtime, similarity
from backend.counterfactual.search import SearchSettings, search
from backend.errors import UserError
from backend.generators.refinement import TuneSettings, tune
from backend.progress import finish
from tests.generators.test_inversion import codes, small_inverter
from tests.toys import toy_detector

QUICK = TuneSettings(steps=8, rate=3e-3)


@pytest.fixture(autouse=True, scope="module")
def without_networks():
    """Use the distance that needs no weights: quick, and the same on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "lpips_missing", lambda: "absent")
        patch.setattr(similarity.importlib.util, "find_spec", lambda _name: None)
        patch.setattr(runtime, "_loaded", {})
        yield


def face(inverter, seed: int = 2) -> torch.Tensor:
    """Draw a face that lies beside the code that is given."""
    with torch.no_grad():
        return inverter.synthesize(codes(1) + 0.3 * codes(1, seed=seed)).clamp(0.1, 0.9)


def test_a_copy_draws_the_face_more_closely_and_the_shared_weights_stay_as_they_are():
    inverter = small_inverter()
    target = face(inverter)
    before = copy.deepcopy(inverter.generator.state_dict())
    flags = [weight.requires_grad for weight in inverter.generator.parameters()]
    result = finish(tune(inverter, target, codes(1), QUICK))
    assert float(result.psnr_after) > float(result.psnr_before) + 0.3
    assert result.inverter is not inverter and result.inverter.generator is not inverter.generator
    assert result.inverter.encoder is inverter.encoder and result.inverter.name == inverter.name
    for name, value in inverter.generator.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert [weight.requires_grad for weight in inverter.generator.parameters()] == flags
    assert all(weight.grad is None for weight in inverter.generator.parameters())
    tuned = result.inverter.generator
    assert not any(weight.requires_grad or weight.grad is not None for weight in tuned.parameters())
    assert not torch.equal(tuned.conv1.conv.weight, inverter.generator.conv1.conv.weight)
    assert torch.equal(tuned.style[1].weight, inverter.generator.style[1].weight)  # the mapping is not used
    # What the copy draws is what was measured, and the shared one draws what it drew.
    with torch.no_grad():
        drawn = result.inverter.synthesize(codes(1))
    assert -10 * torch.log10((drawn - target).square().mean()) == pytest.approx(float(result.psnr_after), abs=1e-3)
    assert result.perceptual == "1 - SSIM" and "8 steps" in result.summary and "dB PSNR" in result.summary


def test_it_repeats_and_the_locality_holds_other_drawings():
    inverter = small_inverter()
    target = face(inverter)
    tuned_weights = []
    for locality in (0.0, 0.0, 30.0):
        result = finish(tune(inverter, target, codes(1), TuneSettings(8, 3e-3, locality=locality)))
        tuned_weights.append(torch.cat([weight.flatten() for weight in result.inverter.generator.parameters()]))
    assert torch.equal(tuned_weights[0], tuned_weights[1]) and not torch.equal(tuned_weights[0], tuned_weights[2])


def test_without_a_gain_the_shared_generator_is_handed_back():
    inverter = small_inverter()
    result = finish(tune(inverter, face(inverter), codes(1), TuneSettings(steps=1, rate=1e3)))
    assert result.inverter is inverter and torch.equal(result.psnr_after, result.psnr_before)
    assert "gained nothing" in result.summary


def test_it_stops_within_a_step_and_restores_the_switch_for_gradients():
    inverter = small_inverter()
    before = copy.deepcopy(inverter.generator.state_dict())
    job = tune(inverter, face(inverter), codes(1), TuneSettings(steps=500))
    with torch.no_grad():
        step = next(job)
        assert not torch.is_grad_enabled()
    assert (step.number, step.total) == (1, 500) and step.preview.shape == (1, 3, 32, 32) and "psnr" in step.values
    job.close()
    assert all(torch.equal(value, before[name]) for name, value in inverter.generator.state_dict().items())


def test_a_search_with_the_tuned_copy():
    inverter = small_inverter()
    before = copy.deepcopy(inverter.generator.state_dict())
    steps = []
    detector = toy_detector(slope=100, threshold=0.2, size=32)
    settings = SearchSettings(steps=4, refine=2, tune=3, composite="reconstruction", early_stop=False)
    result = finish(search(inverter, detector, face(inverter), settings), steps.append)
    assert result.tuned is not None and result.tuned.psnr_after >= result.tuned.psnr_before
    assert result.refined.psnr_after == pytest.approx(float(result.tuned.psnr_before), abs=1e-3)
    with torch.no_grad():
        drawn = result.tuned.inverter.synthesize(result.codes_start)
    assert (result.inversion - drawn).abs().max() <= 0.5 / 255 + 1e-6
    assert [step.number for step in steps] == [*range(1, 6), 5, *range(6, 11)]
    assert {step.total for step in steps} == {settings.total} == {10}
    assert all(torch.equal(value, before[name]) for name, value in inverter.generator.state_dict().items())
    assert finish(search(inverter, detector, face(inverter), SearchSettings(steps=1))).tuned is None


@pytest.mark.parametrize(
    "settings", [TuneSettings(0), TuneSettings(501), TuneSettings(rate=0.0), TuneSettings(locality=-1.0)]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError):
        finish(tune(small_inverter(), torch.zeros(1, 3, 32, 32), codes(1), settings))
    with pytest.raises(UserError, match="-1 steps cannot tune"):
        SearchSettings(tune=-1).check()


def test_the_distances_are_zero_for_equal_pictures_and_have_a_slope(monkeypatch):
    picture = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    perceptual = similarity.best_perceptual_distance()
    darker = (picture * 0.5).requires_grad_()
    distance = perceptual.distance(picture, darker)
    assert distance.shape == (2,) and (distance > 0.01).all()
    distance.sum().backward()
    assert darker.grad.abs().sum() > 0
    assert perceptual.distance(picture, picture).abs().max() < 1e-5
    # Where LPIPS can be had, it is taken.
    monkeypatch.setattr(runtime, "_loaded", {})
    monkeypatch.setattr(similarity, "lpips_missing", lambda: None)
    monkeypatch.setattr(similarity, "build_lpips", lambda: lambda a, b: (a - b).square().mean((1, 2, 3), keepdim=True))
    monkeypatch.setattr(similarity, "_network_distance", similarity.PerceptualDistance)
    assert similarity.best_perceptual_distance().name == "LPIPS (AlexNet)"
