"""Train the embedded StyleGAN2 together with its e4e encoder.

On a CPU a GAN of this size does not converge in the time a person waits, an autoencoder does: the encoder
gives W+ codes (Tov et al. 2021, section 4: base code plus regularised offsets), the generator draws them,
and both minimise L1 + L2 + a perceptual distance, from 8 pixels up to 128. The mapping network is fitted to
the distribution of the base codes afterwards (`mapping.py`), so that z draws new faces.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backend.generators.e4e import E4EEncoder, StyleHead
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import StyleGAN2, ToRGB
from backend.training import datasets, harness
from backend.training.mapping import fit_mapping


@dataclass(frozen=True)
class GeneratorSettings:
    """Settings of the autoencoder run; `settings/generator.toml` explains them."""

    size: int
    mapping_layers: int
    channels: dict[str, int]
    encoder_input: int
    encoder_width: float
    stages: list[list[int]]
    lr_generator: float
    lr_encoder: float
    decay_share: float
    base_only_share: float
    delta_weight: float
    perceptual_from: int
    perceptual_weight: float
    average_decay: float
    seed: int


class Autoencoder:
    """Generator and encoder in joint training, as a `harness.Task`."""

    def __init__(self, pictures: Tensor, settings: GeneratorSettings, held_out: Tensor) -> None:
        """Prepare a run on uint8 pictures (N, 3, size, size); `held_out` (K, 3, size, size) is only shown."""
        self.pictures, self.settings, self.held_out = pictures, settings, held_out
        torch.manual_seed(settings.seed)
        table = {int(size): width for size, width in settings.channels.items()}
        self.generator = StyleGAN2(settings.size, mapping_layers=settings.mapping_layers, channels=table)
        for to_rgb in self.generator.to_rgbs:  # a layer that is grown starts as plain upsampling
            nn.init.zeros_(cast(ToRGB, to_rgb).conv.weight)
        self.encoder = E4EEncoder(settings.size, settings.encoder_input, settings.encoder_width)
        self.encoder.initialize()
        self.generator_average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.encoder_average = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        betas = (0.9, 0.99)
        self.generator_optimizer = torch.optim.Adam(
            self.generator.parameters(), settings.lr_generator, betas, fused=True
        )
        self.encoder_optimizer = torch.optim.Adam(self.encoder.parameters(), settings.lr_encoder, betas, fused=True)
        self.perceptual = perceptual_network("alex")
        self.total = sum(steps for _, steps, _ in settings.stages)

    def modules(self) -> Mapping[str, nn.Module]:
        """Return what a checkpoint holds."""
        return {
            "generator": self.generator,
            "encoder": self.encoder,
            "generator_average": self.generator_average,
            "encoder_average": self.encoder_average,
        }

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return both optimisers."""
        return {"generator": self.generator_optimizer, "encoder": self.encoder_optimizer}

    def stage(self, number: int) -> tuple[int, int]:
        """Return the resolution and the batch size of a step."""
        for resolution, steps, batch in self.settings.stages:
            if number < steps:
                return resolution, batch
            number -= steps
        return self.settings.stages[-1][0], self.settings.stages[-1][2]

    def step(self, number: int) -> dict[str, float]:
        """Train one step."""
        settings = self.settings
        resolution, batch = self.stage(number)
        self._set_rates(number)
        seed = settings.seed * 1_000_003 + number
        randomness = torch.Generator().manual_seed(seed)
        chosen = self.pictures[datasets.draw(len(self.pictures), batch, seed=settings.seed, step=number)]
        flips = torch.rand(batch, 1, 1, 1, generator=randomness) < 0.5
        faces = torch.where(flips, chosen.flip(3), chosen).float() / 127.5 - 1
        base_only = torch.rand(batch, 1, 1, generator=randomness) < settings.base_only_share
        codes = self.encoder(shrink(faces, settings.encoder_input).contiguous(memory_format=torch.channels_last))
        deltas = codes[:, 1:] - codes[:, :1]
        drawn_codes = torch.where(base_only, codes[:, :1].expand_as(codes), codes)
        drawn = self.generator.synthesize(drawn_codes, resolution=resolution)
        target = shrink(faces, resolution)
        l1, l2 = F.l1_loss(drawn, target), F.mse_loss(drawn, target)
        delta = deltas.square().mean()
        loss = l1 + l2 + settings.delta_weight * delta
        values = {"l1": l1, "l2": l2, "delta": delta}
        if resolution >= settings.perceptual_from:
            values["perceptual"] = self.perceptual(drawn, target).mean()
            loss = loss + settings.perceptual_weight * values["perceptual"]
        for optimizer in self.optimizers().values():
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers().values():
            nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 5.0)
            optimizer.step()
        decay = min(settings.average_decay, (1 + number) / (10 + number))
        harness.update_average(self.generator_average, self.generator, decay)
        harness.update_average(self.encoder_average, self.encoder, decay)
        return {"resolution": float(resolution)} | {name: value.item() for name, value in values.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their reconstructions by the averaged weights."""
        faces = self.held_out.float() / 127.5 - 1
        codes = self.encoder_average(shrink(faces, self.settings.encoder_input))
        drawn = self.generator_average.synthesize(codes)
        base = self.generator_average.synthesize(codes[:, :1].expand_as(codes))
        rows = [torch.cat(list(row), dim=2) for row in (faces, drawn, base)]
        return (torch.cat(rows, dim=1)[None] / 2 + 0.5).clamp(0, 1)

    def _set_rates(self, number: int) -> None:
        start = self.total * (1 - self.settings.decay_share)
        share = max(0.0, (number - start) / (self.total - start))
        factor = 0.1**share
        self.generator_optimizer.param_groups[0]["lr"] = self.settings.lr_generator * factor
        self.encoder_optimizer.param_groups[0]["lr"] = self.settings.lr_encoder * factor


def shrink(faces: Tensor, size: int) -> Tensor:
    """Average (N, 3, S, S) pictures down to `size` pixels."""
    return faces if faces.shape[-1] == size else F.interpolate(faces, size=(size, size), mode="area")


def perceptual_network(name: str) -> nn.Module:
    """Load a shift-tolerant perceptual network; its weights come with the package `stlpips-pytorch`."""
    from stlpips_pytorch import stlpips

    network = stlpips.LPIPS(net=name, variant="shift_tolerant", verbose=False)
    return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of an encoder run against a frozen generator; `settings/encoder.toml` explains them."""

    steps: int
    batch: int
    lr: float
    decay_share: float


class EncoderTask(Autoencoder):
    """The encoder alone in training, against a frozen generator."""

    def __init__(self, pictures: Tensor, settings: GeneratorSettings, held_out: Tensor, inverter: Inverter) -> None:
        super().__init__(pictures, settings, held_out)
        self.latent_average = inverter.latent_average[0].cpu()
        state = inverter.generator.state_dict()
        for generator in (self.generator, self.generator_average):
            generator.load_state_dict(state)
            generator.requires_grad_(False)
        for encoder in (self.encoder, self.encoder_average):
            encoder.load_state_dict(inverter.encoder.state_dict())
            shift(encoder, self.latent_average)

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        """Return the encoder's optimiser."""
        return {"encoder": self.encoder_optimizer}

    def relative_encoder(self) -> dict[str, Tensor]:
        """Return the averaged encoder, relative to the latent average again."""
        encoder = copy.deepcopy(self.encoder_average)
        shift(encoder, -self.latent_average)
        return dict(encoder.state_dict())


@torch.no_grad()
def shift(encoder: E4EEncoder, amount: Tensor) -> None:
    """Add `amount` (512,) to every code that the encoder gives."""
    cast(StyleHead, encoder.styles[0]).linear.bias.add_(amount)


@torch.no_grad()
def encode(encoder: E4EEncoder, pictures: Tensor, batch: int = 64) -> Tensor:
    """Return the codes (N, rows, 512) of uint8 pictures, before any latent average."""
    parts = [encoder(shrink(part.float() / 127.5 - 1, encoder.input_size)) for part in pictures.split(batch)]
    return torch.cat(parts)


def finished(task: Autoencoder, *, seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Turn a finished run into the tensors of both shipped files.

    The mapping network is fitted to the base codes of the photographs; their mean becomes the latent average
    and leaves the encoder's bias, as in published e4e checkpoints (codes = encoder + average).
    """
    generator, encoder = task.generator_average, task.encoder_average
    base = encode(encoder, task.pictures)[:, 0]
    fit_mapping(generator, base, seed=seed)
    mean = base.mean(0)
    shift(encoder, -mean)
    average = mean.expand(generator.rows, -1).clone()
    drawn = {f"generator.{key}": value for key, value in generator.state_dict().items()}
    return drawn | {"latent_average": average}, dict(encoder.state_dict())
