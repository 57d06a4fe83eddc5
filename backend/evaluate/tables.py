"""Tables that a protocol reports, their CSV, JSON and LaTeX forms, and comparisons of two."""

import csv
import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from backend.evaluate.metrics.base import METRICS, Estimate

Cell = str | int | float | Estimate | None
ABSENT = "not measured"
ARROWS = {"higher": "↑", "lower": "↓", "neither": ""}


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str  # in files
    title: str  # for people
    metric: str = ""  # name of the metric that it shows, if any
    digits: int = 3  # after the decimal point
    unit: str = ""  # where no metric gives it
    key: bool = False  # whether its numbers name the row, as text always does

    @property
    def heading(self) -> str:
        """Return the title with the unit and an arrow for the better direction."""
        arrow = ARROWS[METRICS[self.metric].better] if self.metric else ""
        unit = f" ({self.unit})" if self.unit else ""
        return f"{self.title}{unit} {arrow}".strip()


@dataclass(frozen=True)
class Table:
    """A table."""

    name: str  # in files
    title: str  # one line
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""  # what a reader must know; may be empty
    by_family: bool = False  # whether it compares families of fakes; such tables come first
    beside: bool = False  # whether it shows a paper's numbers beside ours; the note says why they differ

    @property
    def holds_text(self) -> list[bool]:
        """Return for each column whether all its cells are text, as in a table without rows."""
        return [all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns))]

    def records(self) -> list[dict[str, Any]]:
        """Return each row as a flat dictionary; an estimate becomes its value, `_low`, `_high`, `_std` and `_n`."""
        return [_flat_record(self.columns, row) for row in self.rows]

    def keyed(self) -> dict[tuple[str, ...], dict[str, Any]]:
        """Return the records by the cells that name them."""
        records = {}
        for row, record in zip(self.rows, self.records(), strict=True):
            cells = zip(self.columns, row, strict=True)
            records[tuple(str(cell) for column, cell in cells if column.key or isinstance(cell, str))] = record
        return records

    def to_json(self) -> dict[str, Any]:
        """Return the table as plain values, for `table_from_json`."""
        return dataclasses.asdict(self)


def table_from_json(value: dict[str, Any]) -> Table:
    rows = tuple(tuple(Estimate(**cell) if isinstance(cell, dict) else cell for cell in row) for row in value["rows"])
    columns = tuple(Column(**column) for column in value["columns"])
    return Table(**value | {"columns": columns, "rows": rows})


def cell_text(cell: Cell, digits: int) -> str:
    """Return a cell for people: value, interval or standard deviation, and number of pictures."""
    if isinstance(cell, Estimate):
        if cell.value is None:
            return ABSENT
        text = f"{cell.value:.{digits}f}"
        if cell.low is not None and cell.high is not None:
            text += f" [{cell.low:.{digits}f}, {cell.high:.{digits}f}]"
        if cell.std is not None:
            text += f" ± {cell.std:.{digits}f}"
        return f"{text} (n = {cell.count})"
    if cell is None:
        return ABSENT
    return f"{cell:.{digits}f}" if isinstance(cell, float) else str(cell)


def cell_number(cell: Cell) -> float:
    """Return the value of an estimate for a plot; NaN if nothing was measured."""
    return float("nan") if not isinstance(cell, Estimate) or cell.value is None else cell.value


def table_to_csv(table: Table) -> str:
    return records_to_csv(table.records())


def records_to_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return records as CSV with a column for every key of any of them."""
    buffer = io.StringIO()
    names = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return buffer.getvalue()


def table_to_latex(table: Table) -> str:
    """Return a table as LaTeX that needs no package."""
    arrows = str.maketrans({"↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$"})
    heading = " & ".join(_latex_text(column.heading).translate(arrows) for column in table.columns)
    body = [
        " & ".join(
            _latex_text(cell_text(cell, column.digits)).translate(arrows)
            for column, cell in zip(table.columns, row, strict=True)
        )
        for row in table.rows
    ]
    columns = "".join("l" if text else "r" for text in table.holds_text)
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex_text(f'{table.title} {table.note}'.strip())}}}",
        rf"\label{{tab:{table.name}}}",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\hline",
        heading + r" \\",
        r"\hline",
        *[line + r" \\" for line in body],
        r"\hline",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def compare_tables(first: Sequence[Table], second: Sequence[Table]) -> list[Table]:
    """Return, for every table that both have, the numbers that differ, side by side.

    A row that only one of them has is listed without the other's value; tables without a difference are left out.
    """
    others = {table.name: table for table in second}
    columns = (
        Column("row", "Row"),
        Column("column", "Column"),
        Column("first", "First run", digits=6),
        Column("second", "Second run", digits=6),
        Column("difference", "Second - first", digits=6),
    )
    compared = []
    for table in first:
        if table.name not in others:
            continue
        a, b = table.keyed(), others[table.name].keyed()
        rows = [row for key in dict.fromkeys([*a, *b]) for row in _differences(key, a.get(key, {}), b.get(key, {}))]
        if rows:
            compared.append(Table(f"compare_{table.name}", f"Differences: {table.title}", columns, tuple(rows)))
    return compared


def _differences(key: tuple[str, ...], first: dict[str, Any], second: dict[str, Any]) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = []
    for column in dict.fromkeys([*first, *second]):
        a, b = first.get(column), second.get(column)
        if isinstance(a, str) or isinstance(b, str) or a == b:
            continue
        rows.append((", ".join(key), column, a, b, None if a is None or b is None else b - a))
    return rows


def _flat_record(columns: Sequence[Column], row: Sequence[Cell]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for column, cell in zip(columns, row, strict=True):
        if not isinstance(cell, Estimate):
            record[column.name] = cell
            continue
        record[column.name] = cell.value
        extras = {"low": cell.low, "high": cell.high, "std": cell.std, "n": cell.count}
        record |= {f"{column.name}_{name}": value for name, value in extras.items() if value is not None}
    infinite = [name for name, value in record.items() if isinstance(value, float) and not math.isfinite(value)]
    return record | dict.fromkeys(infinite)


def _latex_text(text: str) -> str:
    special: dict[str, str | int | None] = {letter: rf"\{letter}" for letter in "&%$#_{}"}
    special |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\^{}"}
    return text.translate(str.maketrans(special))
