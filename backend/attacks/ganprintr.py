"""GANprintR: pass a face through an autoencoder that has learned real faces only.

Neves et al. 2020, arXiv 1911.05351, as used for comparison in TR-Net (2203.11433, section 5.2). The bottleneck
drops detail, and with it part of a generator's fingerprint. No detector is needed.
"""

import itertools
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import runtime, weights
from backend.attacks.base import Attacked, judge_attack, mask_region, restore_outside
from backend.attacks.registry import register_attack
from backend.detectors.base import Detector
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen

GANPRINTR_ENTRY = "ganprintr"
GANPRINTR_CHANNELS = (3, 32, 64, 128)  # of the pictures and after each of the first three convolutions
LATENT = 32  # the paper's L that its released code uses


class GANprintR(nn.Module):
    """The autoencoder of the released code: four 3x3 convolutions down, four transposed ones up, ReLU after each.

    2x2 max-pooling after the first three; the decoder puts values back to where the maxima were.

    Args:
        latent: Channels of the bottleneck, the paper's L.
    """

    def __init__(self, latent: int = LATENT) -> None:
        super().__init__()
        self.latent = latent
        pairs = list(itertools.pairwise((*GANPRINTR_CHANNELS, latent)))
        self.encoder = nn.ModuleList(nn.Conv2d(narrow, wide, 3, padding=1) for narrow, wide in pairs)
        self.decoder = nn.ModuleList(nn.ConvTranspose2d(wide, narrow, 3, padding=1) for narrow, wide in pairs[::-1])

    def forward(self, images: Tensor) -> Tensor:
        """Return pictures (N, 3, H, W), at least 0, for pictures (N, 3, H, W) in [0, 1]; H and W are at least 8."""
        features, pooled = images, []
        for layer in self.encoder[:-1]:
            features = F.relu(layer(features))
            size = features.shape[-2:]
            features, maxima = F.max_pool2d(features, 2, return_indices=True)
            pooled.append((maxima, size))
        features = F.relu(self.encoder[-1](features))
        features = F.relu(self.decoder[0](features))
        for layer in self.decoder[1:]:
            maxima, size = pooled.pop()
            features = F.relu(layer(F.max_unpool2d(features, maxima, [2, 2], output_size=size)))
        return features


@dataclass(frozen=True)
class GanprintrSettings:
    """Settings of one pass.

    Args:
        latent: Channels of the bottleneck; the result has the number of the network that was used.
        seed: Recorded; nothing is drawn at random.
    """

    latent: int = LATENT
    seed: int = 0


def load_ganprintr() -> GANprintR:
    """Return the process's one copy of the trained autoencoder, frozen, on the device of the settings.

    Raises:
        UserError: The model file is missing or damaged.
    """
    return runtime.load_once(GANPRINTR_ENTRY, _load_trained)


@register_attack(
    "ganprintr",
    title="GANprintR",
    paper="Neves et al. 2020, arXiv 1911.05351",
    needs="trained weights",
    settings=GanprintrSettings(),
    entry=GANPRINTR_ENTRY,
    order=80,
)
def attack(
    images: Tensor,
    detector: Detector,
    settings: GanprintrSettings | None = None,
    mask: Tensor | None = None,
    *,
    network: GANprintR | None = None,
) -> Job[Attacked]:
    """Pass faces (N, 3, H, W) in [0, 1] through an autoencoder, by default the trained one; the detector only judges.

    `mask` as in `mask_region`.

    Raises:
        UserError: The model file is missing or damaged.
    """
    started = time.perf_counter()
    network = network or load_ganprintr()
    settings = replace(settings or GanprintrSettings(), latent=network.latent)
    original = images.detach().to(detector.mean.device)
    region = mask_region(mask, original)
    with frozen(network, detector), MODEL_LOCK, torch.no_grad():
        attacked = restore_outside(network(original), original, region)
        result = judge_attack("GANprintR", original, attacked, detector, settings, started=started)
    yield Step(1, 1, "The face passed through the autoencoder.", attacked[:1].cpu())
    return result


def _load_trained() -> GANprintR:
    network = GANprintR(int(weights.find_entry(GANPRINTR_ENTRY).options.get("latent", LATENT)))
    weights.load_into(network, GANPRINTR_ENTRY)
    return network.to(runtime.device())
