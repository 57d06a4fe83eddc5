"""Train the embedded e4e encoder against a frozen generator (Tov et al. 2021, section 4), or both together.

First the base code alone is learned by regression: the generator was trained on known codes
(`generator.PrincipalCodes`), so most of the work needs no generator. Then base code and offsets are trained through
the frozen generator on L1 + L2 + a perceptual distance, with small offsets and, if their weights are not 0, an identity
loss and a latent discriminator.

In joint training, inversions must resemble their photographs. With a discriminator they must also pass as photographs.
If it judges samples too, the latent discriminator keeps the encoder's codes where samples come from, and the mapping
network stays fixed. If not, some faces of every batch are drawn from their base code alone, as samples are at first,
and the mapping network is then fitted to the base codes. A larger encoder starts from a smaller one and gives the same
codes at first (Net2Net, Chen et al. 2016).
"""

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import StrictBool
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, faces, runtime, weights
from backend.errors import UserError
from backend.face_packs import Photographs
from backend.generators import inversion
from backend.generators.e4e import (
    CODE_SIZE,
    HAAR_BANDS,
    E4EEncoder,
    LinearPath,
    StyleHead,
    accumulate_feedback,
    shrink_picture,
)
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import StyleGAN2
from backend.similarity import batch_psnr, batch_ssim
from backend.training import generator, loop, losses
from backend.training.gan import ADAM_EPSILON, DiscriminatorSettings, DiscriminatorTrainer, LatentDiscriminator
from backend.training.generator import PrincipalCodes, fit_mapping
from backend.training.loop import (
    Arithmetic,
    OnStep,
    PrecisionSetting,
    Schedule,
    Stage,
    TrainingTask,
    draw_faces,
    join_sheet,
    shrink_pictures,
    update_weights,
)
from backend.training.losses import PerceptualLoss, picture_losses, random_squares, sharpen_pictures

STEM_WEIGHT, RGB_CHANNELS = "input_layer.0.weight", 3
TEMPLATE = "embedded"  # how the faces are aligned
ENCODER_BLOCK = 256  # photographs at a time
# Recipe, by how the generator was or is trained, to settings file.
ENCODER_RECIPES = {"regression": "encoder", "adversarial": "encoder_adversarial"}
JOINT_RECIPES = {"adversarial": "joint", "regression": "joint_regression"}


def grow_encoder(given: Mapping[str, Tensor], network: E4EEncoder) -> dict[str, Tensor]:
    """Return the weights `given`, of a network with fewer early channels or without detail, enlarged for `network`.

    New weights keep their values in `network`. No old layer reads them yet, so the codes stay the same, and the new
    part can learn.
    """
    given = dict(given)
    if network.detail and given[STEM_WEIGHT].shape[1] == RGB_CHANNELS:
        given[STEM_WEIGHT] = _widen_stem(given[STEM_WEIGHT])
    return {key: _widen_weight(given[key], new) if key in given else new for key, new in network.state_dict().items()}


def _widen_stem(weight: Tensor) -> Tensor:
    """Return the stem's weights for the Haar bands of face and residual, of which it read only the sum of the means."""
    details = weight.new_zeros(len(weight), (HAAR_BANDS - 1) * RGB_CHANNELS, *weight.shape[2:])
    return torch.cat([weight, details, weight, details], dim=1)


def _widen_weight(old: Tensor, new: Tensor) -> Tensor:
    """Return `new` with `old` in its first entries, and zeros where old outputs would read new inputs."""
    if old.shape == new.shape:
        return old
    result = new.clone()
    if old.ndim > 1:
        result[: len(old)] = 0
    result[tuple(slice(side) for side in old.shape)] = old.to(new.dtype)
    return result


@dataclass(frozen=True)
class EncoderSettings:
    """Settings of a run; `settings/encoder.toml` explains them."""

    input_size: int
    width: float
    linear: int
    early: list[int]
    detail: StrictBool
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
    precision: PrecisionSetting
    seed: int
    initial: str = ""  # weights that the run started from, if any


