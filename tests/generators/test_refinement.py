"""Refinement of inversions: closer, the same alone or together, and a good start for a search."""

import math

import pytest
import torch

from backend.counterfactual.rendering import compose_picture
from backend.counterfactual.search import SearchSettings, search
from backend.errors import UserError
from backend.generators.refinement import FeatureSettings, RefineSettings, refine, refine_features
from backend.generators.stylegan2 import StyleGAN2
from backend.progress import finish
from backend.similarity import batch_psnr
from tests.generators.test_inversion import codes, small_inverter
from tests.toys import DARKER, STEP, grey, hooks, toy_detector, toy_inverter


def faces(inverter, count: int = 2) -> torch.Tensor:
    """Draw faces whose codes lie beside those that are given as a start."""
    with torch.no_grad():
        return inverter.synthesize(codes(count) + 0.3 * codes(count, seed=2))


def test_a_refined_drawing_is_closer_and_never_worse():
    inverter = small_inverter()
    targets = faces(inverter)
    # A generator with random weights is steeper than a trained one, so its steps are shorter.
    result = finish(refine(inverter, targets, codes(2), RefineSettings(steps=40, rate=0.03)))
    assert (result.psnr_after > result.psnr_before + 0.5).all()
    with torch.no_grad():
        drawn = inverter.synthesize(result.codes)
    psnr = -10 * torch.log10((drawn - targets).square().flatten(1).mean(1))
    assert torch.allclose(psnr, result.psnr_after, atol=1e-3)
    assert "40 steps" in result.summary and "dB" in result.summary
    diverged = finish(refine(inverter, targets, codes(2), RefineSettings(steps=2, rate=1000.0)))
    assert torch.equal(diverged.psnr_after, diverged.psnr_before) and torch.equal(diverged.codes, codes(2))


def test_the_first_step_computed_by_hand():
    # Adam's first step is its rate in every coordinate, here in spreads; the toy's face is too dark, so codes rise.
    inverter = toy_inverter()
    start = torch.linspace(-1, 1, 12 * 512).view(1, 12, 512)
    spread = float(start.std())
    result = finish(refine(inverter, grey(200), start, RefineSettings(steps=1, rate=0.01, pull=0.0)))
    assert torch.allclose(result.codes - start, torch.full_like(start, 0.01 * spread), atol=1e-4)
    brightness = 0.5 + 0.01 * spread * DARKER / STEP
    assert result.psnr_before.item() == pytest.approx(-20 * math.log10(200 / 255 - 0.5), abs=1e-3)
    assert result.psnr_after.item() == pytest.approx(-20 * math.log10(200 / 255 - brightness), abs=1e-3)


def test_faces_are_refined_as_if_they_were_alone_and_the_same_again():
    inverter = small_inverter()
    targets, settings = faces(inverter, 3), RefineSettings(steps=5)
    together = finish(refine(inverter, targets, codes(3), settings))
    again = finish(refine(inverter, targets, codes(3), settings))
    assert torch.equal(together.codes, again.codes)
    alone = finish(refine(inverter, targets[1:2], codes(3)[1:2], settings))
    assert torch.allclose(together.codes[1], alone.codes[0], atol=1e-4)


def test_the_pull_keeps_codes_near_their_start():
    inverter = small_inverter()
    distances = [
        (finish(refine(inverter, faces(inverter), codes(2), RefineSettings(20, pull=pull))).codes - codes(2)).norm()
        for pull in (0.0, 10.0)
    ]
    assert distances[1] < distances[0]


def test_closing_restores_the_generator_and_the_switch_for_gradients():
    inverter = toy_inverter()
    inverter.generator.train()
    job = refine(inverter, grey(250), inverter.invert(grey(250)))
    with torch.no_grad():
        step = next(job)
        assert not torch.is_grad_enabled() and not inverter.generator.training
    assert step.total == RefineSettings().steps and step.preview.shape == (1, 3, 8, 8) and "psnr" in step.values
    job.close()
    assert inverter.generator.training and inverter.generator.gain.requires_grad and hooks(inverter.generator) == 0


def test_a_search_from_refined_codes_changes_the_photo_by_its_steps_alone():
    # `transfer` adds what the search changes and not what the refinement did: the hand-computed search stays.
    steps = []
    settings = SearchSettings(kappa=0.1, refine=4)
    result = finish(search(toy_inverter(), toy_detector(), grey(200), settings), steps.append)
    assert result.refined is not None and result.refined.psnr_after > result.refined.psnr_before
    assert torch.equal(result.codes_start, result.refined.codes)
    assert result.flipped.tolist() == [True] and result.steps.tolist() == [9]
    assert torch.equal(result.counterfactual, grey(200 - 27))
    numbers = [step.number for step in steps]
    assert numbers == sorted(numbers) and {step.total for step in steps} == {settings.steps + 5}
    plain = finish(search(toy_inverter(), toy_detector(), grey(200), SearchSettings(kappa=0.1)))
    assert plain.refined is None


