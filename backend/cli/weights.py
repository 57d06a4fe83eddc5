"""`weights`: list, verify, fetch and publish model files."""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from backend import weights as registry
from backend.cli.options import Answer, JsonFlag, show_changed_steps, show_step
from backend.errors import UserError
from backend.progress import Step, finish
from backend.weights import Entry


def weights(
    *,
    action: Annotated[Literal["list", "verify", "fetch", "publish"], typer.Argument()],
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="which models (fetch: default is what is missing)")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--from", metavar="PATH", help="a file to take instead of downloading one")
    ] = None,
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="where to publish")] = None,
    private: Annotated[bool, typer.Option("--private", help="make a new repository private")] = False,
    _json: JsonFlag = False,
) -> Answer:
    """List, verify, fetch or publish the model files."""
    names = names or []
    if repo and action != "publish":
        raise UserError("--repo belongs to publish.", "See: python -m backend weights --help")
    if source and (action != "fetch" or len(names) != 1):
        raise UserError("--from belongs to one fetched model.", "Run: weights fetch NAME --from PATH")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every step is shown, and every error reported
    if action == "list":
        return _list(names)
    if action == "verify":
        return _verify(names)
    if action == "fetch":
        return _fetch(names, source)
    return _publish(repo, private=private)


def _list(names: list[str]) -> Answer:
    rows = [_entry_row(entry, verified=None) for entry in _named_entries(names)]
    lines = [
        f"{row['name']:24} {row['state']:8} {row['profile']:9} {_size_in_words(row['bytes']):>12}  {row['licence']}"
        for row in rows
    ]
    return {"entries": rows, "summary": "\n".join(lines)}


def _verify(names: list[str]) -> Answer:
    """Check the hash of every file that is here, or that ships with the app and should be."""
    entries = [entry for entry in _named_entries(names) if names or _is_expected(entry)]
    rows = []
    for number, entry in enumerate(entries):
        show_step(Step(number, len(entries), f"{entry.name} is checked."))
        state = entry.state()
        rows.append({**_entry_row(entry, verified=state == "verified"), "state": state})
    wrong = [row["name"] for row in rows if not row["verified"]]
    if wrong:
        error = UserError(f"Missing or damaged: {', '.join(wrong)}.", "Run: python -m backend weights fetch")
        print(error, file=sys.stderr)
        lines = "\n".join(f"{row['name']}: {row['state']}" for row in rows)
        return {"entries": rows, "error": error.message, "hint": error.hint, "summary": lines, "exit": 2}
    return {"entries": rows, "summary": f"{len(rows)} files are here and whole."}


def _fetch(names: list[str], source: str | None) -> Answer:
    """Fetch the named models, or else what ships with the app or was fetched, and is missing or damaged."""
    from backend.hub import fetching

    names = names or [
        entry.name for entry in registry.read_entries().values() if _is_expected(entry) and entry.state() != "verified"
    ]
    file = None if source is None else Path(source).expanduser()
    fetched = [finish(fetching.fetch_model(name, file), show_changed_steps()) for name in names]
    rows = [_entry_row(registry.find_entry(name), verified=True) for name in names]
    summary = "\n".join(model.summary for model in fetched) or "Nothing is missing. Name a model to fetch it."
    return {
        "entries": rows,
        "fetched": [vars(model) | {"path": str(model.path)} for model in fetched],
        "summary": summary,
    }


def _publish(repo: str | None, *, private: bool) -> Answer:
    from backend.hub import publishing

    if not repo:
        raise UserError("A repository is missing.", "Run: python -m backend weights publish --repo OWNER/NAME")
    return vars(finish(publishing.publish_models(repo, private=private), show_changed_steps())).copy()


def _named_entries(names: list[str]) -> list[Entry]:
    return [registry.find_entry(name) for name in names or sorted(registry.read_entries())]


def _is_expected(entry: Entry) -> bool:
    return entry.profile == "embedded" or entry.path.exists()


def _entry_row(entry: Entry, *, verified: bool | None) -> Answer:
    from backend.hub import fetching

    present = entry.path.exists()
    return {
        "name": entry.name,
        "profile": entry.profile,
        "present": present,
        "verified": verified,
        "bytes": entry.bytes,
        "licence": entry.licence,
        "state": "present" if present else "absent",
        "from": [str(file) for file in fetching.hub_files(entry)],
        "note": entry.note,
    }


def _size_in_words(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size else "size unknown"
