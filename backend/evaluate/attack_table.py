"""The attack table: what every detector still says after every attack, and how much the face has changed.

As Tables 1, 2 and 4 of TR-Net (2203.11433). White-box attacks see one detector; all others only judge.
"""

import csv
import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backend import face_packs, images, weights
from backend.attacks import registry
from backend.attacks.registry import COMPARED, TRNET_DETECTORS, WHITE_BOX, Attack, get_attack
from backend.detectors import registry as detectors_registry
from backend.detectors.base import THRESHOLD, Detector
from backend.detectors.registry import EMBEDDED_SIZE
from backend.errors import UserError
from backend.images import JPEG_QUALITY, like_photographs
from backend.progress import Job, Step, within
from backend.runtime import MODEL_LOCK, frozen
from backend.similarity import psnr_and_ssim

NO_ATTACK, REAL_PHOTOGRAPHS, ALL_FAMILIES = "none", "real", "all"

MeanAndDeviation = tuple[float, float]


@dataclass(frozen=True)
class AttackTableRow:
    """One line of the table.

    Args:
        detectors: `plain` or `shipped`.
        attack: Name of the attack; `none` for untouched fakes, `real` for photographs.
        family: Family of the fakes, or `all`.
        count: How many faces.
        accuracy: By detector, the share judged rightly, in [0, 1].
        mean: Mean over those of paper 001's six detectors that are installed; None where none is.
        psnr: Mean PSNR in dB over the faces that changed, and its standard deviation; None without an attack.
        ssim: Mean SSIM and its standard deviation; None without an attack.
        unchanged: Faces that the attack left as they were.
    """

    detectors: str
    attack: str
    family: str
    count: int
    accuracy: dict[str, float]
    mean: float | None
    psnr: MeanAndDeviation | None = None
    ssim: MeanAndDeviation | None = None
    unchanged: int = 0


@dataclass(frozen=True)
class AttackTable:
    """A finished table.

    Args:
        rows: All lines.
        left_out: By set, the detectors that are not installed; under `attacks`, those whose weights are not.
        settings: Settings of the table and of every attack.
        seconds: How long this run took.
        summary: What came out, in plain words.
        files: Where it was written.
    """

    rows: tuple[AttackTableRow, ...]
    left_out: dict[str, tuple[str, ...]]
    settings: dict[str, Any]
    seconds: float
    summary: str
    files: dict[str, str]


def attack_table_rows(
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    families: Sequence[str],
    detectors: Mapping[str, Sequence[str]],
) -> tuple[AttackTableRow, ...]:
    """Return one row for every set of detectors, attack and family; a set without detectors has none.

    Args:
        parts: By attack, the measured batches in order: `p_fake` by set and detector, `psnr`, `ssim`.
        families: Family of each fake.
        detectors: By set, the names of its detectors.
    """
    return tuple(
        row
        for kind, names in detectors.items()
        if names
        for attack, batches in parts.items()
        if batches
        for row in _rows_of_attack(kind, names, attack, batches, np.array(families))
    )


def _rows_of_attack(
    kind: str, names: Sequence[str], attack: str, batches: Sequence[Mapping[str, Any]], families: np.ndarray
) -> Iterator[AttackTableRow]:
    p_fake = {name: np.concatenate([batch["p_fake"][kind][name] for batch in batches]) for name in names}
    count = len(p_fake[names[0]])
    chosen = {ALL_FAMILIES: np.ones(count, bool)}
    if attack != REAL_PHOTOGRAPHS:
        chosen |= {str(family): families == family for family in dict.fromkeys(families.tolist())}
    psnr = ssim = None
    if "psnr" in batches[0]:
        psnr = np.array([np.nan if one is None else one for batch in batches for one in batch["psnr"]])
        ssim = np.concatenate([batch["ssim"] for batch in batches])
    for family, members in chosen.items():
        right = {
            name: (scores < THRESHOLD) if attack == REAL_PHOTOGRAPHS else (scores >= THRESHOLD)
            for name, scores in p_fake.items()
        }
        accuracy = {name: float(hits[members].mean()) for name, hits in right.items()}
        six = [accuracy[name] for name in TRNET_DETECTORS if name in accuracy]
        row = AttackTableRow(kind, attack, family, int(members.sum()), accuracy, float(np.mean(six)) if six else None)
        if psnr is not None and ssim is not None:
            unchanged = int(np.isnan(psnr[members]).sum())
            row = dataclasses.replace(
                row,
                psnr=_mean_and_deviation(psnr[members]),
                ssim=_mean_and_deviation(ssim[members]),
                unchanged=unchanged,
            )
        yield row