class EncoderTask(TrainingTask):
    """An encoder in training on uint8 pictures (N, 3, S, S); `held_out` (K, 3, S, S) is only shown.

    The generator of `size` pixels is frozen, and None while only codes are learned. `codes` are those that it was
    trained on; None skips the regression. The encoder's codes are relative to `latent_average` (512,).

    Raises:
        UserError: There is no network for the identity loss of these settings.
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
        self.arithmetic = Arithmetic.for_device(runtime.device(), precision=settings.precision)
        self.computes_in = self.arithmetic.in_words()
        device = self.arithmetic.device
        self.pictures, self.held_out = pictures.to(device), held_out.to(device)
        self.latent_average = latent_average.to(device)
        self.generator = None if generator is None else generator.to(device)
        self.codes = None if codes is None else codes.to(device)
        torch.manual_seed(settings.seed)
        self.encoder = E4EEncoder(size, **{name: getattr(settings, name) for name in inversion.ENCODER_OPTIONS})
        self.encoder.initialize()
        self._zero_heads(list(self.encoder.styles)[1:])
        self.encoder.to(device)
        self.average = copy.deepcopy(self.encoder).eval().requires_grad_(False)
        if self.codes is not None and settings.linear:
            self.fit_linear_path(self.codes)
        self.encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), 1e-3, (0.9, 0.99), fused=True)
        self.perceptual: PerceptualLoss | None = None
        if settings.perceptual_weight:
            self.perceptual = PerceptualLoss(settings.perceptual_share, settings.enlarged_share, self.arithmetic)
        self.embedding = losses.find_face_embedding(TEMPLATE) if settings.identity_weight else None
        if settings.identity_weight and self.embedding is None:
            raise UserError(
                f"There is no network for the identity loss: {losses.IDENTITY_MISSING}", "Or: --set identity_weight=0."
            )
        self.latent: LatentDiscriminator | None = None
        self.code_steps = settings.code_steps if codes is not None else 0
        self.schedule = Schedule(settings.stages, settings.decay_share)
        self.total = self.code_steps + (0 if generator is None else self.schedule.total)
        self.modules = {"encoder": self.encoder, "average": self.average}
        self.optimizers = {"encoder": self.optimizer}
        if settings.latent_weight and generator is not None:
            self.latent = LatentDiscriminator(generator.rows, CODE_SIZE, settings.latent_rate, device)
            self.modules |= self.latent.modules
            self.optimizers |= self.latent.optimizers

    @torch.no_grad()
    def fit_linear_path(self, codes: PrincipalCodes) -> None:
        """Fit the linear path to codes of the photographs; the heads of encoder and average start at zero."""
        assert self.encoder.linear is not None
        codes = codes.to(self.arithmetic.device)
        inputs, offsets = [], []
        for part in self.pictures.split(ENCODER_BLOCK):
            faces = torch.cat([part, part.flip(3)]).float() / 127.5 - 1
            inputs.append(shrink_picture(self.encoder.means(shrink_pictures(faces, self.settings.input_size))))
            offsets.append(codes(faces) - self.latent_average)
        for encoder in (self.encoder, self.average):
            cast(LinearPath, encoder.linear).fit(torch.cat(inputs), torch.cat(offsets))
            self._zero_heads(encoder.styles)

    @staticmethod
    def _zero_heads(heads: Iterable[nn.Module]) -> None:
        for head in heads:
            linear = cast(StyleHead, head).linear
            for tensor in (linear.weight, linear.bias):
                nn.init.zeros_(tensor)

    def stage(self, number: int) -> Stage:
        """Return what a step does; resolution 0 means that only codes are learned."""
        if number >= self.code_steps:
            return self.schedule.at(number - self.code_steps)
        rate = self.settings.code_rate * 0.1 ** max(0.0, (number / self.code_steps - 0.6) / 0.4)
        return Stage(0, self.settings.code_batch, rate)

    def step(self, number: int) -> dict[str, float | Tensor]:
        settings, stage = self.settings, self.stage(number)
        if number >= settings.statistics_steps:  # statistics of small batches would make inversions inexact
            freeze_statistics(self.encoder)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        if stage.resolution == 0:
            with self.arithmetic.autocast():
                base = self.encoder.base(shrink_pictures(faces, settings.input_size))
            loss = self._code_loss(base.float(), faces)
            losses = {"code": loss}
        else:
            codes = self.encode(faces)
            randomness = self.arithmetic.generator_for(settings.seed, number)
            _, losses, loss = self.inversion(codes, faces, stage.resolution, randomness)
            if self.latent is not None:
                losses["latent"] = self.train_latent(codes, number)
        update_weights(self.optimizer, loss, stage.rate)
        loop.update_average(self.average, self.encoder, settings.average_decay, number)
        return {"resolution": float(stage.resolution)} | {name: value.detach() for name, value in losses.items()}

    def encode(self, faces: Tensor, *, once: int = 0) -> Tensor:
        """Return codes (N, rows, 512) of faces (N, 3, S, S), before the average.

        With `feedback`, all faces but the last `once` are encoded several times; only the last pass has gradients.
        """
        inputs = shrink_pictures(faces, self.settings.input_size)
        repeated = len(faces) - once
        lacking = torch.zeros_like(inputs)
        if repeated:
            lacking[:repeated] = accumulate_feedback(
                lambda lacking: self._encode_once(inputs[:repeated], lacking),
                lambda codes: self.draw(codes + self.latent_average),
                inputs[:repeated],
                self.settings.feedback,
            )
        return self._encode_once(inputs, lacking)

    def _encode_once(self, faces: Tensor, lacking: Tensor) -> Tensor:
        layout = torch.channels_last  # as the weights are
        with self.arithmetic.autocast():
            codes: Tensor = self.encoder(*(part.contiguous(memory_format=layout) for part in (faces, lacking)))
        return codes.float()

    def draw(self, codes: Tensor, resolution: int | None = None) -> Tensor:
        """Return the drawings of W+ codes (N, rows, 512) by the generator in training."""
        assert self.generator is not None
        start = self.generator.prefix(codes, 0, dtype=self.arithmetic.dtype)
        return self.generator.resume(start, codes, resolution=resolution)

    def train_latent(self, codes: Tensor, number: int) -> Tensor:
        """Train the latent discriminator on these codes, before the average, and on as many of the mapping network."""
        assert self.generator is not None
        assert self.latent is not None
        seed, device = self.settings.seed, self.arithmetic.device
        z = torch.randn(len(codes), CODE_SIZE, generator=self.arithmetic.generator_for(seed, number), device=device)
        with torch.no_grad():
            real = self.generator.mapping(z)
        return self.latent.train(real, codes + self.latent_average, number, seed)

    def _code_loss(self, base: Tensor, faces: Tensor) -> Tensor:
        assert self.codes is not None
        return F.mse_loss(base, self.codes(faces) - self.latent_average)

    def inversion(
        self, codes: Tensor, faces: Tensor, resolution: int, randomness: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Return the drawings of codes (N, rows, 512) of faces (N, 3, S, S), every loss, and their weighted sum."""
        settings = self.settings
        codes_in_w = codes + self.latent_average
        drawn = self.draw(codes_in_w, resolution)
        target = shrink_pictures(faces, resolution)
        if settings.sharpened:
            target = sharpen_pictures(target, settings.sharpened).clamp(-1, 1)
        losses = picture_losses(drawn, target)
        weights = dict.fromkeys(losses, settings.pixel_weight) | {"delta": settings.delta_weight}
        losses["delta"] = (codes[:, 1:] - codes[:, :1]).square().mean()
        if self.perceptual is not None:
            losses["perceptual"] = self.perceptual(drawn, target, randomness)
            weights["perceptual"] = settings.perceptual_weight
        if settings.ssim_weight:
            losses["ssim"] = 1 - batch_ssim(drawn / 2 + 0.5, target / 2 + 0.5).mean()
            weights["ssim"] = settings.ssim_weight
        if self.codes is not None:
            losses["code"], weights["code"] = self._code_loss(codes[:, 0], faces), settings.code_weight
        if self.embedding is not None:
            losses["identity"] = self.embedding.distance(drawn, target)
            weights["identity"] = settings.identity_weight
        if self.latent is not None:
            losses["latent_generator_loss"] = self.latent.encoder_loss(codes_in_w)
            weights["latent_generator_loss"] = settings.latent_weight
        return drawn, losses, cast(Tensor, sum(weights[name] * value for name, value in losses.items()))

    def average_codes(self, faces: Tensor, generator: StyleGAN2) -> Tensor:
        """Return the W+ codes (N, rows, 512) of faces from the averaged encoder, with its feedback."""
        inputs = shrink_pictures(faces, self.settings.input_size)
        return inversion.encode_faces(self.average, generator, self.latent_average, inputs, self.settings.feedback)

    @torch.no_grad()
    def preview(self) -> Tensor | None:
        """Return held-out faces, their inversions, and the drawings of their base codes, below each other."""
        if self.generator is None:
            return None
        faces = self.held_out.float() / 127.5 - 1
        codes = self.average_codes(faces, self.generator)
        base = codes[:, :1].expand_as(codes)
        return join_sheet(faces, self.generator.synthesize(codes), self.generator.synthesize(base))


