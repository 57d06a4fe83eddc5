"""Where the app runs and which models there are, as HTML."""

from collections.abc import Sequence
from html import escape

from backend import runtime
from backend.hub.catalogue import Model
from backend.settings import SETTINGS

PROFILES = {
    "embedded": "It uses the models that ship with it, and needs no network (profile “embedded”).",
    "hub": "Larger models of the Hub are preferred where they were fetched (profile “hub”).",
}
STATES = {"loaded": "loaded", "here": "loaded when needed", "absent": "missing"}
NOT_ALLOWED = (
    "Visitors cannot fetch models here: whoever runs this app has switched it off. In an app of your own, it works."
)
LISTED = "Every model, also those for scripts only, is listed by: <code>python -m backend weights list</code>."


def place(models: Sequence[Model]) -> str:
    """Say on what the models run, and in the Hub profile what is missing."""
    text = f"The models run on {runtime.device_in_words()}. {PROFILES[SETTINGS.profile]}"
    if SETTINGS.profile == "hub":
        wanted = [model.title for model in models if _can_be_fetched(model)]
        if wanted:
            text += f" Not fetched yet: {', '.join(wanted)}. Everything works with the models that ship with the app."
    gone = [model.title for model in models if model.embedded and model.state == "absent"]
    if gone:
        text += f" Missing, though they ship with the app: {', '.join(gone)}."
    return f"<p>{escape(text)}</p>"


def present(models: Sequence[Model]) -> str:
    """List what is here, with sizes and licences."""
    here = [model for model in models if model.state != "absent"]
    total = sum(model.bytes for model in here) / 1e6
    caption = f"What is here: {len(here)} models, {total:.0f} MB."
    own = {model.licence for model in here if model.embedded}
    if len(own) == 1:  # said once, and not with each of them
        caption += f" Licence of those that ship with the app: {own.pop()}."
    licences = {model.name: model.licence for model in here if not model.embedded or len(own) > 1}
    rows = [(_name(model, licences.get(model.name, "")), size(model), STATES[model.state]) for model in here]
    return _table(("Model", "Size", "Now"), rows, caption)


def fetchable(models: Sequence[Model]) -> str:
    """List what can be fetched from the Hub, and what comes only from a file."""
    rows = [(_name(model), size(model), escape(model.licence)) for model in models if _can_be_fetched(model)]
    text = _table(("Model", "Size", "Licence"), rows, "What can be fetched from the Hub") if rows else ""
    files = [f"{escape(model.title)} ({escape(model.name)})" for model in models if _needs_a_file(model)]
    if files:
        text += (
            f"<p>Only published elsewhere, and added from a file: {', '.join(files)}. "
            "The command is <code>python -m backend weights fetch NAME --from FILE</code>.</p>"
        )
    return f"{text}<p>{LISTED}</p>"


def choices(models: Sequence[Model]) -> list[tuple[str, str]]:
    """Return what can be fetched, as title with size, and name."""
    return [
        (f"{model.title}, {size(model)}" if model.bytes else model.title, model.name)
        for model in models
        if _can_be_fetched(model)
    ]


def size(model: Model) -> str:
    """Return the size of a file in words."""
    if not model.bytes:
        return "not known"
    text = f"{model.bytes / 1e6:,.0f} MB" if model.bytes >= 1e6 else f"{model.bytes / 1e3:,.0f} kB"
    return f"about {text}" if model.about else text


def _can_be_fetched(model: Model) -> bool:
    return model.state == "absent" and bool(model.sources) and model.is_used


def _needs_a_file(model: Model) -> bool:
    return model.state == "absent" and not model.sources and not model.embedded and model.is_used


def _name(model: Model, licence: str = "") -> str:
    about = ". ".join(text.rstrip(".") for text in (model.use, model.note, licence) if text)
    return f"<strong>{escape(model.title)}</strong> <small>{escape(about)}</small>"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    """Return a table of cells that are HTML already; its first column names the rows."""
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>' + "".join(f"<td>{cell}</td>" for cell in rest) + "</tr>"
        for first, *rest in rows
    )
    return f'<table class="facts models"><caption>{escape(caption)}</caption><tr>{top}</tr>{body}</table>'
