"""Train a detector on real photographs against fakes made from them and by others."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from backend import runtime
from backend.detectors.card import Card
from backend.training import defences, harness, objectives
from backend.training.batches import Batches
from backend.training.history import History
from backend.training.labelled import Examples
from backend.training.variation import UNVARIED, Variation


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
    shift: int = 0  # in pixels, of training pictures of the shipped set
    colours: float = 0.0  # how far their contrast and brightness may change
    beside: dict[str, list[str]] = field(default_factory=dict)  # source of fakes to the sources of their photographs
    history: dict[str, float] = field(default_factory=dict)  # overrides of `History`
    seed: int = 0
    betas: tuple[float, float] = (0.9, 0.999)
    defence: defences.Name = "shipped"
    adversarial: str = ""  # the attack after which fakes are learned too, for the strong defence
    adversarial_share: float = 0.5  # how often a fake gives way to an attacked one, where there are any
    initial: str = ""  # what the weights start from, random where empty
    bfloat16: bool = False  # the forward pass, with weights and losses in float32
    mirrored: bool = False  # whether the finished detector judges by a picture and its mirror image
    own: dict[str, dict[str, Any]] = field(default_factory=dict)  # settings of single architectures


def settings_for(architecture: str, **changes: Any) -> DetectorSettings:
    """Read the settings of an architecture; keyword arguments that are not None win.

    Raises:
        UserError: There is no setting of a name.
    """
    common = harness.read_settings(DetectorSettings, "detector")
    own, changed = common.own.get(architecture, {}), harness.checked(DetectorSettings, changes)
    if changed.get("defence", "shipped") == "none":  # the undefended detectors of the paper judge a picture as it is
        own = {key: value for key, value in own.items() if key != "mirrored"}
    return replace(common, own={}, **own | changed)


def batches_of(examples: Examples, settings: DetectorSettings) -> Batches:
    """Return the batches of a run."""
    return Batches(
        examples,
        size=settings.batch,
        shares=settings.shares,
        defence=defences.named(settings.defence, History(**settings.history)),  # type: ignore[arg-type]
        partial_share=settings.partial_share,
        adversarial_share=settings.adversarial_share,
        seed=settings.seed,
        variation=Variation(settings.shift, settings.colours) if settings.defence == "shipped" else UNVARIED,
        beside=settings.beside,
    )


class DetectorTask:
    """A detector in training, as a `harness.Task`."""

    def __init__(
        self,
        network: nn.Module,
        card: Card,
        examples: Examples,
        settings: DetectorSettings,
        objective: objectives.Objective = objectives.binary,
    ) -> None:
        torch.manual_seed(settings.seed)
        self.card, self.settings, self.objective = card, settings, objective
        self.device = runtime.device()
        self.batches = batches_of(examples, settings)
        layout = torch.channels_last
        self.network = network.to(self.device, memory_format=layout).train()  # type: ignore[call-overload]
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.network.parameters(),
            settings.lr,
            betas=tuple(settings.betas),  # type: ignore[arg-type]
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.mean = torch.tensor(card.mean, device=self.device).view(1, 3, 1, 1)
        self.std = torch.tensor(card.std, device=self.device).view(1, 3, 1, 1)
        self.total = settings.steps

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"network": self.network, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"network": self.optimizer}

    def preview(self) -> Tensor | None:
        """Show nothing."""
        return None

    def finished(self) -> nn.Module:
        """Return the averaged network."""
        return self.average

    def step(self, number: int) -> dict[str, float]:
        """Train one step on as many photographs as fakes."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * self._rate(number)
        batch = self.batches.draw(number)
        batch = replace(batch, images=batch.images.to(self.device), labels=batch.labels.to(self.device))
        inputs = ((batch.images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.bfloat16):
            log_odds, terms = self.objective(self.network, inputs, batch, self.card)
        loss = torch.stack(list(terms.values())).sum()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        harness.update_average(self.average, self.network, min(settings.average_decay, (1 + number) / (10 + number)))
        accuracy = ((log_odds > 0) == (batch.labels > 0.5)).float().mean()
        figures = {"loss": loss.item(), "accuracy": accuracy.item()}
        return figures | ({name: term.item() for name, term in terms.items()} if len(terms) > 1 else {})

    def _rate(self, number: int) -> float:
        settings = self.settings
        rise = min(1.0, (number + 1) / settings.warmup)
        return rise * (0.5 * (1 + math.cos(math.pi * number / settings.steps)) * 0.99 + 0.01)
