"""The full table: what every detector still says after every attack, and how much the face has changed.

As Tables 1, 2 and 4 of TR-Net (2203.11433). White-box attacks see one detector; all others only judge.
"""

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backend import images, weights
from backend.counterfactual.traces import likeness
from backend.detectors import registry
from backend.detectors.card import THRESHOLD, Detector
from backend.errors import UserError
from backend.progress import Job, Step, within
from backend.runtime import MODEL_LOCK, frozen
from backend.saving import QUALITY, like_photographs
from backend.trace_removal import sets, table_report
from backend.trace_removal.attacks import COMPARED, WHITE_BOX, Attack, named
from backend.trace_removal.sets import PAPER001
from backend.trace_removal.table_report import CLEAN, REAL, Table

SETS = {"plain": "none", "shipped": "shipped"}  # set of detectors to the defence of its training
Detectors = Mapping[str, Mapping[str, Detector]]  # set to name to detector
Measured = dict[str, Any]


@dataclass(frozen=True)
class Faces:
    """Held-out faces.

    Args:
        fakes: uint8 (N, 3, S, S).
        families: Family of each fake.
        real: uint8 (M, 3, S, S), photographs for the accuracy on them; M may be 0.
    """

    fakes: Tensor
    families: tuple[str, ...]
    real: Tensor


@dataclass(frozen=True)
class TableSettings:
    """Settings of a table.

    Args:
        attacks: Names of the attacks.
        white_box: The shipped detector whose gradient white-box attacks use.
        batch: Faces that are attacked together.
        seed: Seed of every attack; each batch has its own, made from it.
    """

    attacks: tuple[str, ...] = COMPARED
    white_box: str = WHITE_BOX
    batch: int = 16
    seed: int = 0


@dataclass(frozen=True)
class _Batch:
    """Faces (n, 3, S, S), uint8, that are attacked (or not) and measured together."""

    name: str
    attack: Attack | None
    index: int
    pictures: Tensor
    message: str


def installed() -> dict[str, dict[str, Detector]]:
    """Load every installed detector of both sets, those of paper 001 first."""
    return {
        kind: {name: registry.load(entry) for name, entry in sets.installed(defence, registry.names()).items()}
        for kind, defence in SETS.items()
    }


def build(
    faces: Faces, out: Path, settings: TableSettings | None = None, detectors: Detectors | None = None
) -> Job[Table]:
    """Attack every fake, ask every detector, and write `table.csv` and `table.json` to the folder `out`.

    Before a detector looks, all are saved as photographs are, or undefended ones would judge the file alone.

    A run that was stopped continues after its last batch, if faces, settings and models are the same.

    Args:
        faces: Held-out faces.
        out: Where the table goes.
        settings: Settings of the table.
        detectors: Set to name to detector; all installed ones by default.

    Raises:
        UserError: The white box is not installed, an attack is unknown, or `out` holds another table.
    """
    settings = settings or TableSettings()
    started = time.perf_counter()
    chosen = [named(name) for name in settings.attacks]
    found = installed() if detectors is None else detectors
    if settings.white_box not in found.get("shipped", {}):
        raise UserError(f"The white box {settings.white_box} is not installed.", "Choose an installed detector.")
    white_box = found["shipped"][settings.white_box]
    usable = [one for one in chosen if one.available()]
    described = _described(settings, usable, faces)
    memory = _Memory(out, _fingerprint(faces, described, found, usable))
    plan = list(_plan(faces, usable, settings.batch))
    with frozen(*(detector for kind in found.values() for detector in kind.values())):
        for number, batch in enumerate(plan):
            if memory.has(batch):
                continue
            seed = settings.seed * 1_000_003 + batch.index
            made = yield from _attacked(batch, white_box, seed, number, len(plan))
            memory.add(batch, _measured(batch, made, found))
            yield Step(number + 1, len(plan), batch.message)
    left_out = {kind: tuple(name for name in _known(found) if name not in found[kind]) for kind in found}
    left_out["attacks"] = tuple(one.name for one in chosen if not one.available())
    rows = table_report.rows(memory.parts, faces.families, {kind: tuple(one) for kind, one in found.items()})
    return table_report.write(rows, left_out, described, out, time.perf_counter() - started)


def _known(found: Detectors) -> list[str]:
    """Return every detector that a full table has: paper 001's, those of the registry, those that were given."""
    given = [name for kind in found.values() for name in kind]
    return list(dict.fromkeys([*PAPER001, *registry.names(), *given]))


