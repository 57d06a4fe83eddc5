"""What all views share: one kind of result, figures that can be read on a phone, colours for every eye."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend import verdicts

WIDTH = 4.2  # inches
RESOLUTION = 170  # dots an inch: 714 pixels wide, twice a phone's
FONT = 9.5
STRENGTH = "cividis"  # its brightness rises steadily, for every kind of colour vision and in print
SIGNED = "PuOr"  # orange and purple differ for every kind of colour vision
# Okabe and Ito's colours; every line has its own dashes too.
LINES = (("#0072B2", "--"), ("#D55E00", "-"), ("#009E73", "-."), ("#CC79A7", ":"))


@dataclass(frozen=True, eq=False)
class View:
    """One view of traces.

    Args:
        name: The name that programs use.
        title: A heading.
        picture: uint8 (H, W, 3).
        sentence: What to see in it.
    """

    name: str
    title: str
    picture: np.ndarray
    sentence: str


def draw(height: float, paint: Callable[[Any], None]) -> np.ndarray:
    """Return a figure as uint8 (H, W, 3), of 4.2 inches by `height` inches, that `paint` fills."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": FONT, "axes.titlesize": FONT, "axes.labelsize": FONT}):
        figure = Figure(figsize=(WIDTH, height), dpi=RESOLUTION, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        paint(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def plain(axes: Any, title: str) -> None:
    """Give a picture its title and no ticks."""
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])


def called(group: str) -> str:
    """Return what people call a group of pictures."""
    return verdicts.KINDS.get(group, group)


def joined(parts: list[str]) -> str:
    """Join parts of a sentence: "a", "a and b", "a, b and c"."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
