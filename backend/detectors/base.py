"""The card of a detector, and the one interface that all detectors share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.errors import UserError

FAKE_KINDS = {
    "real": "real photographs",
    "ciplab_real": "real photographs of another source",
    "swap": "face swaps",
    "self_blend": "self-blended photographs",
    "redrawn": "faces that a generator drew into photographs",
    "resynthesis": "photographs that were put together again",
    "reconstruction": "generator renderings",
    "edit": "latent edits",
    "sample": "generated faces",
    "stylegan_140k": "StyleGAN faces",
    "gan_celebahq_ffhq": "other GAN faces",
    "ciplab_photoshop": "hand-edited photographs",
}

Verdict = Literal["signs", "unsure", "no_known_signs"]
Family = Literal["pixels", "frequency", "noise"]  # what a detector looks at
THRESHOLD = 0.5  # p_fake from which a picture is called fake
UNSURE_MARGIN = 0.15  # a detector whose p_fake is nearer to 0.5 than this is unsure
# What is explained, in words for people: no answer of ours says that a picture is real.
ANSWER_WORDS = {"fake": "signs of forgery", "real": "no signs"}
DIRECTION_WORDS = {"fake": "for a forgery", "real": "against a forgery"}  # in which parts of a picture speak
SCALE = "(0 = no signs that it knows, 1 = clear signs)"  # of p_fake, for people
IMAGENET: dict[str, Any] = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


@dataclass(frozen=True)
class ErrorRate:
    """A measured rate with the data it was measured on.

    Args:
        kind: `real` for false alarms, or the kind of fake (swap, reconstruction, ...).
        rate: Share of pictures judged wrongly, in [0, 1].
        auc: Area under the ROC curve of this kind against the real pictures; None for `real`.
    """

    kind: str
    rate: float
    count: int
    auc: float | None = None


@dataclass(frozen=True)
class Card:
    """What people need to know before they trust a detector."""

    name: str
    title: str
    paper: str
    weights: str
    input_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    outputs: str
    cam_layer: str  # empty where Grad-CAM can read no layer
    trained_on: str
    licence: str
    errors: tuple[ErrorRate, ...]
    known_failures: str
    family: Family = "pixels"
    template: str = "embedded"  # position of the faces in its training pictures, see `backend.alignment`
    defence: str = "shipped"  # what its training pictures went through: shipped, none (the plain set) or weak
    mirrored: bool = False  # whether it averages the log-odds of a picture and its mirror image

    def false_alarm(self) -> ErrorRate | None:
        """Return how often real photographs are called fake, or None where it was not measured."""
        return next((rate for rate in self.errors if rate.kind == "real"), None)

    def misses(self) -> tuple[ErrorRate, ...]:
        """Return how often each kind of fake is missed, where it was measured."""
        return tuple(rate for rate in self.errors if rate.kind != "real")


def patch_log_odds(maps: Tensor) -> Tensor:
    """Return the log-odds (N,) of the patches' mean probabilities, from logits (N, 2, h, w), fake then real.

    The means are taken from logarithms, so neither rounds to zero.
    """
    means = maps.flatten(2).log_softmax(1).logsumexp(2)
    return means[:, 0] - means[:, 1]


def verdict(p_fake: float) -> Verdict:
    """Turn a probability of fake in [0, 1] into a word; none of them says that a picture is real."""
    if abs(p_fake - THRESHOLD) < UNSURE_MARGIN:
        return "unsure"
    return "signs" if p_fake >= THRESHOLD else "no_known_signs"


TWO_LOGITS = "two logits, real then fake"
# From each kind of output to log-odds of fake (N,).
LOG_ODDS: dict[str, Callable[[Tensor], Tensor]] = {
    "one logit, fake high": lambda raw: raw[:, 0],
    "one logit, real high": lambda raw: -raw[:, 0],
    TWO_LOGITS: lambda raw: raw[:, 1] - raw[:, 0],
    "two logits, fake then real": lambda raw: raw[:, 0] - raw[:, 1],
    "patch logits, fake then real": patch_log_odds,
    "logits by source, real first": lambda raw: raw[:, 1:].amax(1) - raw[:, 0],  # by the most likely source
    "correlations by source, fake high": lambda raw: raw.amax(1),
}


class Detector(nn.Module):
    """A network with its card: the one interface that methods see.

    Args:
        network: Takes normalised pictures (N, 3, S, S), returns what `card.outputs` names.
        card: Gives size, normalisation and meaning of the outputs; `card.outputs` is a key of `LOG_ODDS`.
        temperature: Divides the log-odds, so that probabilities are calibrated.
        threshold: Log-odds of the network from which a picture is called fake; subtracted first.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: Card, *, temperature: float = 1.0, threshold: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.card = card
        self.temperature = temperature
        self.threshold = threshold
        self.register_buffer("mean", torch.tensor(card.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, 3, 1, 1))

    def resize(self, images: Tensor) -> Tensor:
        """Resize pictures (N, 3, H, W) to the side that the network takes."""
        size = self.card.input_size
        if images.shape[-2:] == (size, size):
            return images
        return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)

    def prepare(self, images: Tensor) -> Tensor:
        """Resize and normalise pictures (N, 3, H, W) in [0, 1] to what the network takes."""
        return (self.resize(images) - self.mean) / self.std

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return calibrated, differentiable log-odds of fake (N,) for pictures (N, 3, H, W) in [0, 1]."""
        prepared = self.prepare(images)
        if self.card.mirrored:  # in one call, so that hooks run once
            prepared = torch.cat([prepared, prepared.flip(3)])
        raw = LOG_ODDS[self.card.outputs](self.network(prepared))
        if self.card.mirrored:
            raw = raw.reshape(2, -1).mean(0)
        return (raw - self.threshold) / self.temperature

    def p_fake(self, images: Tensor) -> Tensor:
        """Return probabilities of fake (N,) in [0, 1]; 0.5 is the threshold."""
        return torch.sigmoid(self.logit_fake(images))

    def cam_module(self) -> nn.Module:
        """Return the layer that Grad-CAM reads.

        Raises:
            UserError: The detector has no such layer.
        """
        if not self.card.cam_layer:
            raise UserError(
                f"{self.card.title} has no layer whose attention could be shown.",
                "Choose another detector to see where it looked.",
            )
        return self.network.get_submodule(self.card.cam_layer)


def scale_channels(channels: int, width: float) -> int:
    """Return `channels * width`, rounded to a multiple of 8, at least 8."""
    return max(8, 8 * round(channels * width / 8))
