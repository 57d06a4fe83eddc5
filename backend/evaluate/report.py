"""Reports of a run: CSV, JSON, LaTeX, plots, one self-contained page, and the form that ships with the app.

A stored result, `results/NAME/`, is a run without its database: `report.json`, plots as compressed SVG, and rows as
compressed CSV. `python -m backend evaluate all --data DIR --out results` writes them all.
"""

import csv
import gzip
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment

from backend import weights
from backend.errors import UserError
from backend.evaluate import tables
from backend.evaluate.dataset import FEW_PICTURES
from backend.evaluate.metrics.base import METRICS, Estimate
from backend.evaluate.plots import Figure
from backend.evaluate.runs import Evaluation
from backend.evaluate.store import Row, read_rows
from backend.evaluate.tables import Table
from backend.markup import template_environment
from backend.settings import SETTINGS

JSON_FILE, HTML_FILE, LATEX_FILE, ROWS_FILE = "report.json", "report.html", "tables.tex", "rows.csv"
PLOTS_FOLDER = "plots"  # one SVG and one PNG a plot
PACKED_PLOT, PACKED_ROWS = ".svg.gz", f"{ROWS_FILE}.gz"  # in a stored result
RESULTS_FOLDER = SETTINGS.weights_dir.parent / "results"
STORED_COMMAND = "python -m backend evaluate all --preset quick --data DIR --out results"
LONG_TABLE = 24  # rows; longer tables are folded
LISTED_SKIPPED = 50  # skipped pictures that the page names; the JSON names all
DIRECTIONS = {"higher": "Higher is better", "lower": "Lower is better", "neither": "Depends on the row"}
_DECIMAL = re.compile(r"-?\d+\.\d+(e[+-]?\d+)?")


@dataclass(frozen=True)
class StoredResult:
    """A stored result as lists show it."""

    name: str  # of its folder and of the protocol
    title: str  # of the protocol
    finding: str  # one sentence
    basis: str  # how many pictures it was measured on, and whether they are too few, one sentence


def report_page(evaluation: Evaluation, command: str, comparison: Sequence[Table] = ()) -> str:
    """Return the report as a self-contained HTML page; arguments as for `report_article`."""
    return _render("report.html", evaluation, command, comparison, folded=False)


def report_article(
    evaluation: Evaluation, command: str, comparison: Sequence[Table] = (), *, folded: bool = False
) -> str:
    """Return what the page shows below its title, as HTML.

    Args:
        evaluation: The results of the run.
        command: The command that made it.
        comparison: Tables of the differences from another run.
        folded: Fold what few readers need; in print it would be missing.
    """
    return _render("article.html", evaluation, command, comparison, folded=folded)


def write_report(evaluation: Evaluation, out: Path, command: str, comparison: Sequence[Table] = ()) -> dict[str, Any]:
    """Write all forms of a report to the run's folder; arguments as for `report_article`.

    Returns:
        The paths `json`, `html`, `latex`, `rows`, and under `csv` one path for each table, by its name.
    """
    files: dict[str, Any] = {"csv": {}}
    try:
        for folder in ("tables", PLOTS_FOLDER):
            (out / folder).mkdir(parents=True, exist_ok=True)
        for table in (*evaluation.tables, *evaluation.published, *comparison):
            path = out / "tables" / f"{table.name}.csv"
            path.write_text(tables.table_to_csv(table), encoding="utf-8")
            files["csv"][table.name] = str(path)
        for plot in evaluation.plots:
            (out / PLOTS_FOLDER / f"{plot.name}.png").write_bytes(plot.png)
            (out / PLOTS_FOLDER / f"{plot.name}.svg").write_bytes(plot.svg)
        contents = {
            "json": (JSON_FILE, json.dumps(report_json(evaluation, command, comparison), indent=1) + "\n"),
            "html": (HTML_FILE, report_page(evaluation, command, comparison)),
            "latex": (LATEX_FILE, "\n".join(tables.table_to_latex(table) for table in evaluation.tables)),
        }
        for form, (name, text) in contents.items():
            (out / name).write_text(text, encoding="utf-8")
            files[form] = str(out / name)
        files["rows"] = str(_write_rows(out))
    except OSError:
        raise UserError("The report could not be written.", "Choose another folder with --out.") from None
    return files