def freeze_statistics(network: nn.Module) -> None:
    """Let batch norm use its running statistics while everything else trains."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()


@dataclass(frozen=True, kw_only=True)
class JointSettings(EncoderSettings, DiscriminatorSettings):
    """Settings of a run; `settings/joint.toml` explains them."""

    generator_rate: float
    adversarial_weight: float
    judged_side: int
    samples_judged: StrictBool
    base_share: float


class JointTask(EncoderTask):
    """Encoder and generator in training; arguments as for `EncoderTask`, with a generator."""

    settings: JointSettings
    generator: StyleGAN2

    def __init__(
        self, pictures: Tensor, settings: JointSettings, held_out: Tensor, *, generator: StyleGAN2, **more: Any
    ) -> None:
        if settings.judged_side.bit_count() != 1:
            raise UserError("The side that the discriminator sees must be a power of two.", "Try judged_side=64.")
        super().__init__(pictures, settings, held_out, generator=generator, codes=None, **more)
        freeze_statistics(self.encoder)
        self.generator_average = copy.deepcopy(self.generator)
        drawing = [weight for name, weight in self.generator.named_parameters() if not name.startswith("style.")]
        for weight in drawing:
            weight.requires_grad_()
        momentum = 0.0 if settings.adversarial_weight else 0.9
        self.generator_optimizer = torch.optim.Adam(
            drawing, settings.generator_rate, (momentum, 0.99), ADAM_EPSILON, fused=True
        )
        self.modules |= {"generator": self.generator, "generator_average": self.generator_average}
        self.optimizers["generator"] = self.generator_optimizer
        self.discriminator_trainer: DiscriminatorTrainer | None = None
        if settings.adversarial_weight:
            self.discriminator_trainer = DiscriminatorTrainer(settings.judged_side, settings, self.arithmetic)
            self.modules |= self.discriminator_trainer.modules
            self.optimizers |= self.discriminator_trainer.optimizers

    def step(self, number: int) -> dict[str, float | Tensor]:
        settings, stage = self.settings, self.stage(number)
        randomness = self.arithmetic.generator_for(settings.seed, number)
        faces = draw_faces(self.pictures, stage.batch, settings.seed, number)
        codes = self.drop_offsets(self.encode(faces, once=self.count_without_offsets(len(faces))))
        drawn, losses, loss = self.inversion(codes, faces, stage.resolution, randomness)
        if self.discriminator_trainer is not None:
            if settings.samples_judged:
                drawn = torch.cat([drawn, self.samples(stage.batch, stage.resolution, randomness)])
            drawn = self.crop_for_discriminator(drawn, randomness)
            losses["generator_loss"] = self.discriminator_trainer.generator_loss(drawn, randomness)
            loss = loss + settings.adversarial_weight * losses["generator_loss"]
        self.generator_optimizer.zero_grad(set_to_none=True)
        update_weights(self.optimizer, loss, stage.rate)
        loop.set_rate(self.generator_optimizer, settings.generator_rate * self.schedule.decay(number))
        self.generator_optimizer.step()
        if self.latent is not None:
            losses["latent"] = self.train_latent(codes, number)
        values = {name: value.detach() for name, value in losses.items()}
        if self.discriminator_trainer is not None:
            real = self.crop_for_discriminator(shrink_pictures(faces, stage.resolution), randomness)
            values |= self.discriminator_trainer.train(real, drawn, number, randomness)
        loop.update_average(self.average, self.encoder, settings.average_decay)
        loop.update_average(self.generator_average, self.generator, settings.average_decay)
        return {"resolution": float(stage.resolution)} | values

    def crop_for_discriminator(self, pictures: Tensor, randomness: torch.Generator) -> Tensor:
        """Return the part of pictures (N, 3, S, S) that the discriminator sees: a random square, or all of it."""
        return random_squares(pictures, min(self.settings.judged_side, pictures.shape[-1]), randomness)

    def drop_offsets(self, codes: Tensor) -> Tensor:
        """Return codes (N, rows, 512) without offsets for the last `base_share` of the faces."""
        kept = len(codes) - self.count_without_offsets(len(codes))
        return torch.cat([codes[:kept], codes[kept:, :1].expand(-1, codes.shape[1], -1)])

    def count_without_offsets(self, count: int) -> int:
        """Return how many of `count` faces are drawn from their base code alone."""
        return round(self.settings.base_share * count)

    def samples(self, count: int, resolution: int, randomness: torch.Generator) -> Tensor:
        """Return drawings (count, 3, resolution, resolution) of random z."""
        z = torch.randn(count, CODE_SIZE, generator=randomness, device=self.arithmetic.device)
        with torch.no_grad():
            codes = self.generator.mapping(z)[:, None].expand(-1, self.generator.rows, -1)
        return self.draw(codes, resolution)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces, their inversions, and samples, below each other."""
        faces = self.held_out.float() / 127.5 - 1
        codes = self.average_codes(faces, self.generator_average)
        generator, device = self.generator_average, self.arithmetic.device
        z = torch.randn(len(faces), CODE_SIZE, generator=self.arithmetic.generator_for(0, 0), device=device)
        samples = generator.mapping(z)[:, None].expand_as(codes)
        return join_sheet(faces, generator.synthesize(codes), generator.synthesize(samples))

    def finished(self) -> dict[str, Tensor]:
        """Return the generator's tensors; where no samples were judged, its mapping is fitted to base codes first."""
        if self.discriminator_trainer is None or not self.settings.samples_judged:
            side = self.settings.input_size
            with torch.no_grad():
                parts = (part.float() / 127.5 - 1 for part in self.pictures.split(ENCODER_BLOCK))
                base = torch.cat([self.average.base(shrink_pictures(part, side)) for part in parts])
            fit_mapping(self.generator_average.cpu(), (base + self.latent_average).cpu(), seed=self.settings.seed)
        return {f"generator.{key}": value.cpu() for key, value in self.generator_average.state_dict().items()}


