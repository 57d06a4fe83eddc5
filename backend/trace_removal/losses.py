"""TR-Net's losses (arXiv 2203.11433, eq. 6 to 13), each in the paper's form and in the released code's.

The discriminators maximise log D(real) + log(1 - D(made)). The generator minimises -log D(made) in place of
log(1 - D(made)): the same goal without the vanishing slope (Goodfellow et al. 2014, section 3).
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from backend.perceptual import ssim
from backend.trace_removal import spectra

Adversarial = Literal["log", "lsgan"]
Similarity = Literal["perceptual", "ssim"]
Profile = Literal["paper", "log", "code"]
Discriminate = Callable[[Tensor], Tensor]
SSIM_WEIGHT = 10.0  # of the released code's similarity


def discriminator_loss(kind: Adversarial, real: Tensor, made: Tensor) -> Tensor:
    """Return what a discriminator minimises, from its log-odds of real (N,) of real and of made pictures (eq. 7)."""
    if kind == "log":
        return F.softplus(-real).mean() + F.softplus(made).mean()
    return ((real - 1).square().mean() + made.square().mean()) / 2


def generator_loss(kind: Adversarial, made: Tensor) -> Tensor:
    """Return what the generator minimises, from a discriminator's log-odds of real (N,) of made pictures."""
    return F.softplus(-made).mean() if kind == "log" else (made - 1).square().mean()


def gradient_penalty(discriminate: Discriminate, real: Tensor, fake: Tensor, places: Tensor) -> Tensor:
    """Return the zero-centred penalty: the mean squared slope on lines from fake to real pictures.

    Args:
        discriminate: What a backbone is shown, to log-odds (N,).
        real: That of real pictures (N, C, H, W).
        fake: That of fakes before the generator, as the released code has it.
        places: (N,) in [0, 1], where on each line.
    """
    share = places.view(-1, 1, 1, 1)
    between = (share * real + (1 - share) * fake).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(discriminate(between).sum(), between, create_graph=True)
    return slope.flatten(1).square().sum(1).mean()


def perceptual_similarity(network: Callable[[Tensor, Tensor], Tensor], fake: Tensor, made: Tensor) -> Tensor:
    """Return the perceptual distance of the low frequencies of pictures in [0, 1] (eq. 9).

    Args:
        network: Takes two batches in [-1, 1] and returns one distance a picture.
        fake: Pictures before the generator.
        made: Pictures after it.
    """
    low = (spectra.split(images)[0] * 2 - 1 for images in (made, fake))
    return network(*low).mean()


def ssim_similarity(fake: Tensor, made: Tensor) -> Tensor:
    """Return the released code's similarity, 10 (1 - SSIM), of pictures blurred by 3 x 3 Gaussians."""
    return SSIM_WEIGHT * (1 - ssim(spectra.blur(fake), spectra.blur(made)).mean())


def profile_loss(kind: Profile, real: Tensor, made: Tensor) -> Tensor:
    """Return how far the power spectra of made pictures are from those of real ones (eq. 11).

    `paper` and `log` compare each pair's high frequencies, radius by radius. The paper gives no unit for the
    power; it is divided here by the mean power of the real picture, or the loss would depend on the contrast.
    `code` compares with the mean profile of the real pictures. Gradients reach `made` in all three.

    Args:
        kind: Which form.
        real: Real pictures (N, 3, H, W) in [0, 1].
        made: What the generator made of the paired fakes, the same shape.
    """
    if kind == "code":
        wanted = spectra.without_lowest(spectra.psd_as_coded(real)).mean(0, keepdim=True)
        return (spectra.without_lowest(spectra.psd_as_coded(made)) - wanted).square().mean()
    wanted, found = (spectra.psd(spectra.split(images)[1]) for images in (real, made))
    if kind == "log":
        hidden = spectra.ROUNDING
        return (torch.log(found + hidden) - torch.log(wanted + hidden)).square().mean()
    unit = wanted.mean(1, keepdim=True) + spectra.FLOOR
    return ((found - wanted) / unit).square().mean()


def below_floors(fake: Tensor, made: Tensor, psnr: float, ssim_floor: float) -> Tensor:
    """Return how far pictures fall below a wanted likeness to their originals; 0 where each keeps both floors.

    Not in the paper, whose training is long enough to find the balance by itself. A floor of the batch's mean would
    be kept by leaving faces with few traces alone and spoiling the others.

    Args:
        fake: Pictures before the generator, in [0, 1].
        made: Pictures after it.
        psnr: Wanted peak signal-to-noise ratio of every picture in dB.
        ssim_floor: Wanted structural similarity of every picture.
    """
    error = (made - fake).square().flatten(1).mean(1) + 1e-10
    missing = F.relu(psnr + 10 * torch.log10(error)).mean() / 10
    return missing + 10 * F.relu(ssim_floor - ssim(fake, made)).mean()
