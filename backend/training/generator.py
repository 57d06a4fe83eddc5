"""Train the embedded StyleGAN2 to draw photographs from their principal codes.

On a CPU a GAN of this size does not converge in the time a person waits, a regression does: every photograph
has a code from the start (`principal_codes.py`), the generator minimises L1 + L2 + a perceptual distance to the
photograph, from 16 pixels up to 128. The mapping network is fitted to the distribution of the codes afterwards
(`mapping.py`), so that z draws new faces, and the encoder learns the codes (`encoder.py`).
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators.e4e import CODE
from backend.generators.stylegan2 import StyleGAN2, ToRGB
from backend.perceptual import build_st_lpips
from backend.training import datasets, harness
from backend.training.growth import Growth
from backend.training.mapping import fit_mapping
from backend.training.principal_codes import PrincipalCodes


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of a run; `settings/generator.toml` explains them."""

    size: int
    mapping_layers: int
    channels: dict[str, int]
    code_power: float
    stages: list[list[float]]
    decay_share: float
    perceptual_from: int
    perceptual_weight: float
    average_decay: float
    seed: int
    initial: str = ""  # weights that the run started from, where it did


class GeneratorTask:
    """A generator in training, as a `harness.Task`."""

    checkpoint_every = 500  # steps

    def __init__(self, pictures: Tensor, settings: GeneratorSettings, held_out: Tensor) -> None:
        """Prepare a run on uint8 pictures (N, 3, size, size); `held_out` (K, 3, size, size) is only shown."""
        self.pictures, self.settings, self.held_out = pictures, settings, held_out
        torch.manual_seed(settings.seed)
        table = {int(size): width for size, width in settings.channels.items()}
        self.generator = StyleGAN2(settings.size, mapping_layers=settings.mapping_layers, channels=table)
        for to_rgb in self.generator.to_rgbs:  # a layer that is grown starts as plain upsampling
            nn.init.zeros_(cast(ToRGB, to_rgb).conv.weight)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.codes = PrincipalCodes(CODE, settings.code_power).fit(pictures)
        drawing = [weight for name, weight in self.generator.named_parameters() if not name.startswith("style.")]
        self.optimizer = torch.optim.Adam(drawing, 1e-3, (0.9, 0.99), fused=True)
        self.perceptual = perceptual_network("alex")
        self.growth = Growth(settings.stages, settings.decay_share)
        self.total = self.growth.total

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"generator": self.generator, "average": self.average, "codes": self.codes}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"generator": self.optimizer}

    def step(self, number: int) -> dict[str, float]:
        """Train one step."""
        settings, stage = self.settings, self.growth.at(number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        codes = self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)
        drawn = self.generator.synthesize(codes, resolution=stage.resolution)
        losses = picture_losses(drawn, shrink(faces, stage.resolution))
        loss = losses["l1"] + losses["l2"]
        if stage.resolution >= settings.perceptual_from:
            losses["perceptual"] = self.perceptual(drawn, shrink(faces, stage.resolution)).mean()
            loss = loss + settings.perceptual_weight * losses["perceptual"]
        update(self.optimizer, loss, stage.rate)
        harness.update_average(self.average, self.generator, min(settings.average_decay, (1 + number) / (10 + number)))
        return {"resolution": float(stage.resolution)} | {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their renderings by the averaged weights."""
        faces = self.held_out.float() / 127.5 - 1
        codes = self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)
        return sheet(faces, self.average.synthesize(codes))

    def finished(self) -> dict[str, Tensor]:
        """Fit the mapping network to the photographs' codes and return the tensors of the shipped file."""
        codes = torch.cat([self.codes(part.float() / 127.5 - 1) for part in self.pictures.split(256)])
        fit_mapping(self.average, codes, seed=self.settings.seed)
        average = codes.mean(0).expand(self.generator.rows, -1).clone()
        return {f"generator.{key}": value for key, value in self.average.state_dict().items()} | {
            "latent_average": average
        }


def draw_faces(pictures: Tensor, batch: int, seed: int, number: int) -> Tensor:
    """Return the faces (batch, 3, S, S) in [-1, 1] of one step, half of them mirrored, on the pictures' device."""
    randomness = torch.Generator().manual_seed(seed * 1_000_003 + number)
    chosen = pictures[datasets.draw(len(pictures), batch, seed=seed, step=number)]
    flips = (torch.rand(batch, 1, 1, 1, generator=randomness) < 0.5).to(pictures.device)
    return torch.where(flips, chosen.flip(3), chosen).float() / 127.5 - 1


def picture_losses(drawn: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Return the mean absolute and squared difference of two batches of pictures."""
    return {"l1": F.l1_loss(drawn, wanted), "l2": F.mse_loss(drawn, wanted)}


def update(optimizer: torch.optim.Optimizer, loss: Tensor, rate: float, *, longest: float = 5.0) -> None:
    """Make one step of an optimiser at a rate, with gradients no longer than `longest`."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    for group in optimizer.param_groups:
        nn.utils.clip_grad_norm_(group["params"], longest)
    optimizer.step()


def shrink(faces: Tensor, size: int) -> Tensor:
    """Average (N, 3, S, S) pictures down to `size` pixels."""
    return faces if faces.shape[-1] == size else F.interpolate(faces, size=(size, size), mode="area")


def sheet(*rows: Tensor) -> Tensor:
    """Put rows of faces (K, 3, S, S) in [-1, 1] below each other, as one picture (1, 3, H, W) in [0, 1]."""
    joined = torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1)
    return (joined[None] / 2 + 0.5).clamp(0, 1)


def random_squares(pictures: Tensor, side: int, randomness: torch.Generator) -> Tensor:
    """Return a square (N, C, side, side) at a random place of each picture (N, C, S, S)."""
    size, device = pictures.shape[-1], pictures.device
    if side == size:
        return pictures
    corners = torch.randint(size - side + 1, (len(pictures), 2), generator=randomness, device=device).tolist()
    squares = [
        picture[:, top : top + side, left : left + side] for picture, (top, left) in zip(pictures, corners, strict=True)
    ]
    return torch.stack(squares)


def perceptual_network(name: str) -> nn.Module:
    """Load a shift-tolerant perceptual network; its weights come with the package `stlpips-pytorch`."""
    return build_st_lpips(name)
