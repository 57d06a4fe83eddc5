from pathlib import Path

import pytest
import torch

from backend import weights
from backend.errors import UserError
from backend.generators import e4e, inversion
from backend.generators.e4e import E4EEncoder, accumulate_feedback, haar_bands
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import FeatureOffset, StyleGAN2
from backend.training.encoder import grow_encoder

CHANNELS = {4: 8, 8: 8, 16: 8, 32: 4}


def small_inverter() -> Inverter:
    torch.manual_seed(0)
    generator, encoder = StyleGAN2(32, mapping_layers=1, channels=CHANNELS), E4EEncoder(32, 32, 0.0625)
    average = torch.linspace(-1, 1, 512)[None]
    for module in (generator, encoder):
        module.eval().requires_grad_(False)
    return Inverter(generator, encoder, average, "small", "embedded", 0.01)


def codes(count: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 8, 512, generator=torch.Generator().manual_seed(seed))


def test_codes_are_relative_to_the_average():
    inverter = small_inverter()
    faces = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = inverter.encoder(faces * 2 - 1) + inverter.latent_average
    assert inverter.invert(faces).shape == (2, inverter.rows, 512)
    assert torch.equal(inverter.invert(faces), expected)


def test_what_drawings_lack_is_summed_over_all_looks_but_the_last():
    faces = torch.tensor([0.5, -0.5]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    drawn = torch.full((1, 3, 4, 4), 0.25)
    drawn[..., 2:] = -3  # outside the range, where nobody sees it
    captured = []
    feedback = accumulate_feedback(captured.append, lambda _codes: drawn, faces, [0.6, 0.5])
    once = torch.tensor([0.25, 0.5]).view(1, 1, 1, 2).expand(1, 3, 2, 2)
    assert torch.equal(captured[0], torch.zeros_like(faces)) and torch.allclose(captured[1], 0.6 * once)
    assert torch.allclose(feedback, 1.1 * once) and len(captured) == 2
    assert torch.equal(accumulate_feedback(None, None, faces, []), torch.zeros_like(faces))


def test_an_inverter_with_feedback_looks_again_for_each_number():
    inverter = small_inverter()
    faces = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    first, average = inverter.invert(faces), inverter.latent_average
    inverter.feedback = [0.6]
    signed = faces * 2 - 1
    lacking = 0.6 * (signed - inverter.generator.synthesize(first).clamp(-1, 1))
    second = inverter.invert(faces)
    assert torch.allclose(second, inverter.encoder(signed + lacking) + average, atol=1e-5)
    assert not torch.allclose(second, first)
    inverter.feedback = [0.6, 0.3]
    lacking = lacking + 0.3 * (signed - inverter.generator.synthesize(second).clamp(-1, 1))
    assert torch.allclose(inverter.invert(faces), inverter.encoder(signed + lacking) + average, atol=1e-4)


def test_bands_are_means_of_squares_and_three_differences():
    picture = torch.tensor([[1.0, 2.0], [3.0, 6.0]]).view(1, 1, 2, 2)
    assert haar_bands(picture).flatten().tolist() == [3.0, -4.0, -6.0, 2.0]
    faces = torch.rand(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    bands = haar_bands(faces)
    assert bands.shape == (2, 12, 4, 3)
    assert torch.allclose(bands[:, :3], torch.nn.functional.avg_pool2d(faces, 2))
    ramp = torch.arange(6.0).expand(1, 1, 6, 6)
    assert (haar_bands(ramp)[:, 1:] == torch.tensor([-2.0, 0.0, 0.0])[None, :, None, None]).all()


def test_a_grown_encoder_gives_the_same_codes_and_reads_finer_detail_once_it_has_learned_to():
    torch.manual_seed(0)
    small, large = E4EEncoder(32, 32, 0.0625, 4), E4EEncoder(32, 64, 0.0625, 4, early=(6, 10), detail=True)
    torch.nn.init.normal_(small.linear.weight)
    large.load_state_dict(grow_encoder(small.state_dict(), large))
    small.eval(), large.eval()
    faces, lacking = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(k)) - 0.5 for k in (0, 1))
    halved = [torch.nn.functional.avg_pool2d(images, 2) for images in (faces, lacking)]
    assert torch.allclose(large(faces, lacking), small(sum(halved)), atol=1e-5)
    assert torch.allclose(large(faces), small(halved[0]), atol=1e-5)
    assert torch.allclose(large.base(faces), small.base(halved[0]), atol=1e-5)
    large(faces, lacking).square().mean().backward()
    learned = {name: weight.grad for name, weight in large.named_parameters()}
    stem, next_unit = learned["input_layer.0.weight"], learned["body.0.res_layer.1.weight"]
    assert (stem[:4].abs().sum((0, 2, 3)) > 0).all()  # every band of faces and of what was lacking
    assert (next_unit[:4, 4:].abs().sum((0, 2, 3)) > 0).all()  # what is new is read
    with pytest.raises(RuntimeError):  # a larger one does not fit into a smaller
        small.load_state_dict(grow_encoder(large.state_dict(), small))


