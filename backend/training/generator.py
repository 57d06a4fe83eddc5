"""Train the embedded StyleGAN2: as a regression from principal codes, or against a discriminator.

On a CPU, a regression converges in the time a person waits, and a GAN of this size does not. Every photograph has a
code from the start, its principal components (the idea of Bojanowski et al. 2018, section 3), and the generator
minimises L1 + L2 + a perceptual distance to the photograph, from 16 pixels up to 128. The mapping network is then
fitted to the distribution of the codes, so that z draws new faces, and the encoder learns the codes (`encoder.py`).

On a GPU, adversarial training alone (Karras et al. 2020) suffices. On a CPU it is the second half of a run that began
as a regression: samples must pass as photographs, and the picture of a principal code must stay its photograph.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import StrictBool
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, runtime, weights
from backend.errors import UserError
from backend.generators.e4e import CODE_SIZE
from backend.generators.stylegan2 import StyleGAN2, ToRGB, row_count
from backend.similarity import build_st_lpips
from backend.training import loop
from backend.training.gan import (
    ADAM_EPSILON,
    DiscriminatorSettings,
    DiscriminatorTrainer,
    lazy_betas,
    lazy_share,
    path_lengths,
    path_penalty,
)
from backend.training.loop import (
    Arithmetic,
    OnStep,
    Schedule,
    TrainingTask,
    draw_faces,
    join_sheet,
    shrink_pictures,
    update_weights,
)
from backend.training.losses import picture_losses

COMPONENT_SIDE = 32  # side in pixels of what the components see
COMPONENT_BLOCK = 512  # pictures at a time
LARGE_ENTRY = 0.9  # of the largest entry
MAPPING_RATE = 2.0  # the layers of the mapping network divide their weights, and with them every step, by 100
SAMPLES_FOR_MEAN = 10_000
SHOWN_SEED = 2026
PATH_SHARE = 2  # path lengths are measured on one sample in so many, as published
CODES_FILE = "codes.safetensors"
# Recipe to settings file: a regression, StyleGAN2's training, or a regression followed by StyleGAN2's training.
GENERATOR_RECIPES = {
    "regression": "generator",
    "adversarial": "generator_adversarial",
    "continued": "generator_continued",
}


class PrincipalCodes(nn.Module):
    """A linear map from faces to codes; part of a checkpoint.

    Args:
        code: Length of a code.
        power: Exponent that evens out the components' deviations: 0 keeps them, 1 makes them equal.
    """

    mean: Tensor
    basis: Tensor

    def __init__(self, code: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.register_buffer("mean", torch.zeros(3 * COMPONENT_SIDE * COMPONENT_SIDE))
        self.register_buffer("basis", torch.zeros(3 * COMPONENT_SIDE * COMPONENT_SIDE, code))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> "PrincipalCodes":
        """Find the components of uint8 pictures (N, 3, S, S) and of their mirror images; return `self`."""
        blocks = (block.float() / 127.5 - 1 for block in pictures.split(COMPONENT_BLOCK))
        flat = torch.cat([shrink_pictures(block, COMPONENT_SIDE).flatten(1) for block in blocks])
        mirrored = flat.view(-1, 3, COMPONENT_SIDE, COMPONENT_SIDE).flip(3).flatten(1)
        mean = (flat.mean(0) + mirrored.mean(0)) / 2
        covariance = sum((part - mean).t() @ (part - mean) for part in (flat, mirrored)) / (2 * len(flat))
        values, vectors = torch.linalg.eigh(covariance)
        count = self.basis.shape[1]
        spread = values.flip(0)[:count].clamp_min(1e-8).sqrt()
        basis = vectors.flip(1)[:, :count]
        # Fix the sign by the first large entry, because the largest may have an opposite in the mirror.
        large = (basis.abs() >= LARGE_ENTRY * basis.abs().amax(0, keepdim=True)).to(torch.uint8)
        basis = basis * basis.gather(0, large.argmax(0, keepdim=True)).sign()
        scaled = basis * spread**-self.power
        codes_spread = (spread ** (1 - self.power)).square().mean().sqrt()
        self.mean.copy_(mean)
        self.basis.copy_(scaled / codes_spread)
        return self

    def forward(self, faces: Tensor) -> Tensor:
        """Return codes (N, code), of unit mean square on the fitted pictures, for faces (N, 3, S, S) in [-1, 1]."""
        return (shrink_pictures(faces, COMPONENT_SIDE).flatten(1) - self.mean) @ self.basis

    def encode(self, pictures: Tensor) -> Tensor:
        """Return the codes (N, code) of uint8 pictures (N, 3, S, S)."""
        return torch.cat([self(part.float() / 127.5 - 1) for part in pictures.split(256)])


def load_codes(path: Path) -> PrincipalCodes:
    """Read the codes that a run of the generator wrote."""
    tensors = load_file(path)
    codes = PrincipalCodes(tensors["basis"].shape[1], 0.0)
    codes.load_state_dict(tensors)
    return codes


def fit_mapping(generator: StyleGAN2, codes: Tensor, *, steps: int = 3000, batch: int = 256, seed: int = 0) -> float:
    """Train `generator.style` so that normalised z gives the Gaussian with the mean and covariance of `codes`.

    Only the mapping network changes. `codes` (N, style_dim) are base codes of photographs. The last mean squared error
    is returned, relative to the variance of the codes.
    """
    mean = codes.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(codes.t()))
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.t()
    spread = codes.var(0).mean()
    randomness = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        last = generator.style[-1]
        last.bias.copy_(mean / last.lr_mul / 2**0.5)  # type: ignore[union-attr, operator]
    optimizer = torch.optim.Adam(generator.style.parameters(), MAPPING_RATE, (0.9, 0.99))
    generator.style.requires_grad_(True)
    relative = float("nan")
    for number in range(steps):
        z = torch.randn(batch, codes.shape[1], generator=randomness)
        expected = mean + F.normalize(z) * codes.shape[1] ** 0.5 @ root
        error = F.mse_loss(generator.mapping(z), expected) / spread
        update_weights(optimizer, error, MAPPING_RATE * (1 - number / steps) + 1e-3, max_norm=torch.inf)
        relative = error.item()
    return relative


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
    initial: str = ""  # weights that the run started from, if any


class GeneratorTask(TrainingTask):
    """A generator in training as a regression from principal codes."""

    checkpoint_every = 500  # steps

    def __init__(self, pictures: Tensor, settings: GeneratorSettings, held_out: Tensor) -> None:
        """Prepare a run on uint8 pictures (N, 3, size, size); `held_out` (K, 3, size, size) is only shown."""
        self.pictures, self.settings, self.held_out = pictures, settings, held_out
        torch.manual_seed(settings.seed)
        table = {int(size): width for size, width in settings.channels.items()}
        self.generator = StyleGAN2(settings.size, mapping_layers=settings.mapping_layers, channels=table)
        for to_rgb in self.generator.to_rgbs:  # a new layer starts as plain upsampling
            nn.init.zeros_(cast(ToRGB, to_rgb).conv.weight)
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(False)
        self.codes = PrincipalCodes(CODE_SIZE, settings.code_power).fit(pictures)
        drawing = [weight for name, weight in self.generator.named_parameters() if not name.startswith("style.")]
        self.optimizer = torch.optim.Adam(drawing, 1e-3, (0.9, 0.99), fused=True)
        self.perceptual = build_st_lpips("alex")
        self.schedule = Schedule(settings.stages, settings.decay_share)
        self.total = self.schedule.total
        self.modules = {"generator": self.generator, "average": self.average, "codes": self.codes}
        self.optimizers = {"generator": self.optimizer}

    def step(self, number: int) -> dict[str, float]:
        settings, stage = self.settings, self.schedule.at(number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        codes = self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)
        drawn = self.generator.synthesize(codes, resolution=stage.resolution)
        target = shrink_pictures(faces, stage.resolution)
        losses = picture_losses(drawn, target)
        loss = losses["l1"] + losses["l2"]
        if stage.resolution >= settings.perceptual_from:
            losses["perceptual"] = self.perceptual(drawn, target).mean()
            loss = loss + settings.perceptual_weight * losses["perceptual"]
        update_weights(self.optimizer, loss, stage.rate)
        loop.update_average(self.average, self.generator, settings.average_decay, number)
        return {"resolution": float(stage.resolution)} | {name: value.item() for name, value in losses.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their renderings by the averaged weights."""
        faces = self.held_out.float() / 127.5 - 1
        codes = self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)
        return join_sheet(faces, self.average.synthesize(codes))

    def finished(self) -> dict[str, Tensor]:
        """Fit the mapping network to the photographs' codes and return the tensors of the shipped file."""
        codes = self.codes.encode(self.pictures)
        fit_mapping(self.average, codes, seed=self.settings.seed)
        return pack_generator(self.average, codes.mean(0))