def train_encoder(
    data: Path,
    out: Path,
    on_step: OnStep,
    *,
    codes: Path | None,
    recipe: str = "regression",
    initial: str | None = None,
    minutes: float = math.inf,
    **changes: Any,
) -> loop.Report:
    """Train the encoder against the generator in `weights/` and write it to the folder `out`.

    `codes` is the file that the generator's run wrote; without it, training uses pictures alone. The other arguments
    are those of `generator.train_generator`.
    """
    settings = loop.read_settings(EncoderSettings, loop.find_recipe(ENCODER_RECIPES, recipe, "the encoder"), **changes)
    photographs, held_out, tensors, drawing = _read_inputs(data)
    task = EncoderTask(
        photographs.pictures,
        settings,
        loop.pick_shown(held_out),
        codes=generator.load_codes(codes) if codes else None,
        **drawing,
    )
    if initial:
        if initial == loop.INSTALLED:
            _check_feedback(settings)
        label = loop.load_initial(initial, "encoder", (task.encoder, task.average), adapt=grow_encoder)
        settings = dataclasses.replace(settings, initial=label)
    folder = loop.run_folder(out, "encoder", recipe, "regression")
    run = loop.run_task(task, folder, settings, on_step, minutes=minutes)
    return _write_encoder(out, "encoder", run, task, settings, tensors, held_out)