def test_the_linear_path_adds_to_every_row_what_a_matrix_says_of_a_small_picture():
    torch.manual_seed(0)
    with_path, without = E4EEncoder(32, 32, 0.0625, linear=3).eval(), E4EEncoder(32, 32, 0.0625).eval()
    without.load_state_dict({key: value for key, value in with_path.state_dict().items() if "linear." not in key[:7]})
    faces = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(with_path(faces), without(faces))  # it starts as nothing
    path = with_path.linear
    path.weight.data[1, : e4e.BRIGHT_SIDE**2] = 1 / e4e.BRIGHT_SIDE**2
    path.weight.data[2, e4e.BRIGHT_SIDE**2 :] = 1.0
    path.bias.data[0] = 0.5
    grey = torch.full((1, 3, 32, 32), 0.25)  # has a brightness and no colour
    added = with_path(grey) - without(grey)
    assert torch.allclose(added[:, :, :3], torch.tensor([0.5, 0.25, 0.0]).expand(1, 8, 3), atol=1e-5)
    assert not added[:, :, 3:].any()
    assert torch.allclose(with_path.base(faces), with_path(faces)[:, 0], atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = path(faces)
    assert torch.equal(rounded, path(faces))  # in float32 all the same


def test_the_linear_path_finds_a_linear_code_exactly():
    randomness = torch.Generator().manual_seed(0)
    faces = torch.rand(1500, 3, 64, 64, generator=randomness) * 2 - 1
    shrunk = e4e.shrink_picture(faces)
    codes = shrunk @ torch.randn(e4e.LINEAR_INPUTS, 6, generator=randomness) + 3
    path = e4e.LinearPath(4)
    path.fit(shrunk, codes)
    assert torch.allclose(path(faces), codes[:, :4], atol=0.02)
    red = torch.zeros(1, 3, 64, 64)
    red[:, 0] = 1.0
    bright, first, second = e4e.shrink_picture(red).split([400, 64, 64], dim=1)
    assert torch.allclose(bright, torch.tensor(0.299)) and torch.allclose(first, torch.tensor(0.701))
    assert torch.allclose(second, torch.tensor(-0.299))


def test_a_larger_face_is_reduced_without_aliasing():
    inverter = small_inverter()
    even = torch.full((1, 3, 128, 128), 0.25)
    assert torch.allclose(inverter.invert(even), inverter.invert(even[..., :32, :32]), atol=1e-5)
    stripes = torch.zeros(1, 3, 128, 128)
    stripes[..., ::2] = 1.0
    assert torch.allclose(inverter.invert(stripes), inverter.invert(torch.full_like(stripes, 0.5)), atol=0.02)


def test_faces_are_in_the_range_of_pictures_and_repeat():
    inverter = small_inverter()
    uncut = inverter.synthesize(codes(2), clamp=False)
    assert torch.equal(uncut, (inverter.generator.synthesize(codes(2)) + 1) / 2)
    assert torch.equal(inverter.synthesize(codes(2)), uncut.clamp(0, 1))
    assert torch.equal(inverter.synthesize(codes(2)), inverter.synthesize(codes(2)))
    assert inverter.synthesize(codes(1), resolution=16).shape == (1, 3, 16, 16)


@pytest.mark.parametrize("row", range(8))
def test_a_synthesis_can_be_cut_in_two_at_any_row(row):
    inverter = small_inverter()
    partial = inverter.begin(codes(3), row)
    assert torch.allclose(inverter.synthesize_from(partial, codes(3)), inverter.synthesize(codes(3)), atol=1e-6)
    chosen = partial.select(torch.tensor([2, 0]))
    again = inverter.synthesize_from(chosen, codes(3)[[2, 0]])
    assert torch.allclose(again, inverter.synthesize(codes(3))[[2, 0]], atol=1e-5)


def some_offset(inverter: Inverter, count: int) -> FeatureOffset:
    empty = inverter.generator.no_offset(count)
    randomness = torch.Generator().manual_seed(5)
    features, picture = (
        torch.randn(part.shape, generator=randomness) * size
        for part, size in ((empty.features, 0.3), (empty.picture, 0.1))
    )
    return FeatureOffset(features, picture)


@pytest.mark.parametrize("row", range(8))
def test_an_offset_is_added_once_wherever_a_synthesis_is_cut(row):
    inverter = small_inverter()
    offset = some_offset(inverter, 3)
    drawn = inverter.synthesize(codes(3), offset=offset, clamp=False)
    assert not torch.allclose(drawn, inverter.synthesize(codes(3), clamp=False), atol=0.01)
    partial = inverter.begin(codes(3), row, offset=offset)
    assert torch.allclose(inverter.synthesize_from(partial, codes(3), clamp=False), drawn, atol=1e-5)
    chosen = torch.tensor([2, 0])
    again = inverter.synthesize_from(partial.select(chosen), codes(3)[chosen], clamp=False)
    assert torch.allclose(again, drawn[chosen], atol=1e-5)


def test_an_offset_of_the_last_picture_alone_is_added_to_what_is_drawn_from_it():
    # Nothing but the low-pass filter of the generator lies between the picture of 16 pixels and that of 32.
    inverter = small_inverter()
    empty = inverter.generator.no_offset(1)
    assert empty.features.shape == (1, CHANNELS[16], 16, 16) and inverter.generator.offset_row == 5
    brighter = FeatureOffset(empty.features, empty.picture + 0.4)
    drawn, lighter = (inverter.synthesize(codes(1), offset=offset, clamp=False) for offset in (empty, brighter))
    assert torch.equal(drawn, inverter.synthesize(codes(1), clamp=False))
    inner = (lighter - drawn)[..., 4:-4, 4:-4]
    assert torch.allclose(inner, torch.full_like(inner, 0.2), atol=1e-5)


def test_rows_before_the_cut_are_not_read_again_and_get_no_gradient():
    inverter = small_inverter()
    partial = inverter.begin(codes(1), 4)
    other = codes(1)
    other[:, :4] = 7.0
    other.requires_grad_()
    drawn = inverter.synthesize_from(partial, other, clamp=False)
    assert torch.allclose(drawn.detach(), inverter.synthesize(codes(1), clamp=False), atol=1e-6)
    drawn.square().sum().backward()
    assert (other.grad[:, :4] == 0).all() and (other.grad[:, 4:].abs().sum(2) > 0).all()


def test_changed_weights_change_the_picture():
    # Frozen weights have stored sums; they must follow every kind of change.
    inverter = small_inverter()
    before = inverter.synthesize(codes(1), clamp=False)
    conv = inverter.generator.conv1.conv
    conv.weight[:, :, 0].mul_(3.0)  # one input channel: the demodulation would undo that of an output
    changed = inverter.synthesize(codes(1), clamp=False)
    conv.weight.requires_grad_(True)
    assert torch.allclose(changed, inverter.synthesize(codes(1), clamp=False).detach(), atol=1e-6)
    assert not torch.allclose(changed, before, atol=1e-3)


def test_the_embedded_entries_are_loaded_once(tmp_path, monkeypatch):
    saved = small_inverter()
    state = {f"generator.{key}": value for key, value in saved.generator.state_dict().items()}
    weights.save_half(tmp_path / "generator.safetensors", state | {"latent_average": saved.latent_average})
    weights.save_half(tmp_path / "encoder.safetensors", saved.encoder.state_dict())
    table = ", ".join(f"{size} = {count}" for size, count in CHANNELS.items())
    options = {
        "generator": f'size = 32\nmapping_layers = 1\ntemplate = "embedded"\nepsilon = 0.02\nchannels = {{ {table} }}',
        "encoder": "input_size = 32\nwidth = 0.0625",
    }
    lines = []
    for name, entry_options in options.items():
        path = tmp_path / f"{name}.safetensors"
        lines.append(
            f'[{name}]\nprofile = "embedded"\nfile = "{path.name}"\nsha256 = "{weights.file_hash(path)}"\n'
            f'bytes = {path.stat().st_size}\nlicence = ""\nsource = ""\n{entry_options}\n'
        )
    (tmp_path / "registry.toml").write_text("\n".join(lines), encoding="utf-8")
    registry_of(tmp_path, monkeypatch)
    try:
        inverter = inversion.load_embedded_inverter()
        assert inversion.load_embedded_inverter() is inverter
        assert (inverter.size, inverter.rows, inverter.template, inverter.epsilon) == (32, 8, "embedded", 0.02)
        assert torch.allclose(inverter.synthesize(codes(1)).cpu(), saved.synthesize(codes(1)), atol=0.01)
    finally:
        weights.read_entries.cache_clear()


def registry_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the registry to a folder, with no model loaded yet."""
    from dataclasses import replace

    from backend import runtime

    monkeypatch.setattr(weights, "SETTINGS", replace(weights.SETTINGS, weights_dir=folder))
    monkeypatch.setattr(runtime, "_loaded", {})
    weights.read_entries.cache_clear()


def official(size: int) -> dict[str, object]:
    """Return an e4e checkpoint in the published layout with arbitrary small values."""
    with torch.device("meta"):
        networks = {"decoder": StyleGAN2(size), "encoder": E4EEncoder(size)}
    # All weights of a network are views of one block, so that the file stays small; shapes and names are the full ones.
    largest = max(value.numel() for network in networks.values() for value in network.state_dict().values())
    block = torch.empty(largest).uniform_(-0.02, 0.02, generator=torch.Generator().manual_seed(0))
    states = {}
    for prefix, network in networks.items():
        for key, value in network.state_dict().items():
            if key.endswith("running_var") or value.dtype != torch.float32:
                filled = torch.ones(value.shape, dtype=value.dtype)
            else:
                filled = block[: value.numel()].view(value.shape)
            states[f"{prefix}.{key}"] = filled
    average = torch.linspace(-1, 1, 512).expand(networks["decoder"].rows, -1).clone()
    return {
        "state_dict": states,
        "latent_avg": average,
        "opts": {"stylegan_size": size, "encoder_type": "Encoder4Editing"},
    }


@pytest.mark.slow
def test_the_ffhq_pair_is_loaded_from_its_published_layout_and_inverts(tmp_path):
    path = tmp_path / "e4e_ffhq_encode.pt"
    content = official(1024)
    expected = {
        key: content["state_dict"][key].clone()
        for key in ("decoder.convs.15.conv.weight", "encoder.input_layer.0.weight")
    }
    torch.save(content, path)
    inverter = inversion.read_e4e_inverter(path)
    assert (inverter.size, inverter.rows, inverter.template) == (1024, 18, "ffhq")
    assert torch.equal(inverter.generator.convs[15].conv.weight.cpu(), expected["decoder.convs.15.conv.weight"])
    assert torch.equal(inverter.encoder.input_layer[0].weight.cpu(), expected["encoder.input_layer.0.weight"])
    assert not any(weight.requires_grad for module in inverter.modules() for weight in module.parameters())
    face = torch.rand(1, 3, 300, 300, generator=torch.Generator().manual_seed(0)).to(inverter.latent_average.device)
    inverted = inverter.invert(face)
    with torch.no_grad():
        drawn = inverter.synthesize(inverted, resolution=256)  # all 1024 would take another gigabyte
    assert inverted.shape == (1, 18, 512) and drawn.shape == (1, 3, 256, 256)
    assert inverted.isfinite().all() and drawn.isfinite().all()


def test_one_average_row_serves_all(tmp_path):
    content = official(8)
    content["latent_avg"] = content["latent_avg"][:1]
    torch.save(content, tmp_path / "one.pt")
    inverter = inversion.read_e4e_inverter(tmp_path / "one.pt", size=8)
    assert inverter.latent_average.shape == (4, 512) and inverter.name == "one"


@pytest.mark.parametrize("missing", ["state_dict", "latent_avg"])
def test_another_checkpoint_is_refused_with_what_was_expected(tmp_path, missing):
    content = {"state_dict": {"encoder.x": torch.zeros(1)}, "latent_avg": torch.zeros(1, 512)}
    del content[missing]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(UserError, match="latent_avg"):
        inversion.read_e4e_inverter(tmp_path / "other.pt", size=8)


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    torch.save({"state_dict": {"encoder.x": torch.zeros(1)}, "latent_avg": torch.zeros(1, 512)}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="encoder"):
        inversion.read_e4e_inverter(tmp_path / "x.pt", size=8)


def test_a_pickle_that_carries_code_is_refused_and_not_run(tmp_path):
    trace = tmp_path / "was_run"

    class Code:
        def __reduce__(self):
            return Path.touch, (trace,)

    torch.save({"state_dict": Code(), "latent_avg": torch.zeros(1, 512)}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match="refused"):
        inversion.read_e4e_inverter(tmp_path / "bad.pt", size=8)
    assert not trace.exists()
