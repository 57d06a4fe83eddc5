"""How visible the rows of a code are, and the steps of a search that follow from it."""

import pytest
import torch
from torch import nn

from backend import examples, images, settings, weights
from backend.alignment import locate
from backend.counterfactual.photo import find_counterfactual
from backend.counterfactual.search import LONGEST_STEP, SearchSettings, search
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import finish
from backend.training import install
from tests.generators.test_inversion import CHANNELS, codes, small_inverter
from tests.toys import DARKER, ROWS, STEP, grey, toy_detector, toy_inverter

GAINS = (4.0, 1.0, 0.5, 0.002)


class Weighted(nn.Module):
    """Every pixel is the sum over rows of gain * its own coordinate."""

    size, rows, style_dim = 8, len(GAINS), 192

    def mapping(self, z: torch.Tensor) -> torch.Tensor:
        return z

    def synthesize(self, codes: torch.Tensor, *, resolution: int | None = None, offset: None = None) -> torch.Tensor:
        return (codes * torch.tensor(GAINS)[:, None]).sum(1).view(-1, 3, 8, 8)


class Inverse(nn.Module):
    input_size = 8

    def forward(self, faces: torch.Tensor, lacking: torch.Tensor | None = None) -> torch.Tensor:
        return faces.flatten(1)[:, None].expand(-1, len(GAINS), -1)


def test_visibility_of_a_linear_generator_is_its_gains():
    # A change of +-1 moves every pixel by its gain in [-1, 1], and by half of it in [0, 1].
    inverter = Inverter(Weighted(), Inverse(), torch.zeros(len(GAINS), 192), "toy", "embedded", STEP)
    assert inversion.measure_row_visibility(inverter, faces=3) == pytest.approx([gain / 2 for gain in GAINS], rel=0.01)


def test_it_repeats_and_depends_on_the_seed():
    inverter = small_inverter()
    visibility = inversion.measure_row_visibility(inverter)
    assert visibility == inversion.measure_row_visibility(inverter) and len(visibility) == inverter.rows
    assert inversion.measure_row_visibility(inverter, seed=1) != visibility


def test_the_shipped_numbers_are_those_of_the_shipped_networks():
    drawing, encoding = (weights.find_entry(name).options for name in ("generator", "encoder"))
    files = (weights.load_entry(name) for name in ("generator", "encoder"))
    inverter = inversion.build_embedded_inverter(
        *files, drawing, encoding, "generator"
    )  # on the CPU, where they were measured
    assert list(inverter.visibility) == list(inversion.load_embedded_inverter().visibility) == encoding["visibility"]
    assert inversion.measure_row_visibility(inverter) == pytest.approx(inverter.visibility, rel=0.02)


def run(visible, **chosen):
    inverter = toy_inverter()
    inverter.visibility = visible
    return finish(search(inverter, toy_detector(), grey(200), SearchSettings(**{"kappa": 0.1} | chosen)))


def test_steps_are_shorter_in_rows_that_show_more():
    # The root of the mean square of six ones and six sevens is 5.
    result = run([1.0] * 6 + [7.0] * 6, steps=2)
    expected = torch.tensor([5 * STEP] * 6 + [5 / 7 * STEP] * 6)
    assert torch.allclose(result.lengths, expected)
    change = result.codes - result.codes_start
    assert torch.allclose(change, (-2 * expected)[None, :, None].expand_as(change), atol=1e-5)
    darker = 2 * DARKER * (5 + 5 / 7) / 2  # the toy's rows weigh alike whatever was said of them
    assert result.counterfactual.mean().item() == pytest.approx(200 / 255 - darker, abs=0.5 / 255)


def test_closed_rows_do_not_count():
    result = run([1.0] * 4 + [2.0] * 4 + [50.0] * 4, levels=("S", "M"), steps=1)
    root = (2.5) ** 0.5
    assert torch.allclose(result.lengths, torch.tensor([root * STEP] * 4 + [root / 2 * STEP] * 4))