def _mean_and_deviation(values: np.ndarray) -> MeanAndDeviation | None:
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std())) if len(values) else None


def write_attack_table(
    lines: tuple[AttackTableRow, ...],
    left_out: dict[str, tuple[str, ...]],
    settings: dict[str, Any],
    out: Path,
    seconds: float,
) -> AttackTable:
    """Write `table.csv` and `table.json` to the folder `out` and return the table."""
    files = {"csv": str(out / "table.csv"), "json": str(out / "table.json")}
    table = AttackTable(lines, left_out, settings, seconds, _summarise_rows(lines, left_out), files)
    said = dataclasses.asdict(table)
    said.pop("files")  # a stored table speaks of no machine
    (out / "table.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    names = list(dict.fromkeys(name for row in lines for name in row.accuracy))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        quality = ("psnr", "psnr_std", "ssim", "ssim_std", "unchanged")
        writer.writerow(["detectors", "attack", "family", "count", *names, "mean_paper001", *quality])
        for row in lines:
            accuracy = [_format_number(row.accuracy.get(name)) for name in names]
            spreads = [_format_number(one) for spread in (row.psnr, row.ssim) for one in (spread or (None, None))]
            means = [_format_number(row.mean), *spreads, str(row.unchanged)]
            writer.writerow([row.detectors, row.attack, row.family, row.count, *accuracy, *means])
    return table


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _summarise_rows(lines: tuple[AttackTableRow, ...], left_out: Mapping[str, Sequence[str]]) -> str:
    sentences = []
    for kind in dict.fromkeys(row.detectors for row in lines):
        whole = [row for row in lines if row.detectors == kind and row.family == ALL_FAMILIES and row.mean is not None]
        told = ", ".join(_row_in_words(row) for row in whole if row.attack != REAL_PHOTOGRAPHS)
        if whole:
            asked = sum(name in whole[0].accuracy for name in TRNET_DETECTORS)
            sentences.append(f"Fakes still detected, mean of {asked} of paper 001's 6 detectors ({kind}): {told}.")
    for kind, names in left_out.items():
        if names:
            sentences.append(f"Left out because they are not installed ({kind}): {', '.join(names)}.")
    return " ".join(sentences)


def _row_in_words(row: AttackTableRow) -> str:
    quality = f" at {row.psnr[0]:.1f} dB" if row.psnr is not None else ""
    return f"{row.attack} {row.mean:.1%}{quality}"


DEFENCE_OF_SET = {"plain": "none", "shipped": "shipped"}  # set of detectors to the defence of its training

DetectorSets = Mapping[str, Mapping[str, Detector]]  # set to name to detector

MeasuredBatch = dict[str, Any]


@dataclass(frozen=True)
class HeldOutFaces:
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
class AttackTableSettings:
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
class _AttackBatch:
    """Faces (n, 3, S, S), uint8, that are attacked (or not) and measured together."""

    name: str
    attack: Attack | None
    index: int
    pictures: Tensor
    message: str


def load_detector_sets() -> dict[str, dict[str, Detector]]:
    """Load every installed detector of both sets, those of paper 001 first."""
    return {
        kind: {
            name: detectors_registry.load(entry)
            for name, entry in registry.installed_with_defence(defence, detectors_registry.names()).items()
        }
        for kind, defence in DEFENCE_OF_SET.items()
    }


def build_attack_table(
    faces: HeldOutFaces, out: Path, settings: AttackTableSettings | None = None, detectors: DetectorSets | None = None
) -> Job[AttackTable]:
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
    settings = settings or AttackTableSettings()
    started = time.perf_counter()
    chosen = [get_attack(name) for name in settings.attacks]
    found = load_detector_sets() if detectors is None else detectors
    if settings.white_box not in found.get("shipped", {}):
        raise UserError(f"The white box {settings.white_box} is not installed.", "Choose an installed detector.")
    white_box = found["shipped"][settings.white_box]
    usable = [one for one in chosen if one.available()]
    described = _describe_settings(settings, usable, faces)
    memory = _PartsStore(out, _table_fingerprint(faces, described, found, usable))
    plan = list(_plan_batches(faces, usable, settings.batch))
    with frozen(*(detector for kind in found.values() for detector in kind.values())):
        for number, batch in enumerate(plan):
            if memory.has(batch):
                continue
            seed = settings.seed * 1_000_003 + batch.index
            made = yield from _attack_batch(batch, white_box, seed, number, len(plan))
            memory.add(batch, _measure_batch(batch, made, found))
            yield Step(number + 1, len(plan), batch.message)
    left_out = {kind: tuple(name for name in _full_detector_list(found) if name not in found[kind]) for kind in found}
    left_out["attacks"] = tuple(one.name for one in chosen if not one.available())
    rows = attack_table_rows(memory.parts, faces.families, {kind: tuple(one) for kind, one in found.items()})
    return write_attack_table(rows, left_out, described, out, time.perf_counter() - started)


def _full_detector_list(found: DetectorSets) -> list[str]:
    """Return every detector that a full table has: paper 001's, those of the registry, those that were given."""
    given = [name for kind in found.values() for name in kind]
    return list(dict.fromkeys([*TRNET_DETECTORS, *detectors_registry.names(), *given]))


def _describe_settings(settings: AttackTableSettings, usable: list[Attack], faces: HeldOutFaces) -> dict[str, Any]:
    """Return the settings of the table and of every attack in it."""
    return dataclasses.asdict(settings) | {
        "threshold": THRESHOLD,
        "saved": f"JPEG {JPEG_QUALITY}, before a detector looks",
        "fakes": {family: faces.families.count(family) for family in dict.fromkeys(faces.families)},
        "real": len(faces.real),
        "size": list(faces.fakes.shape[-2:]),
        "each": {one.name: dataclasses.asdict(one.applied()) | {"paper": one.paper} for one in usable},
        "torch": torch.__version__,
    }


def _plan_batches(faces: HeldOutFaces, usable: list[Attack], size: int) -> Iterator[_AttackBatch]:
    """Yield all batches: photographs, untouched fakes, then the fakes once more for every attack."""
    parts: list[tuple[str, Attack | None, Tensor]] = [
        (REAL_PHOTOGRAPHS, None, faces.real),
        (NO_ATTACK, None, faces.fakes),
    ]
    parts += [(one.name, one, faces.fakes) for one in usable]
    for name, attack, pictures in parts:
        for start in range(0, len(pictures), size):
            part = pictures[start : start + size]
            message = f"{name}: {start + len(part)} of {len(pictures)} faces"
            yield _AttackBatch(name, attack, start // size, part, message)


def _attack_batch(batch: _AttackBatch, white_box: Detector, seed: int, number: int, total: int) -> Job[Tensor]:
    """Attack one batch and return uint8 pictures; the attack's steps pass as this job's, so it can be stopped there."""
    if batch.attack is None:
        return batch.pictures
    job = batch.attack.run(batch.pictures.float() / 255, white_box, seed=seed)
    made = yield from within(job, number, total, f"{batch.attack.title}: ")
    return (made.images.clamp(0, 1) * 255).round().byte().cpu()


@torch.no_grad()
def _measure_batch(batch: _AttackBatch, made: Tensor, found: DetectorSets) -> MeasuredBatch:
    """Return p_fake by set and detector of saved faces, and PSNR and SSIM of every attacked face before it is saved."""
    pictures, shown = made.float() / 255, like_photographs(made).float() / 255
    measured: MeasuredBatch = {"p_fake": {}}
    with MODEL_LOCK:
        for kind, detectors in found.items():
            measured["p_fake"][kind] = {
                name: detector.p_fake(shown.to(detector.mean.device)).tolist() for name, detector in detectors.items()
            }
    if batch.attack is not None:
        pairs = zip(batch.pictures.float() / 255, pictures, strict=True)
        alike = [psnr_and_ssim(images.to_array(before), images.to_array(after)) for before, after in pairs]
        measured |= {"psnr": [one["psnr"] for one in alike], "ssim": [one["ssim"] for one in alike]}
    return measured


def _table_fingerprint(
    faces: HeldOutFaces, described: dict[str, Any], found: DetectorSets, usable: list[Attack]
) -> dict[str, str]:
    """Return what makes two tables the same: hashes of the faces, the settings and every model."""
    models = {
        f"{kind} {name}": _digest_tensors(detector.state_dict())
        + f" {detector.temperature} {detector.threshold} {detector.card.mirrored}"
        for kind, detectors in found.items()
        for name, detector in detectors.items()
    }
    models |= {one.entry: weights.find_entry(one.entry).sha256 for one in usable if one.entry is not None}
    pictures = {"fakes": faces.fakes, "real": faces.real}
    return {
        "settings": json.dumps(described),
        "faces": _digest_tensors(pictures),
        "families": str(faces.families),
    } | models


def _digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


class _PartsStore:
    """What was measured so far, one file an attack, so that a stopped run can continue."""

    def __init__(self, out: Path, fingerprint: dict[str, str]) -> None:
        self.folder = out / "parts"
        self.parts: dict[str, list[MeasuredBatch]] = {}
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

    def has(self, batch: _AttackBatch) -> bool:
        """Say whether a batch was measured."""
        if batch.name not in self.parts:
            path = self._path(batch.name)
            self.parts[batch.name] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
        return batch.index < len(self.parts[batch.name])

    def add(self, batch: _AttackBatch, measured: MeasuredBatch) -> None:
        """Keep the next batch; an interrupted write leaves the old file."""
        self.parts[batch.name].append(measured)
        path = self._path(batch.name)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.parts[batch.name]), encoding="utf-8")
        temporary.replace(path)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name.replace(' ', '_')}.json"