def test_a_real_generator_is_searched_from_refined_codes():
    inverter = small_inverter()
    assert isinstance(inverter.generator, StyleGAN2)
    detector = toy_detector(slope=200, threshold=0.3, size=32)
    targets = faces(inverter)
    result = finish(search(inverter, detector, targets, SearchSettings(steps=30, refine=3)))
    assert (result.p_counterfactual < result.p_original).all()
    assert (result.counterfactual - result.original).abs().max() > 0


@pytest.mark.parametrize("settings", [RefineSettings(steps=0), RefineSettings(rate=0.0), RefineSettings(pull=-1.0)])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UserError):
        finish(refine(toy_inverter(), grey(200), torch.zeros(1, 12, 512), settings))


def test_features_bring_a_drawing_closer_than_codes_and_leave_the_coarser_rows():
    inverter = small_inverter()
    targets = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    targets = torch.nn.functional.interpolate(targets, (32, 32), mode="bilinear")  # no face that it knows
    by_codes = finish(refine(inverter, targets, codes(2), RefineSettings(steps=60, rate=0.03)))
    result = finish(refine_features(inverter, targets, codes(2), FeatureSettings(steps=60)))
    assert (result.psnr_after > by_codes.psnr_after + 2).all()
    assert result.offset is not None and by_codes.offset is None
    row = inverter.generator.offset_row
    assert torch.equal(result.codes[:, :row], codes(2)[:, :row]) and not torch.equal(result.codes, codes(2))
    drawn = inverter.synthesize(result.codes, offset=result.offset)
    assert torch.allclose(batch_psnr(drawn, targets), result.psnr_after, atol=1e-3)
    alone = finish(refine_features(inverter, targets[1:], codes(2)[1:], FeatureSettings(steps=60)))
    assert float(alone.psnr_after[0]) == pytest.approx(float(result.psnr_after[1]), abs=0.05)
    further = finish(refine_features(inverter, targets, result.codes, FeatureSettings(steps=5), result.offset))
    assert torch.allclose(further.psnr_before, result.psnr_after, atol=1e-3)


def test_a_larger_penalty_keeps_more_of_what_edits_do():
    inverter = small_inverter()
    targets = faces(inverter)
    sizes = []
    for penalty in (0.0, 1.0, 100.0):
        result = finish(refine_features(inverter, targets, codes(2), FeatureSettings(steps=20, penalty=penalty)))
        assert result.offset is not None
        sizes.append(float(result.offset.features.square().mean()))
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < sizes[0] / 4


@pytest.mark.parametrize("composite", ["transfer", "reconstruction"])
def test_a_search_keeps_the_offset_while_codes_are_edited(composite):
    inverter = small_inverter()
    detector = toy_detector(slope=200, threshold=0.3, size=32)
    settings = SearchSettings(steps=6, inversion="features", refine=5, composite=composite, early_stop=False)
    result = finish(search(inverter, detector, faces(inverter), settings))
    refined = result.refined
    assert refined is not None and refined.offset is not None and settings.total == 12
    assert (result.p_counterfactual < result.p_original).all()
    start, edited = (
        inverter.synthesize(codes_of, offset=refined.offset, clamp=False)
        for codes_of in (result.codes_start, result.codes)
    )
    expected = compose_picture(composite, result.original, edited, start)
    assert (result.counterfactual - expected).abs().max() < 0.003
    assert (result.inversion - start.clamp(0, 1)).abs().max() < 0.003


def test_features_without_a_number_of_steps_take_their_own_and_no_tuning():
    assert SearchSettings(inversion="features", steps=10).total == 10 + 1 + FeatureSettings.steps
    with pytest.raises(UserError, match="codes alone"):
        SearchSettings(inversion="features", tune=3).check()
    with pytest.raises(UserError, match="inversion"):
        SearchSettings(inversion="pixels").check()
    with pytest.raises(UserError, match="at least 0"):
        FeatureSettings(penalty=-1.0).check()


def test_a_search_refuses_too_many_refinements():
    for steps in (-1, 10_000):
        with pytest.raises(UserError, match="refine"):
            finish(search(toy_inverter(), toy_detector(), grey(200), SearchSettings(refine=steps)))
