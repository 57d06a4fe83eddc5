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
    """A drawn plot.

    Args:
        name: Name in files.
        title: What it shows, one line.
        alt: What can be read off it, for those who do not see it.
        svg: The picture for pages and print.
        png: The same for the app.
    """

    name: str
    title: str
    alt: str
    svg: bytes
    png: bytes

    def data_uri(self) -> str:
        """Return the SVG as an address that a page can hold."""
        return "data:image/svg+xml;base64," + base64.b64encode(self.svg).decode()


@dataclass(frozen=True)
class Series:
    """One line, or one cloud of points.

    Args:
        name: Its name in the legend.
        x: Positions (M,).
        y: Values (M,).
        low: Lower end of a band (M,), where there is one.
        high: Upper end.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
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
        for number, one in enumerate(series):
            colour = COLOURS[number % len(COLOURS)]
            dash, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
            axes.plot(
                one.x, one.y, dash, color=colour, marker=marker if markers else None, markersize=4, label=one.name
            )
            if one.low is not None and one.high is not None:
                axes.fill_between(one.x, one.low, one.high, color=colour, alpha=0.15, linewidth=0)
        if diagonal:
            axes.plot([0, 1], [0, 1], ":", color="#888888", linewidth=1)
        if unit:
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    return draw_figure(name, title, alt, draw, x_label=x_label, y_label=y_label, legend=len(series) > 1)


def draw_points(
    name: str, title: str, alt: str, series: Sequence[Series], *, x_label: str, y_label: str, share: bool = False
) -> Figure:
    """Draw clouds of points, each with its own marker; `share` says that y is one, and shows all of [0, 1]."""

    def draw(axes: Any) -> None:
        for number, one in enumerate(series):
            marker, colour = MARKERS[number % len(MARKERS)], COLOURS[number % len(COLOURS)]
            axes.scatter(one.x, one.y, s=14, marker=marker, color=colour, alpha=0.7, label=one.name)
        if share:
            axes.set_ylim(0, 1)

    return draw_figure(name, title, alt, draw, x_label=x_label, y_label=y_label, legend=len(series) > 1)


def draw_bars(
    name: str, title: str, alt: str, labels: Sequence[str], groups: Sequence[Series], *, y_label: str
) -> Figure:
    """Draw groups of bars: `labels` stand below, and every series gives one bar a label; `x` is not read."""

    def draw(axes: Any) -> None:
        width = 0.8 / max(1, len(groups))
        for number, one in enumerate(groups):
            at = np.arange(len(labels)) + (number - (len(groups) - 1) / 2) * width
            hatch = ("", "//", "..", "xx", "\\\\")[number % 5]
            colour = COLOURS[number % len(COLOURS)]
            axes.bar(at, one.y, width, color=colour, hatch=hatch, edgecolor="white", label=one.name)
        axes.set_xticks(range(len(labels)), labels, rotation=20 if len(labels) > 4 else 0)

    return draw_figure(name, title, alt, draw, x_label="", y_label=y_label, legend=len(groups) > 1)


def draw_matrix(
    name: str, title: str, alt: str, values: np.ndarray, rows: Sequence[str], columns: Sequence[str], *, label: str
) -> Figure:
    """Draw numbers (R, C) in [0, 1] as a grid of shades with the number in each; NaN stays empty."""

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
    """Return the values of some series in words, for those who do not see the plot; what is NaN was not measured."""

    def words(one: Series) -> str:
        values = ("not measured" if np.isnan(value) else f"{value:.2f}" for value in one.y)
        return f"{one.name}: " + ", ".join(map(" ".join, zip(labels, values, strict=True)))

    return "; ".join(map(words, series)) + "."


def draw_figure(
    name: str,
    title: str,
    alt: str,
    draw: Callable[[Any], None],
    *,
    x_label: str,
    y_label: str,
    legend: bool,
) -> Figure:
    """Render what `draw` puts on one pair of axes; the same drawing gives the same bytes."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    style: Any = {"svg.hashsalt": name, "font.size": 9, "axes.grid": True, "grid.alpha": 0.25, "svg.fonttype": "path"}
    style["text.parse_math"] = False  # a family's name is a stranger's, and $ in it no formula
    with rc_context(style):
        canvas = Canvas(figsize=(WIDTH, HEIGHT), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        axes.set(xlabel=x_label, ylabel=y_label)
        draw(axes)
        if legend:
            canvas.legend(loc="outside lower center", fontsize=8, frameon=False, ncols=3)  # covers nothing there
        return Figure(
            name,
            title,
            alt,
            _figure_bytes(canvas, "svg", {"Date": None}),
            _figure_bytes(canvas, "png", {"Software": None}),
        )


def _figure_bytes(canvas: Any, kind: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    canvas.savefig(buffer, format=kind, dpi=DPI, metadata=metadata)
    return buffer.getvalue()
