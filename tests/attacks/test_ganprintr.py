"""GANprintR: the autoencoder's layers, its training, and the pass through it."""

import dataclasses
import itertools

import pytest
import torch

from backend import weights
from backend.attacks import ganprintr
from backend.attacks.ganprintr import GANprintR, GanprintrSettings
from backend.progress import finish
from backend.training import ganprintr as training
from backend.training import loop
from tests.toys import grey, toy_detector


def wave(count: int = 4, size: int = 32) -> torch.Tensor:
    """Return smooth pictures (count, 3, size, size), uint8, each with its own frequency."""
    x = torch.linspace(0, 6.28, size)
    rows = [127 + 90 * torch.sin((number + 1) * x)[:, None] * torch.cos(x)[None] for number in range(count)]
    return torch.stack(rows)[:, None].expand(-1, 3, -1, -1).round().to(torch.uint8).contiguous()


@pytest.mark.parametrize(("latent", "count"), [(1, 188_804), (32, 260_259)])
def test_layers_are_those_of_the_released_code(latent, count):
    network = GANprintR(latent)
    channels = [3, 32, 64, 128, latent]
    down = sum(9 * a * b + b for a, b in itertools.pairwise(channels))
    up = sum(9 * a * b + b for a, b in itertools.pairwise(channels[::-1]))
    assert sum(weight.numel() for weight in network.parameters()) == down + up == count


@pytest.mark.parametrize("size", [(32, 32), (33, 27), (8, 8)])
def test_any_size_comes_back_as_it_was_and_never_below_zero(size):
    torch.manual_seed(0)
    with torch.no_grad():
        output = GANprintR(4)(torch.rand(2, 3, *size))
    assert output.shape == (2, 3, *size)
    assert float(output.min()) >= 0


def test_values_return_to_where_the_maxima_were():
    """With weights that pass one channel through, unpooling keeps the maximum of every 8x8 block and nothing else."""
    network = GANprintR(1)
    with torch.no_grad():
        for layer in (*network.encoder, *network.decoder):
            layer.weight.zero_()
            layer.bias.zero_()
            layer.weight[0, 0, 1, 1] = 1
        image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        output = network(image)
    expected = torch.zeros(16, 16)
    for top in (0, 8):
        for left in (0, 8):
            block = image[0, 0, top : top + 8, left : left + 8]
            place = int(block.argmax())
            expected[top + place // 8, left + place % 8] = block.max()
    assert torch.equal(output[0, 0], expected)
    assert not output[0, 1:].any()


def test_a_pass_keeps_the_range_and_the_outside_of_the_mask():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 16, 16)
    mask = torch.zeros(16, 16)
    mask[4:12, 4:12] = 1
    network = GANprintR(4).train()
    result = finish(ganprintr.attack(images, toy_detector(), GanprintrSettings(seed=5), mask, network=network))
    inside = mask.bool().expand_as(images)
    assert torch.equal(result.images[~inside], images[~inside])
    assert not torch.equal(result.images[inside], images[inside])
    expected = (network(images).clamp(0, 1) * 255).round() / 255
    assert torch.equal(result.images[inside], expected[inside])
    assert network.training
    assert all(weight.requires_grad for weight in network.parameters())
    assert result.settings == GanprintrSettings(latent=4, seed=5)
    job = ganprintr.attack(grey(100, size=16), toy_detector(), network=network)
    next(job)
    job.close()
    assert network.training


def settings(steps: int) -> training.GanprintrTrainingSettings:
    return loop.read_settings(
        training.GanprintrTrainingSettings, "ganprintr", size=32, crop=24, steps=steps, batch=2, latent=8
    )


def test_training_lowers_the_error_of_copies():
    pictures = wave()
    task = training.GanprintrTask(pictures, settings(60), pictures[:2])
    before = training.measure_copies(task.average, pictures)["psnr"]
    for number in range(60):
        task.step(number)
    assert training.measure_copies(task.average, pictures)["psnr"] > before + 3
    assert task.preview().shape == (1, 3, 64, 64)


def test_squares_come_from_anywhere_and_from_the_seed_alone():
    pictures = torch.arange(16, dtype=torch.uint8).view(1, 1, 4, 4).expand(200, 3, -1, -1)
    parts = training.crop_randomly(pictures, 2, torch.Generator().manual_seed(0))
    assert torch.equal(parts, training.crop_randomly(pictures, 2, torch.Generator().manual_seed(0)))
    corners = {tuple(part[0].flatten().tolist()) for part in parts}
    squares = [(corner, corner + 1, corner + 4, corner + 5) for corner in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
    assert corners == {*squares, *((b, a, d, c) for a, b, c, d in squares)}


def test_a_resumed_run_gives_the_same_weights(tmp_path):
    pictures = wave()
    uninterrupted = training.GanprintrTask(pictures, settings(6), pictures[:2])
    finish(loop.train_task(uninterrupted, tmp_path / "whole", settings(6), log_every=2))
    first = training.GanprintrTask(pictures, settings(6), pictures[:2])
    job = loop.train_task(first, tmp_path / "parts", settings(6), log_every=2)
    next(job)
    job.close()
    second = training.GanprintrTask(pictures, settings(6), pictures[:2])
    finish(loop.train_task(second, tmp_path / "parts", settings(6), log_every=2))
    for expected, weight in zip(uninterrupted.average.parameters(), second.average.parameters(), strict=True):
        assert torch.equal(expected, weight)


def test_psnr_of_copies_is_that_of_saved_pictures():
    class Darker(torch.nn.Module):
        def forward(self, images):
            return images - 2.3 / 255

    measured = training.measure_copies(Darker(), torch.full((3, 3, 8, 8), 100, dtype=torch.uint8))
    assert measured == {"psnr": 42.11, "psnr_std": 0.0, "count": 3.0}  # 20 log10(255 / 2)


@pytest.mark.skipif(ganprintr.GANPRINTR_ENTRY not in weights.read_entries(), reason="the autoencoder is not installed")
def test_the_shipped_autoencoder_copies_photographs_as_its_entry_says(shared_folder):
    from backend import face_packs

    entry = weights.find_entry(ganprintr.GANPRINTR_ENTRY)
    photographs = face_packs.load_photographs(shared_folder / "faces", 128, "real-val*").subset(list(range(0, 693, 30)))
    measured = training.measure_copies(ganprintr.load_ganprintr(), photographs.pictures)
    assert abs(measured["psnr"] - entry.options["psnr"]) < 3 * entry.options["psnr_std"] / len(photographs) ** 0.5
    assert ganprintr.load_ganprintr().latent == entry.options["latent"] == ganprintr.LATENT
    assert dataclasses.asdict(GanprintrSettings())["latent"] == ganprintr.LATENT