@pytest.mark.parametrize("visible", [[1.0] * 6 + [7.0] * 6, [], [0.0] * ROWS])
def test_equal_steps_are_the_paper_s(visible):
    result = run(visible, lengths="equal" if any(visible) else "visible", steps=3)
    assert torch.equal(result.lengths, torch.full((ROWS,), STEP))
    change = result.codes - result.codes_start
    assert torch.allclose(change, torch.full_like(change, -3 * STEP), atol=1e-5)
    assert ("was not measured" in result.summary) == (visible == [])
    assert "was not measured" not in run([], lengths="equal").summary


def test_steps_against_the_slope_differ_between_rows_too():
    result = run([1.0] * 6 + [7.0] * 6, steps=1, epsilon=-STEP, early_stop=False)
    change = result.codes - result.codes_start
    assert torch.allclose(change[0, :, 0], torch.tensor([5 * STEP] * 6 + [5 / 7 * STEP] * 6), atol=1e-5)


def test_an_unknown_kind_of_step_length_is_refused():
    with pytest.raises(UserError, match="longer"):
        run([], lengths="longer")


def test_a_row_that_shows_nothing_does_not_run_away():
    result = run([0.0] + [1.0] * 11, steps=1)
    assert result.lengths[0].item() == pytest.approx(LONGEST_STEP * STEP)
    assert result.codes.isfinite().all()


def test_a_search_in_a_tuned_generator_keeps_the_step_lengths():
    inverter = small_inverter()
    inverter.visibility = [1.0] * 4 + [2.0] * 4
    with torch.no_grad():
        target = (0.5 * inverter.synthesize(codes(1)) + 0.5 * inverter.synthesize(codes(1, seed=2))).clamp(0.1, 0.9)
    search_settings = SearchSettings(tune=8, steps=1)
    result = finish(search(inverter, toy_detector(threshold=0.0, size=32), target, search_settings))
    assert result.tuned is not None and result.tuned.inverter is not inverter
    assert result.lengths[0].item() == pytest.approx(2 * result.lengths[-1].item())


def test_faces_turn_sooner_and_stay_closer_than_with_equal_steps():
    face = images.read(examples.FOLDER / "swapped_1.png")
    ours, paper = (
        finish(find_counterfactual(locate(face), "xception", SearchSettings(lengths=lengths))).record()
        for lengths in ("visible", "equal")
    )
    assert ours["flipped"] and paper["flipped"]
    assert len(set(paper["lengths"])) == 1 < len(set(ours["lengths"]))
    assert ours["steps"] < paper["steps"]
    assert ours["metrics"]["psnr"] > paper["metrics"]["psnr"]


def test_rows_are_measured_once_generator_and_encoder_are_there(tmp_path, monkeypatch, caplog):
    changed = settings.Settings(weights_dir=tmp_path / "weights")
    for module in (install, weights, install):
        monkeypatch.setattr(module, "SETTINGS", changed)
    changed.weights_dir.mkdir()
    saved = small_inverter()
    state = {f"generator.{key}": value for key, value in saved.generator.state_dict().items()}
    weights.save_half(tmp_path / "generator.safetensors", state | {"latent_average": saved.latent_average})
    weights.save_half(tmp_path / "encoder.safetensors", saved.encoder.state_dict())
    drawn = {
        "epsilon": 0.01,
        "size": 32,
        "mapping_layers": 1,
        "template": "embedded",
        "channels": {str(k): v for k, v in CHANNELS.items()},
    }
    read = {"input_size": 32, "width": 0.0625}
    weights.read_entries.cache_clear()
    try:
        for number, (name, options) in enumerate((("encoder", read), ("generator", drawn))):
            install.install_weights(name, tmp_path / f"{name}.safetensors", options, "photographs")
            install.note_visibility()
            assert ("visibility" in weights.find_entry("encoder").options) == (number == 1)
        measured = weights.find_entry("encoder").options["visibility"]
        assert measured == pytest.approx(inversion.measure_row_visibility(saved), rel=0.05)
        install.install_weights("encoder", tmp_path / "encoder.safetensors", {"width": 0.25}, "photographs")
        install.note_visibility()  # an entry that does not say what is in its file
        assert "visibility" not in weights.find_entry("encoder").options
        assert "do not fit" in caplog.text
    finally:
        weights.read_entries.cache_clear()
