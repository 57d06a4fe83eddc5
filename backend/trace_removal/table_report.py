"""Turn what was measured for the full table into rows, and write them as CSV and JSON."""

import csv
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from backend.detectors.card import THRESHOLD
from backend.trace_removal.sets import PAPER001

CLEAN, REAL, ALL = "none", "real", "all"
Spread = tuple[float, float]


@dataclass(frozen=True)
class Row:
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
    psnr: Spread | None = None
    ssim: Spread | None = None
    unchanged: int = 0


@dataclass(frozen=True)
class Table:
    """A finished table.

    Args:
        rows: All lines.
        left_out: By set, the detectors that are not installed; under `attacks`, those whose weights are not.
        settings: Settings of the table and of every attack.
        seconds: How long this run took.
        summary: What came out, in plain words.
        files: Where it was written.
    """

    rows: tuple[Row, ...]
    left_out: dict[str, tuple[str, ...]]
    settings: dict[str, Any]
    seconds: float
    summary: str
    files: dict[str, str]


def rows(
    parts: Mapping[str, Sequence[Mapping[str, Any]]],
    families: Sequence[str],
    detectors: Mapping[str, Sequence[str]],
) -> tuple[Row, ...]:
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
        for row in _of(kind, names, attack, batches, np.array(families))
    )


def _of(
    kind: str, names: Sequence[str], attack: str, batches: Sequence[Mapping[str, Any]], families: np.ndarray
) -> Iterator[Row]:
    p_fake = {name: np.concatenate([batch["p_fake"][kind][name] for batch in batches]) for name in names}
    count = len(p_fake[names[0]])
    chosen = {ALL: np.ones(count, bool)}
    if attack != REAL:
        chosen |= {str(family): families == family for family in dict.fromkeys(families.tolist())}
    psnr = ssim = None
    if "psnr" in batches[0]:
        psnr = np.array([np.nan if one is None else one for batch in batches for one in batch["psnr"]])
        ssim = np.concatenate([batch["ssim"] for batch in batches])
    for family, members in chosen.items():
        right = {
            name: (scores < THRESHOLD) if attack == REAL else (scores >= THRESHOLD) for name, scores in p_fake.items()
        }
        accuracy = {name: float(hits[members].mean()) for name, hits in right.items()}
        six = [accuracy[name] for name in PAPER001 if name in accuracy]
        row = Row(kind, attack, family, int(members.sum()), accuracy, float(np.mean(six)) if six else None)
        if psnr is not None and ssim is not None:
            unchanged = int(np.isnan(psnr[members]).sum())
            row = dataclasses.replace(
                row, psnr=_spread(psnr[members]), ssim=_spread(ssim[members]), unchanged=unchanged
            )
        yield row


def _spread(values: np.ndarray) -> Spread | None:
    values = values[~np.isnan(values)]
    return (float(values.mean()), float(values.std())) if len(values) else None


def write(
    lines: tuple[Row, ...], left_out: dict[str, tuple[str, ...]], settings: dict[str, Any], out: Path, seconds: float
) -> Table:
    """Write `table.csv` and `table.json` to the folder `out` and return the table."""
    files = {"csv": str(out / "table.csv"), "json": str(out / "table.json")}
    table = Table(lines, left_out, settings, seconds, _summary(lines, left_out), files)
    said = dataclasses.asdict(table)
    said.pop("files")  # a stored table speaks of no machine
    (out / "table.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    names = list(dict.fromkeys(name for row in lines for name in row.accuracy))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        quality = ("psnr", "psnr_std", "ssim", "ssim_std", "unchanged")
        writer.writerow(["detectors", "attack", "family", "count", *names, "mean_paper001", *quality])
        for row in lines:
            accuracy = [_text(row.accuracy.get(name)) for name in names]
            spreads = [_text(one) for spread in (row.psnr, row.ssim) for one in (spread or (None, None))]
            means = [_text(row.mean), *spreads, str(row.unchanged)]
            writer.writerow([row.detectors, row.attack, row.family, row.count, *accuracy, *means])
    return table


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _summary(lines: tuple[Row, ...], left_out: Mapping[str, Sequence[str]]) -> str:
    sentences = []
    for kind in dict.fromkeys(row.detectors for row in lines):
        whole = [row for row in lines if row.detectors == kind and row.family == ALL and row.mean is not None]
        told = ", ".join(_told(row) for row in whole if row.attack != REAL)
        if whole:
            asked = sum(name in whole[0].accuracy for name in PAPER001)
            sentences.append(f"Fakes still detected, mean of {asked} of paper 001's 6 detectors ({kind}): {told}.")
    for kind, names in left_out.items():
        if names:
            sentences.append(f"Left out because they are not installed ({kind}): {', '.join(names)}.")
    return " ".join(sentences)


def _told(row: Row) -> str:
    quality = f" at {row.psnr[0]:.1f} dB" if row.psnr is not None else ""
    return f"{row.attack} {row.mean:.1%}{quality}"
