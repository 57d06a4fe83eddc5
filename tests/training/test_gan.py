"""Adversarial training: hand-computed losses, the augmentation, and whole tasks at a toy's size."""

import math

import pytest
import torch

from backend import weights
from backend.errors import UserError
from backend.generators.stylegan2 import StyleGAN2
from backend.progress import finish
from backend.training import gan, generator, loop
from backend.training.augmentation import AdaptiveStrength, augment_pictures
from backend.training.gan import CodePool, LatentDiscriminator, StyleGANDiscriminator, append_spread
from backend.training.generator import AdversarialSettings, AdversarialTask, PrincipalCodes
from tests.adversarial_toys import CHANNELS, L1, SIZE, pictures, random


@pytest.fixture(autouse=True)
def small_networks(monkeypatch):
    monkeypatch.setattr(generator, "build_st_lpips", lambda _name: L1())


def settings(recipe: str = "generator_continued", **changes) -> AdversarialSettings:
    small = {"size": SIZE, "mapping_layers": 1, "channels": CHANNELS, "discriminator_width": 0.02}
    small |= {"stages": [[16, 3, 2, 1e-3], [32, 3, 2, 1e-3]], "r1_every": 2, "augmentation_images": 20.0}
    return loop.read_settings(AdversarialSettings, recipe, **(small | changes))


def task_of(recipe: str = "generator_continued", **changes) -> AdversarialTask:
    codes = PrincipalCodes(512, 0.25)
    codes.basis.normal_(0, 0.02, generator=random())  # fitting them takes seconds
    return AdversarialTask(pictures(), settings(recipe, **changes), pictures(2), codes)


def test_the_slope_of_a_linear_discriminator_is_its_weight():
    examples = torch.randn(4, 3, 2, 2, generator=random()).requires_grad_()
    weight = torch.arange(12.0).view(3, 2, 2)
    assert gan.r1_penalty((examples * weight).sum((1, 2, 3)), examples).item() == pytest.approx(506)  # 0 + 1 + ... 121
    squared = examples.square().sum((1, 2, 3)) / 2  # its slope is the example
    expected = examples.detach().square().sum((1, 2, 3)).mean()
    assert gan.r1_penalty(squared, examples).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_path_length_of_a_linear_generator_is_its_gain():
    # Every code's first number is the brightness of one pixel of a 1 x 1 picture, times 3, from both rows.
    codes = torch.zeros(2000, 2, 4, requires_grad=True)
    drawn = 3 * codes[:, :, 0].sum(1)[:, None, None, None]
    noise = torch.randn(drawn.shape, generator=random(5)).flatten()
    lengths = gan.path_lengths(drawn, codes, random(5))
    assert torch.allclose(lengths, 3 * noise.abs(), atol=1e-5)
    mean = torch.tensor(1.0)
    penalty = gan.path_penalty(torch.tensor([2.0, 6.0]), mean, 0.99)
    assert mean.item() == pytest.approx(1.03)  # a hundredth of the way from 1 to 4
    assert penalty.item() == pytest.approx((0.97**2 + 4.97**2) / 2)


def test_the_losses_at_even_chances():
    assert gan.generator_loss(torch.zeros(3)).item() == pytest.approx(math.log(2))
    assert gan.discriminator_loss(torch.zeros(3), torch.zeros(3)).item() == pytest.approx(2 * math.log(2))
    assert gan.generator_loss(torch.tensor([5.0])) < 0.01 < 5 < gan.generator_loss(torch.tensor([-5.0]))
    assert gan.lazy_share(16) == pytest.approx(16 / 17) and gan.lazy_share(0) == 1
    assert gan.lazy_betas(16) == (0, pytest.approx(0.99 ** (16 / 17)))


def test_augmentation_at_probability_0_changes_nothing_and_at_1_everything():
    batch = torch.rand(8, 3, SIZE, SIZE, generator=random()) * 2 - 1
    assert torch.allclose(augment_pictures(batch, 0.0, random(1)), batch, atol=1e-4)
    changed = augment_pictures(batch, torch.tensor(1.0), random(1))
    assert changed.shape == batch.shape and (changed - batch).abs().flatten(1).mean(1).min() > 0.05
    assert torch.equal(changed, augment_pictures(batch, 1.0, random(1)))
    batch.requires_grad_()
    augment_pictures(batch, 0.5, random(2)).square().sum().backward()
    assert batch.grad.abs().flatten(1).sum(1).min() > 0


def test_augmentation_is_made_as_often_as_asked():
    flat = torch.full((2000, 3, 8, 8), 0.25)  # even pictures show changes of colour alone
    changed = ((augment_pictures(flat, 0.3, random()) - flat).abs().flatten(1).amax(1) > 1e-3).float().mean().item()
    # A grey keeps its colour under hue and saturation: brightness, contrast, and half of the inversions remain.
    assert changed == pytest.approx(1 - 0.7 * 0.7 * 0.85, abs=0.04)


def test_p_rises_while_photographs_are_told_too_surely_and_falls_otherwise():
    strength = AdaptiveStrength(target=0.6, images=100)
    strength.observe(torch.ones(10))
    strength.adjust()
    assert strength.p.item() == pytest.approx(0.1)
    strength.observe(torch.tensor([1.0, 1, 1, -1]))  # a mean sign of 0.5
    strength.adjust()
    assert strength.p.item() == pytest.approx(0.06)
    strength.observe(-torch.ones(50))
    strength.adjust()
    assert strength.p.item() == 0  # and never below


def network_of(size: int) -> StyleGANDiscriminator:
    with torch.device("meta"):
        return StyleGANDiscriminator(size)


