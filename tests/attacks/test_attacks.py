"""Noise, FGSM, MIFGSM and PGD: budgets, masks, and steps that can be computed by hand."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from backend.attacks import fgsm, mifgsm, noise, pgd
from backend.detectors.base import Detector
from backend.errors import UserError
from backend.progress import finish
from tests.toys import grey, hooks, toy_detector

SIZE = 8
LEVEL = 1 / 255
WHITE_BOX = pytest.mark.parametrize("module", [fgsm, mifgsm, pgd], ids=lambda module: module.__name__.split(".")[-1])
ALL = pytest.mark.parametrize("module", [fgsm, mifgsm, pgd, noise], ids=lambda module: module.__name__.split(".")[-1])


class Curved(nn.Module):
    """Two logits of a small, smooth, non-linear function of all pixels."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.first = nn.Parameter(torch.randn(12, 3 * SIZE * SIZE, generator=generator) / SIZE)
        self.last = nn.Parameter(torch.randn(2, 12, generator=generator))
        self.features = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return torch.tanh(images.flatten(1) @ self.first.t()) @ self.last.t()


class Weighted(nn.Module):
    """One logit, slope * (a fixed weight for every pixel): its gradient is the weights, of either sign."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)))
        self.features = nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return (images * self.weights).sum((1, 2, 3))[:, None] + 1


def curved() -> Detector:
    toy = toy_detector()
    card = toy.card.__class__(**(vars(toy.card) | {"outputs": "two logits, real then fake"}))
    return Detector(Curved(), card)


def weighted() -> Detector:
    return Detector(Weighted(), toy_detector().card)


def faces(count: int = 3, seed: int = 0) -> Tensor:
    """Return random faces in 8 bits, black and white pixels among them."""
    levels = torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    levels[:, :, 0, :4], levels[:, :, 0, 4:] = 0, 255
    return levels / 255


def half_mask() -> Tensor:
    mask = torch.zeros(SIZE, SIZE)
    mask[:, : SIZE // 2] = 1
    return mask


@WHITE_BOX
@pytest.mark.parametrize("epsilon", [8 * LEVEL, 0.0137])
def test_no_pixel_passes_the_budget_or_leaves_the_range(module, epsilon):
    settings = next(value for name, value in vars(module).items() if name.endswith("Settings"))(epsilon=epsilon)
    images = faces()
    images[2] = torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))  # not in 8 bits
    result = finish(module.attack(images, curved(), settings))
    assert float((result.images - images).abs().max()) <= epsilon + 0.5 * LEVEL + 1e-6
    assert float(result.images.min()) >= 0
    assert float(result.images.max()) <= 1
    levels = result.images * 255
    assert float((levels - levels.round()).abs().max()) < 1e-4
    if epsilon == 8 * LEVEL:  # whole grey levels on pictures in 8 bits leave nothing to round
        assert float((result.images[:2] - images[:2]).abs().max()) <= epsilon + 1e-6


@ALL
def test_outside_the_mask_not_one_bit_changes(module):
    images = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(4))
    result = finish(module.attack(images, curved(), mask=half_mask()))
    outside = half_mask()[None, None].expand_as(images) == 0
    assert torch.equal(result.images[outside], images[outside])
    assert not torch.equal(result.images, images)
    masks = torch.stack([half_mask()[None], 1 - half_mask()[None]])
    result = finish(module.attack(images, curved(), mask=masks.bool()))
    outside = masks.expand_as(images) == 0
    assert torch.equal(result.images[outside], images[outside])
    with pytest.raises(ValueError, match="does not fit"):
        finish(module.attack(images, curved(), mask=torch.ones(4, 4)))


@WHITE_BOX
def test_the_loss_falls_and_the_direction_is_towards_real(module):
    detector = curved()
    steps = []
    result = finish(module.attack(faces(), detector), steps.append)
    before, after = detector.logit_fake(faces()), detector.logit_fake(result.images)
    assert bool((after < before).all())
    assert torch.allclose(result.p_after, torch.sigmoid(after).detach())
    assert torch.allclose(result.p_before, torch.sigmoid(before).detach())
    odds = [step.values["log_odds"] for step in steps]
    assert odds[-1] < odds[0] or len(odds) == 1


def test_fgsm_equals_the_step_computed_by_hand():
    detector, images = weighted(), faces()
    result = finish(fgsm.attack(images, detector, fgsm.FGSMSettings(epsilon=3 * LEVEL)))
    expected = ((images * 255).round() - 3 * detector.network.weights.detach().sign()).clamp(0, 255)
    assert torch.equal((result.images * 255).round(), expected)
    assert (result.call_count, result.image_count) == (3, 9)


def test_momentum_equals_two_steps_computed_by_hand():
    """The gradient is constant, so the momentum keeps its sign and the budget of 3 stops the second step of 2."""
    detector, images = weighted(), torch.full((1, 3, SIZE, SIZE), 100 * LEVEL)
    settings = mifgsm.MIFGSMSettings(epsilon=3 * LEVEL, alpha=2 * LEVEL, steps=2)
    result = finish(mifgsm.attack(images, detector, settings))
    expected = 100 - 3 * detector.network.weights.detach().sign()
    assert torch.equal((result.images[0] * 255).round(), expected)


def test_pgd_goes_to_the_corner_of_the_box_from_any_start():
    detector, images = weighted(), torch.full((2, 3, SIZE, SIZE), 100 * LEVEL)
    for random_start in (False, True):
        settings = pgd.PGDSettings(epsilon=5 * LEVEL, alpha=2 * LEVEL, steps=6, random_start=random_start)
        result = finish(pgd.attack(images, detector, settings))
        expected = 100 - 5 * detector.network.weights.detach().sign()
        assert torch.equal((result.images * 255).round(), expected.expand(2, -1, -1, -1))


def by_definition(images: Tensor, detector: Detector, *, epsilon: float, alpha: float, steps: int, decay: float | None):
    """Return PGD (decay None) or MIFGSM with cross entropy, as published and as torchattacks has it."""
    now, momentum = images.clone(), torch.zeros_like(images)
    for _ in range(steps):
        now.requires_grad_()
        loss = nn.functional.cross_entropy(detector.network(now), torch.ones(len(now), dtype=torch.long))
        (gradient,) = torch.autograd.grad(loss, now)
        if decay is not None:
            momentum = gradient / gradient.abs().mean((1, 2, 3), keepdim=True) + decay * momentum
            gradient = momentum
        now = now.detach() + alpha * gradient.sign()
        now = (images + (now - images).clamp(-epsilon, epsilon)).clamp(0, 1)
    return now


STANDARD = {"epsilon": 8 / 255, "alpha": 2 / 255}


def test_log_odds_give_the_same_steps_as_cross_entropy():
    images, detector = faces(), curved()
    fast = finish(fgsm.attack(images, detector)).images
    assert torch.allclose(fast, by_definition(images, detector, epsilon=8 / 255, alpha=8 / 255, steps=1, decay=None))
    settings = pgd.PGDSettings(**STANDARD, steps=7, random_start=False)
    projected = finish(pgd.attack(images, detector, settings)).images
    assert torch.allclose(projected, by_definition(images, detector, **STANDARD, steps=7, decay=None), atol=1e-6)
    accumulated = finish(mifgsm.attack(images, detector)).images
    assert torch.allclose(accumulated, by_definition(images, detector, **STANDARD, steps=10, decay=1.0), atol=1e-6)


@pytest.mark.skipif(importlib.util.find_spec("torchattacks") is None, reason="needs the package torchattacks")
def test_the_standard_forms_equal_torchattacks():
    import torchattacks

    images, detector = faces(), curved()
    fakes = torch.ones(len(images), dtype=torch.long)
    ours = [
        finish(fgsm.attack(images, detector)).images,
        finish(mifgsm.attack(images, detector)).images,
        finish(pgd.attack(images, detector, pgd.PGDSettings(random_start=False))).images,
    ]
    theirs = [
        torchattacks.FGSM(detector.network, eps=8 / 255)(images, fakes),
        torchattacks.MIFGSM(detector.network, eps=8 / 255, alpha=2 / 255, steps=10, decay=1.0)(images, fakes),
        torchattacks.PGD(detector.network, eps=8 / 255, alpha=2 / 255, steps=40, random_start=False)(images, fakes),
    ]
    for image, expected in zip(ours, theirs, strict=True):
        assert float((image - expected).abs().max()) < 1e-6


def test_the_forms_of_artifact_eraser():
    """Eight steps of 1/255 without a box; PGD alone has one, of 12.5/255, so 20 steps stop there."""
    detector, images = weighted(), torch.full((1, 3, SIZE, SIZE), 100 * LEVEL)
    sign = detector.network.weights.detach().sign()
    for module, levels in ((fgsm, 8), (mifgsm, 8), (pgd, 8)):
        result = finish(module.attack(images, detector, module.ARTIFACT_ERASER))
        assert torch.equal((result.images[0] * 255).round(), 100 - levels * sign)
        assert result.settings.variant == "artifact_eraser"
    longer = pgd.PGDSettings(**(vars(pgd.ARTIFACT_ERASER) | {"steps": 20, "epsilon": 12 * LEVEL}))
    result = finish(pgd.attack(images, detector, longer))
    assert torch.equal((result.images[0] * 255).round(), 100 - 12 * sign)


def test_the_squared_error_stands_still_where_the_log_odds_still_move():
    certain = toy_detector(slope=1e4, threshold=0.0)
    images = grey(200)
    unchanged = finish(fgsm.attack(images, certain, fgsm.ARTIFACT_ERASER))
    assert torch.equal(unchanged.images, images)
    changed = finish(fgsm.attack(images, certain))
    assert torch.equal((changed.images * 255).round(), torch.full_like(images, 192))


def test_unnormalised_momentum_gives_other_images():
    images, detector = faces(), curved()
    normalised = mifgsm.MIFGSMSettings(**(vars(mifgsm.ARTIFACT_ERASER) | {"variant": "standard"}))
    eraser_images = finish(mifgsm.attack(images, detector, mifgsm.ARTIFACT_ERASER)).images
    standard_images = finish(mifgsm.attack(images, detector, normalised)).images
    assert not torch.equal(eraser_images, standard_images)


def test_the_random_start_comes_from_the_seed_alone():
    images, detector = faces(), curved()
    short = {"steps": 1, "alpha": LEVEL}
    first, repeated, other = (
        finish(pgd.attack(images, detector, pgd.PGDSettings(seed=s, **short))).images for s in (3, 3, 4)
    )
    assert torch.equal(first, repeated)
    assert not torch.equal(first, other)
    noises = [finish(noise.attack(images, detector, noise.NoiseSettings(seed=seed))).images for seed in (3, 3, 4)]
    assert torch.equal(noises[0], noises[1])
    assert not torch.equal(noises[0], noises[2])


def test_noise_has_the_strength_that_the_paper_measured():
    """Standard deviations of 5 to 20 give 26.86 dB in the mean (TR-Net, Table 4); variances would give 37.5 dB."""
    images = torch.full((200, 3, 16, 16), 0.5)
    detector = toy_detector(size=16)
    result = finish(noise.attack(images, detector))
    psnr = -10 * torch.log10((result.images - images).square().mean((1, 2, 3)))
    assert abs(float(psnr.mean()) - 26.8) < 0.5
    fixed = finish(noise.attack(images, detector, noise.NoiseSettings(low=10 * LEVEL, high=10 * LEVEL)))
    assert abs(float((fixed.images - images).std()) * 255 - 10) < 0.1


def test_pgd_flips_a_face_and_says_so():
    detector = toy_detector(slope=60.0, threshold=0.7)
    result = finish(pgd.attack(grey(183, 100), detector))
    assert result.flipped.tolist() == [True, False]
    assert result.already_real.tolist() == [False, True]
    assert result.iterations.tolist() == [40, 40]
    assert (result.call_count, result.image_count) == (42, 84)
    assert "1 of 1 faces" in result.summary
    assert result.seconds > 0


@ALL
def test_models_are_restored_after_the_end_a_stop_and_an_error(module):
    detector = curved().train()
    flags = [weight.requires_grad for weight in detector.parameters()]
    count = hooks(detector)

    def untouched() -> bool:
        same = [weight.requires_grad for weight in detector.parameters()] == flags
        return same and detector.training and hooks(detector) == count and torch.is_grad_enabled()

    finish(module.attack(faces(), detector))
    assert untouched()
    job = module.attack(faces(), detector)
    next(job)
    assert torch.is_grad_enabled()  # a generator must not leak the switch to its caller
    job.close()
    assert untouched()
    assert all(weight.grad is None for weight in detector.parameters())
    with pytest.raises(RuntimeError):
        finish(module.attack(torch.zeros(1, 2, 3, 3), detector))
    assert untouched()


@WHITE_BOX
def test_settings_out_of_range_give_one_sentence(module):
    kind = next(value for name, value in vars(module).items() if name.endswith("Settings"))
    for wrong in ({"epsilon": 8.0}, {"epsilon": -0.1}, {"epsilon": float("nan")}, {"steps": 0}, {"variant": "other"}):
        with pytest.raises(UserError):
            finish(module.attack(faces(), curved(), kind(**wrong)))


def test_noise_without_a_strength_is_refused():
    for low, high in ((0.2, 0.1), (-0.1, 0.1), (0.0, float("inf"))):
        with pytest.raises(UserError):
            finish(noise.attack(faces(), curved(), noise.NoiseSettings(low=low, high=high)))