def report_json(evaluation: Evaluation, command: str, comparison: Sequence[Table] = ()) -> dict[str, Any]:
    """Return a report as plain values, for `load_report`."""
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
        "skipped": [list(name_and_reason) for name_and_reason in evaluation.skipped],
        "tables": [table.to_json() for table in evaluation.tables],
        "published": [table.to_json() for table in evaluation.published],
        "comparison": [table.to_json() for table in comparison],
        "plots": [{"name": plot.name, "title": plot.title, "alt": plot.alt} for plot in evaluation.plots],
        "metrics": {
            name: {key: getattr(METRICS[name], key) for key in ("title", "unit", "better", "sentence", "source")}
            for name in _metric_names(evaluation.tables)
        },
    }


def load_report(folder: Path) -> tuple[Evaluation, str]:
    """Return the results in a report's folder and the command that made them; stored results have no PNG plots.

    Raises:
        UserError: There is no report, or it is damaged.
    """
    try:
        stored = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        values = {field.name: stored[field.name] for field in fields(Evaluation) if field.name in stored}
        values |= {name: tuple(stored[name]) for name in ("sessions", "limits")}
        values |= {name: tuple(map(tables.table_from_json, stored[name])) for name in ("tables", "published")}
        values["skipped"] = tuple((name, reason) for name, reason in stored["skipped"])
        values["plots"] = tuple(
            Figure(plot["name"], plot["title"], plot["alt"], *_read_plot(folder / PLOTS_FOLDER, plot["name"]))
            for plot in stored["plots"]
        )
        return Evaluation(**values), stored["command"]
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        raise UserError(f"There is no finished report in {folder.name}.", "Name the folder of a run.") from None


def load_report_of(protocol: str, folder: Path) -> Evaluation:
    """Return the results of a run of this protocol, for a comparison.

    Raises:
        UserError: There is no report, or it is of another protocol.
    """
    evaluation, _ = load_report(folder)
    if evaluation.protocol != protocol:
        raise UserError(f"That is a run of {evaluation.protocol}.", "Name a run of the same protocol after --compare.")
    return evaluation


def compare_reports(first: Evaluation, second: Evaluation) -> list[Table]:
    """Return tables of the differences between two runs of one protocol, the settings first."""
    facts = [_flat_values(evaluation.about) for evaluation in (first, second)]
    rows = tuple(
        (name, *(str(values.get(name, "")) for values in facts))
        for name in sorted({*facts[0], *facts[1]})
        if facts[0].get(name) != facts[1].get(name)
    )
    titles = (("setting", "Setting"), ("first", "First run"), ("second", "Second run"))
    columns = tuple(tables.Column(*names) for names in titles)
    settings = tables.Table("compare_settings", "Differences: settings, data and models", columns, rows)
    return ([settings] if rows else []) + tables.compare_tables(first.tables, second.tables)


def keep_result(run: Path, out: Path) -> Path:
    """Write the stored form of a finished run to `out`, in place of an earlier one, and return that folder."""
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / PLOTS_FOLDER).mkdir(parents=True)
    report = json.loads((run / JSON_FILE).read_text(encoding="utf-8"))
    (unfinished / JSON_FILE).write_text(json.dumps(report, separators=(",", ":")) + "\n", encoding="utf-8")
    for plot in report["plots"]:
        svg = (run / PLOTS_FOLDER / f"{plot['name']}.svg").read_bytes()
        (unfinished / PLOTS_FOLDER / f"{plot['name']}{PACKED_PLOT}").write_bytes(_packed_bytes(svg))
    (unfinished / PACKED_ROWS).write_bytes(_packed_bytes(_shortened_csv(run / ROWS_FILE)))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    return out


def stored_results(folder: Path | None = None) -> list[StoredResult]:
    """Return the stored results of a folder, by default those of the app."""
    results = []
    for path in sorted((folder or RESULTS_FOLDER).glob(f"[!.]*/{JSON_FILE}")):
        report = json.loads(path.read_text(encoding="utf-8"))
        finding = report["finding"] or report["summary"]
        results.append(StoredResult(path.parent.name, report["title"], finding, _basis(report["about"]["data"])))
    return results


