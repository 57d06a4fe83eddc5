import dataclasses
import math

import pytest
import torch

from backend import images
from backend.counterfactual import search as counterfactual_search
from backend.counterfactual.rendering import Judge
from backend.counterfactual.search import SearchResult, SearchSettings, search
from backend.errors import UserError
from backend.progress import finish
from tests.toys import ROWS, STEP, grey, hooks, toy_detector, toy_inverter


def run(faces, detector=None, **settings) -> SearchResult:
    chosen = SearchSettings(**{"kappa": 0.1} | settings)
    return finish(search(toy_inverter(), detector or toy_detector(), faces, chosen))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_values_computed_by_hand():
    # Level 200 falls by 3 a step; p_fake < 0.45 needs a mean below 0.68997, the 8-bit level 175.9: 9 steps.
    result = run(grey(200))
    assert result.steps.tolist() == [9] and result.flipped.tolist() == [True]
    assert torch.equal(result.counterfactual, grey(200 - 27))
    expected = [sigmoid(20 * ((200 - 3 * step) / 255 - 0.7)) for step in range(10)]
    assert torch.allclose(result.trajectory[:, 0], torch.tensor(expected), atol=1e-4)
    assert result.p_original.item() == pytest.approx(expected[0], abs=1e-4)
    assert result.p_counterfactual.item() == pytest.approx(expected[9], abs=1e-4)
    assert torch.allclose(result.codes - result.codes_start, torch.full((1, ROWS, 512), -9 * STEP), atol=1e-5)


def test_the_margin_decides_when_a_face_is_done():
    # Without a margin, p_fake < 0.5 needs a level below 178.5: 8 steps.
    assert run(grey(200), kappa=0.0).steps.tolist() == [8]


def test_loss_falls_at_every_step_and_rises_against_the_sign():
    falling = run(grey(200), steps=6).trajectory[:, 0].square()
    rising = run(grey(200), steps=6, epsilon=-STEP).trajectory[:, 0].square()
    assert (falling.diff() < 0).all()
    assert (rising.diff() > 0).all()


@pytest.mark.parametrize("level", ["S", "M", "D"])
def test_closed_rows_stay_bit_identical(level):
    result = run(grey(200), levels=(level,), steps=5)
    opened = counterfactual_search.level_mask((level,), ROWS)
    assert torch.equal(result.codes[:, ~opened], result.codes_start[:, ~opened])
    assert (result.codes[:, opened] != result.codes_start[:, opened]).all()


def test_a_third_of_the_rows_moves_a_third_of_the_way():
    result = run(grey(200), levels=("M",), steps=3, kappa=0.0)
    assert torch.equal(result.counterfactual, grey(200 - 3))


def test_no_coordinate_moves_further_than_its_steps():
    result = run(grey(250, 200), steps=7)
    assert (result.codes - result.codes_start).abs().max() <= 7 * STEP + 1e-5


def test_batch_equals_one_by_one_and_repeats():
    faces = grey(200, 183, 230)
    together, again = run(faces), run(faces)
    for index in range(3):
        alone = run(faces[index : index + 1])
        assert torch.equal(together.codes[index], alone.codes[0])
        assert torch.equal(together.counterfactual[index], alone.counterfactual[0])
        assert together.steps[index] == alone.steps[0]
    assert torch.equal(together.codes, again.codes)
    assert torch.equal(together.trajectory, again.trajectory)


def test_a_face_that_is_done_stays_as_it_is():
    result = run(grey(183, 230))
    done, late = result.steps.tolist()
    assert done < late
    assert (result.trajectory[done:, 0] == result.trajectory[done, 0]).all()
    assert torch.allclose(result.codes[0] - result.codes_start[0], torch.tensor(-done * STEP), atol=1e-5)


