"""The losses of adversarial training: non-saturating, with R1 and path length (Karras et al. 2020, section 3.2)."""

import torch
from torch import Tensor
from torch.nn import functional as F


def fooling(fake: Tensor) -> Tensor:
    """Return the generator's loss from logits (N,) of its drawings (Goodfellow et al. 2014)."""
    return F.softplus(-fake).mean()


def telling(real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss from logits (N,) of real and made examples."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def r1(logits: Tensor, examples: Tensor) -> Tensor:
    """Return the mean squared slope of logits (N,) at real examples (N, ...) (Mescheder et al. 2018)."""
    (slope,) = torch.autograd.grad(logits.sum(), examples, create_graph=True)
    return slope.square().flatten(1).sum(1).mean()


def path_lengths(pictures: Tensor, codes: Tensor, randomness: torch.Generator) -> Tensor:
    """Return how far (N,) pictures (N, 3, S, S) move with their codes (N, rows, D), in a random direction."""
    noise = torch.randn(pictures.shape, generator=randomness, device=pictures.device)
    side = pictures.shape[-1]
    (slope,) = torch.autograd.grad((pictures * noise).sum() / side, codes, create_graph=True)
    return slope.square().sum(2).mean(1).sqrt()


def path_penalty(lengths: Tensor, mean: Tensor, decay: float) -> Tensor:
    """Return the mean squared difference of lengths (N,) to their running mean, which is moved in place."""
    with torch.no_grad():
        mean.lerp_(lengths.mean().to(mean), 1 - decay)
    return (lengths - mean).square().mean()


def lazy_betas(every: int, first: float = 0.0, second: float = 0.99) -> tuple[float, float]:
    """Return Adam's betas for a loss that joins at one step in `every` (0: never), as section 3.2 adapts them."""
    share = lazy_share(every)
    return first**share, second**share


def lazy_share(every: int) -> float:
    """Return the factor on the learning rate by which the additional steps are made up for."""
    return every / (every + 1) if every else 1.0
