"""Train a detector on real photographs against fakes made from them and by others."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.card import LOG_ODDS, Card
from backend.training import harness
from backend.training.history import History, age
from backend.training.swaps import partial_swap

REAL = "real"


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of one run; `settings/detector.toml` explains them."""

    steps: int
    batch: int
    lr: float
    weight_decay: float
    warmup: int
    average_decay: float
    shares: dict[str, float]  # kind of fake to its share of the fakes in a batch
    partial_share: float  # of the swaps, how many are kept in a part of the face only
    history: dict[str, float] = field(default_factory=dict)  # overrides of `History`
    seed: int = 0


@dataclass(frozen=True)
class Examples:
    """Labelled pictures.

    Args:
        pictures: uint8 (N, 3, S, S).
        kinds: `real` or the kind of fake, one a picture.
        origins: Index of the photograph that a fake was made from, -1 where there is none; training only.
    """

    pictures: Tensor
    kinds: np.ndarray
    origins: np.ndarray | None = None

    def of(self, kind: str) -> Tensor:
        """Return the pictures of one kind."""
        return self.pictures[torch.from_numpy(np.flatnonzero(self.kinds == kind))]


class DetectorTask:
    """A detector in training, as a `harness.Task`."""

    def __init__(self, network: nn.Module, card: Card, examples: Examples, settings: DetectorSettings) -> None:
        torch.manual_seed(settings.seed)
        self.card, self.examples, self.settings = card, examples, settings
        self.network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(), settings.lr, weight_decay=settings.weight_decay, fused=True
        )
        self.history = History(**settings.history)  # type: ignore[arg-type]
        self.total = settings.steps
        shares = {kind: share for kind, share in settings.shares.items() if (examples.kinds == kind).any()}
        whole = sum(shares.values())
        self.kinds, self.shares = list(shares), [share / whole for share in shares.values()]
        self.members = {kind: np.flatnonzero(examples.kinds == kind) for kind in [REAL, *self.kinds]}

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"network": self.network, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"network": self.optimizer}

    def preview(self) -> Tensor | None:
        """Show nothing."""
        return None

    def step(self, number: int) -> dict[str, float]:
        """Train one step on as many photographs as fakes."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self._rate(number)
        images, labels = self._batch(number)
        mean = torch.tensor(self.card.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.card.std).view(1, 3, 1, 1)
        inputs = ((images - mean) / std).contiguous(memory_format=torch.channels_last)
        log_odds = LOG_ODDS[self.card.outputs](self.network(inputs))
        loss = F.binary_cross_entropy_with_logits(log_odds, labels)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        harness.update_average(self.average, self.network, min(settings.average_decay, (1 + number) / (10 + number)))
        accuracy = ((log_odds > 0) == (labels > 0.5)).float().mean()
        return {"loss": loss.item(), "accuracy": accuracy.item()}

    def _batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Draw fakes, and beside each the photograph it was made from with the same history.

        A pair differs in nothing but the forgery, so nothing else can be learned from it.
        """
        randomness = np.random.default_rng([self.settings.seed, number])
        half = self.settings.batch // 2
        real, fake = [], []
        for kind in randomness.choice(self.kinds, half, p=self.shares):
            index = int(randomness.choice(self.members[kind]))
            origin = -1 if self.examples.origins is None else int(self.examples.origins[index])
            if origin < 0:
                origin = int(randomness.choice(self.members[REAL]))
            seed = int(randomness.integers(1 << 32))
            before, after = self._pixels(origin), self._pixels(index)
            if kind == "swap" and randomness.random() < self.settings.partial_share:
                after = partial_swap(before, after, randomness)
            real.append(self._aged(before, seed))
            fake.append(self._aged(after, seed))
        images = torch.from_numpy(np.stack(real + fake)).permute(0, 3, 1, 2).float() / 255
        labels = torch.tensor([0.0] * half + [1.0] * half)
        return images, labels

    def _pixels(self, index: int) -> np.ndarray:
        return self.examples.pictures[index].permute(1, 2, 0).numpy()

    def _aged(self, picture: np.ndarray, seed: int) -> np.ndarray:
        randomness = np.random.default_rng(seed)
        if randomness.random() < 0.5:
            picture = picture[:, ::-1]
        return age(np.ascontiguousarray(picture), randomness, self.history)

    def _rate(self, number: int) -> float:
        settings = self.settings
        rise = min(1.0, (number + 1) / settings.warmup)
        return rise * (0.5 * (1 + math.cos(math.pi * number / settings.steps)) * 0.99 + 0.01)
