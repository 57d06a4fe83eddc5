"""Train the embedded e4e encoder against a frozen generator (Tov et al. 2021, section 4).

First the base code alone is learned by regression: the generator was trained on known codes
(`principal_codes.py`), so most of the work needs no generator. Then base code and offsets are trained through the
frozen generator on L1 + L2 + a perceptual distance, with the offsets kept small; an identity loss and a latent
discriminator join where their weights say so.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.errors import UserError
from backend.generators import inversion
from backend.generators.e4e import CODE, E4EEncoder, StyleHead, lacked
from backend.generators.linear_path import LinearPath, small
from backend.generators.stylegan2 import StyleGAN2
from backend.perceptual import ssim
from backend.runtime import device
from backend.training import harness, identity_loss
from backend.training.adversary import Arithmetic
from backend.training.generator import draw_faces, picture_losses, sheet, shrink, update
from backend.training.growth import Growth, Stage
from backend.training.latent_discriminator import LatentDiscriminator
from backend.training.perceptual_loss import PerceptualLoss
from backend.training.principal_codes import PrincipalCodes
from backend.training.sharpening import sharpen

TEMPLATE = "embedded"  # how the faces are aligned
BLOCK = 256  # photographs at a time


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of a run; `settings/encoder.toml` explains them."""

    input_size: int
    width: float
    linear: int
    early: list[int]
    detail: bool
    feedback: list[float]
    code_steps: int
    code_batch: int
    code_rate: float
    statistics_steps: int
    stages: list[list[float]]
    decay_share: float
    code_weight: float
    sharpened: float
    pixel_weight: float
    delta_weight: float
    perceptual_weight: float
    perceptual_share: float
    enlarged_share: float
    ssim_weight: float
    identity_weight: float
    latent_weight: float
    latent_rate: float
    average_decay: float
    bfloat16: bool
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

    Raises:
        UserError: An identity loss is wanted, and no network for it is here.
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
        self.settings = settings
        self.arithmetic = Arithmetic.of(device(), compiled=False, bfloat16=settings.bfloat16)
        here = self.arithmetic.device
        self.pictures, self.held_out, self.latent_average = (
            one.to(here) for one in (pictures, held_out, latent_average)
        )
        self.generator = None if generator is None else generator.to(here)
        self.codes = None if codes is None else codes.to(here)
        torch.manual_seed(settings.seed)
        self.encoder = E4EEncoder(size, **{name: getattr(settings, name) for name in inversion.SHAPE})
        self.encoder.initialize()
        self._begin(list(self.encoder.styles)[1:])
        self.encoder.to(here)
        self.average = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        if self.codes is not None and settings.linear:
            self.begin_linear(self.codes)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), 1e-3, (0.9, 0.99), fused=True)
        self.perceptual: PerceptualLoss | None = None
        if settings.perceptual_weight:
            self.perceptual = PerceptualLoss(settings.perceptual_share, settings.enlarged_share, self.arithmetic)
        self.embedding = identity_loss.find(TEMPLATE) if settings.identity_weight else None
        if settings.identity_weight and self.embedding is None:
            raise UserError(
                f"There is no network for the identity loss: {identity_loss.MISSING}", "Or: --set identity_weight=0."
            )
        self.latent: LatentDiscriminator | None = None
        if settings.latent_weight and generator is not None:
            self.latent = LatentDiscriminator(generator.rows, CODE, settings.latent_rate, here)
        self.code_steps = settings.code_steps if codes is not None else 0
        self.growth = Growth(settings.stages, settings.decay_share)
        self.total = self.code_steps + (0 if generator is None else self.growth.total)

    @torch.no_grad()
    def begin_linear(self, codes: PrincipalCodes) -> None:
        """Fit the linear path to codes of the photographs; all else of encoder and average begins at nothing."""
        assert self.encoder.linear is not None
        codes = codes.to(self.arithmetic.device)
        known = [
            (small(self.encoder.means(shrink(faces, self.settings.input_size))), codes(faces) - self.latent_average)
            for part in self.pictures.split(BLOCK)
            for faces in [torch.cat([part, part.flip(3)]).float() / 127.5 - 1]
        ]
        seen, wanted = (torch.cat(parts) for parts in zip(*known, strict=True))
        for encoder in (self.encoder, self.average):
            cast(LinearPath, encoder.linear).fit(seen, wanted)
            self._begin(encoder.styles)

    @staticmethod
    def _begin(heads: Iterable[nn.Module]) -> None:
        """Let heads give nothing."""
        for head in heads:
            linear = cast(StyleHead, head).linear
            for tensor in (linear.weight, linear.bias):
                nn.init.zeros_(tensor)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        own = {"encoder": self.encoder, "average": self.average}
        return own if self.latent is None else own | dict(self.latent.modules())

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the optimisers."""
        own = {"encoder": self.optimizer}
        return own if self.latent is None else own | dict(self.latent.optimizers())

    def stage(self, number: int) -> Stage:
        """Return what a step does; a resolution of 0 means the codes alone."""
        if number >= self.code_steps:
            return self.growth.at(number - self.code_steps)
        rate = self.settings.code_rate * 0.1 ** max(0.0, (number / self.code_steps - 0.6) / 0.4)
        return Stage(0, self.settings.code_batch, rate)

    def step(self, number: int) -> dict[str, float | Tensor]:
        """Train one step."""
        settings, stage = self.settings, self.stage(number)
        if number >= settings.statistics_steps:  # a small batch's statistics are noise in what must be exact
            keep_statistics(self.encoder)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        if stage.resolution == 0:
            with self.arithmetic.narrow():
                base = self.encoder.base(shrink(faces, settings.input_size))
            loss = self._code_loss(base.float(), faces)
            losses = {"code": loss}
        else:
            codes = self.encode(faces)
            randomness = self.arithmetic.randomness(settings.seed, number)
            _, losses, loss = self.inversion(codes, faces, stage.resolution, randomness)
            if self.latent is not None:
                losses["latent"] = self.train_latent(codes, number)
        update(self.optimizer, loss, stage.rate)
        harness.update_average(self.average, self.encoder, min(settings.average_decay, (1 + number) / (10 + number)))
        return {"resolution": float(stage.resolution)} | {name: value.detach() for name, value in losses.items()}

    def encode(self, faces: Tensor, *, once: int = 0) -> Tensor:
        """Return codes (N, rows, 512) of faces (N, 3, S, S), before the average.

        With `feedback`, the encoder looks again at all but the last `once` faces, and learns from its last look.
        """
        shown = shrink(faces, self.settings.input_size)
        again = len(faces) - once
        lacking = torch.zeros_like(shown)
        if again:
            lacking[:again] = lacked(
                lambda lacking: self._look(shown[:again], lacking),
                lambda codes: self.draw(codes + self.latent_average),
                shown[:again],
                self.settings.feedback,
            )
        return self._look(shown, lacking)

    def _look(self, shown: Tensor, lacking: Tensor) -> Tensor:
        given = (one.contiguous(memory_format=torch.channels_last) for one in (shown, lacking))  # as the weights are
        with self.arithmetic.narrow():
            codes: Tensor = self.encoder(*given)
        return codes.float()

    def draw(self, codes: Tensor, resolution: int | None = None) -> Tensor:
        """Return what the generator in training draws of W+ codes (N, rows, 512)."""
        assert self.generator is not None
        start = self.generator.prefix(codes, 0, dtype=self.arithmetic.dtype)
        return self.generator.resume(start, codes, resolution=resolution)

    def train_latent(self, codes: Tensor, number: int) -> Tensor:
        """Train the latent discriminator on these codes, before the average, and as many of the mapping network."""
        assert self.generator is not None
        assert self.latent is not None
        seed = self.settings.seed
        z = torch.randn(
            len(codes), CODE, generator=self.arithmetic.randomness(seed, number), device=self.arithmetic.device
        )
        with torch.no_grad():
            real = self.generator.mapping(z)
        return self.latent.train(real, codes + self.latent_average, number, seed)

    def _code_loss(self, base: Tensor, faces: Tensor) -> Tensor:
        assert self.codes is not None
        return F.mse_loss(base, self.codes(faces) - self.latent_average)

    def inversion(
        self, codes: Tensor, faces: Tensor, resolution: int, randomness: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return what codes (N, rows, 512) of faces (N, 3, S, S) draw, every loss, and their weighted sum."""
        settings = self.settings
        codes_in_w = codes + self.latent_average
        drawn = self.draw(codes_in_w, resolution)
        wanted = shrink(faces, resolution)
        if settings.sharpened:
            wanted = sharpen(wanted, settings.sharpened).clamp(-1, 1)
        losses = picture_losses(drawn, wanted)
        weights = dict.fromkeys(losses, settings.pixel_weight) | {"delta": settings.delta_weight}
        losses["delta"] = (codes[:, 1:] - codes[:, :1]).square().mean()
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(drawn, wanted, randomness)
            weights["perceptual"] = settings.perceptual_weight
        if settings.ssim_weight:
            losses["ssim"] = 1 - ssim(drawn / 2 + 0.5, wanted / 2 + 0.5).mean()
            weights["ssim"] = settings.ssim_weight
        if self.codes is not None:
            losses["code"], weights["code"] = self._code_loss(codes[:, 0], faces), settings.code_weight
        if self.embedding is not None:
            losses["identity"] = self.embedding.distance(drawn, wanted)
            weights["identity"] = settings.identity_weight
        if self.latent is not None:
            losses["latent_fooling"] = self.latent.fooling(codes_in_w)
            weights["latent_fooling"] = settings.latent_weight
        return drawn, losses, cast(Tensor, sum(weights[name] * value for name, value in losses.items()))

    def average_codes(self, faces: Tensor, generator: StyleGAN2) -> Tensor:
        """Return the W+ codes (N, rows, 512) that the averaged encoder gives faces, looking as often as it will."""
        inputs = shrink(faces, self.settings.input_size)
        return inversion.encode(self.average, generator, self.latent_average, inputs, self.settings.feedback)

    @torch.no_grad()
    def preview(self) -> Tensor | None:
        """Return held-out faces, their inversions, and what the base code alone draws, below each other."""
        if self.generator is None:
            return None
        faces = self.held_out.float() / 127.5 - 1
        codes = self.average_codes(faces, self.generator)
        base = codes[:, :1].expand_as(codes)
        shown = faces, self.generator.synthesize(codes), self.generator.synthesize(base)
        return sheet(*(row.cpu() for row in shown))


def keep_statistics(network: nn.Module) -> None:
    """Let batch norm use its running statistics while everything else goes on training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
