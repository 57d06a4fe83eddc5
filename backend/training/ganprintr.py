"""Train GANprintR's autoencoder to copy real faces (Neves et al. 2020, arXiv 1911.05351; mean squared error)."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, runtime, weights
from backend.attacks.ganprintr import GANprintR
from backend.progress import finish
from backend.training import loop
from backend.training.loop import _OnStep

MIDDLE_GREY = (
    0.4  # about the mean of face pictures, where the last layer starts: a ReLU that starts below 0 may never move
)


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


class GanprintrTask:
    """The autoencoder in training, as a `harness.Task`."""

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
        self.total = settings.steps

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"network": self.network, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"network": self.optimizer}

    def step(self, number: int) -> dict[str, float]:
        """Train one step."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = settings.lr * rate_factor(number / settings.steps, settings.decay_share)
        chosen = self.pictures[
            face_packs.draw_indices(len(self.pictures), settings.batch, seed=settings.seed, step=number)
        ]
        randomness = torch.Generator().manual_seed(settings.seed * 1_000_003 + number)
        faces = crop_randomly(chosen, settings.crop, randomness).float() / 255
        faces = faces.to(self.device, memory_format=torch.channels_last)
        loss = F.mse_loss(self.network(faces), faces)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        loop.update_average(self.average, self.network, min(settings.average_decay, (1 + number) / (10 + number)))
        return {"mse": loss.item(), "psnr": -10 * math.log10(loss.item())}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above what the averaged weights make of them."""
        faces = self.held_out.float().to(self.device) / 255
        rows = [torch.cat(list(row), dim=2) for row in (faces, self.average(faces).clamp(0, 1))]
        return torch.cat(rows, dim=1)[None].cpu()


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
    """Return a random square of every picture (N, 3, S, S), every other one mirrored: (N, 3, size, size)."""
    parts = []
    for picture in pictures:
        top, left = torch.randint(0, picture.shape[-1] - size + 1, (2,), generator=randomness).tolist()
        part = picture[:, top : top + size, left : left + size]
        parts.append(part.flip(2) if torch.rand(1, generator=randomness) < 0.5 else part)
    return torch.stack(parts)


@torch.no_grad()
def measure_copies(network: GANprintR, pictures: Tensor, batch: int = 32) -> dict[str, float]:
    """Measure PSNR in dB (mean and standard deviation) of 8-bit copies of uint8 pictures (N, 3, S, S)."""
    errors = []
    for part in pictures.split(batch):
        copied = (network(part.float() / 255).clamp(0, 1) * 255).round()
        errors.append(((copied - part.float()) / 255).square().flatten(1).mean(1).numpy())
    psnr = -10 * np.log10(np.concatenate(errors))
    return {"psnr": round(float(psnr.mean()), 2), "psnr_std": round(float(psnr.std()), 2), "count": float(len(psnr))}


def train_ganprintr(data: Path, out: Path, on_step: _OnStep, **changes: Any) -> loop.Report:
    """Train GANprintR's autoencoder on photographs alone and write `out` (a .safetensors file)."""
    settings = loop.read_settings(GanprintrTrainingSettings, "ganprintr", **changes)
    photographs, held_out = face_packs.split_photographs(data, settings.size)
    task = GanprintrTask(photographs.pictures, settings, loop.pick_shown(held_out))
    folder = out.parent / "ganprintr-run"
    run = finish(loop.write_sheets(loop.train_task(task, folder, settings), folder), on_step)
    network = task.average.cpu().half().float()  # as it is stored
    weights.save_half(out, network.state_dict())
    metrics = measure_copies(network, held_out.pictures)
    options = {"latent": settings.latent} | metrics
    return loop.write_report(out.with_suffix(".json"), metrics, run, {"ganprintr": out}, {"ganprintr": options})
