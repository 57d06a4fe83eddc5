"""TR-Net's generator: its published size and names, any picture size, and both forms of its statistics."""

import pytest
import torch
from torch import nn

from backend import runtime, weights
from backend.errors import UserError
from backend.progress import finish
from backend.signals import gaussian_kernel
from backend.trace_removal import removal
from backend.trace_removal.network import TRNet, contrast_gain
from tests.toys import grey, toy_detector


@pytest.fixture(scope="module")
def published():
    torch.manual_seed(0)
    return TRNet()


def shift(amount: float) -> TRNet:
    """Return a small network that adds `amount` to every value."""
    network = TRNet(0.125, residual=True)
    with torch.no_grad():
        network.conv_final.bias.fill_(torch.atanh(torch.tensor(amount)))
    return network.eval()


def test_the_published_size_and_names(published):
    assert sum(weight.numel() for weight in published.parameters()) == 1_800_687
    names = {name.rsplit(".", 1)[0] for name, _ in published.named_parameters()}
    expected = {f"down_blocks.{i}.{layer}" for i in range(4) for layer in ("conv1", "conv2", "norm1", "norm2")}
    ups = ("conv0", "conv1", "conv2", "norm0", "norm1", "norm2")
    expected |= {f"up_blocks.{i}.{layer}" for i in range(3) for layer in ups}
    assert names == expected | {"conv_after_scaling", "conv_final"}
    assert "smoothing.weight" in dict(published.named_buffers())
    assert published.conv_final.weight.shape == (3, 3, 1, 1) and published.conv_after_scaling.stride == (2, 2)
    assert all(not layer.bias.any() for layer in published.modules() if isinstance(layer, nn.Conv2d))


def test_the_stages_have_the_published_shapes(published):
    shapes = {}
    hooks = [
        block.register_forward_hook(lambda _, __, output, name=name: shapes.update({name: tuple(output.shape[1:])}))
        for name, block in published.named_modules()
        if name.count(".") == 1 and "blocks" in name
    ]
    with torch.no_grad():
        output = published.eval()(torch.rand(1, 3, 128, 128))
    for hook in hooks:
        hook.remove()
    assert output.shape == (1, 3, 128, 128) and float(output.abs().max()) < 1
    assert [shapes[f"down_blocks.{i}"] for i in range(4)] == [
        (32, 128, 128), (64, 64, 64), (128, 32, 32), (256, 16, 16)
    ]  # fmt: skip
    assert [shapes[f"up_blocks.{i}"] for i in range(3)] == [(128, 32, 32), (64, 64, 64), (32, 128, 128)]


@pytest.mark.parametrize("residual", [False, True])
def test_any_size_goes_through(residual):
    network = TRNet(0.125, residual=residual).eval()
    with torch.no_grad():
        assert network(torch.rand(1, 3, 130, 101)).shape == (1, 3, 128, 96)  # skips are cropped, as published
    for size in ((130, 101), (64, 64), (9, 33)):
        output = network.remove(torch.rand(2, 3, *size))
        assert output.shape == (2, 3, *size) and float(output.min()) >= 0 and float(output.max()) <= 1


def test_values_below_zero_are_clamped_before_they_are_saved():
    network = shift(-0.5)
    dark = torch.full((1, 3, 16, 16), 0.2)
    assert float(network(dark).max()) < 0
    assert float(network.remove(dark).max()) == 0


def test_strength_scales_the_change_and_one_is_the_network_itself():
    network, faces = shift(0.1), torch.rand(2, 3, 20, 28) * 0.5
    assert torch.equal(network.remove(faces, 1.0), network.remove(faces))
    assert torch.allclose(network.remove(faces, 0.5) - faces, torch.tensor(0.05), atol=1e-6)
    assert torch.allclose(network.remove(faces, 1.75) - faces, torch.tensor(0.175), atol=1e-6)
    assert float(network.remove(torch.ones(1, 3, 16, 16), 2.0).max()) == 1
    detector, darkening = toy_detector(size=16), shift(-0.1)
    job = removal.attack_with_trnet(
        torch.full((1, 3, 16, 16), 0.6), detector, removal.TRNetSettings(strength=1.5), network=darkening
    )
    attacked = finish(job)
    assert attacked.settings.strength == 1.5 and attacked.settings.residual
    assert torch.allclose(attacked.images, torch.tensor(0.45), atol=1 / 255)
    for wrong in (0.0, 0.2, 2.1, -1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="strength"):
            removal.TRNetSettings(strength=wrong)


