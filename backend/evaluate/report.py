"""Reports of a run: CSV, JSON, LaTeX, the plots, and one page that needs nothing else."""

import csv
import gzip
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from backend.errors import UserError
from backend.evaluate import tables
from backend.evaluate.files import HTML, JSON, LATEX, PACKED_PLOT, PLOTS, ROWS
from backend.evaluate.metrics import registry
from backend.evaluate.page import page
from backend.evaluate.plots import Figure
from backend.evaluate.rows import Row
from backend.evaluate.runs import Evaluation
from backend.evaluate.store import Store
from backend.evaluate.tables import Table


def write(evaluation: Evaluation, out: Path, command: str, comparison: Sequence[Table] = ()) -> dict[str, Any]:
    """Write all forms of a report, and return their paths.

    Args:
        evaluation: What the run found.
        out: The run's folder.
        command: The command that made it, as a person would type it.
        comparison: Tables of what differs from another run.

    Returns:
        `json`, `html`, `latex`, `rows`, and `csv`: one path a table, by its name.
    """
    files: dict[str, Any] = {"csv": {}}
    try:
        for folder in ("tables", PLOTS):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for table in (*evaluation.tables, *evaluation.published, *comparison):
            path = out / "tables" / f"{table.name}.csv"
            path.write_text(tables.to_csv(table), encoding="utf-8")
            files["csv"][table.name] = str(path)
        for plot in evaluation.plots:
            (out / PLOTS / f"{plot.name}.png").write_bytes(plot.png)
            (out / PLOTS / f"{plot.name}.svg").write_bytes(plot.svg)
        contents = {
            "json": (JSON, json.dumps(as_json(evaluation, command, comparison), indent=1) + "\n"),
            "html": (HTML, page(evaluation, command, comparison)),
            "latex": (LATEX, "\n".join(tables.to_latex(table) for table in evaluation.tables)),
        }
        for name, (file, text) in contents.items():
            (out / file).write_text(text, encoding="utf-8")
            files[name] = str(out / file)
        files["rows"] = str(_write_rows(out))
    except OSError:
        raise UserError("The report could not be written.", "Choose another folder with --out.") from None
    return files


def as_json(evaluation: Evaluation, command: str, comparison: Sequence[Table] = ()) -> dict[str, Any]:
    """Return a report as plain values, which `load` reads."""
    return {
        "protocol": evaluation.protocol,
        "title": evaluation.title,
        "description": evaluation.description,
        "command": command,
        "about": dict(evaluation.about),
        "sessions": [dict(session) for session in evaluation.sessions],
        "counts": dict(evaluation.counts),
        "seconds": evaluation.seconds,
        "summary": evaluation.summary,
        "finding": evaluation.finding,
        "limits": list(evaluation.limits),
        "skipped": [list(one) for one in evaluation.skipped],
        "tables": [table.to_json() for table in evaluation.tables],
        "published": [table.to_json() for table in evaluation.published],
        "comparison": [table.to_json() for table in comparison],
        "plots": [{"name": plot.name, "title": plot.title, "alt": plot.alt} for plot in evaluation.plots],
        "metrics": _metrics(evaluation.tables),
    }


def load(folder: Path) -> tuple[Evaluation, str]:
    """Return what a report's folder holds, with the command that made it; nothing is computed.

    The plots of a stored result (see `stored.py`) have no PNG.

    Raises:
        UserError: There is no report, or it is damaged.
    """
    try:
        said = json.loads((folder / JSON).read_text(encoding="utf-8"))
        plots = [
            Figure(plot["name"], plot["title"], plot["alt"], *_drawn(folder / PLOTS, plot["name"]))
            for plot in said["plots"]
        ]
        evaluation = Evaluation(
            protocol=said["protocol"],
            title=said["title"],
            description=said["description"],
            about=said["about"],
            sessions=tuple(said["sessions"]),
            tables=tuple(tables.from_json(table) for table in said["tables"]),
            published=tuple(tables.from_json(table) for table in said["published"]),
            plots=tuple(plots),
            limits=tuple(said["limits"]),
            counts=said["counts"],
            skipped=tuple((name, reason) for name, reason in said["skipped"]),
            seconds=said["seconds"],
            summary=said["summary"],
            finding=said.get("finding", ""),
        )
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        raise UserError(f"There is no finished report in {folder.name}.", "Name the folder of a run.") from None
    return evaluation, said["command"]


def load_of(protocol: str, folder: Path) -> Evaluation:
    """Return what a run of a protocol found, to be compared with another.

    Raises:
        UserError: There is no report, or it is of another protocol.
    """
    found, _ = load(folder)
    if found.protocol != protocol:
        raise UserError(f"That is a run of {found.protocol}.", "Name a run of the same protocol after --compare.")
    return found


def compare(one: Evaluation, two: Evaluation) -> list[Table]:
    """Return the tables of what differs between two evaluations of one protocol, the settings first."""
    first, second = _flat(one.about), _flat(two.about)
    rows = [
        (name, str(first.get(name, "")), str(second.get(name, "")))
        for name in sorted({*first, *second})
        if first.get(name) != second.get(name)
    ]
    columns = (
        tables.Column("setting", "Setting"),
        tables.Column("first", "First run"),
        tables.Column("second", "Second run"),
    )
    found = [tables.Table("compare_settings", "Differences: settings, data and models", columns, tuple(rows))]
    return (found if rows else []) + tables.compare(one.tables, two.tables)


def _drawn(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Return SVG and PNG of a plot."""
    packed = folder / f"{name}{PACKED_PLOT}"
    if packed.exists():
        return gzip.decompress(packed.read_bytes()), b""
    return (folder / f"{name}.svg").read_bytes(), (folder / f"{name}.png").read_bytes()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in _flat(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _metrics(shown: Sequence[Table]) -> dict[str, dict[str, Any]]:
    """Return what is to be known of every metric in the tables."""
    names = dict.fromkeys(column.metric for table in shown for column in table.columns if column.metric)
    said = {}
    for name in names:
        facts = asdict(registry.METRICS[name])
        said[name] = {key: facts[key] for key in ("title", "unit", "better", "sentence", "source")}
    return said


def _write_rows(out: Path) -> Path:
    """Write what every item yielded, without arrays, one line a row."""
    store = Store(out)
    path = out / ROWS
    try:
        columns = list(dict.fromkeys(name for row in store.rows() for name in _plain(row)))
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(_plain(row) for row in store.rows())
    finally:
        store.close()
    return path


def _plain(row: Row) -> Row:
    return {name: value for name, value in row.items() if not isinstance(value, (np.ndarray, list, dict))}
