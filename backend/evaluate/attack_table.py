"""The attack table: every detector's accuracy after every attack, and how much the face has changed.

As Tables 1, 2 and 4 of TR-Net (2203.11433). White-box attacks see one detector; all others only judge. It is the preset
`attack-table` of the trace-removal protocol; this module prepares the faces and writes `table.csv` and `table.json`.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from backend import face_packs
from backend.attacks.registry import TRNET_DETECTORS, get_attack
from backend.detectors.base import THRESHOLD
from backend.errors import UserError
from backend.evaluate import report, runs, store
from backend.evaluate.dataset import FACE_SIZE, Dataset, Sample, read_dataset
from backend.evaluate.protocols.base import Protocol
from backend.evaluate.protocols.trace_removal import NO_ATTACK, TraceRemovalConfig, draw_by_family, missing_detectors
from backend.evaluate.store import Row
from backend.images import JPEG_QUALITY
from backend.progress import Job

REAL_PHOTOGRAPHS, ALL_FAMILIES = "real", "all"  # the attack in rows of photographs; the family in rows over all fakes
SET_OF_DEFENCE = {"none": "plain", "shipped": "shipped"}  # set of detectors, as files name it, by defence in training
MEASURED_COLUMNS = ["kind", "defence", "detector", "label", "family", "attack", "p_fake", "psnr", "ssim"]
TableRow = dict[str, Any]


def collect_faces(data: Path, fakes: Path, workspace: Path, *, per_family: int | None = None, seed: int = 0) -> Dataset:
    """Copy the drawn faces to a folder with real/ and fake/FAMILY/ below `workspace`, and return it as a data set.

    Args:
        data: Folder of photographs, or of packs, of which only `real-val` is read.
        fakes: Folder of the fakes builder, with one folder for each family; its folder `val` if there is one.
        workspace: Where the copies go; other faces get another folder.
        per_family: The most fakes of each family; all by default.
        seed: Decides which fakes are drawn.

    Raises:
        UserError: A folder holds no pictures, a fake has no family, or the faces cannot be copied.
    """
    folder = fakes / "val" if (fakes / "val").is_dir() else fakes
    files: dict[str, bytes] = {}
    samples = []
    for name, content in face_packs.read_files(folder):
        family = Path(name).parent.name
        if not family:
            raise UserError(f"The fakes in {folder.name} have no family.", "Put each family into its own folder.")
        samples.append(Sample(f"fake/{family}/{name.removeprefix(f'{family}/')}", "fake", family))
        files[samples[-1].name] = content
    for name, content in face_packs.read_files(data, face_packs.VALIDATION_PACKS):
        samples.append(Sample(f"real/{name}", "real"))
        files[samples[-1].name] = content
    drawn = {name: files[name] for name in draw_by_family(samples, per_family, seed)}
    return read_dataset(_write_once(drawn, workspace), f"{data.name} and {fakes.name}")


def _write_once(files: Mapping[str, bytes], workspace: Path) -> Path:
    """Write files to a folder named after their hash, unless it exists, and return it."""
    digest = hashlib.sha256()
    for name, content in files.items():
        digest.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    folder = workspace / digest.hexdigest()[:16]
    if folder.exists():
        return folder
    unfinished = folder.with_suffix(".part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        for name, content in files.items():
            path = unfinished / name
            if ".." in path.parts:
                raise UserError(f"The file name {name} leaves its folder.", "Rename the file.")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        unfinished.rename(folder)
    except OSError:
        raise UserError("The faces could not be copied.", "Choose another folder with --out.") from None
    return folder


def build_attack_table(protocol: Protocol, data: Dataset, out: Path, command: str) -> Job[dict[str, Any]]:
    """Run or resume the protocol, write its report and table to the run's folder `out`, and return the table.

    The report names `command` as the one that made it.

    Raises:
        UserError: `out` holds another run, or some faces could not be measured.
    """
    evaluation = yield from runs.run_protocol(protocol, data, out, resume=True)
    if evaluation.skipped:
        name, reason = evaluation.skipped[0]
        raise UserError(f"{len(evaluation.skipped)} batches could not be measured.", f"The first, {name}: {reason}")
    report.write_report(evaluation, out, command)
    return write_attack_table(store.read_rows(out), protocol.config, data, out, evaluation.seconds)


def attack_table_rows(rows: Iterable[Row], config: TraceRemovalConfig) -> list[TableRow]:
    """Return one row for every set of detectors, attack and family; a set without detectors has none.

    Returns:
        `detectors` (`plain` or `shipped`), `attack` (`none` for untouched fakes, `real` for photographs), `family`
        (or `all`), `count` of faces, `accuracy` by detector in [0, 1], its `mean` over the installed ones of TR-Net's
        six detectors, mean and standard deviation of `psnr` in dB and of `ssim` (None without an attack), and how many
        faces the attack left `unchanged`, which have no PSNR.
    """
    import pandas as pd

    frame = pd.DataFrame(list(rows)).reindex(columns=MEASURED_COLUMNS)
    is_fake = frame["label"] == "fake"
    frame["attack"] = frame["attack"].where(is_fake, REAL_PHOTOGRAPHS)
    frame["correct"] = (frame["p_fake"] >= THRESHOLD) == is_fake
    frame = pd.concat([frame.assign(family=ALL_FAMILIES), frame[is_fake]])
    verdicts = frame[frame["kind"] == "verdict"]
    pictures = dict(iter(frame[frame["kind"] == "picture"].groupby(["attack", "family"])))
    order = {name: place for place, name in enumerate((REAL_PHOTOGRAPHS, NO_ATTACK, *config.attacks))}
    table = []
    for defence in config.defences:
        judged = verdicts[verdicts["defence"] == defence]
        detectors = list(dict.fromkeys(judged["detector"]))
        groups = judged.groupby(["attack", "family", "detector"])["correct"].mean().unstack("detector")
        for attack, family in sorted(groups.index, key=lambda key: (order[key[0]], key[1] != ALL_FAMILIES, key[1])):
            shares = groups.loc[attack, family]
            accuracy = {name: float(shares[name]) for name in detectors}
            six = [accuracy[name] for name in TRNET_DETECTORS if name in accuracy]
            faces = pictures[attack, family]
            attacked = attack not in (REAL_PHOTOGRAPHS, NO_ATTACK)
            table.append(
                {
                    "detectors": SET_OF_DEFENCE.get(defence, defence),
                    "attack": attack,
                    "family": family,
                    "count": len(faces),
                    "accuracy": accuracy,
                    "mean": sum(six) / len(six) if six else None,
                    "psnr": _mean_and_deviation(faces["psnr"]),
                    "ssim": _mean_and_deviation(faces["ssim"]),
                    "unchanged": int(faces["psnr"].isna().sum()) if attacked else 0,
                }
            )
    return table


def _mean_and_deviation(values: Any) -> list[float] | None:
    values = values.dropna().astype(float)
    return [float(values.mean()), float(values.std(ddof=0))] if len(values) else None


def write_attack_table(
    rows: Iterable[Row], config: TraceRemovalConfig, data: Dataset, out: Path, seconds: float
) -> dict[str, Any]:
    """Write `table.csv` and `table.json` to the folder `out`; return the content of the latter and both paths."""
    import pandas as pd

    table_rows, left_out = attack_table_rows(rows, config), _left_out(config)
    files = {"csv": str(out / "table.csv"), "json": str(out / "table.json")}
    table = {
        "rows": table_rows,
        "left_out": left_out,
        "settings": _describe_settings(config, data),
        "seconds": seconds,
        "summary": _summarise_rows(table_rows, left_out),
    }
    names = dict.fromkeys(name for row in table_rows for name in row["accuracy"])
    lines = [_csv_line(row, names) for row in table_rows]
    try:
        (out / "table.json").write_text(json.dumps(table, indent=1), encoding="utf-8")  # names no path of this machine
        pd.DataFrame(lines).to_csv(files["csv"], index=False, float_format="%.4f", lineterminator="\r\n")
    except OSError:
        raise UserError("The table could not be written.", "Choose another folder with --out.") from None
    return table | {"files": files}


def _csv_line(row: TableRow, detectors: Iterable[str]) -> dict[str, Any]:
    line = {name: row[name] for name in ("detectors", "attack", "family", "count")}
    line |= {name: row["accuracy"].get(name) for name in detectors}
    line["mean_paper001"] = row["mean"]
    for measure in ("psnr", "ssim"):
        line[measure], line[f"{measure}_std"] = row[measure] or (None, None)
    return line | {"unchanged": row["unchanged"]}


def _left_out(config: TraceRemovalConfig) -> dict[str, list[str]]:
    """Return, by set, the detectors that are not installed, and under `attacks` the attacks without weights."""
    sets = {SET_OF_DEFENCE.get(name, name): missing_detectors(name, config.detectors) for name in config.defences}
    return sets | {"attacks": [name for name in config.attacks if not get_attack(name).available()]}


def _describe_settings(config: TraceRemovalConfig, data: Dataset) -> dict[str, Any]:
    attacks = [attack for attack in map(get_attack, config.attacks) if attack.available()]
    return {
        **{name: getattr(config, name) for name in ("attacks", "white_box", "batch", "seed")},
        "threshold": THRESHOLD,
        "saved": f"JPEG {JPEG_QUALITY}, before a detector looks",
        "fakes": dict(sorted(Counter(sample.family for sample in data.fakes).items())),
        "real": len(data.reals),
        "size": [FACE_SIZE, FACE_SIZE],
        "each": {
            attack.name: dataclasses.asdict(attack.final_settings()) | {"paper": attack.paper} for attack in attacks
        },
        "torch": torch.__version__,
    }


def _summarise_rows(rows: Sequence[TableRow], left_out: Mapping[str, Sequence[str]]) -> str:
    sentences = []
    for detectors in dict.fromkeys(row["detectors"] for row in rows):
        group = (detectors, ALL_FAMILIES)
        shown = [row for row in rows if (row["detectors"], row["family"]) == group and row["mean"] is not None]
        if shown:
            count = sum(name in shown[0]["accuracy"] for name in TRNET_DETECTORS)
            means = ", ".join(_row_in_words(row) for row in shown if row["attack"] != REAL_PHOTOGRAPHS)
            sentences.append(
                f"Fakes still detected, mean of {count} of paper 001's 6 detectors ({detectors}): {means}."
            )
    for kind, names in left_out.items():
        if names:
            sentences.append(f"Left out because they are not installed ({kind}): {', '.join(names)}.")
    return " ".join(sentences)


def _row_in_words(row: TableRow) -> str:
    quality = f" at {row['psnr'][0]:.1f} dB" if row["psnr"] is not None else ""
    return f"{row['attack']} {row['mean']:.1%}{quality}"