def test_grain_is_seen_and_not_added_and_depends_on_the_picture_alone():
    torch.manual_seed(3)
    faces = (torch.rand(3, 3, 32, 40) * 255).round() / 255
    fresh = TRNet(0.125, residual=True, grain=6.0).eval()
    assert torch.equal(fresh.remove(faces), faces)  # the residual form still starts as the identity
    drawing, plain = TRNet(0.125, grain=6.0).eval(), TRNet(0.125).eval()
    plain.load_state_dict(drawing.state_dict())
    captured = []
    hook = drawing.down_blocks[0].register_forward_pre_hook(lambda _, inputs: captured.append(inputs[0]))
    output = drawing.remove(faces)
    hook.remove()
    noise = (captured[0] - faces) * 255
    assert float(noise.std()) == pytest.approx(6, rel=0.05) and abs(float(noise.mean())) < 0.2
    assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.1  # no pattern that pictures share
    assert torch.allclose(drawing.remove(faces[1:2]), output[1:2], atol=1e-6)  # alone as among others
    assert not torch.allclose(output, plain.remove(faces))


def test_the_change_is_small_on_even_skin_and_large_where_pixels_differ():
    even = torch.full((1, 3, 32, 32), 0.4)
    # A checkerboard of 8 grey levels either way has a standard deviation of 8, and one of 80 more than counts.
    checkerboard = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1).expand(1, 3, 32, 32)
    for picture, expected in ((even, 0.5), (even + 8 / 255 * checkerboard, 1.0), (even + 80 / 255 * checkerboard, 1.6)):
        assert torch.allclose(contrast_gain(picture), torch.tensor(expected), atol=0.02)
        network = TRNet(0.125, residual=True, bound=0.1, by_contrast=True).eval()
        with torch.no_grad():
            network.conv_final.bias.fill_(20.0)  # tanh is 1
        assert torch.allclose(network(picture) - picture, torch.tensor(0.1 * expected), atol=0.003)
    half = torch.cat([even[..., :16], (even + 80 / 255 * checkerboard)[..., 16:]], dim=3)
    gain = contrast_gain(half)
    assert float(gain[..., :8].max()) < 0.52 and float(gain[..., 24:].min()) > 1.58


def test_no_value_changes_by_more_than_the_bound():
    torch.manual_seed(4)
    network = TRNet(0.125, residual=True, bound=14 / 255).eval()
    with torch.no_grad():
        network.conv_final.weight.fill_(50.0)  # far into the flat part of tanh
        network.conv_final.bias.copy_(torch.tensor([40.0, -40.0, 0.0]))
    grey_faces = torch.full((2, 3, 32, 32), 0.5) + 0.1 * torch.rand(2, 3, 32, 32)
    change = network.remove(grey_faces) - grey_faces
    assert float(change.abs().max()) == pytest.approx(14 / 255, abs=1e-6)


def test_the_residual_form_starts_as_the_identity():
    faces = torch.rand(2, 3, 32, 32)
    assert torch.equal(TRNet(0.25, residual=True).eval().remove(faces), faces)


def test_fixed_statistics_make_training_and_use_alike():
    faces = torch.rand(4, 3, 32, 32)
    fixed, batch = TRNet(0.125, statistics="fixed"), TRNet(0.125)
    with torch.no_grad():
        assert torch.equal(fixed.train()(faces), fixed.eval()(faces))
        assert not torch.allclose(batch.train()(faces), batch.eval()(faces))
    assert float(fixed.down_blocks[0].norm1.running_mean.abs().max()) == 0
    assert float(batch.down_blocks[0].norm1.running_mean.abs().max()) > 0


def test_the_uncalled_smoothing_is_a_gaussian():
    kernel = gaussian_kernel(3, 0.2)
    assert float(kernel.sum()) == pytest.approx(1)
    assert float(kernel[1, 1]) == pytest.approx(0.99999, abs=2e-5)
    assert gaussian_kernel(3, 1.0)[1].tolist() == pytest.approx([0.12384, 0.20418, 0.12384], abs=1e-5)


def test_as_an_attack_it_returns_what_every_attack_does():
    result = finish(removal.attack_with_trnet(grey(200, 100), toy_detector(), network=shift(-0.2)))
    assert (result.images[0] * 255).round().unique().tolist() == [149.0]
    assert result.already_real.tolist() == [False, True] and result.flipped.tolist() == [True, False]
    assert result.settings.residual and result.settings.width == 0.125
    mask = torch.zeros(8, 8)
    mask[:4] = 1
    masked = finish(removal.attack_with_trnet(grey(200), toy_detector(), mask=mask, network=shift(-0.2)))
    assert torch.equal(masked.images[:, :, 4:], grey(200)[:, :, 4:])
    assert (masked.images[:, :, :4] * 255).round().unique().tolist() == [149.0]


def test_without_weights_the_registry_says_so(monkeypatch):
    monkeypatch.setattr(runtime, "_loaded", {})
    monkeypatch.setattr(weights, "read_entries", dict)
    with pytest.raises(UserError, match="no model named trnet"):
        removal.load_trnet()
