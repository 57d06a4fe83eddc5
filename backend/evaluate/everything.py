"""`python -m backend evaluate all`: every protocol, one after the other, to the results that ship with the app."""

import argparse
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backend.errors import UserError
from backend.evaluate import engine_choice, report, runs, stored
from backend.evaluate.data import Dataset
from backend.evaluate.protocols import registry
from backend.evaluate.protocols.protocol import Protocol, configured
from backend.progress import Step, finish

ALL = "all"
RUNS = ".runs"  # folder of unfinished runs, inside that of the results


def run(
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
    protocols = [configured(kind, options.preset, changes) for kind in registry.PROTOCOLS.values()]
    work = options.out / RUNS
    if work.exists() and not options.resume:
        raise UserError("The folder holds unfinished runs.", "Go on with them by --resume, or name another with --out.")
    engine = engine_choice.engine(options.engine, options.workers, options.ray_address)
    dataset = read(work)
    summaries, left_out, files = {}, {}, {}
    for protocol in protocols:
        try:
            evaluation = finish(
                runs.evaluate(protocol, dataset, work / protocol.name, engine=engine, resume=True),
                _named(protocol, on_step),
            )
        except UserError as error:
            left_out[protocol.name] = str(error)
            continue
        report.write(evaluation, work / protocol.name, command)
        files[protocol.name] = str(stored.keep(work / protocol.name, options.out / protocol.name))
        summaries[protocol.name] = evaluation.finding or evaluation.summary
    if not left_out:
        shutil.rmtree(work)
    told = [f"{name}: {text}" for name, text in summaries.items()]
    told += [f"{name} was left out: {reason}" for name, reason in left_out.items()]
    return {
        "protocol": ALL,
        "findings": summaries,
        "left_out": left_out,
        "files": files,
        "seconds": round(time.perf_counter() - started, 3),
        "summary": "\n".join(told),
        "exit": 2 if left_out else 0,
    }


def _named(protocol: Protocol, on_step: Callable[[Step], None]) -> Callable[[Step], None]:
    return lambda step: on_step(Step(step.number, step.total, f"{protocol.title}: {step.message}"))