def used(name: str) -> bool:
    """Say whether pictures of 256 pixels go through a layer."""
    return not name.startswith("from_rgbs.") or name.startswith("from_rgbs.256.")


def test_the_discriminator_sees_the_spread_of_a_batch():
    features = torch.zeros(4, 2, 4, 4)
    assert append_spread(features)[:, 2].abs().max() < 1e-3
    features[::2] = 2.0  # deviation 1 around the mean
    assert torch.allclose(append_spread(features)[:, 2], torch.ones(4, 4, 4), atol=1e-5)
    network = StyleGANDiscriminator(SIZE, 0.05)
    for side in (8, 16, SIZE):
        assert network(torch.randn(4, 3, side, side)).shape == (4,)
    published = sum(weight.numel() for name, weight in network_of(256).named_parameters() if used(name))
    assert published == 28_864_129  # as in the published network of 256 pixels


@pytest.mark.parametrize("recipe", ["generator_continued", "generator_adversarial"])
def test_an_adversarial_run_resumes_exactly(recipe, tmp_path):
    chosen = settings(recipe, path_every=2)
    uninterrupted, first, second = (task_of(recipe, path_every=2) for _ in range(3))
    finish(loop.train_task(uninterrupted, tmp_path / "whole", chosen, log_every=1))
    job = loop.train_task(first, tmp_path / "parts", chosen, log_every=1)
    for _ in range(3):
        next(job)
    job.close()
    run = finish(loop.train_task(second, tmp_path / "parts", chosen, log_every=1))
    assert run.steps == 6 and {"generator_loss", "discriminator", "augmentation"} <= set(run.losses)
    for name, module in uninterrupted.modules.items():
        other = second.modules[name].state_dict()
        assert all(torch.equal(value, other[key]) for key, value in module.state_dict().items()), name
    assert uninterrupted.path_mean.value > 0
    assert not torch.equal(uninterrupted.generator.conv1.conv.weight, first.generator.conv1.conv.weight)
    mapped = uninterrupted.generator.style[1].weight, first.generator.style[1].weight
    assert torch.equal(*mapped) == (recipe == "generator_continued")  # its mapping network stays


@pytest.mark.parametrize("recipe", ["generator_continued", "generator_adversarial"])
def test_it_ends_in_the_tensors_of_the_shipped_file(recipe):
    task = task_of(recipe)
    tensors = task.finished()
    small = StyleGAN2(SIZE, mapping_layers=1, channels={int(key): width for key, width in CHANNELS.items()})
    assert set(tensors) == {f"generator.{key}" for key in small.state_dict()} | {"latent_average"}
    assert tensors["latent_average"].shape == (8, 512)
    assert task.preview().shape == (1, 3, (4 if recipe == "generator_continued" else 2) * SIZE, 2 * SIZE)


def test_mixed_styles_share_the_rows_in_use():
    task = task_of(style_mixing=1.0)
    codes = task.sample_codes(64, 16, random())
    changes = (codes[:, 1:] != codes[:, :-1]).any(2)
    assert (changes.sum(1) == 1).all() and changes[:, :5].any(1).all()  # 16 pixels read six rows
    pure = task_of(style_mixing=0.0).sample_codes(8, 16, random())
    assert torch.equal(pure, pure[:, :1].expand_as(pure))


def test_a_run_may_end_after_minutes_and_goes_on(tmp_path):
    chosen = settings()
    task = task_of()
    assert finish(loop.train_task(task, tmp_path, chosen, minutes=0)).steps == 1
    assert finish(loop.train_task(task, tmp_path, chosen, minutes=0)).steps == 2


def test_recipes_are_checked(tmp_path):
    with pytest.raises(UserError, match="no recipe named gan"):
        generator.read_generator_settings("gan")
    with pytest.raises(UserError, match="needs trained weights"):
        generator.train_generator(tmp_path, tmp_path, print, recipe="continued")
    with pytest.raises(UserError, match="needs the codes of its photographs"):
        AdversarialTask(pictures(), settings("generator_continued"), pictures(2))
    assert isinstance(generator.read_generator_settings("adversarial"), AdversarialSettings)
    options = weights.find_entry("generator").options
    result = generator.read_generator_settings("continued", "installed", seed=3)
    assert result.mapping_layers == options["mapping_layers"] and result.channels == options["channels"]
    assert result.seed == 3


def test_the_latent_discriminator_pulls_codes_towards_the_mapping_network():
    judge = LatentDiscriminator(2, 8, 1e-2, torch.device("cpu"))
    for number in range(150):
        real = torch.randn(16, 8, generator=random(number)) + 1
        judge.train(real, torch.randn(16, 2, 8, generator=random(number + 999)) - 1, number, seed=0)
    codes = torch.full((1, 2, 8), -1.0, requires_grad=True)
    before = judge.encoder_loss(codes)
    before.backward()
    assert (codes.grad.sum(2) < 0).all()  # descending it moves every row up, to the real codes
    assert (
        judge.encoder_loss(codes.detach() - 0.1 * codes.grad.sign()) < before < judge.encoder_loss(codes.detach() - 1)
    )


def test_the_pool_returns_older_codes_half_of_the_time():
    pool, randomness = CodePool(1, 1), random()
    first = torch.arange(50.0).view(50, 1, 1)
    assert torch.equal(pool.exchange(first, randomness), first)
    later = pool.exchange(torch.arange(50.0, 250).view(200, 1, 1), randomness).flatten()
    older = (later != torch.arange(50.0, 250)).float().mean().item()
    assert older == pytest.approx(0.5, abs=0.12) and gan.POOLED_CODES == 50