def test_saturated_detector_is_followed_by_its_log_odds():
    steep = toy_detector(slope=2000)
    assert steep.p_fake(grey(200)).item() == 1.0
    result = run(grey(200), steep)
    assert result.used_log_odds.tolist() == [True] and result.flipped.tolist() == [True]
    assert "log-odds" in result.summary
    assert not run(grey(200)).used_log_odds.any()


@pytest.mark.parametrize("loss", ["mse", "softplus", "log_odds"])
def test_all_losses_go_the_same_way(loss):
    assert torch.equal(run(grey(200), loss=loss).codes, run(grey(200)).codes)


@pytest.mark.parametrize("composite", ["transfer", "reconstruction"])
def test_a_face_called_real_is_not_searched(composite):
    result = run(grey(100, 200), composite=composite)
    assert result.already_real.tolist() == [True, False]
    assert result.flipped.tolist()[0] is False and result.steps[0] == 0
    assert torch.equal(result.codes[0], result.codes_start[0])
    assert torch.equal(result.counterfactual[0], result.original[0])
    assert result.p_counterfactual[0] == result.p_original[0]
    assert "nothing to change" in run(grey(100)).summary


def test_a_reconstruction_that_turns_by_itself_is_reported():
    # The toy draws every face near the middle grey, which its detector calls real.
    result = run(grey(200), composite="reconstruction")
    assert result.flipped_by_inversion.tolist() == [True] and result.steps.tolist() == [0]
    assert torch.equal(result.counterfactual, result.inversion)
    assert "before any change" in result.summary


def test_too_few_steps_are_reported_with_the_best_picture():
    result = run(grey(250), steps=2)
    assert result.flipped.tolist() == [False] and result.steps.tolist() == [2]
    assert torch.equal(result.counterfactual, grey(250 - 6))
    assert "not enough" in result.summary


def test_without_early_stop_all_steps_are_made():
    result = run(grey(200), steps=15, early_stop=False)
    assert torch.equal(result.counterfactual, grey(200 - 45))
    assert result.steps.tolist() == [9] and len(result.trajectory) == 16


def test_the_saved_png_is_what_was_judged():
    detector = toy_detector()
    # Steps of less than one 8-bit level: what is judged must not depend on what rounding removes.
    result = run(grey(200), detector, epsilon=STEP / 7, steps=100, kappa=0.0)
    png = images.encode_png(images.to_array(torch.nn.functional.interpolate(result.counterfactual, scale_factor=8)))
    read = images.to_tensor(images.read(png))[:, :, ::8, ::8]
    assert torch.equal(read, result.counterfactual)
    # The order of the channels in memory differs, and with it the last bit.
    assert detector.p_fake(read).item() == pytest.approx(result.p_counterfactual.item(), abs=1e-6)
    assert result.p_counterfactual.item() < 0.5


def joint(faces, allies, **settings) -> SearchResult:
    chosen = SearchSettings(**{"kappa": 0.1, "loss": "softplus"} | settings)
    judges = [Judge(ally) for ally in allies]
    return finish(search(toy_inverter(), toy_detector(), faces, chosen, allies=judges))


def test_a_search_against_several_detectors_ends_when_the_last_one_passes():
    # Alone, the first passes after 9 steps; p_fake < 0.45 of the second needs a level below 158.1 of 255: 14 steps.
    stricter = toy_detector(threshold=0.63, name="stricter")
    result = joint(grey(200), [stricter])
    assert result.steps.tolist() == [14] and result.flipped.tolist() == [True]
    assert torch.equal(result.counterfactual, grey(200 - 42))
    before, inverted, after = result.allies["stricter"]
    assert before.item() == pytest.approx(sigmoid(20 * (200 / 255 - 0.63)), abs=1e-4)
    assert after.item() == pytest.approx(sigmoid(20 * (158 / 255 - 0.63)), abs=1e-4)
    assert inverted.shape == (1,) and set(result.allies) == {"stricter"}
    assert result.trajectory[0, 0].item() == pytest.approx(before.item(), abs=1e-4)  # the highest of both