def _described(settings: TableSettings, usable: list[Attack], faces: Faces) -> dict[str, Any]:
    """Return the settings of the table and of every attack in it."""
    return dataclasses.asdict(settings) | {
        "threshold": THRESHOLD,
        "saved": f"JPEG {QUALITY}, before a detector looks",
        "fakes": {family: faces.families.count(family) for family in dict.fromkeys(faces.families)},
        "real": len(faces.real),
        "size": list(faces.fakes.shape[-2:]),
        "each": {one.name: dataclasses.asdict(one.applied()) | {"paper": one.paper} for one in usable},
        "torch": torch.__version__,
    }


def _plan(faces: Faces, usable: list[Attack], size: int) -> Iterator[_Batch]:
    """Yield all batches: photographs, untouched fakes, then the fakes once more for every attack."""
    parts: list[tuple[str, Attack | None, Tensor]] = [(REAL, None, faces.real), (CLEAN, None, faces.fakes)]
    parts += [(one.name, one, faces.fakes) for one in usable]
    for name, attack, pictures in parts:
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            message = f"{name}: {start + len(part)} of {len(pictures)} faces"
            yield _Batch(name, attack, start // size, part, message)


def _attacked(batch: _Batch, white_box: Detector, seed: int, number: int, total: int) -> Job[Tensor]:
    """Attack one batch and return uint8 pictures; the attack's steps pass as this job's, so it can be stopped there."""
    if batch.attack is None:
        return batch.pictures
    job = batch.attack.run(batch.pictures.float() / 255, white_box, seed=seed)
    made = yield from within(job, number, total, f"{batch.attack.title}: ")
    return (made.images.clamp(0, 1) * 255).round().byte().cpu()


@torch.no_grad()
def _measured(batch: _Batch, made: Tensor, found: Detectors) -> Measured:
    """Return p_fake by set and detector of saved faces, and PSNR and SSIM of every attacked face before it is saved."""
    pictures, shown = made.float() / 255, like_photographs(made).float() / 255
    measured: Measured = {"p_fake": {}}
    with MODEL_LOCK:
        for kind, detectors in found.items():
            measured["p_fake"][kind] = {
                name: detector.p_fake(shown.to(detector.mean.device)).tolist() for name, detector in detectors.items()
            }
    if batch.attack is not None:
        pairs = zip(batch.pictures.float() / 255, pictures, strict=True)
        alike = [likeness(images.to_array(before), images.to_array(after)) for before, after in pairs]
        measured |= {"psnr": [one["psnr"] for one in alike], "ssim": [one["ssim"] for one in alike]}
    return measured


def _fingerprint(faces: Faces, described: dict[str, Any], found: Detectors, usable: list[Attack]) -> dict[str, str]:
    """Return what makes two tables the same: hashes of the faces, the settings and every model."""
    models = {
        f"{kind} {name}": _digest(detector.state_dict())
        + f" {detector.temperature} {detector.threshold} {detector.card.mirrored}"
        for kind, detectors in found.items()
        for name, detector in detectors.items()
    }
    models |= {one.entry: weights.entry(one.entry).sha256 for one in usable if one.entry is not None}
    pictures = {"fakes": faces.fakes, "real": faces.real}
    return {"settings": json.dumps(described), "faces": _digest(pictures), "families": str(faces.families)} | models


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _Memory:
    """What was measured so far, one file an attack, so that a stopped run can continue."""

    def __init__(self, out: Path, fingerprint: dict[str, str]) -> None:
        self.folder = out / "parts"
        self.parts: dict[str, list[Measured]] = {}
        key = self.folder / "fingerprint.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            before = json.loads(key.read_text(encoding="utf-8")) if key.exists() else fingerprint
            key.write_text(json.dumps(before), encoding="utf-8")
        except OSError:
            raise UserError("The table could not be written.", "Choose another folder with --out.") from None
        if before != fingerprint:
            raise UserError(
                "The folder holds a table of other faces, settings or models.", "Choose another folder with --out."
            )

    def has(self, batch: _Batch) -> bool:
        """Say whether a batch was measured."""
        if batch.name not in self.parts:
            path = self._path(batch.name)
            self.parts[batch.name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return batch.index < len(self.parts[batch.name])

    def add(self, batch: _Batch, measured: Measured) -> None:
        """Keep the next batch; an interrupted write leaves the old file."""
        self.parts[batch.name].append(measured)
        path = self._path(batch.name)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.parts[batch.name]), encoding="utf-8")
        temporary.replace(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.json"
