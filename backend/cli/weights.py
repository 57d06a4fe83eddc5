"""The command `weights`: list, verify, fetch and publish model files."""

import argparse
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import weights
from backend.errors import UserError
from backend.hub import fetching, publishing
from backend.progress import Step, finish

_Answer = dict[str, Any]
_OnStep = Callable[[Step], None]


def run_weights(options: argparse.Namespace, on_step: _OnStep) -> _Answer:
    """Run one of the four actions."""
    if options.repo and options.action != "publish":
        raise UserError("--repo belongs to publish.", "See: python -m backend weights --help")
    if options.source and (options.action != "fetch" or len(options.names) != 1):
        raise UserError("--from belongs to one fetched model.", "Run: weights fetch NAME --from PATH")
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # every step is shown, and every error said
    shown = _quieter(on_step)
    return {"list": _list, "verify": _verify, "fetch": _fetch, "publish": _publish}[options.action](options, shown)


def _list(options: argparse.Namespace, _: _OnStep) -> _Answer:
    rows = [_entry_row(entry, verified=None) for entry in _named_entries(options.names)]
    lines = [
        f"{row['name']:24} {row['state']:8} {row['profile']:9} {_size_in_words(row['bytes']):>12}  {row['licence']}"
        for row in rows
    ]
    return {"entries": rows, "summary": "\n".join(lines)}


def _verify(options: argparse.Namespace, on_step: _OnStep) -> _Answer:
    """Check the hash of every file that is here, or that ships with the app and should be."""
    chosen = [entry for entry in _named_entries(options.names) if options.names or _expected(entry)]
    rows = []
    for number, entry in enumerate(chosen):
        on_step(Step(number, len(chosen), f"{entry.name} is checked."))
        state = entry.state()
        rows.append({**_entry_row(entry, verified=state == "verified"), "state": state})
    wrong = [row["name"] for row in rows if not row["verified"]]
    if wrong:
        error = UserError(f"Missing or damaged: {', '.join(wrong)}.", "Run: python -m backend weights fetch")
        sys.stderr.write(f"{error}\n")
        lines = "\n".join(f"{row['name']}: {row['state']}" for row in rows)
        return {"entries": rows, "error": error.message, "hint": error.hint, "summary": lines, "exit": 2}
    return {"entries": rows, "summary": f"{len(rows)} files are here and whole."}


def _fetch(options: argparse.Namespace, on_step: _OnStep) -> _Answer:
    names = options.names or [entry.name for entry in weights.read_entries().values() if _wanted(entry)]
    file = None if options.source is None else Path(options.source).expanduser()
    done = [finish(fetching.fetch_model(name, file), on_step) for name in names]
    rows = [_entry_row(weights.find_entry(name), verified=True) for name in names]
    summary = "\n".join(one.summary for one in done) or "Nothing is missing. Name a model to fetch it."
    return {"entries": rows, "fetched": [fetching.fetched_record(one) for one in done], "summary": summary}


def _publish(options: argparse.Namespace, on_step: _OnStep) -> _Answer:
    if not options.repo:
        raise UserError("A repository is missing.", "Run: python -m backend weights publish --repo OWNER/NAME")
    return vars(finish(publishing.publish_models(options.repo, private=options.private), on_step)).copy()


def _named_entries(names: list[str]) -> list[weights.Entry]:
    return [weights.find_entry(name) for name in names or sorted(weights.read_entries())]


def _expected(entry: weights.Entry) -> bool:
    return entry.profile == "embedded" or entry.path.exists()


def _wanted(entry: weights.Entry) -> bool:
    """Say whether a bare `weights fetch` fetches it: what ships with the app, or was fetched, and is not whole."""
    return _expected(entry) and entry.state() != "verified"


def _entry_row(entry: weights.Entry, *, verified: bool | None) -> _Answer:
    present = entry.path.exists()
    return {
        "name": entry.name,
        "profile": entry.profile,
        "present": present,
        "verified": verified,
        "bytes": entry.bytes,
        "licence": entry.licence,
        "state": "present" if present else "absent",
        "from": [str(source) for source in fetching.hub_files(entry)],
        "note": entry.options.get("note"),
    }


def _size_in_words(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size else "size unknown"


def _quieter(on_step: _OnStep) -> _OnStep:
    """Show a step only where its number or the word before its figures changes: a download has thousands."""
    last: list[tuple[int, str]] = []

    def show(step: Step) -> None:
        this = (step.number, step.message.partition(":")[0])
        if last != [this]:
            last[:] = [this]
            on_step(step)

    return show
