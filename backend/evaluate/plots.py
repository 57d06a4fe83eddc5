"""Plots for reports: drawn by matplotlib without a screen, readable in print and without colour."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#555555")  # Okabe and Ito 2008
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
WIDTH, HEIGHT = 6.4, 4.2  # inches
DPI = 130


@dataclass(frozen=True)
class Figure:
    """A drawn plot."""

    name: str  # in files
    title: str  # one line
    alt: str  # what the plot shows, for those who cannot see it
    svg: bytes  # for pages and print
    png: bytes  # for the app

    def data_uri(self) -> str:
        """Return the SVG as a data URI, for a page that needs no other file."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Series:
    """One line, one cloud of points, or one group of bars."""

    name: str  # in the legend
    x: Sequence[float]  # (M,)
    y: Sequence[float]  # (M,)
    low: Sequence[float] | None = None  # lower end of a band (M,)
    high: Sequence[float] | None = None


def draw_lines(
    name: str,
    title: str,
    alt: str,
    series: Sequence[Series],
    *,
    x_label: str,
    y_label: str,
    diagonal: bool = False,
    unit: bool = False,
    markers: bool = True,
) -> Figure:
    """Draw lines; `diagonal` adds y = x, `unit` shows [0, 1] on both axes."""

    def draw(axes: Any) -> None:
        for number, line in enumerate(series):
            colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
            marker = MARKERS[number % len(MARKERS)] if markers else None
            axes.plot(line.x, line.y, dash, color=colour, marker=marker, markersize=4, label=line.name)
            if line.low is not None and line.high is not None:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        if diagonal:
            axes.plot([0, 1], [0, 1], ":", color="#888888", linewidth=1)
        if unit:
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return draw_figure(name, title, alt, draw, x_label=x_label, y_label=y_label, legend=len(series) > 1)


def draw_points(
    name: str, title: str, alt: str, series: Sequence[Series], *, x_label: str, y_label: str, share: bool = False
) -> Figure:
    """Draw clouds of points, each with its own marker; `share` shows all of [0, 1] on the y axis."""

    def draw(axes: Any) -> None:
        for number, cloud in enumerate(series):
            marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
            axes.scatter(cloud.x, cloud.y, s=14, marker=marker, color=colour, alpha=0.7, label=cloud.name)
        if share:
            axes.set_ylim(0, 1)

    return draw_figure(name, title, alt, draw, x_label=x_label, y_label=y_label, legend=len(series) > 1)


def draw_bars(
    name: str, title: str, alt: str, labels: Sequence[str], groups: Sequence[Series], *, y_label: str
) -> Figure:
    """Draw bars: each label has one bar from every series in `groups`, whose `x` is not used."""

    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for number, group in enumerate(groups):
            at = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * width
            hatch = ("", "//", "..", "xx", "\\\\")[number % 5]
            colour = COLOURS[number % len(COLOURS)]
            axes.bar(at, group.y, width, color=colour, hatch=hatch, edgecolor="white", label=group.name)
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 4 else 0)

    return draw_figure(name, title, alt, draw, x_label="", y_label=y_label, legend=len(groups) > 1)


def draw_matrix(
    name: str, title: str, alt: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, label: str
) -> Figure:
    """Draw values (R, C) in [0, 1] as a grid of shades with the value in each; NaN stays empty."""

    def draw(axes: Any) -> None:
        shade = axes.imshow(values, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        slanted: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if len(columns) > 3 else {}
        axes.set_xticks(range(len(columns)), columns, **slanted)
        axes.set_yticks(range(len(rows)), rows)
        axes.grid(visible=False)
        for (row, column), value in np.ndenumerate(values):
            if not np.isnan(value):
                colour = "white" if value < 0.55 else "black"
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)
        axes.figure.colorbar(shade, ax=axes, label=label)

    return draw_figure(name, title, alt, draw, x_label="", y_label="", legend=False)


def values_in_words(series: Sequence[Series], labels: Sequence[str]) -> str:
    """Return the values of some series in words, for those who cannot see the plot; NaN is "not measured"."""

    def words(group: Series) -> str:
        values = ("not measured" if np.isnan(value) else f"{value:.2f}" for value in group.y)
        return f"{group.name}: " + ", ".join(map(" ".join, zip(labels, values, strict=True)))

    return "; ".join(map(words, series)) + "."


def draw_figure(
    name: str, title: str, alt: str, draw: Callable[[Any], None], *, x_label: str, y_label: str, legend: bool
) -> Figure:
    """Render what `draw` puts on one pair of axes; equal drawings give equal bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style: Any = {"svg.hashsalt": name, "font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "svg.fonttype": "path"}
    style["text.parse_math"] = False  # $ in the name of a family must not start a formula
    with rc_context(style):
        canvas = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        axes.set(xlabel=x_label, ylabel=y_label)
        draw(axes)
        if legend:
            canvas.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=3)  # covers nothing there
        svg, png = _figure_bytes(canvas, "svg", {"Date": None}), _figure_bytes(canvas, "png", {"Software": None})
        return Figure(name, title, alt, svg, png)


def _figure_bytes(canvas: Any, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