def pack_generator(generator: StyleGAN2, average: Tensor) -> dict[str, Tensor]:
    """Return the tensors of the shipped file, for an average code (512,)."""
    tensors = {f"generator.{key}": value for key, value in generator.state_dict().items()}
    return tensors | {"latent_average": average.expand(generator.rows, -1).clone()}


@dataclass(frozen=True, kw_only=True)
class AdversarialSettings(DiscriminatorSettings):
    """Settings of a run; `settings/generator_adversarial.toml` explains them."""

    size: int
    mapping_layers: int
    channels: dict[str, int]
    stages: list[list[float]]
    decay_share: float
    train_mapping: StrictBool
    fresh_noise: StrictBool
    style_mixing: float
    adversarial_weight: float
    path_weight: float
    path_every: int
    path_decay: float
    reconstruction_weight: float
    perceptual_weight: float
    average_images: float
    compiled: StrictBool
    checkpoint_every: int
    seed: int
    initial: str = ""  # weights that the run started from, if any


class PathMean(nn.Module):
    """The running mean of path lengths; part of a checkpoint."""

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))


class AdversarialTask(TrainingTask):
    """A generator in adversarial training."""

    def __init__(
        self, pictures: Tensor, settings: AdversarialSettings, held_out: Tensor, codes: PrincipalCodes | None = None
    ) -> None:
        """Prepare a run on uint8 pictures (N, 3, size, size); `held_out` (K, 3, size, size) is only shown.

        `codes` are those that the generator learned. It needs them to go on drawing them; codes that are fitted anew
        would differ, because components of equal variance, and signs, depend on rounding.
        """
        self.settings, self.arithmetic = settings, Arithmetic.for_device(runtime.device(), compiled=settings.compiled)
        self.checkpoint_every = settings.checkpoint_every
        self.computes_in = self.arithmetic.in_words()
        device = self.arithmetic.device
        torch.manual_seed(settings.seed)
        table = {int(size): width for size, width in settings.channels.items()}
        generator = StyleGAN2(settings.size, mapping_layers=settings.mapping_layers, channels=table)
        self.generator = generator.to(device)  # features are channels-last, whatever the layout of the weights
        self.average = copy.deepcopy(self.generator).eval().requires_grad_(requires_grad=False)
        self.discriminator_trainer = DiscriminatorTrainer(settings.size, settings, self.arithmetic)
        self.path_mean = PathMean().to(device)
        self.generator.style.requires_grad_(settings.train_mapping)
        trained = [weight for weight in self.generator.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.Adam(trained, 1e-3, lazy_betas(settings.path_every), ADAM_EPSILON, fused=True)
        self.codes: PrincipalCodes | None = None
        if settings.reconstruction_weight:
            if codes is None:
                raise UserError(
                    "The generator needs the codes of its photographs.",
                    "Add --codes FILE, which its run wrote, or --set reconstruction_weight=0.",
                )
            self.codes = codes.to(device)
            self.perceptual = build_st_lpips("alex").to(device)
        self.pictures, self.held_out = pictures.to(device), held_out.to(device)
        self.schedule = Schedule(settings.stages, settings.decay_share)
        self.total = self.schedule.total
        self._draw = self.arithmetic.compile(self.draw)
        self.modules = {"generator": self.generator, "average": self.average, "path_mean": self.path_mean}
        self.modules |= self.discriminator_trainer.modules | ({} if self.codes is None else {"codes": self.codes})
        self.optimizers = {"generator": self.optimizer} | self.discriminator_trainer.optimizers

    def step(self, number: int) -> dict[str, float | Tensor]:
        """Train generator and discriminator one step, on the same drawings."""
        settings, stage = self.settings, self.schedule.at(number)
        randomness = self.arithmetic.generator_for(settings.seed, number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        target = shrink_pictures(faces, stage.resolution)
        rate = stage.rate * lazy_share(settings.path_every)
        codes = self.sample_codes(stage.batch, stage.resolution, randomness)
        if self.codes is not None:
            codes = torch.cat([codes, self.codes(faces)[:, None].expand(-1, self.generator.rows, -1)])
        drawn = self._draw(codes, self.noise(len(codes), randomness), stage.resolution)
        samples = drawn[: stage.batch]
        losses = {"generator_loss": self.discriminator_trainer.generator_loss(samples, randomness)}
        loss = settings.adversarial_weight * losses["generator_loss"]
        if self.codes is not None:
            parts, reconstruction = self._reconstruction(drawn[stage.batch :], target)
            losses, loss = losses | parts, loss + settings.reconstruction_weight * reconstruction
        update_weights(self.optimizer, loss, rate, max_norm=torch.inf)
        if settings.path_every and number % settings.path_every == 0:
            losses["path"] = self._regularise(max(1, stage.batch // PATH_SHARE), stage.resolution, rate, randomness)
        values = {name: value.detach() for name, value in losses.items()}
        values |= self.discriminator_trainer.train(target, samples, number, randomness)
        loop.update_average(self.average, self.generator, 0.5 ** (stage.batch / settings.average_images), number)
        return {"resolution": float(stage.resolution)} | values

    def sample_codes(self, count: int, resolution: int, randomness: torch.Generator) -> Tensor:
        """Return codes (count, rows, 512) of random z; mixed styles use a second z for the fine rows."""
        device, rows = self.arithmetic.device, self.generator.rows
        z = torch.randn(2 * count, CODE_SIZE, generator=randomness, device=device)
        coarse, fine = self.generator.mapping(z)[:, None].expand(-1, rows, -1).chunk(2)
        cut = 1 + (torch.rand(count, generator=randomness, device=device) * (row_count(resolution) - 1)).long()
        mixed = torch.rand(count, generator=randomness, device=device) < self.settings.style_mixing
        is_coarse = torch.arange(rows, device=device)[None] < torch.where(mixed, cut, rows)[:, None]
        return torch.where(is_coarse[:, :, None], coarse, fine)

    def noise(self, count: int, randomness: torch.Generator) -> list[Tensor] | None:
        """Return maps (count, 1, H, W) for every layer, or None for the registered ones."""
        if not self.settings.fresh_noise:
            return None
        shapes = [(count, 1, *old.shape[2:]) for old in self.generator.noises.buffers()]
        return [torch.randn(shape, generator=randomness, device=self.arithmetic.device) for shape in shapes]

    def draw(
        self, codes: Tensor, noise: list[Tensor] | None, resolution: int, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw pictures (N, 3, resolution, resolution) around [-1, 1] from codes (N, rows, 512)."""
        start = self.generator.prefix(codes, 0, dtype=dtype or self.arithmetic.dtype)
        return self.generator.resume(start, codes, resolution=resolution, noise=noise)

    def _reconstruction(self, drawn: Tensor, target: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        parts = picture_losses(drawn, target)
        parts["perceptual"] = self.perceptual(drawn, target).mean()
        return parts, parts["l1"] + parts["l2"] + self.settings.perceptual_weight * parts["perceptual"]

    def _regularise(self, count: int, resolution: int, rate: float, randomness: torch.Generator) -> Tensor:
        """Take a step that evens out the path lengths; return the penalty."""
        settings = self.settings
        codes = self.sample_codes(count, resolution, randomness)
        codes = codes if codes.requires_grad else codes.requires_grad_()
        drawn = self.draw(codes, self.noise(count, randomness), resolution, torch.float32)
        lengths = path_lengths(drawn, codes, randomness)
        penalty = path_penalty(lengths, self.path_mean.value, settings.path_decay)
        update_weights(self.optimizer, settings.path_weight * settings.path_every * penalty, rate, max_norm=torch.inf)
        return penalty.detach()

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return samples of the averaged weights, and held-out faces above their renderings where codes are trained."""
        randomness = self.arithmetic.generator_for(SHOWN_SEED, 0)
        count, rows = len(self.held_out), self.generator.rows
        z = torch.randn(2 * count, CODE_SIZE, generator=randomness, device=self.arithmetic.device)
        shown = list(self.average.synthesize(self.average.mapping(z)[:, None].expand(-1, rows, -1)).chunk(2))
        if self.codes is not None:
            faces = self.held_out.float() / 127.5 - 1
            shown += [faces, self.average.synthesize(self.codes(faces)[:, None].expand(-1, rows, -1))]
        return join_sheet(*shown)

    @torch.no_grad()
    def finished(self) -> dict[str, Tensor]:
        """Return the tensors of the shipped file."""
        if self.codes is not None:
            average = self.codes.encode(self.pictures).mean(0)
        else:
            randomness = self.arithmetic.generator_for(SHOWN_SEED, 1)
            z = torch.randn(SAMPLES_FOR_MEAN, CODE_SIZE, generator=randomness, device=self.arithmetic.device)
            average = self.average.mapping(z).mean(0)
        return pack_generator(self.average, average)


def train_generator(
    data: Path,
    out: Path,
    on_step: OnStep,
    *,
    recipe: str = "regression",
    initial: str | None = None,
    codes: Path | None = None,
    minutes: float = math.inf,
    **changes: Any,
) -> loop.Report:
    """Train the generator and write it, and the codes that an encoder run starts from, to the folder `out`.

    `data` is a folder of aligned faces, and the recipe one of `GENERATOR_RECIPES`. `initial` are weights to start from;
    the recipe `continued` also takes the codes that their run wrote. A run that `minutes` ended is resumed by the same
    call. `changes` are settings other than those of the recipe's file.

    Raises:
        UserError: There is no such recipe, or it needs initial weights and none are given.
    """
    settings = read_generator_settings(recipe, initial, **changes)
    if recipe == "continued" and not initial:
        raise UserError("The recipe continued needs trained weights.", "Add --initial installed, or a file.")
    if codes and recipe != "continued":
        raise UserError("For the generator, --codes belongs to --recipe continued.", "Leave out --codes.")
    photographs, held_out = face_packs.split_photographs(data, settings.size)
    pictures, shown = photographs.pictures, loop.pick_shown(held_out)
    task: GeneratorTask | AdversarialTask
    if isinstance(settings, GeneratorSettings):
        task = GeneratorTask(pictures, settings, shown)
    else:
        task = AdversarialTask(pictures, settings, shown, load_codes(codes) if codes else None)
    if initial:
        fitted = "style." if recipe == "regression" else None  # a regression ends with fitting the mapping network
        label = loop.load_initial(initial, "generator", (task.generator, task.average), "generator.", without=fitted)
        settings = dataclasses.replace(settings, initial=label)
    folder = loop.run_folder(out, "generator", recipe, "regression")
    run = loop.run_task(task, folder, settings, on_step, checkpoint_every=task.checkpoint_every, minutes=minutes)
    file = out / "generator.safetensors"
    weights.save_half(file, task.finished())
    if task.codes is not None:
        save_file({key: value.cpu().contiguous() for key, value in task.codes.state_dict().items()}, out / CODES_FILE)
    shape = {name: getattr(settings, name) for name in ("size", "mapping_layers", "channels")}
    shape["template"] = "embedded"
    return loop.write_report(out / "generator.json", run.losses, run, {"generator": file}, {"generator": shape})


def read_generator_settings(
    recipe: str, initial: str | None = None, **changes: Any
) -> GeneratorSettings | AdversarialSettings:
    """Read the settings of a recipe; adversarial training from installed weights keeps their shape.

    Raises:
        UserError: There is no such recipe or setting.
    """
    file = loop.find_recipe(GENERATOR_RECIPES, recipe, "the generator")
    if recipe == "regression":
        return loop.read_settings(GeneratorSettings, file, **changes)
    if initial == loop.INSTALLED:
        options = weights.find_entry("generator").options
        changes = {name: options[name] for name in ("size", "mapping_layers", "channels")} | changes
    return loop.read_settings(AdversarialSettings, file, **changes)
