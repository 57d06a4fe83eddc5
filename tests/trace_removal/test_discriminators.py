"""TR-Net's discriminators and losses: counts, values computed by hand, gradients, and a run that resumes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from skimage.metrics import structural_similarity
from torch import nn

from backend import face_packs, images, similarity
from backend.errors import UserError
from backend.progress import finish
from backend.trace_removal import discriminators
from backend.trace_removal.discriminators import Backbone, FingerprintDiscriminator, SpatialDiscriminator, source_loss
from backend.training import data, loop, trnet
from backend.training.trnet import TRNetTask, TRNetTrainingSettings


def faces(count: int, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def test_discriminators_have_the_published_size():
    three = Backbone(3)
    assert sum(weight.numel() for weight in three.parameters()) == 11_028_097
    assert sum(weight.numel() for weight in Backbone(1).parameters()) == 11_024_001
    with torch.no_grad():
        features = three.features(faces(1, 128))
    assert features.shape == (1, 512, 4, 4) and three.logit(features).shape == (1,)
    strides = [layer for layer in three.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.bias is not None for layer in strides] == [True, False, False, False, False, True]
    assert sum(isinstance(layer, nn.GroupNorm) for layer in three.modules()) == 4


def test_the_fingerprint_discriminator_names_sources():
    module = FingerprintDiscriminator(sources=4, width=0.125)
    pictures = faces(3, 128)
    logits, named = module.judge(module.inputs(pictures))
    assert named.shape == (3, 4) and torch.allclose(logits, module(pictures), atol=1e-6)
    assert float(source_loss(torch.zeros(3, 4), torch.tensor([0, 1, 3]))) == pytest.approx(math.log(4))
    with pytest.raises(ValueError, match="without sources"):
        FingerprintDiscriminator(width=0.125).judge(pictures)


def test_an_even_picture_leaves_no_noise_map():
    module = FingerprintDiscriminator(width=0.125).eval()
    with torch.no_grad():
        inner = module.backbone.layers[0](torch.zeros(1, 3, 128, 128))
        from backend import signals

        maps = signals.srm_residuals(torch.full((1, 3, 128, 128), 0.4))[..., 4:-4, 4:-4]
    assert float(maps.abs().max()) < 1e-6 and inner.shape[-1] == 64


def test_adversarial_losses_by_hand():
    zero = torch.zeros(5)
    assert float(discriminators.discriminator_loss("log", zero, zero)) == pytest.approx(2 * math.log(2))
    assert float(discriminators.generator_loss("log", zero)) == pytest.approx(math.log(2))
    assert float(discriminators.discriminator_loss("lsgan", zero + 1, zero)) == 0
    assert float(discriminators.generator_loss("lsgan", zero)) == 1
    sure = torch.tensor([-20.0], requires_grad=True)  # the discriminator is certain that the picture is made
    discriminators.generator_loss("log", sure).backward()
    assert float(sure.grad) == pytest.approx(-1, abs=1e-6)


def test_the_gradient_penalty_of_a_linear_discriminator_is_its_slope():
    slope = faces(1, 8)[0]
    penalty = discriminators.gradient_penalty(
        lambda pictures: (pictures * slope).sum((1, 2, 3)), faces(4, 8, 1), faces(4, 8, 2), torch.rand(4)
    )
    assert float(penalty) == pytest.approx(float(slope.square().sum()), rel=1e-5)


@pytest.mark.parametrize("kind", ["paper", "log", "code"])
def test_the_power_spectrum_term_moves_the_generator(kind):
    """In the released code, this gradient is cut off."""
    real, fake = faces(4, seed=3), 0.5 + 0.1 * faces(4, seed=4)
    gain = nn.Parameter(torch.ones(1, 3, 1, 1))
    mix = nn.Conv2d(3, 3, 3, padding=1, bias=False)
    loss = discriminators.profile_loss(kind, real, mix(fake) * gain)
    loss.backward()
    assert float(loss) > 0
    assert float(mix.weight.grad.abs().max()) > 0
    if kind != "code":  # which is blind to contrast: it scales every profile to its own range
        assert float(gain.grad.abs().max()) > 0
        assert float(discriminators.profile_loss(kind, real, real)) == 0


def test_following_the_power_spectrum_term_makes_spectra_alike():
    real, fake = faces(4, seed=3), torch.nn.functional.avg_pool2d(faces(4, seed=4), 3, 1, 1)
    generated = fake.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([generated], 2e-2)
    start = float(discriminators.profile_loss("log", real, generated))
    for _ in range(15):
        optimizer.zero_grad()
        discriminators.profile_loss("log", real, generated).backward()
        optimizer.step()
    assert float(discriminators.profile_loss("log", real, generated)) < 0.2 * start


def test_ssim_agrees_with_scikit_image():
    first, second = faces(1, 48), (faces(1, 48) + 0.2 * faces(1, 48, 5)).clamp(0, 1)
    expected, full = structural_similarity(
        first[0].permute(1, 2, 0).numpy(),
        second[0].permute(1, 2, 0).numpy(),
        channel_axis=2,
        data_range=1,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )
    assert float(similarity.batch_ssim(first, second)[0]) == pytest.approx(float(full[5:-5, 5:-5].mean()), abs=1e-5)
    assert float(similarity.batch_ssim(first, first)[0]) == pytest.approx(1)
    assert expected < 0.999
    assert float(discriminators.ssim_similarity(first, first)) == pytest.approx(0, abs=1e-5)


def test_the_perceptual_term_compares_low_frequencies():
    captured = []

    def network(a, b):
        captured.extend([a, b])
        return (a - b).abs().mean((1, 2, 3), keepdim=True)

    even = torch.full((2, 3, 64, 64), 0.25)
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2
    fine = even + 0.1 * (checks - 0.5)  # the highest frequency there is
    assert float(discriminators.perceptual_similarity(network, even, fine)) < 1e-3
    assert float(captured[1].mean()) == pytest.approx(-0.5, abs=1e-5)
    assert float(discriminators.perceptual_similarity(network, even, even + 0.1)) == pytest.approx(0.2, abs=1e-4)


def test_floors_ask_for_likeness_only_where_it_is_missing():
    fake = faces(2)
    assert float(discriminators.likeness_floor_loss(fake, fake + 0.001, 32, 0.9)) == 0
    # 0.1 everywhere is 20 dB: 12 dB short, and an even shift hardly changes the structure.
    assert float(discriminators.likeness_floor_loss(fake, fake + 0.1, 32, 0.0)) == pytest.approx(1.2, abs=1e-4)
    assert float(discriminators.likeness_floor_loss(fake, faces(2, seed=9), 0, 0.9)) > 1
    # A picture at 40 dB does not make up for one at 20 dB.
    uneven = fake + torch.tensor([0.01, 0.1]).view(2, 1, 1, 1)
    assert float(discriminators.likeness_floor_loss(fake, uneven, 25, 0.0)) == pytest.approx(0.25, abs=1e-3)


def settings(**changes) -> TRNetTrainingSettings:
    small = loop.read_settings(TRNetTrainingSettings, "trnet", similarity="ssim", similarity_every=1, steps=5, batch=2)
    small = replace(small, width=0.0625, discriminator_width=0.0625, pretraining_steps=0)
    return replace(small, **changes)


def examples(count: int = 6) -> data.Pairs:
    values = (faces(2 * count, 128) * 255).byte()
    return data.Pairs(values[:count], values[count:], torch.tensor([1, 2] * (count // 2)), ("edit", "swap"))


@pytest.mark.parametrize(("ahead", "stopped"), [(0, 2), (2, 1), (2, 3)])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, ahead, stopped):
    chosen = settings(pretraining_steps=ahead, pretraining_batch=3)
    uninterrupted = TRNetTask(examples(), chosen, examples())
    finish(loop.train_task(uninterrupted, tmp_path / "whole", chosen, log_every=1))
    job = loop.train_task(TRNetTask(examples(), chosen, examples()), tmp_path / "parts", chosen, log_every=1)
    for _ in range(stopped):
        next(job)
    job.close()
    resumed = TRNetTask(examples(), chosen, examples())
    run = finish(loop.train_task(resumed, tmp_path / "parts", chosen, log_every=1))
    assert run.steps == 5 + ahead
    for name, module in uninterrupted.modules.items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, resumed.modules[name].state_dict()[key]), (name, key)
    expected = {"psnr", "profile", "similarity", "floors", "source", "source_real"}
    sides = ("d", "g", "original")
    expected |= {f"{side}_{name}" for side in sides for name in ("spatial", "spectral", "fingerprint")}
    assert set(run.losses) == expected and all(math.isfinite(value) for value in run.losses.values())


def test_a_run_with_other_networks_is_not_resumed_and_keeps_its_settings(tmp_path):
    strided = settings(spatial_form="strided", steps=1)
    finish(loop.train_task(TRNetTask(examples(), strided, examples()), tmp_path, strided))
    content = (tmp_path / "settings.json").read_text()
    with pytest.raises(UserError, match="different architecture"):
        finish(loop.train_task(TRNetTask(examples(), settings(), examples()), tmp_path, settings()))
    assert (tmp_path / "settings.json").read_text() == content


def test_a_run_can_start_from_the_weights_of_another(tmp_path, monkeypatch):
    monkeypatch.setattr(trnet, "_read_pairs", lambda *_: (examples(), examples()))
    small = {"width": 0.0625, "discriminator_width": 0.0625, "similarity": "ssim", "batch": 2, "pretraining_steps": 0}
    first, second = tmp_path / "first" / "a.safetensors", tmp_path / "second" / "b.safetensors"
    for file in (first, second):
        file.parent.mkdir()
    trnet.train_trnet(tmp_path, [], first, print, steps=2, **small)
    report = trnet.train_trnet(tmp_path, [], second, print, steps=1, lr_generator=0.0, initial=str(first), **small)
    first_weights, second_weights = load_file(first), load_file(second)
    assert all(torch.equal(value, second_weights[key]) for key, value in first_weights.items() if "running" not in key)
    assert report["options"]["trnet"]["settings"]["initial"].startswith("a.safetensors, sha256 ")
    third = tmp_path / "third" / "c.safetensors"
    third.parent.mkdir()
    small["pretraining_steps"] = 7  # nor do discriminators learn where there is nothing to learn for
    measured = trnet.train_trnet(tmp_path, [], third, print, steps=0, initial=str(first), **small)
    assert measured["run"]["steps"] == 0
    assert "curves" not in measured and "curves" in report
    third_weights = load_file(third)
    assert all(torch.equal(value, third_weights[key]) for key, value in first_weights.items() if "running" not in key)
    with pytest.raises(UserError, match="another network"):
        trnet.train_trnet(tmp_path, [], second, print, steps=0, initial="installed", **small)


def test_what_is_kept_can_be_halfway_to_where_the_run_started(tmp_path, monkeypatch):
    monkeypatch.setattr(trnet, "_read_pairs", lambda *_: (examples(), examples()))
    small = {
        "width": 0.0625,
        "discriminator_width": 0.0625,
        "similarity": "ssim",
        "batch": 2,
        "pretraining_steps": 0,
        "steps": 2,
    }
    files = {name: tmp_path / name / "trnet.safetensors" for name in ("start", "whole", "half")}
    for file in files.values():
        file.parent.mkdir()
    trnet.train_trnet(tmp_path, [], files["start"], print, **small)
    small |= {"initial": str(files["start"]), "seed": 3, "average_decay": 0.0}
    for name, share in (("whole", 1.0), ("half", 0.5)):
        trnet.train_trnet(tmp_path, [], files[name], print, mixing_share=share, **small)
    start, end, halfway = (load_file(file)["down_blocks.0.conv1.weight"].float() for file in files.values())
    assert float((end - start).abs().max()) > 1e-3
    torch.testing.assert_close(halfway, (start + end) / 2, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="starts from"):
        trnet.train_trnet(tmp_path, [], files["half"], print, mixing_share=0.5, **small | {"initial": None})


def test_every_form_of_training_takes_a_step():
    task = TRNetTask(examples(), settings(identity_steps=1, residual=False), examples())
    assert task.total == 6 and task.settings.discriminator_every == 2
    watched = {"network": task.network.conv_final, "spatial": task.discriminators["spatial"].backbone.last}
    for number, changes in enumerate(({"network"}, {"network", "spatial"}, {"network"})):
        before = {name: module.weight.detach().clone() for name, module in watched.items()}
        losses = task.step(number)
        assert ("identity" in losses) == (number == 0) and ("g_spatial" in losses) == (number > 0)
        assert ("d_spatial" in losses) == ("spatial" in changes)
        for name, module in watched.items():
            assert torch.equal(before[name], module.weight) == (name not in changes)
    code = settings(
        adversarial="lsgan", profile="code", penalty=1.0, spectral_form="code", statistics="fixed",
        degraded_share=0.0, rounded=False, discriminator_every=1,
    )  # fmt: skip
    losses = TRNetTask(examples(), code, examples()).step(0)
    assert losses["penalty"] > 0 and math.isfinite(losses["penalty"])
    network = task.finished()
    assert not network.training and task.preview().shape == (1, 3, 384, 128 * 6)


def test_discriminators_first_learn_alone():
    task = TRNetTask(
        examples(),
        settings(pretraining_steps=2, pretraining_batch=3, pretraining_lr=1e-3, lr_discriminator=1e-4),
        examples(),
    )
    assert task.total == 7
    watched = {"network": task.network.conv_final} | {
        name: module.backbone.last for name, module in task.discriminators.items()
    }
    for number in range(2):
        before = {name: module.weight.detach().clone() for name, module in watched.items()}
        losses = task.step(number)
        assert set(losses) == {"source", "original_spatial", "original_spectral", "original_fingerprint"}
        for name, module in watched.items():
            assert torch.equal(before[name], module.weight) == (name == "network")
    rates = []
    for number in (0, 1, 2):
        task._set_rates(number)
        rates.append(task.discriminator_optimizer.param_groups[0]["lr"])
    warm = [1e-3 * (number + 1) / trnet.WARMUP for number in range(2)]
    assert rates == pytest.approx([warm[0], (1e-4 + warm[1]) / 2, 1e-4])
    assert "g_spatial" in task.step(2)


def test_discriminators_see_what_was_saved_and_gradients_pass():
    task = TRNetTask(examples(), settings(degraded_share=0.0), examples())
    generated = faces(2, 128).requires_grad_(True)
    (degraded,) = task._degrade([generated], 0)
    expected = images.like_photographs((generated.detach() * 255).round().byte()).float() / 255
    torch.testing.assert_close(degraded.detach(), expected)
    degraded.sum().backward()
    assert torch.equal(generated.grad, torch.ones_like(generated))


def test_the_rates_fall_over_a_share_of_the_steps_that_are_not_ahead():
    task = TRNetTask(
        examples(), settings(pretraining_steps=40, steps=8, decay_share=0.25, lr_generator=1e-3), examples()
    )
    rates = {}
    for number in (39, 40, 46, 47):
        task._set_rates(number)
        rates[number] = task.generator_optimizer.param_groups[0]["lr"]
    assert rates == pytest.approx({39: 1e-3, 40: 1e-3, 46: 1e-3, 47: 1e-3 * 0.1**0.5})
    task.settings = replace(task.settings, decay_share=0)
    task._set_rates(47)
    assert task.generator_optimizer.param_groups[0]["lr"] == 1e-3


def test_no_disturbance_is_drawn_twice(monkeypatch):
    task = TRNetTask(examples(), settings(pretraining_steps=3, pretraining_batch=2), examples())
    drawn = []
    monkeypatch.setattr(task, "_degrade", lambda pictures, number: drawn.append(number) or pictures)
    for number in range(7):
        task.step(number)
    assert len(drawn) == len(set(drawn)) == 3 + 2 + 4  # ahead, the discriminators every second step, the generator


def test_in_bfloat16_noise_maps_and_spectra_stay_exact():
    captured = {}
    for precision in ("float32", "bfloat16"):
        task = TRNetTask(examples(), settings(precision=precision), examples())
        for name, module in task.discriminators.items():
            first = next(layer for layer in module.modules() if isinstance(layer, nn.Conv2d))
            first.register_forward_hook(
                lambda _, inputs, output, key=(name, precision): captured.update(
                    {key: (inputs[0].detach(), output.dtype)}
                )
            )
        task._judge(faces(2, 128))
    for name in ("spatial", "spectral", "fingerprint"):
        (exact, plain), (repeated, rounded) = captured[name, "float32"], captured[name, "bfloat16"]
        assert torch.equal(exact, repeated) and (plain, rounded) == (torch.float32, torch.bfloat16)


@pytest.mark.parametrize(
    ("watched", "name"),
    [("network", "weight_source_real"), ("fingerprint", "weight_source")]
    + [(module, "weight_original") for module in ("spatial", "spectral", "fingerprint")],
)
def test_the_weight_of_a_loss_reaches_the_one_who_learns(watched, name):
    learned = []
    for weight in (0.0, 4.0):
        task = TRNetTask(examples(), settings(degraded_share=0.0, **{name: weight}), examples())
        task.step(0)
        learned.append(torch.cat([tensor.detach().flatten() for tensor in task.modules[watched].parameters()]))
    assert not torch.allclose(*learned, atol=1e-6)


def test_the_generator_is_told_to_pass_for_a_photograph():
    task = TRNetTask(examples(), settings(degraded_share=0.0), examples())
    named = task.fingerprint.source_head[-1]
    with torch.no_grad():
        named.weight.zero_()
        named.bias.copy_(torch.tensor([2.0, 0.0, 0.0]))  # photographs are source 0
    losses = task.step(1)
    assert losses["source_real"] == pytest.approx(math.log(math.exp(2) + 2) - 2, abs=1e-5)


def test_the_finer_spatial_discriminator_sees_what_tells_a_pixel_from_its_neighbours():
    fine = SpatialDiscriminator(0.125, form="residual")
    captured = []
    fine.backbone.stem[0].register_forward_hook(lambda _, inputs, __: captured.append(inputs[0]))
    picture = torch.full((1, 3, 32, 32), 0.25)
    picture[..., 16, 16] += 0.09
    assert fine(picture).shape == (1,) and fine.backbone.features(picture).shape == (1, 64, 2, 2)
    torch.testing.assert_close(captured[0][:, :3], picture)
    detail = captured[0][0, 3]
    assert float(detail[16, 16]) == pytest.approx(10 * (0.09 - 0.01), abs=1e-5)  # of which the mean of nine has a ninth
    assert float(detail[15, 17]) == pytest.approx(-10 * 0.01, abs=1e-5)
    assert float(detail[0, 0]) == pytest.approx(0, abs=1e-5)  # edges do not count as detail


@pytest.mark.parametrize("recipe", ["paper", "code"])
def test_the_published_recipes_take_a_step(recipe):
    published = trnet.read_trnet_settings(recipe)
    assert (published.width, published.residual, published.bound, published.grain) == (1, False, 1, 0)
    assert published.lr_generator == 10 * published.lr_discriminator  # which the released code swaps
    assert published.statistics == {"paper": "batch", "code": "fixed"}[recipe]
    small = replace(published, width=0.0625, discriminator_width=0.0625, batch=2, steps=4, perceptual="alex")
    task = TRNetTask(examples(), small, examples())
    before = task.network.conv_final.weight.detach().clone()
    losses = task.step(0)
    assert not torch.equal(before, task.network.conv_final.weight)
    assert all(math.isfinite(value) for value in losses.values()) and losses["profile"] > 0
    assert ("penalty" in losses) == (recipe == "code")
    with pytest.raises(UserError, match="Recipes: embedded, paper, code"):
        trnet.read_trnet_settings("secret")


def test_pairs_join_fakes_and_photographs_and_end_alike(tmp_path):
    from PIL import Image

    pixels = (np.random.default_rng(0).random((3, 128, 128, 3)) * 255).astype(np.uint8)
    (tmp_path / "swap").mkdir()
    Image.fromarray(pixels[1]).save(tmp_path / "swap" / "a.png")
    Image.fromarray(pixels[2]).save(tmp_path / "swap" / "b.png")
    (tmp_path / "manifest.csv").write_text(
        "file,kind,target,source,seed\nswap/a.png,swap,x.jpg,,0\nswap/b.png,swap,unknown.jpg,,1\n"
    )
    photographs = face_packs.Photographs(["real/x.jpg"], torch.from_numpy(pixels[:1]).permute(0, 3, 1, 2))
    pairs = data.load_pairs(photographs, [tmp_path])
    assert len(pairs) == 1 and pairs.kinds == ("swap",) and pairs.sources.tolist() == [1]
    assert torch.equal(pairs.fake[0], torch.from_numpy(pixels[1]).permute(2, 0, 1))
    drawn = data.draw_pairs(pairs, 4, seed=0, step=3, jpeg_share=0.0)
    same = data.draw_pairs(pairs, 4, seed=0, step=3, jpeg_share=0.0)
    assert torch.equal(drawn.fake, same.fake)
    plain, mirrored = pairs.fake[0].float() / 255, pairs.fake[0].flip(2).float() / 255
    for real, fake in zip(drawn.real, drawn.fake, strict=True):
        is_mirrored = torch.equal(fake, mirrored)
        assert is_mirrored or torch.equal(fake, plain)
        assert torch.equal(real, (pairs.real[0].flip(2) if is_mirrored else pairs.real[0]).float() / 255)
    saved = data.draw_pairs(pairs, 4, seed=0, step=3, jpeg_share=1.0)
    assert float((saved.fake - drawn.fake).abs().mean()) > 0.01
    assert SpatialDiscriminator(0.0625)(saved.fake).shape == (4,)


def test_a_sample_is_paired_with_the_photograph_that_is_most_like_it(tmp_path):
    from PIL import Image

    levels = [30, 120, 220]
    real = torch.stack([torch.full((3, 128, 128), level, dtype=torch.uint8) for level in levels])
    (tmp_path / "sample").mkdir()
    Image.fromarray(np.full((128, 128, 3), 100, dtype=np.uint8)).save(tmp_path / "sample" / "s.png")
    (tmp_path / "manifest.csv").write_text("file,kind,target,source,seed\nsample/s.png,sample,,,0\n")
    pairs = data.load_pairs(face_packs.Photographs(["a.jpg", "b.jpg", "c.jpg"], real), [tmp_path])
    assert len(pairs) == 1 and int(pairs.real[0, 0, 0, 0]) == 120


def test_disturbances_are_alike_for_all_batches_and_pass_gradients():
    from backend.training.degradation import degrade_batches

    kinds = set()
    for seed in range(12):
        batch = faces(2).requires_grad_(True)
        first, second = degrade_batches([batch, faces(2)], torch.Generator().manual_seed(seed))
        assert torch.equal(first.detach(), second) and first.shape == batch.shape
        assert not torch.equal(second, faces(2))
        first.sum().backward()
        assert float(batch.grad.abs().max()) > 0
        kinds.add(float((second - faces(2)).std()))
    assert len(kinds) >= 10  # another kind or strength for nearly every seed


def test_eight_bits_are_what_a_file_holds_and_pass_gradients():
    from backend.training.degradation import round_batch

    values = torch.tensor([[[[-0.2, 0.1, 0.5, 1.3]]]]).expand(1, 3, 1, 4).clone().requires_grad_(True)
    rounded = round_batch(values)
    assert torch.allclose(rounded[0, 0, 0] * 255, torch.tensor([0.0, 26.0, 128.0, 255.0]), atol=1e-4)
    rounded.sum().backward()
    assert torch.equal(values.grad, torch.ones_like(values))