def train_joint(
    data: Path,
    out: Path,
    on_step: OnStep,
    *,
    codes: Path | None = None,
    recipe: str = "adversarial",
    minutes: float = math.inf,
    **changes: Any,
) -> loop.Report:
    """Fine-tune the encoder and the generator in `weights/` together and write both to the folder `out`.

    A linear path that the installed encoder lacks is fitted to `codes`, the file that the generator's run wrote. The
    other arguments are those of `generator.train_generator`; a recipe is one of `JOINT_RECIPES`.

    Raises:
        UserError: A linear path must be fitted, and no codes are given.
    """
    file = loop.find_recipe(JOINT_RECIPES, recipe, "joint training")
    settings = loop.read_settings(JointSettings, file, **changes)
    photographs, held_out, tensors, drawing = _read_inputs(data)
    _check_feedback(settings)
    task = JointTask(photographs.pictures, settings, loop.pick_shown(held_out), **drawing)
    installed = weights.find_entry("encoder").options.get("linear", 0)
    missing = "linear." if settings.linear and not installed else None
    if missing and not codes:
        raise UserError("The installed encoder has no linear path yet.", "Add --codes, or --set linear=0.")
    label = loop.load_initial(
        loop.INSTALLED, "encoder", (task.encoder, task.average), without=missing, adapt=grow_encoder
    )
    if missing and codes:
        task.fit_linear_path(generator.load_codes(codes))
    settings = dataclasses.replace(settings, initial=label)
    folder = loop.run_folder(out, "joint", recipe, "adversarial")
    run = loop.run_task(task, folder, settings, on_step, minutes=minutes)
    return _write_encoder(out, "joint", run, task, settings, tensors | task.finished(), held_out)


