"""`python -m backend evaluate`: one protocol, or all, over a folder, a zip or the sample set, to a results folder."""

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import arguments
from backend.evaluate import engine_choice, everything, report, runs, store
from backend.evaluate.data import Dataset
from backend.evaluate.files import without_folders
from backend.evaluate.layouts import open_data
from backend.evaluate.protocols import registry
from backend.evaluate.protocols.protocol import configured
from backend.progress import Step, finish


def run(
    options: argparse.Namespace, draw_sample: Callable[[Path], Path], on_step: Callable[[Step], None]
) -> dict[str, Any]:
    """Run or resume a protocol, write its report, and return tables and files; see `everything.py` for all of them.

    Args:
        options: What the command line collected.
        draw_sample: Writes the sample set to a folder and returns it.
        on_step: Called at every item.
    """

    def read(work: Path) -> Dataset:
        store.make(work)
        return open_data(draw_sample(work / "sample") if options.sample else options.data, work)

    if options.protocol == everything.ALL:
        return everything.run(options, arguments.changes(options.set), read, typed(options), on_step)
    protocol = configured(registry.get(options.protocol), options.preset, arguments.changes(options.set))
    earlier = None if options.compare is None else report.load_of(protocol.name, options.compare)
    engine = engine_choice.engine(options.engine, options.workers, options.ray_address)
    dataset = read(options.out)
    on_step(Step(0, 0, f"Settings: {json.dumps(vars(protocol.config))}"))
    found = finish(
        runs.evaluate(protocol, dataset, options.out, engine=engine, resume=options.resume),
        on_step,
    )
    comparison = [] if earlier is None else report.compare(earlier, found)
    files = report.write(found, options.out, typed(options), comparison)
    rows = [{"table": table.name} | record for table in found.tables for record in table.records()]
    return {
        "protocol": found.protocol,
        "settings": found.about["settings"],
        "rows": rows,
        "counts": dict(found.counts),
        "skipped": [{"name": name, "reason": reason} for name, reason in found.skipped],
        "differences": [{"table": table.name} | record for table in comparison for record in table.records()],
        "limits": list(found.limits),
        "files": files,
        "seconds": round(found.seconds, 3),
        "summary": f"{found.summary} See {files['html']}.",
    }


def typed(options: argparse.Namespace) -> str:
    """Return the command as a person would type it; folders and files by their last name only."""
    words = ["python", "-m", "backend", "evaluate", options.protocol]
    words += ["--sample"] if options.sample else ["--data", options.data.name]
    words += ["--out", options.out.name, "--preset", options.preset]
    for change in options.set or []:
        words += ["--set", without_folders(change)]
    if options.engine != "local":
        words += ["--engine", options.engine]
    return shlex.join(words)