def changed_weights(evaluation: Evaluation) -> list[str]:
    """Return the models whose files have changed since a result was computed."""
    return weights.changed_models(evaluation.about["weights"])


@cache
def _templates() -> Environment:
    environment = template_environment("backend.evaluate")
    environment.filters |= {"cell_text": tables.cell_text, "fact_text": _fact_text}
    environment.tests["estimate"] = lambda cell: isinstance(cell, Estimate) and cell.value is not None
    return environment


def _render(template: str, evaluation: Evaluation, command: str, comparison: Sequence[Table], *, folded: bool) -> str:
    skipped = evaluation.skipped
    reasons = Counter(reason for _, reason in skipped).most_common(20)
    page = _templates().get_template(template)
    return page.render(
        evaluation=evaluation,
        command=command,
        comparison=comparison,
        folded=folded,
        long_table=LONG_TABLE,
        metrics=[METRICS[name] for name in _metric_names(evaluation.tables)],
        directions=DIRECTIONS,
        reasons=[f"{count}: {reason}" for reason, count in reasons],
        named=[f"{name}: {reason}" for name, reason in skipped[:LISTED_SKIPPED]],
        more=max(0, len(skipped) - LISTED_SKIPPED),
        facts=_facts(evaluation),
    )


def _metric_names(shown: Sequence[Table]) -> list[str]:
    return list(dict.fromkeys(column.metric for table in shown for column in table.columns if column.metric))


def _facts(evaluation: Evaluation) -> dict[str, Any]:
    about = evaluation.about
    facts: dict[str, Any] = {f"Setting {name}": value for name, value in about["settings"].items()}
    facts |= {"Data": about["data"]["layout"], "Fakes": about["data"]["fakes"], "Real pictures": about["data"]["reals"]}
    facts["Hash of the data (SHA-256)"] = about["data"]["hash"]
    facts |= {f"Model {name} (SHA-256)": value for name, value in about["weights"].items()}
    for number, session in enumerate(evaluation.sessions, 1):
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        facts[f"Session {number}"] = (
            f"{session['started']}, engine {session['engine']}, {session['seconds']:.0f} seconds; {versions}"
        )
    return facts


def _fact_text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name or 'unknown'}: {count}" for name, count in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "all" if value is None else str(value)


def _read_plot(folder: Path, name: str) -> tuple[bytes, bytes]:
    """Return the SVG and the PNG of a plot."""
    packed = folder / f"{name}{PACKED_PLOT}"
    if packed.exists():
        return gzip.decompress(packed.read_bytes()), b""
    return (folder / f"{name}.svg").read_bytes(), (folder / f"{name}.png").read_bytes()


def _flat_values(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: values}
    return {
        name: value
        for key, inner in values.items()
        for name, value in _flat_values(inner, f"{prefix}.{key}" if prefix else key).items()
    }


def _write_rows(out: Path) -> Path:
    """Write the rows of all items, without their arrays, as CSV."""
    path = out / ROWS_FILE
    with path.open("w", newline="", encoding="utf-8") as file:
        file.write(tables.records_to_csv([_without_arrays(row) for row in read_rows(out)]))
    return path


def _without_arrays(row: Row) -> Row:
    return {name: value for name, value in row.items() if not isinstance(value, (np.ndarray, list, dict))}


def _basis(data: Mapping[str, Mapping[str, int]]) -> str:
    """Say how many pictures a result was measured on."""
    counts = {"fakes": sum(data["fakes"].values()), "real pictures": sum(data["reals"].values())}
    measured = [(count, word) for word, count in counts.items() if count]
    few = ": too few to conclude from" if measured and min(measured)[0] < FEW_PICTURES else ""
    return f"Measured on {' and '.join(f'{count} {word}' for count, word in measured)}{few}."


def _shortened_csv(path: Path) -> bytes:
    """Return a CSV with 6 significant digits, which is what 32-bit numbers hold."""
    buffer = io.StringIO()
    with path.open(newline="", encoding="utf-8") as file:
        writer = csv.writer(buffer, lineterminator="\n")
        for row in csv.reader(file):
            writer.writerow(f"{float(cell):.6g}" if _DECIMAL.fullmatch(cell) else cell for cell in row)
    return buffer.getvalue().encode()


def _packed_bytes(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
