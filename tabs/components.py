"""Parts of the page that several tabs show: theme, photo inputs, shown pictures, tables, progress, refusals."""

from abc import ABCMeta
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import cast

import gradio as gr
import numpy as np
from gradio.data_classes import ImageData
from gradio.themes.utils import fonts
from PIL import Image

from backend.errors import UserError
from backend.progress import Step

SHOWN_FACE_SIDE = 384  # side in pixels of shown maps, so that the mark covers little

SCALE = "(0 = real, 1 = fake)"

SIGNS = {"fake": "▲", "real": "●", "uncertain": "?"}  # so that colour is never the only carrier


def refusal_alert(error: UserError, title: str = "No verdict") -> str:
    """Say what cannot be done, for example why a photo cannot be used, and what to do."""
    return alert_html(str(error), title)


def alert_html(reason: str, title: str = "No verdict") -> str:
    """Return the box that says why there is no answer."""
    return f'<div class="answer" role="alert"><h3>{escape(title)}</h3><p>{escape(reason)}</p></div>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]], caption: str) -> str:
    """Return a table whose first column names the rows."""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="facts"><caption><span>{escape(caption)}</span></caption><tr>{top}</tr>{body}</table>'


def html_list(items: Iterable[str]) -> str:
    """Return sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def progress_bar(step: Step, below: str = "") -> str:
    """Return where a running job stands, with HTML `below` the bar, such as a curve."""
    share = step.number / max(1, step.total)
    return (
        f'<div class="progress"><p>{escape(step.message)}</p>'
        f'<progress max="1" value="{share:.3f}" aria-label="{share:.0%} done"></progress>{below}</div>'
    )


STYLE = Path(__file__).with_name("style.css")

SCRIPT = Path(__file__).with_name("page.js").read_text(encoding="utf-8")

SHOWN_SIDE = 900  # longest side in pixels at which a whole photo is shown


def theme() -> gr.themes.Base:
    """Return colours whose contrast is at least 4.5 to 1; those of the default theme are paler."""
    # The library's semi-bold face, which it would take, has 55 characters, of Latin letters A and B.
    letters = fonts.LocalFont("Source Sans Pro", weights=(400, 700))
    font = (letters, "ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Default(primary_hue=gr.themes.colors.blue, font=font).set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        color_accent="*primary_700",
        slider_color="*primary_700",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*neutral_700",
        block_label_text_color_dark="*neutral_200",
        block_title_text_color="*neutral_700",
        block_title_text_color_dark="*neutral_200",
    )


def live_face() -> gr.Image:
    """Return the picture of the face while a search is under way."""
    return gr.Image(
        label="The face now",
        format="png",
        buttons=[],
        interactive=False,
        elem_classes="face",
        alt_text="The face as the search has changed it so far",
    )


def _path_of(_: gr.Image, payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


# An image component that hands over the path of the uploaded file itself. It is a class, because every visit builds
# components of its own from theirs, and it is made without the library's metaclass, which writes a stub file beside
# the source of every component class.
_PhotoImage = ABCMeta.__new__(
    type(gr.Image), "_PhotoImage", (gr.Image,), {"__module__": __name__, "is_template": True, "preprocess": _path_of}
)


def photo_input(label: str) -> gr.Image:
    """Return an image component that hands over the path of the uploaded file itself, readable or not.

    On its own, the component opens the file with its own decoder first, and a file that this cannot open never
    reaches our code and its sentences.
    """
    component = _PhotoImage(
        label=label,
        type="filepath",
        image_mode=None,
        format="png",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        interactive=True,
        height=300,
    )
    return cast("gr.Image", component)


def fit_to_page(photo: np.ndarray, side: int = SHOWN_SIDE) -> np.ndarray:
    """Return a photo (H, W, 3) no larger than it is shown, `side` pixels."""
    factor = side / max(photo.shape[:2])
    if factor >= 1:
        return photo
    size = max(1, round(photo.shape[1] * factor)), max(1, round(photo.shape[0] * factor))
    return np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS))


def enlarge_face(picture: np.ndarray) -> np.ndarray:
    """Return a square picture at the size at which it is shown."""
    return np.asarray(Image.fromarray(picture).resize((SHOWN_FACE_SIDE, SHOWN_FACE_SIDE), Image.Resampling.LANCZOS))
