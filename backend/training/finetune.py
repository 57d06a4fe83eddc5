"""Fine-tune a published e4e encoder on one's own faces (Dong et al. 2024, Artifact-Eraser, section 4.1).

The decoder is frozen. The encoder learns to invert the faces on L2 + 0.8 LPIPS + 0.5 identity, batches of 8 at a rate
of 1e-4. Drawings are pooled to the encoder's 256 pixels before they are compared, as in e4e (Tov et al. 2021).
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backend import alignment, face_packs, faces, images, similarity, weights
from backend.errors import UserError
from backend.face_packs import Photographs
from backend.generators import inversion
from backend.generators.inversion import Inverter, encode_faces
from backend.progress import Job, Step, finish
from backend.runtime import device
from backend.similarity import PerceptualDistance, batch_psnr
from backend.training import loop, losses
from backend.training.encoder import freeze_statistics
from backend.training.loop import OnStep, TrainingTask, draw_faces, join_sheet, shrink_pictures
from backend.training.losses import FaceEmbedding

FINETUNED_FILE = "e4e_finetuned.pt"


@dataclass(frozen=True)
class FinetuneSettings:
    """Settings of a run; `settings/finetune.toml` explains them."""

    steps: int
    batch: int
    rate: float
    l2_weight: float
    lpips_weight: float
    identity_weight: float
    seed: int
    initial: str = ""  # the checkpoint that the run started from


@dataclass(frozen=True)
class FinetuneLosses:
    """The networks for the losses that are available here."""

    perceptual: PerceptualDistance  # LPIPS or its substitute
    embedding: FaceEmbedding | None  # ArcFace, its substitute, or None
    left_out: tuple[str, ...]  # a sentence for each difference from the paper because a network is missing


def find_losses(template: str) -> FinetuneLosses:
    """Return the losses that can be computed on this machine, for faces aligned as `template`."""
    left_out = []
    distance = similarity.best_perceptual_distance()
    missing = similarity.lpips_missing()
    if missing is not None:
        left_out.append(f"LPIPS is replaced by {distance.name}: {similarity.ALEXNET} of torchvision is not here.")
    embedding = losses.find_face_embedding(template)
    if embedding is None:
        left_out.append(f"The identity loss is left out: {losses.IDENTITY_MISSING}")
    elif embedding.name != losses.ARCFACE_NAME:
        left_out.append(f"{losses.ARCFACE_NAME} is replaced by {embedding.name}: it was not fetched.")
    return FinetuneLosses(distance, embedding, tuple(left_out))


class FinetuneTask(TrainingTask):
    """An encoder in fine-tuning on aligned faces, uint8 (N, 3, S, S), S the encoder's input size.

    The inverter's encoder is trained, its generator is frozen, and `held_out` (K, 3, S, S) is only shown.
    """

    def __init__(
        self, pictures: Tensor, settings: FinetuneSettings, held_out: Tensor, inverter: Inverter, losses: FinetuneLosses
    ) -> None:
        self.pictures, self.settings, self.held_out, self.losses = pictures, settings, held_out, losses
        self.inverter = inverter
        inverter.generator.eval().requires_grad_(False)
        self.encoder = inverter.encoder.train().requires_grad_(True)
        # Batches of eight would replace good statistics by noise, and inversion uses running statistics.
        freeze_statistics(self.encoder)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), settings.rate)
        self.modules = {"encoder": self.encoder}
        self.optimizers = {"encoder": self.optimizer}
        self.total = settings.steps

    def step(self, number: int) -> dict[str, float]:
        settings = self.settings
        faces = draw_faces(self.pictures, settings.batch, settings.seed, number).to(device())
        drawn, target = self.reconstruct(faces)
        values = {"l2": F.mse_loss(drawn, target), "lpips": self.losses.perceptual.distance(drawn, target).mean()}
        loss = settings.l2_weight * values["l2"] + settings.lpips_weight * values["lpips"]
        if self.losses.embedding is not None:
            values["identity"] = self.losses.embedding.distance(drawn, target)
            loss = loss + settings.identity_weight * values["identity"]
        loop.update_weights(self.optimizer, loss, max_norm=torch.inf)
        return {name: value.item() for name, value in values.items()}

    def reconstruct(self, faces: Tensor) -> tuple[Tensor, Tensor]:
        """Return drawings of faces (N, 3, S, S) and the faces, in [-1, 1], at the smaller of the two sizes."""
        generator = self.inverter.generator
        codes = encode_faces(self.encoder, generator, self.inverter.latent_average, faces, self.inverter.feedback)
        drawn = generator.synthesize(codes)
        side = min(drawn.shape[-1], faces.shape[-1])
        return shrink_pictures(drawn, side), shrink_pictures(faces, side)

    @torch.no_grad()
    def preview(self) -> Tensor:
        """Return held-out faces above their inversions."""
        faces = (self.held_out.float() / 127.5 - 1).to(device())
        drawn, target = self.reconstruct(faces)
        return join_sheet(target, drawn)

    @torch.no_grad()
    def psnr(self) -> float:
        """Return the mean PSNR in dB of the held-out faces' inversions, at the size at which they are compared."""
        parts = [part.float() / 127.5 - 1 for part in self.held_out.split(self.settings.batch)]
        pairs = [self.reconstruct(part.to(device())) for part in parts]
        return float(torch.cat([batch_psnr(drawn.clamp(-1, 1) / 2, target / 2) for drawn, target in pairs]).mean())

    def checkpoint(self) -> dict[str, object]:
        """Return encoder and decoder in the layout in which e4e publishes them."""
        parts = {"encoder": self.encoder, "decoder": self.inverter.generator}
        states = {
            f"{name}.{key}": value.detach().cpu().contiguous()
            for name, network in parts.items()
            for key, value in network.state_dict().items()
        }
        options = {"stylegan_size": self.inverter.size, "encoder_type": "Encoder4Editing"}
        return {"state_dict": states, "latent_avg": self.inverter.latent_average.cpu().contiguous(), "opts": options}