def test_detectors_that_cannot_all_be_turned_are_reported_as_not_turned():
    # What one calls fake the other calls real: darker turns the first alone.
    opposite = toy_detector(slope=-20.0, threshold=0.75, name="opposite")
    result = joint(grey(200), [opposite], steps=20)
    assert result.flipped.tolist() == [False] and "not enough" in result.summary


@pytest.mark.parametrize("loss", ["mse", "softplus", "log_odds"])
def test_momentum_changes_nothing_where_the_gradient_keeps_its_direction(loss):
    assert torch.equal(run(grey(200), loss=loss, momentum=1.0).codes, run(grey(200)).codes)


def test_momentum_goes_on_in_the_old_direction_for_a_while():
    state = object.__new__(counterfactual_search._SearchState)
    state.settings, state.momentum = SearchSettings(momentum=0.5), torch.zeros(1, 1, 2)
    face = torch.tensor([0])
    first = state._direction(face, torch.tensor([[[2.0, 4.0]]]))
    assert first.flatten().tolist() == pytest.approx([2 / 3, 4 / 3])
    second = state._direction(face, torch.tensor([[[-1.0, 1.0]]]))
    assert second.flatten().tolist() == pytest.approx([1 / 3 - 1, 2 / 3 + 1])
    state.settings = SearchSettings()
    assert state._direction(face, torch.tensor([[[-1.0, 1.0]]])).flatten().tolist() == [-1, 1]


def test_closing_restores_the_models_and_leaks_nothing():
    inverter, detector = toy_inverter(), toy_detector()
    detector.train()
    inverter.generator.train()
    job = search(inverter, detector, grey(250))
    with torch.no_grad():
        for _ in range(3):
            next(job)
            assert not torch.is_grad_enabled()
    assert not detector.training and not inverter.generator.gain.requires_grad
    job.close()
    for module in (*inverter.modules(), detector):
        assert module.training and all(weight.requires_grad for weight in module.parameters())
        assert all(weight.grad is None for weight in module.parameters())
        assert hooks(module) == 0
    with pytest.raises(StopIteration):
        next(job)


def test_one_forward_pass_a_step():
    detector, calls = toy_detector(), []
    handle = detector.network.register_forward_hook(lambda *_: calls.append(1))
    result = finish(search(toy_inverter(), detector, grey(200)))
    handle.remove()
    # One each for the original and the inversion, one for the start, one a step.
    assert len(calls) == 3 + int(result.steps[0])


def test_steps_show_where_the_search_is():
    steps = []
    result = finish(search(toy_inverter(), toy_detector(), grey(200)), steps.append)
    assert steps[0].number == 0 and steps[-1].number <= steps[-1].total
    assert torch.equal(steps[-1].preview, result.counterfactual)
    assert steps[-1].values["p_fake"] == pytest.approx(result.p_counterfactual.item())


@pytest.mark.parametrize(
    "change", [{"levels": ()}, {"levels": ("X",)}, {"steps": 0}, {"kappa": 1.0}, {"composite": "mix"}, {"loss": "l1"}]
)
def test_impossible_settings_are_refused(change):
    with pytest.raises(UserError):
        finish(search(toy_inverter(), toy_detector(), grey(200), dataclasses.replace(SearchSettings(), **change)))


def test_levels_are_thirds():
    assert [list(counterfactual_search.rows_of_level(level, 12)) for level in "SMD"] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert [len(counterfactual_search.rows_of_level(level, 18)) for level in "SMD"] == [6, 6, 6]
    assert counterfactual_search.level_mask("SMD", 12).all()


def test_levels_are_read_as_people_write_them():
    assert counterfactual_search.parse_levels("S,M,D") == ("S", "M", "D")
    assert counterfactual_search.parse_levels("d, s") == ("S", "D")
    for wrong in ("", "X", "S,Q"):
        with pytest.raises(UserError):
            counterfactual_search.parse_levels(wrong)
