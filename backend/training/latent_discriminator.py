"""The latent discriminator of e4e (Tov et al. 2021, section 4.2), which keeps an encoder's codes where edits work.

It tells codes of the mapping network from those of the encoder, every row on its own; the encoder learns to fool it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from backend.training.generator import update
from backend.training.regularisers import fooling, r1, telling

LAYERS = 4
POOLED = 50  # pictures whose codes are kept
R1_WEIGHT, R1_EVERY = 10.0, 16


class CodePool(nn.Module):
    """Codes of past pictures, half of which are judged in place of new ones (Shrivastava et al. 2017).

    Args:
        rows: Of a code.
        width: Length of a row.
    """

    kept: Tensor
    filled: Tensor

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.register_buffer("kept", torch.zeros(POOLED, rows, width))
        self.register_buffer("filled", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def exchange(self, codes: Tensor, randomness: torch.Generator) -> Tensor:
        """Take in codes (N, rows, width) and return as many, some of them older ones; `randomness` is on the CPU."""
        given = codes.clone()
        for number in range(len(codes)):
            if self.filled < POOLED:
                self.kept[self.filled] = codes[number]
                self.filled += 1
            elif torch.rand((), generator=randomness) < 0.5:
                place = int(torch.randint(POOLED, (), generator=randomness))
                given[number] = self.kept[place]
                self.kept[place] = codes[number]
        return given


class LatentDiscriminator:
    """The discriminator in training.

    Args:
        rows: Of a code.
        width: Length of a row.
        rate: Learning rate.
        device: Where.
    """

    def __init__(self, rows: int, width: int, rate: float, device: torch.device) -> None:
        layers: list[nn.Module] = []
        for _ in range(LAYERS - 1):
            layers += [nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.network = nn.Sequential(*layers, nn.Linear(width, 1)).to(device)
        self.pool = CodePool(rows, width).to(device)
        self.rate = rate
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, fused=True)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"latent_discriminator": self.network, "pool": self.pool}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"latent_discriminator": self.optimizer}

    def fooling(self, codes: Tensor) -> Tensor:
        """Return the loss of the encoder that gave codes (N, rows, width)."""
        self.network.requires_grad_(requires_grad=False)
        return fooling(self.network(codes))

    def train(self, real: Tensor, codes: Tensor, number: int, seed: int) -> Tensor:
        """Train one step on codes (N, width) of the mapping network and (N, rows, width) of the encoder."""
        self.network.requires_grad_(requires_grad=True)
        randomness = torch.Generator().manual_seed(seed * 1_000_003 + number)
        real = real.detach().requires_grad_()
        on_real = self.network(real)
        loss = telling(on_real, self.network(self.pool.exchange(codes.detach(), randomness)))
        penalty = R1_WEIGHT / 2 * R1_EVERY * r1(on_real, real) if number % R1_EVERY == 0 else 0.0
        update(self.optimizer, loss + penalty, self.rate, longest=torch.inf)
        return loss.detach()
