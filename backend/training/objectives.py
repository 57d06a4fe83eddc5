"""What a detector's training minimises: binary cross-entropy, or what its paper asks for, by architecture.

Every objective takes the network, its normalised pictures, the batch and the card, and returns log-odds of fake
(N,) and the terms of the loss by name; training minimises their sum. The losses are float32, whatever the network
computes in.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.detectors.card import LOG_ODDS, Card
from backend.training.batches import Batch

Terms = dict[str, Tensor]
Objective = Callable[[nn.Module, Tensor, Batch, Card], tuple[Tensor, Terms]]


def binary(network: nn.Module, inputs: Tensor, batch: Batch, card: Card) -> tuple[Tensor, Terms]:
    """Binary cross-entropy of the log-odds."""
    log_odds = LOG_ODDS[card.outputs](network(inputs).float())
    return log_odds, {"cross_entropy": F.binary_cross_entropy_with_logits(log_odds, batch.labels)}


def patches(network: nn.Module, inputs: Tensor, batch: Batch, card: Card) -> tuple[Tensor, Terms]:
    """Cross-entropy of every patch, each labelled as its picture (Chai et al. 2020, section 3.1)."""
    maps = network(inputs).float()  # fake first, then real
    wanted = (1 - batch.labels).long()[:, None, None].expand(-1, *maps.shape[-2:])
    return LOG_ODDS[card.outputs](maps), {"patches": F.cross_entropy(maps, wanted)}


def sources(network: nn.Module, inputs: Tensor, batch: Batch, card: Card) -> tuple[Tensor, Terms]:
    """Cross-entropy over the sources (Yu et al. 2019, section 3); a fake of unknown source is any but real."""
    known = list(network.sources)  # type: ignore[arg-type]
    log_p = network(inputs).float().log_softmax(1)
    losses = []
    for row, kind in zip(log_p, batch.kinds, strict=True):
        losses.append(-row[known.index(kind)] if kind in known else -row[1:].logsumexp(0))
    return LOG_ODDS[card.outputs](log_p), {"sources": torch.stack(losses).mean()}


def with_extras(network: nn.Module, inputs: Tensor, batch: Batch, card: Card) -> tuple[Tensor, Terms]:
    """Binary cross-entropy, flooded where the network says at which level, and the network's own further losses."""
    raw, extras = network.forward_with_extras(inputs, batch.labels)  # type: ignore[operator]
    log_odds = LOG_ODDS[card.outputs](raw.float())
    loss = F.binary_cross_entropy_with_logits(log_odds, batch.labels)
    level = getattr(network, "flood", 0.0)
    return log_odds, {"cross_entropy": (loss - level).abs() + level} | {
        name: term.float() for name, term in extras.items()
    }


OBJECTIVES: dict[str, Objective] = {  # all others: binary
    "patch_cnn": patches,
    "lf": sources,
    "mat": with_extras,
    "recce": with_extras,
}


def of(architecture: str) -> Objective:
    """Return the objective of an architecture."""
    return OBJECTIVES.get(architecture, binary)
