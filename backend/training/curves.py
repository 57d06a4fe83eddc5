"""Draw every column of a run's `losses.csv`, one small plot each."""

import csv
from pathlib import Path

COLUMNS = 3
SIZE = (3.2, 2.0)  # inches of one plot


def draw(table: Path, out: Path) -> Path:
    """Write a PNG with one curve a column over the step, and return its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    names = [name for name in rows[0] if name not in {"step", "seconds"}] if rows else []
    count = max(1, -(-len(names) // COLUMNS))
    figure = Figure(figsize=(SIZE[0] * COLUMNS, SIZE[1] * count), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(count, COLUMNS, squeeze=False).ravel()
    for axes in grid[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(grid, names, strict=False):
        known = [row for row in rows if row[name]]
        axes.plot([int(row["step"]) for row in known], [float(row[name]) for row in known], linewidth=1)
        axes.set_title(name, fontsize=9)
        axes.tick_params(labelsize=8)
    figure.savefig(out)
    return out
