"""Train TR-Net (arXiv 2203.11433): a generator against three discriminators, on pairs of a fake and its photograph.

Also measures removals, and the reference statistics of the views.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import StrictBool
from torch import Tensor, nn
from torch.nn import functional as F

from backend import face_packs, images, runtime, weights
from backend.detectors import registry
from backend.errors import UserError
from backend.progress import finish
from backend.similarity import batch_psnr, build_st_lpips, psnr_and_ssim
from backend.trace_removal import discriminators, references
from backend.trace_removal.discriminators import (
    Discriminator,
    FingerprintDiscriminator,
    Norm,
    SpatialDiscriminator,
    SpatialForm,
    SpectralDiscriminator,
    SpectralForm,
    source_loss,
)
from backend.trace_removal.network import Statistics, TRNet
from backend.trace_removal.removal import TRNET_ENTRY
from backend.training import loop
from backend.training.data import REAL_SOURCE, PairBatch, Pairs, draw_pairs, load_pairs
from backend.training.degradation import compress_batch, degrade_batches, round_batch
from backend.training.loop import Arithmetic, OnStep, PrecisionSetting, update_weights

SPECTRA_FITTED_ON = 256  # real pictures whose spectra standardise the spectral discriminator
RECALIBRATED_ON = 40  # batches from which the averaged weights get their own batch statistics
WARMUP = 100  # steps of the discriminators alone
SHEET_GAIN = 8  # of the differences on a sample sheet
TRNET_RECIPES = {"embedded": "trnet", "paper": "trnet_paper", "code": "trnet_code"}  # to the settings file
MEASURED_PAIRS = 200  # held-out pairs of each kind
MEASURED_BATCH = 32
REFERENCE_PICTURES = 2000  # pictures of each group, as the paper averages
# Settings of the network itself, which the registry entry lists.
NETWORK_OPTIONS = ("width", "statistics", "residual", "bound", "grain", "by_contrast")


@dataclass(frozen=True)
class TRNetTrainingSettings:
    """Settings of one run; `settings/trnet.toml` explains them."""

    size: int
    width: float
    discriminator_width: float
    statistics: Statistics
    residual: StrictBool
    bound: float
    grain: float
    by_contrast: StrictBool
    norm: Norm
    spectral_form: SpectralForm
    spatial_form: SpatialForm
    adversarial: discriminators.AdversarialForm
    similarity: discriminators.SimilarityForm
    perceptual: str
    similarity_every: int
    profile: discriminators.ProfileForm
    weight_adversarial: float
    weight_similarity: float
    weight_profile: float
    weight_source: float
    weight_original: float
    weight_source_real: float
    degraded_share: float
    rounded: StrictBool
    as_jpeg: StrictBool
    penalty: float
    penalty_every: int
    psnr_floor: float
    ssim_floor: float
    weight_floors: float
    identity_steps: int
    pretraining_steps: int
    pretraining_batch: int
    pretraining_lr: float
    discriminator_every: int
    steps: int
    batch: int
    lr_generator: float
    lr_discriminator: float
    decay_share: float
    average_decay: float
    mixing_share: float
    jpeg_share: float
    seed: int
    precision: PrecisionSetting
    initial: str = ""  # weights that the run started from, if any


class TRNetTask(loop.TrainingTask):
    def __init__(self, data: Pairs, settings: TRNetTrainingSettings, held_out: Pairs) -> None:
        """Prepare a run on pairs; `held_out` is only shown."""
        self.data, self.settings, self.held_out = data, settings, held_out
        torch.manual_seed(settings.seed)
        self.arithmetic = Arithmetic.for_device(runtime.device(), precision=settings.precision)
        self.device, self.computes_in = self.arithmetic.device, self.arithmetic.in_words()
        self.network = TRNet(**{name: getattr(settings, name) for name in NETWORK_OPTIONS})
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False).to(self.device)
        width, norm = settings.discriminator_width, settings.norm
        self.spectral = SpectralDiscriminator(width, norm, settings.spectral_form, settings.size)
        self.spectral.fit(loop.thin_pictures(data.real, SPECTRA_FITTED_ON).float() / 255)
        self.fingerprint = FingerprintDiscriminator(1 + len(data.kinds), width, norm)
        self.discriminators: dict[str, Discriminator] = {
            "spatial": SpatialDiscriminator(width, norm, settings.spatial_form),
            "spectral": self.spectral,
            "fingerprint": self.fingerprint,
        }
        for module in (self.network, *self.discriminators.values()):
            module.train().to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.generator_optimizer = torch.optim.RMSprop(self.network.parameters(), settings.lr_generator)
        self.discriminator_optimizer = torch.optim.RMSprop(
            [weight for module in self.discriminators.values() for weight in module.parameters()],
            settings.lr_discriminator,
        )
        self.perceptual = None
        if settings.similarity == "perceptual":
            self.perceptual = build_st_lpips(settings.perceptual).to(self.device)
        # Without steps, weights are only measured again.
        self.pretraining_steps = settings.pretraining_steps if settings.steps else 0
        self.total = self.pretraining_steps + settings.identity_steps + settings.steps
        self.modules = {"network": self.network, "average": self.average, **self.discriminators}
        self.optimizers = {"generator": self.generator_optimizer, "discriminators": self.discriminator_optimizer}

    def step(self, number: int) -> dict[str, float]:
        """Train one step.

        The first steps train the discriminators alone (`pretraining_steps`), the next the generator to copy
        (`identity_steps`), and all others the generator, preceded by the discriminators at one step in
        `discriminator_every`.
        """
        settings = self.settings
        self._set_rates(number)
        if number < self.pretraining_steps:
            return self._pretraining_step(number)
        batch = self._draw(number)
        removal = self.network(batch.fake)
        begun = number - self.pretraining_steps - settings.identity_steps
        if begun < 0:
            values = {"identity": F.l1_loss(removal, batch.fake)}
            total = values["identity"]
        else:
            turn, wait = divmod(begun, settings.discriminator_every)
            values = {} if wait else self._train_discriminators(batch, removal.detach(), number, turn)
            losses = self._generator_losses(batch, removal, number)
            values |= losses
            total = sum((self._weight(name) * value for name, value in losses.items()), torch.zeros(()))
        update_weights(self.generator_optimizer, total)
        loop.update_average(self.average, self.network, settings.average_decay, number)
        psnr = float(batch_psnr(removal.detach().clamp(0, 1), batch.fake).mean())
        return {name: value.item() for name, value in values.items()} | {"psnr": psnr}

    def _pretraining_step(self, number: int) -> dict[str, float]:
        """Train the discriminators alone, on photographs and fakes."""
        batch = self._draw(number, self.settings.pretraining_batch)
        real, fake = self._degrade([batch.real, batch.fake], 2 * number)
        logits_by_name, source_logits = self._judge(torch.cat([real, fake]))
        values = {"source": source_loss(source_logits, self._sources(batch))}
        total = self.settings.weight_source * values["source"]
        for name, logits in logits_by_name.items():
            values[f"original_{name}"] = discriminators.discriminator_loss(self.settings.adversarial, *logits.chunk(2))
            total = total + values[f"original_{name}"]
        update_weights(self.discriminator_optimizer, total)
        return {name: value.item() for name, value in values.items()}

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out fakes above their removals and the amplified difference."""
        fake = loop.thin_pictures(self.held_out.fake, loop.SHEET_FACES).float().to(self.device) / 255
        removal = self.average(fake).clamp(0, 1)
        return loop.join_sheet(fake * 2 - 1, removal * 2 - 1, ((removal - fake) * 2 * SHEET_GAIN).clamp(-1, 1))

    @torch.no_grad()
    def finished(self) -> TRNet:
        """Return the averaged generator, with its own batch statistics."""
        norms = [module for module in self.average.modules() if isinstance(module, nn.BatchNorm2d)]
        if self.settings.statistics == "batch":
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain mean over all batches
            self.average.train()
            for number in range(RECALIBRATED_ON):
                self.average(self._draw(self.total + number).fake)
        return self.average.eval()

    def _draw(self, number: int, count: int | None = None) -> PairBatch:
        settings = self.settings
        count = count or settings.batch
        drawn = draw_pairs(self.data, count, seed=settings.seed, step=number, jpeg_share=settings.jpeg_share)
        layout = torch.channels_last
        real, fake = (pictures.to(self.device, memory_format=layout) for pictures in (drawn.real, drawn.fake))
        return PairBatch(real, fake, drawn.sources.to(self.device))

    def _train_discriminators(self, batch: PairBatch, removal: Tensor, number: int, turn: int) -> dict[str, Tensor]:
        settings = self.settings
        real, fake, removal = self._degrade([batch.real, batch.fake, removal], 2 * number)
        pictures = torch.cat([real, removal, fake])
        for_score = pictures if settings.weight_original else torch.cat([real, removal])
        logits_by_name, source_logits = self._judge(for_score, pictures)
        # The source head learns from pictures of the data set, not from the generator's.
        of_real, _, of_fake = source_logits.chunk(3)
        values = {"source": source_loss(torch.cat([of_real, of_fake]), self._sources(batch))}
        total = settings.weight_source * values["source"]
        form = settings.adversarial
        for name, logits in logits_by_name.items():
            real_logits, removal_logits, *fake_logits = logits.split(len(real))
            values[f"d_{name}"] = discriminators.discriminator_loss(form, real_logits, removal_logits)
            total = total + values[f"d_{name}"]
            if settings.weight_original:
                values[f"original_{name}"] = discriminators.discriminator_loss(form, real_logits, fake_logits[0])
                total = total + settings.weight_original * values[f"original_{name}"]
        if settings.penalty and turn % settings.penalty_every == 0:
            places = torch.from_numpy(np.random.default_rng([settings.seed, turn, 1]).random(len(real), np.float32))
            slopes = []
            for module in self.discriminators.values():
                on_real, on_fake = (module.inputs(pictures).detach() for pictures in (real, fake))
                slopes.append(
                    discriminators.gradient_penalty(module.backbone, on_real, on_fake, places.to(self.device))
                )
            values["penalty"] = torch.stack(slopes).sum()
            total = total + settings.penalty * settings.penalty_every * values["penalty"]
        update_weights(self.discriminator_optimizer, total)
        return values

    def _degrade(self, pictures: list[Tensor], number: int) -> list[Tensor]:
        """Return batches as the discriminators see them: saved, and at some steps degraded, all in the same way.

        Every `number` may be used only once in a run, because the random choices depend on it.
        """
        if self.settings.as_jpeg:
            pictures = [compress_batch(batch, images.JPEG_QUALITY) for batch in pictures]
        elif self.settings.rounded:
            pictures = [round_batch(batch) for batch in pictures]
        randomness = loop.step_generator(self.settings.seed, number)
        if float(torch.rand((), generator=randomness)) >= self.settings.degraded_share:
            return pictures
        return degrade_batches(pictures, randomness)

    def _judge(self, pictures: Tensor, for_source: Tensor | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return each discriminator's log-odds of real (N,), and logits of the sources (N, sources), in float32.

        The fingerprint discriminator sees the pictures `for_source` if they are given.
        """
        shown = {"fingerprint": pictures if for_source is None else for_source}
        # In float32, because rounded filters would not sum to zero and their maps would show the brightness.
        inputs = {name: module.inputs(shown.get(name, pictures)) for name, module in self.discriminators.items()}
        with self.arithmetic.autocast():
            logits, source_logits = {}, torch.empty(0)
            for name, module in self.discriminators.items():
                if isinstance(module, FingerprintDiscriminator):
                    logits[name], source_logits = module.judge(inputs[name])
                else:
                    logits[name] = module.backbone(inputs[name])
        return {name: values.float() for name, values in logits.items()}, source_logits.float()

    @staticmethod
    def _sources(batch: PairBatch) -> Tensor:
        """Return the sources of the photographs and fakes of a batch (2 N,)."""
        return torch.cat([torch.full_like(batch.sources, REAL_SOURCE), batch.sources])

    def _weight(self, name: str) -> float:
        settings = self.settings
        weights = {
            "similarity": settings.weight_similarity * settings.similarity_every,
            "profile": settings.weight_profile,
            "floors": settings.weight_floors,
            "source_real": settings.weight_source_real,
        }
        return weights.get(name, settings.weight_adversarial)

    def _generator_losses(self, batch: PairBatch, removal: Tensor, number: int) -> dict[str, Tensor]:
        settings, fake = self.settings, batch.fake
        (degraded,) = self._degrade([removal], 2 * number + 1)
        logits_by_name, source_logits = self._judge(degraded)
        values = {
            f"g_{name}": discriminators.generator_loss(settings.adversarial, logits)
            for name, logits in logits_by_name.items()
        }
        if settings.weight_source_real:
            values["source_real"] = source_loss(source_logits, torch.full_like(batch.sources, REAL_SOURCE))
        if number % settings.similarity_every == 0:
            if self.perceptual is None:
                values["similarity"] = discriminators.ssim_similarity(fake, removal)
            else:
                values["similarity"] = discriminators.perceptual_similarity(self.perceptual, fake, removal)
        values["profile"] = discriminators.profile_loss(settings.profile, batch.real, removal)
        values["floors"] = discriminators.likeness_floor_loss(fake, removal, settings.psnr_floor, settings.ssim_floor)
        return values

    def _set_rates(self, number: int) -> None:
        share = self.settings.decay_share  # of the steps after the pretraining
        left = (self.total - number) / max(1, self.total - self.pretraining_steps)
        factor = 0.1 ** (1 - left / share) if left < share else 1.0
        loop.set_rate(self.generator_optimizer, self.settings.lr_generator * factor)
        rate = self.settings.lr_discriminator * factor
        if number < self.pretraining_steps:  # a half cosine down to the rate of the later steps
            fall = 0.5 * (1 + math.cos(math.pi * number / self.pretraining_steps))
            rise = min(1.0, (number + 1) / WARMUP)  # the first steps of RMSprop are ten times as long as later ones
            rate += (self.settings.pretraining_lr * rise - rate) * fall
        loop.set_rate(self.discriminator_optimizer, rate)


def train_trnet(
    data: Path,
    folders: Sequence[Path],
    out: Path,
    on_step: OnStep,
    *,
    recipe: str = "embedded",
    initial: str | None = None,
    **changes: Any,
) -> loop.Report:
    """Train TR-Net on pairs, measure it on held-out pairs, and write `out` (a .safetensors file).

    No detector takes part. `folders` hold fakes of the photographs in `data`, in `train/` and `val/`. The run's folder
    and the report lie beside `out`. The recipe is one of `TRNET_RECIPES`, and `changes` are settings that differ from
    its file. With `initial` weights, the discriminators still start from random weights.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    settings = read_trnet_settings(recipe, **changes)
    training, held_out = _read_pairs(data, folders, settings.size)
    task = TRNetTask(training, settings, held_out)
    if initial:
        label = loop.load_initial(initial, TRNET_ENTRY, (task.network, task.average))
        settings = dataclasses.replace(settings, initial=label)
    elif settings.mixing_share < 1:
        raise UserError("mixing_share mixes weights with those that a run starts from.", "Name them with --initial.")
    before = copy.deepcopy(task.average).cpu().state_dict()
    folder = out.parent / f"{TRNET_ENTRY}-run"
    run = loop.run_task(task, folder, settings, on_step, checkpoint_every=200)
    losses = folder / "losses.csv"  # none if weights are only measured again
    curves = {"curves": str(loop.draw_curves(losses, folder / "curves.png"))} if losses.exists() else {}
    mixes = settings.mixing_share < 1  # also batch statistics, which are then not measured again
    network = task.average.eval() if mixes else task.finished()
    network = network.to("cpu", memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    half = weights.rounded_to_half(_mix_states(network.state_dict(), before, settings.mixing_share))
    network.load_state_dict(half)
    weights.save_half(out, half)
    options = {name: getattr(settings, name) for name in NETWORK_OPTIONS}
    options["settings"] = {key: value for key, value in asdict(settings).items() if key not in NETWORK_OPTIONS}
    metrics = measure_removals(network, held_out)
    report = loop.write_report(
        out.with_suffix(".json"), metrics, run, {TRNET_ENTRY: out}, {TRNET_ENTRY: options | {"measured": metrics}}
    )
    return report | curves


def _mix_states(after: Mapping[str, Tensor], before: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Interpolate weights and batch statistics before and after a run (Wortsman et al., arXiv 2109.01903)."""
    return {
        name: before[name].lerp(value, share) if value.is_floating_point() else value for name, value in after.items()
    }


def read_trnet_settings(recipe: str, **changes: Any) -> TRNetTrainingSettings:
    """Read the settings of a recipe.

    Raises:
        UserError: There is no such recipe, or a setting has no such name.
    """
    return loop.read_settings(TRNetTrainingSettings, loop.find_recipe(TRNET_RECIPES, recipe, "TR-Net"), **changes)


@torch.no_grad()
def measure_removals(network: TRNet, held_out: Pairs) -> dict[str, dict[str, float]]:
    """Measure 8-bit removals of held-out fakes, by kind.

    Returns:
        By kind: `psnr` in dB and `ssim` of removal and fake (mean), their deviations, `count`, and how far the
        power spectrum of fake and removal is from the photograph's (mean squared difference of natural logarithms).
    """
    metrics = {}
    for kind in held_out.kinds:
        pairs = held_out.of_kind(kind)
        if not len(pairs):
            continue
        similarities, before, after = [], [], []
        stride = max(1, len(pairs) // MEASURED_PAIRS)
        parts = ((pictures[::stride].float() / 255).split(MEASURED_BATCH) for pictures in (pairs.real, pairs.fake))
        for real, fake in zip(*parts, strict=True):
            removal = (network.remove(fake) * 255).round() / 255
            similarities += [
                psnr_and_ssim(images.to_array(original), images.to_array(removed))
                for original, removed in zip(fake, removal, strict=True)
            ]
            before.append(float(discriminators.profile_loss("log", real, fake)))
            after.append(float(discriminators.profile_loss("log", real, removal)))
        # An unchanged picture has no PSNR.
        psnr = np.array([row["psnr"] for row in similarities if row["psnr"] is not None])
        ssim = np.array([row["ssim"] for row in similarities])
        metrics[kind] = {
            "psnr": round(float(psnr.mean()), 2),
            "psnr_std": round(float(psnr.std()), 2),
            "ssim": round(float(ssim.mean()), 4),
            "ssim_std": round(float(ssim.std()), 4),
            "spectrum_before": round(float(np.mean(before)), 3),
            "spectrum_after": round(float(np.mean(after)), 3),
            "count": len(similarities),
        }
    return metrics


def measure_references(
    data: Path, folders: Sequence[Path], out: Path, on_step: OnStep, *, attention_count: int = 200
) -> loop.Report:
    """Average the traces of photographs and of every kind of fake, and write `out` (a .safetensors file).

    Of every folder of fakes, those in `train/` are measured. Attention is averaged over `attention_count` pictures of
    each group. The report lies beside `out`.
    """
    photographs, _ = face_packs.split_photographs(data, registry.EMBEDDED_SIZE)
    groups: dict[str, list[Tensor]] = {references.REAL: [photographs.pictures]}
    for folder in folders:
        fakes = face_packs.load_photographs(folder / "train", registry.EMBEDDED_SIZE)
        kinds = np.array([name.split("/")[0] for name in fakes.names])
        for kind in dict.fromkeys(kinds.tolist()):
            groups.setdefault(kind, []).append(fakes.pictures[torch.from_numpy(kinds == kind)])
    pictures = {group: loop.thin_pictures(torch.cat(parts), REFERENCE_PICTURES) for group, parts in groups.items()}
    detectors = [name for name in registry.loadable() if registry.card(name).cam_layer]
    started = time.perf_counter()
    result = finish(references.build_references(pictures, detectors, attention_count=attention_count), on_step)
    weights.save_half(out, result.tensors())
    settings = {"pictures": result.count, "attention": attention_count}
    run = loop.TrainingRun(0, time.perf_counter() - started, {}, settings)
    files, options = {references.REFERENCES_ENTRY: out}, {references.REFERENCES_ENTRY: result.options()}
    return loop.write_report(out.with_suffix(".json"), {"bytes": out.stat().st_size}, run, files, options)


def _read_pairs(data: Path, folders: Sequence[Path], size: int) -> tuple[Pairs, Pairs]:
    photographs, held_out = face_packs.split_photographs(data, size)
    training = load_pairs(photographs, [folder / "train" for folder in folders])
    return training, load_pairs(held_out, [folder / "val" for folder in folders], kinds=training.kinds)