def read_held_out_faces(data: Path, fakes: Path, *, per_family: int | None = None, seed: int = 0) -> HeldOutFaces:
    """Read fakes by family, and as many photographs, all saved as photographs are before anything attacks them.

    Args:
        data: Folder of photographs, or of packs, of which only `real-val` is read.
        fakes: Folder of the fakes builder: one folder a family; where it has a `val`, that one.
        per_family: How many fakes of each family at most, drawn by `seed`; all by default.
        seed: Seed of the draw.

    Raises:
        UserError: One of the folders holds no pictures, or `per_family` is not at least 1.
    """
    if per_family is not None and per_family < 1:
        raise UserError("There is nothing to measure.", "Give --per-family at least 1.")
    folder = fakes / "val" if (fakes / "val").is_dir() else fakes
    made = face_packs.load_photographs(folder, EMBEDDED_SIZE)
    families = [Path(name).parent.name for name in made.names]
    if "" in families:
        raise UserError(f"The fakes in {folder.name} have no family.", "Name a folder with one folder for each family.")
    chosen: list[int] = []
    for family in sorted(set(families)):
        members = [index for index, one in enumerate(families) if one == family]
        chosen += _draw_members(members, per_family, seed)
    photographs = face_packs.load_photographs(data, EMBEDDED_SIZE, "real-val*")
    real = _draw_members(list(range(len(photographs))), len(chosen), seed)
    return HeldOutFaces(
        fakes=like_photographs(made.pictures[torch.tensor(chosen)]),
        families=tuple(families[index] for index in chosen),
        real=like_photographs(photographs.pictures[torch.tensor(real)]),
    )


def _draw_members(members: list[int], count: int | None, seed: int) -> list[int]:
    if count is None or count >= len(members):
        return members
    return sorted(np.random.default_rng(seed).choice(members, count, replace=False).tolist())
