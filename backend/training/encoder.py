"""Train the embedded e4e encoder against a frozen generator (Tov et al. 2021, section 4).

First the base code alone is learned by regression: the generator was trained on known codes
(`principal_codes.py`), so most of the work needs no generator. Then base code and offsets are trained through the
frozen generator on L1 + L2 + a perceptual distance, with the offsets kept small.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators.e4e import E4EEncoder, StyleHead
from backend.generators.stylegan2 import StyleGAN2
from backend.training import harness
from backend.training.generator import (
    draw_faces,
    perceptual_network,
    picture_losses,
    sheet,
    shrink,
    update,
)
from backend.training.growth import Growth, Stage
from backend.training.principal_codes import PrincipalCodes


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of a run; `settings/encoder.toml` explains them."""

    input_size: int
    width: float
    code_steps: int
    code_batch: int
    code_rate: float
    statistics_steps: int
    stages: list[list[float]]
    decay_share: float
    code_weight: float
    delta_weight: float
    perceptual_weight: float
    average_decay: float
    seed: int
    initial: str = ""  # weights that the run started from, where it did


class EncoderTask:
    """An encoder in training, as a `harness.Task`.

    Args:
        pictures: uint8 (N, 3, S, S).
        settings: Of the run.
        held_out: uint8 (K, 3, S, S), only shown.
        generator: Frozen; None while only codes are learned.
        codes: What the generator was trained on; None skips the regression.
        latent_average: (512,) what the encoder's codes are relative to.
        size: Size of the generator in pixels.
    """

    def __init__(
        self,
        pictures: Tensor,
        settings: EncoderSettings,
        held_out: Tensor,
        *,
        generator: StyleGAN2 | None,
        codes: PrincipalCodes | None,
        latent_average: Tensor,
        size: int,
    ) -> None:
        self.pictures, self.settings, self.held_out = pictures, settings, held_out
        self.generator, self.codes, self.latent_average = generator, codes, latent_average
        torch.manual_seed(settings.seed)
        self.encoder = E4EEncoder(size, settings.input_size, settings.width)
        self.encoder.initialize()
        for head in list(self.encoder.styles)[1:]:  # offsets begin at nothing
            nn.init.zeros_(cast(StyleHead, head).linear.weight)
        self.average = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), 1e-3, (0.9, 0.99), fused=True)
        self.perceptual = perceptual_network("alex")
        self.code_steps = settings.code_steps if codes is not None else 0
        self.growth = Growth(settings.stages, settings.decay_share)
        self.total = self.code_steps + (0 if generator is None else self.growth.total)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {"encoder": self.encoder, "average": self.average}

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimiser."""
        return {"encoder": self.optimizer}

    def stage(self, number: int) -> Stage:
        """Return what a step does; a resolution of 0 means the codes alone."""
        if number >= self.code_steps:
            return self.growth.at(number - self.code_steps)
        rate = self.settings.code_rate * 0.1 ** max(0.0, (number / self.code_steps - 0.6) / 0.4)
        return Stage(0, self.settings.code_batch, rate)

    def step(self, number: int) -> dict[str, float]:
        """Train one step."""
        settings, stage = self.settings, self.stage(number)
        if number >= settings.statistics_steps:  # a small batch's statistics are noise in what must be exact
            keep_statistics(self.encoder)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        inputs = shrink(faces, settings.input_size).contiguous(memory_format=torch.channels_last)
        losses: dict[str, Tensor] = {}
        if stage.resolution == 0:
            base = self.encoder.base(inputs)
            losses["code"] = loss = self._code_loss(base, faces)
        else:
            codes = self.encoder(inputs)
            base = codes[:, 0]
            losses, loss = self._picture_loss(codes, faces, stage.resolution)
            if self.codes is not None:
                losses["code"] = self._code_loss(base, faces)
                loss = loss + settings.code_weight * losses["code"]
        update(self.optimizer, loss, stage.rate)
        harness.update_average(self.average, self.encoder, min(settings.average_decay, (1 + number) / (10 + number)))
        return {"resolution": float(stage.resolution)} | {name: value.item() for name, value in losses.items()}

    def _code_loss(self, base: Tensor, faces: Tensor) -> Tensor:
        assert self.codes is not None
        return F.mse_loss(base, self.codes(faces) - self.latent_average)

    def _picture_loss(self, codes: Tensor, faces: Tensor, resolution: int) -> tuple[dict[str, Tensor], Tensor]:
        assert self.generator is not None
        settings = self.settings
        drawn = self.generator.synthesize(codes + self.latent_average, resolution=resolution)
        wanted = shrink(faces, resolution)
        losses = picture_losses(drawn, wanted)
        losses["delta"] = (codes[:, 1:] - codes[:, :1]).square().mean()
        losses["perceptual"] = self.perceptual(drawn, wanted).mean()
        loss = losses["l1"] + losses["l2"] + settings.delta_weight * losses["delta"]
        return losses, loss + settings.perceptual_weight * losses["perceptual"]

    @torch.no_grad()
    def preview(self) -> Tensor | None:
        """Return held-out faces, their inversions, and what the base code alone draws, below each other."""
        if self.generator is None:
            return None
        faces = self.held_out.float() / 127.5 - 1
        codes = self.average(shrink(faces, self.settings.input_size)) + self.latent_average
        base = codes[:, :1].expand_as(codes)
        return sheet(faces, self.generator.synthesize(codes), self.generator.synthesize(base))


def keep_statistics(network: nn.Module) -> None:
    """Let batch norm use its running statistics while everything else goes on training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