def finetune_encoder(source: str, data: Path, out: Path, on_step: OnStep, **changes: Any) -> loop.Report:
    """Fine-tune the encoder of a published e4e checkpoint and write it, with its decoder, to the folder `out`.

    `source` is a file, or the name of a model that was fetched, and `data` a folder of photographs, each with a face.
    `changes` are settings other than those of `settings/finetune.toml`.

    Raises:
        UserError: The file is not such a checkpoint, or there are too few faces.
    """
    settings = loop.read_settings(FinetuneSettings, "finetune", **changes)
    inverter = _load_inverter(source)
    photographs = finish(align_folder(data, inverter), on_step)
    held = [face_packs.falls_into_part(name, face_packs.VALIDATION_PART) for name in photographs.names]
    held[-1] = held[-1] or not any(held)  # measuring needs a face
    training, held_out = photographs.partition(held)
    settings = dataclasses.replace(settings, initial=inverter.name)
    losses = find_losses(inverter.template)
    for sentence in losses.left_out:
        on_step(Step(0, settings.steps, sentence))
    task = FinetuneTask(training.pictures, settings, held_out.pictures, inverter, losses)
    before = task.psnr()
    run = loop.run_task(task, out / "finetune-run", settings, on_step, log_every=1)
    file = out / FINETUNED_FILE
    torch.save(task.checkpoint(), file)
    metrics = {"psnr_before": before, "psnr": task.psnr(), "faces": len(photographs), "held_out": len(held_out)}
    report = loop.write_report(out / "finetune.json", metrics, run, {"encoder": file}, {"encoder": {"initial": source}})
    gain = f"from {before:.1f} to {metrics['psnr']:.1f} dB PSNR on {len(held_out)} held-out faces"
    parts = [f"The encoder was fine-tuned for {run.steps} steps on {len(training)} faces: {gain}.", *losses.left_out]
    parts.append(f"Use it with: python -m backend weights fetch ffhq_1024 --from {file}")
    return report | {"left_out": list(losses.left_out), "summary": " ".join(parts)}


def align_folder(data: Path, inverter: Inverter) -> Job[Photographs]:
    """Cut the largest face out of every photograph in a folder, aligned as the generator's faces.

    Raises:
        UserError: There are fewer than two faces.
    """
    size = inverter.encoder.input_size
    names, crops = [], []
    files = sorted(face_packs.read_files(data))
    for number, (name, content) in enumerate(files, 1):
        photo = images.read(content)
        detected_faces = faces.find_faces(photo)
        if detected_faces:
            names.append(name)
            crops.append(alignment.align_face(photo, detected_faces[0], inverter.template, size).crop)
        yield Step(number, len(files), f"Cutting out faces: found in {len(names)} of {number} photographs.")
    if len(names) < 2:
        raise UserError(
            f"Only {len(names)} of {len(files)} photographs has a face.", "Name a folder with at least two faces."
        )
    return Photographs(names, torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).contiguous())


def _load_inverter(source: str) -> Inverter:
    """Return a new inverter, which may be trained, from a file or a fetched model."""
    if source in weights.read_entries():
        return inversion.build_e4e_inverter(weights.load_entry(source), source)
    return inversion.read_e4e_inverter(Path(source))
