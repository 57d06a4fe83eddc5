"""Train GANprintR's autoencoder to copy real faces (Neves et al. 2020, arXiv 1911.05351; mean squared error)."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, runtime, weights
from backend.attacks.ganprintr import GANprintR
from backend.similarity import batch_psnr
from backend.training import loop
from backend.training.loop import OnStep

# About the mean of face pictures. The last layer starts there, because a ReLU that starts below 0 may never recover.
MIDDLE_GREY = 0.4


@dataclass(frozen=True)
class GanprintrTrainingSettings:
    """Settings of one run; `settings/ganprintr.toml` explains them."""

    size: int
    latent: int
    crop: int
    steps: int
    batch: int
    lr: float
    decay_share: float
    average_decay: float
    seed: int


class GanprintrTask(loop.TrainingTask):
    def __init__(self, pictures: Tensor, settings: GanprintrTrainingSettings, held_out: Tensor) -> None:
        """Prepare a run on uint8 pictures (N, 3, S, S); `held_out` (K, 3, S, S) is only shown."""
        self.pictures, self.settings, self.held_out = pictures, settings, held_out
        torch.manual_seed(settings.seed)
        network = GANprintR(settings.latent)
        initialize_autoencoder(network)
        self.device = runtime.device()
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.network.parameters(), settings.lr, fused=True)
        self.modules = {"network": self.network, "average": self.average}
        self.optimizers = {"network": self.optimizer}
        self.total = settings.steps

    def step(self, number: int) -> dict[str, float]:
        settings = self.settings
        indices = face_packs.draw_indices(len(self.pictures), settings.batch, seed=settings.seed, step=number)
        faces = (
            crop_randomly(self.pictures[indices], settings.crop, loop.step_generator(settings.seed, number)).float()
            / 255
        )
        faces = faces.to(self.device, memory_format=torch.channels_last)
        loss = F.mse_loss(self.network(faces), faces)
        rate = settings.lr * rate_factor(number / settings.steps, settings.decay_share)
        loop.update_weights(self.optimizer, loss, rate, max_norm=1.0)
        loop.update_average(self.average, self.network, settings.average_decay, number)
        return {"mse": loss.item(), "psnr": -10 * math.log10(loss.item())}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their copies by the averaged weights."""
        faces = self.held_out.float().to(self.device) / 255
        return loop.join_sheet(faces * 2 - 1, self.average(faces) * 2 - 1)


@torch.no_grad()
def initialize_autoencoder(network: GANprintR) -> None:
    """Keep the variance through ReLUs and unpooling (He et al. 2015), and start the output at middle grey."""
    encoder = cast(list[nn.Conv2d], list(network.encoder))
    decoder = cast(list[nn.ConvTranspose2d], list(network.decoder))
    for convolution in encoder:
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
    for number, transposed in enumerate(decoder):
        # The inputs of a transposed convolution are counted where PyTorch looks for the outputs.
        nn.init.kaiming_normal_(transposed.weight, mode="fan_out", nonlinearity="relu")
        transposed.weight.mul_(2 if number else 1)  # unpooling leaves three values in four at zero
    for layer in (*encoder, *decoder):
        nn.init.zeros_(cast(Tensor, layer.bias))
    decoder[-1].weight.mul_(0.1)
    cast(Tensor, decoder[-1].bias).fill_(MIDDLE_GREY)


def rate_factor(done: float, decay_share: float) -> float:
    """Return the factor on the learning rate: 1, and in the last `decay_share` of the steps a half cosine to 0."""
    return 0.5 * (1 + math.cos(math.pi * max(0.0, 1 - (1 - done) / decay_share)))


def crop_randomly(pictures: Tensor, size: int, randomness: torch.Generator) -> Tensor:
    """Return a random square of every picture (N, 3, S, S), about half of them mirrored: (N, 3, size, size)."""
    parts = []
    for picture in pictures:
        top, left = torch.randint(0, picture.shape[-1] - size + 1, (2,), generator=randomness).tolist()
        part = picture[:, top : top + size, left : left + size]
        parts.append(part.flip(2) if torch.rand(1, generator=randomness) < 0.5 else part)
    return torch.stack(parts)


@torch.no_grad()
def measure_copies(network: GANprintR, pictures: Tensor, batch: int = 32) -> dict[str, float]:
    """Measure PSNR in dB (mean and standard deviation) of 8-bit copies of uint8 pictures (N, 3, S, S)."""
    parts = [part.float() / 255 for part in pictures.split(batch)]
    copies = [(network(part).clamp(0, 1) * 255).round() / 255 for part in parts]
    psnr = np.concatenate([batch_psnr(copy, part).numpy() for copy, part in zip(copies, parts, strict=True)])
    return {"psnr": round(float(psnr.mean()), 2), "psnr_std": round(float(psnr.std()), 2), "count": float(len(psnr))}


def train_ganprintr(data: Path, out: Path, on_step: OnStep, **changes: Any) -> loop.Report:
    """Train GANprintR's autoencoder on photographs alone and write `out` (a .safetensors file)."""
    settings = loop.read_settings(GanprintrTrainingSettings, "ganprintr", **changes)
    photographs, held_out = face_packs.split_photographs(data, settings.size)
    task = GanprintrTask(photographs.pictures, settings, loop.pick_shown(held_out))
    run = loop.run_task(task, out.parent / "ganprintr-run", settings, on_step)
    network = task.average.cpu().half().float()  # as it is stored
    weights.save_half(out, network.state_dict())
    metrics = measure_copies(network, held_out.pictures)
    options = {"latent": settings.latent} | metrics
    return loop.write_report(out.with_suffix(".json"), metrics, run, {"ganprintr": out}, {"ganprintr": options})
