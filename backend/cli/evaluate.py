"""`python -m backend evaluate`: one protocol, or all, over a folder, a zip or the sample set, to a results folder."""

import argparse
import json
import shlex
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend import settings
from backend.errors import UserError
from backend.evaluate import engines, report, runs, store
from backend.evaluate.dataset import Dataset, open_data
from backend.evaluate.protocols import base
from backend.evaluate.protocols.base import Protocol, configure_protocol
from backend.evaluate.store import without_folders
from backend.progress import Step, finish

ALL_PROTOCOLS = "all"

UNFINISHED_RUNS = ".runs"  # folder of unfinished runs, inside that of the results


def run_evaluate(
    options: argparse.Namespace, draw_sample: Callable[[Path], Path], on_step: Callable[[Step], None]
) -> dict[str, Any]:
    """Run or resume a protocol, write its report, and return tables and files; see `everything.py` for all of them.

    Args:
        options: What the command line collected.
        draw_sample: Writes the sample set to a folder and returns it.
        on_step: Called at every item.
    """

    def read(work: Path) -> Dataset:
        store.make_run_folder(work)
        return open_data(draw_sample(work / "sample") if options.sample else options.data, work)

    if options.protocol == ALL_PROTOCOLS:
        return evaluate_all(options, settings.parse_setting_changes(options.set), read, typed_command(options), on_step)
    protocol = configure_protocol(
        base.PROTOCOLS.find(options.protocol), options.preset, settings.parse_setting_changes(options.set)
    )
    earlier = None if options.compare is None else report.load_report_of(protocol.name, options.compare)
    engine = engines.choose_engine(options.engine, options.workers, options.ray_address)
    dataset = read(options.out)
    on_step(Step(0, 0, f"Settings: {json.dumps(vars(protocol.config))}"))
    found = finish(
        runs.run_protocol(protocol, dataset, options.out, engine=engine, resume=options.resume),
        on_step,
    )
    comparison = [] if earlier is None else report.compare_reports(earlier, found)
    files = report.write_report(found, options.out, typed_command(options), comparison)
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


def typed_command(options: argparse.Namespace) -> str:
    """Return the command as a person would type it; folders and files by their last name only."""
    words = ["python", "-m", "backend", "evaluate", options.protocol]
    words += ["--sample"] if options.sample else ["--data", options.data.name]
    words += ["--out", options.out.name, "--preset", options.preset]
    for change in options.set or []:
        words += ["--set", without_folders(change)]
    if options.engine != "local":
        words += ["--engine", options.engine]
    return shlex.join(words)


def evaluate_all(
    options: argparse.Namespace,
    changes: dict[str, Any],
    read: Callable[[Path], Dataset],
    command: str,
    on_step: Callable[[Step], None],
) -> dict[str, Any]:
    """Run every protocol, and keep each result in the folder `options.out` as soon as it is finished.

    A protocol that cannot measure these pictures is named, and the others go on.

    Args:
        options: What the command line collected.
        changes: Settings that differ from the preset, in every protocol.
        read: Opens the pictures; given is the folder for what has to be unpacked or drawn.
        command: The command, as a person would type it.
        on_step: Called at every item.
    """
    started = time.perf_counter()
    if options.compare is not None:
        raise UserError("Only one protocol at a time can be compared.", "Name one instead of all.")
    protocols = [configure_protocol(kind, options.preset, changes) for kind in base.PROTOCOLS.values()]
    work = options.out / UNFINISHED_RUNS
    if work.exists() and not options.resume:
        raise UserError("The folder holds unfinished runs.", "Go on with them by --resume, or name another with --out.")
    engine = engines.choose_engine(options.engine, options.workers, options.ray_address)
    dataset = read(work)
    summaries, left_out, files = {}, {}, {}
    for protocol in protocols:
        try:
            evaluation = finish(
                runs.run_protocol(protocol, dataset, work / protocol.name, engine=engine, resume=True),
                _with_title(protocol, on_step),
            )
        except UserError as error:
            left_out[protocol.name] = str(error)
            continue
        report.write_report(evaluation, work / protocol.name, command)
        files[protocol.name] = str(report.keep_result(work / protocol.name, options.out / protocol.name))
        summaries[protocol.name] = evaluation.finding or evaluation.summary
    if not left_out:
        shutil.rmtree(work)
    told = [f"{name}: {text}" for name, text in summaries.items()]
    told += [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    return {
        "protocol": ALL_PROTOCOLS,
        "findings": summaries,
        "left_out": left_out,
        "files": files,
        "seconds": round(time.perf_counter() - started, 3),
        "summary": "\n".join(told),
        "exit": 2 if left_out else 0,
    }


def _with_title(protocol: Protocol, on_step: Callable[[Step], None]) -> Callable[[Step], None]:
    return lambda step: on_step(Step(step.number, step.total, f"{protocol.title}: {step.message}"))