def _check_feedback(settings: EncoderSettings) -> None:
    """Refuse fewer passes than the installed encoder was trained with; its weights would not show the mistake."""
    installed = weights.find_entry("encoder").options.get("feedback", [])
    if len(settings.feedback) < len(installed):
        raise UserError(
            f"The installed encoder looks at a face {len(installed) + 1} times.", f"Add --set feedback={installed}."
        )


def _read_inputs(data: Path) -> tuple[Photographs, Photographs, dict[str, Tensor], dict[str, Any]]:
    """Return photographs, held-out ones, the tensors of the installed generator, and a task's arguments for it."""
    options, tensors = weights.find_entry("generator").options, weights.load_entry("generator")
    drawing = {
        "generator": inversion.build_generator(tensors, options),
        "latent_average": tensors["latent_average"][0],
        "size": options["size"],
    }
    return *face_packs.split_photographs(data, options["size"]), tensors, drawing


def _write_encoder(
    out: Path,
    name: str,
    run: loop.TrainingRun,
    task: EncoderTask,
    settings: EncoderSettings,
    tensors: dict[str, Tensor],
    held_out: Photographs,
) -> loop.Report:
    """Write the encoder, for a joint run also the generator, and the report NAME.json with measurements."""
    options = weights.find_entry("generator").options
    encoded = {key: value.cpu() for key, value in task.average.state_dict().items()}
    files = {"encoder": out / "encoder.safetensors"}
    shape = {name: getattr(settings, name) for name in (*inversion.ENCODER_OPTIONS, "feedback")}
    shapes: dict[str, Any] = {"encoder": shape}
    weights.save_half(files["encoder"], encoded)
    if name == "joint":
        files["generator"], shapes["generator"] = out / "generator.safetensors", {}
        weights.save_half(files["generator"], tensors)
    inverter = inversion.build_embedded_inverter(tensors, encoded, options, shapes["encoder"], "generator")
    metrics = measure_inversion(inverter, held_out.pictures)
    return loop.write_report(out / f"{name}.json", metrics, run, files, shapes)


@torch.no_grad()
def reconstruct_pictures(inverter: Inverter, pictures: Tensor, batch: int = 32) -> Tensor:
    """Return uint8 (N, 3, S, S) inversions of uint8 pictures."""
    device = inverter.latent_average.device
    parts = (part.to(device).float() / 255 for part in pictures.split(batch))
    return (torch.cat([inverter.synthesize(inverter.invert(part)).cpu() for part in parts]) * 255).round().byte()


def measure_inversion(inverter: Inverter, pictures: Tensor) -> dict[str, float]:
    """Measure the inversion of uint8 pictures: mean PSNR in dB and the share in which a face is found."""
    drawn = reconstruct_pictures(inverter, pictures)
    psnr = batch_psnr(drawn.float() / 255, pictures.float() / 255)
    has_face = [bool(faces.find_faces(picture.permute(1, 2, 0).numpy())) for picture in drawn]
    return {"psnr": float(psnr.mean()), "count": float(len(pictures)), "faces_found": float(np.mean(has_face))}
