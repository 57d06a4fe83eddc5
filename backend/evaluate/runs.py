"""Runs: all items of a protocol over some pictures, stored as they finish, and resumable."""

import contextlib
import dataclasses
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from backend import runtime, weights
from backend.errors import UserError
from backend.evaluate.dataset import Dataset
from backend.evaluate.engines import Engine, InProcess
from backend.evaluate.plots import Figure
from backend.evaluate.protocols.base import Protocol
from backend.evaluate.store import RUN_FILE, Outcome, Store
from backend.evaluate.tables import Table
from backend.progress import Job, Step

PACKAGES = ("torchvision", "numpy", "scipy", "scikit-image", "scikit-learn", "pillow")
OTHER_FOLDER = "Resume with the same settings, pictures and models, or name another folder with --out."


@dataclass(frozen=True)
class Evaluation:
    """The results of a run."""

    protocol: str  # name of the protocol
    title: str  # of the protocol
    description: str  # what the protocol measures and where it was published
    about: Mapping[str, Any]  # protocol, settings, data, hashes of data and weights, what can be measured
    sessions: tuple[Mapping[str, Any], ...]  # start, engine, package versions and seconds of each
    tables: tuple[Table, ...]  # those by family first
    published: tuple[Table, ...]  # the paper's numbers
    plots: tuple[Figure, ...]
    limits: tuple[str, ...]  # what cannot be concluded, in sentences
    counts: Mapping[str, int]  # items `done`, `skipped` and `failed`, and `rows`
    skipped: tuple[tuple[str, str], ...]  # name and reason of every file or item that was left out or failed
    seconds: float  # of all sessions
    summary: str  # of the run, one paragraph
    finding: str = ""  # the main result, one sentence


def run_protocol(
    protocol: Protocol, data: Dataset, out: Path, *, engine: Engine | None = None, resume: bool = False
) -> Job[Evaluation]:
    """Run a protocol on pictures that it chooses, or with `resume` finish the run in the folder `out`.

    Yields:
        One step for each item, with the time that is left, and those within an item where this process does it.

    Raises:
        UserError: `out` holds a run already, or one with other settings, pictures or models; or every item failed.
    """
    try:
        return (yield from _run_protocol(protocol, data, out, engine or InProcess(), resume=resume))
    finally:
        runtime.forget_remembered()


def _run_protocol(protocol: Protocol, data: Dataset, out: Path, engine: Engine, *, resume: bool) -> Job[Evaluation]:
    if (out / RUN_FILE).exists() and not resume:
        raise UserError("The folder holds a run already.", "Continue it with --resume, or name another with --out.")
    yield Step(0, len(data.samples), "The pictures are chosen.")
    chosen = protocol.select_samples(data)
    items = protocol.items(chosen)
    if not items:
        counts = f"{len(chosen.fakes)} fakes and {len(chosen.reals)} real pictures"
        hint = f"There are {counts}; see what the protocol needs."
        raise UserError("There is nothing to measure among these pictures.", hint)
    about = describe_run(protocol, chosen)
    with contextlib.closing(Store(out)) as store:
        _check_same(store, about, protocol)
        finished = store.finished()
        waiting = [item for item in items if item.key not in finished]
        yield from _do_items(protocol, chosen, engine, store, waiting, len(items))
        return _evaluation(protocol, chosen, store, len(items))


def describe_run(protocol: Protocol, data: Dataset) -> dict[str, Any]:
    """Return what must be equal for a run to be resumed, as it comes back from JSON."""
    families = Counter(sample.family for sample in data.fakes)
    sources = Counter(sample.source for sample in data.reals)
    about = {
        "protocol": protocol.name,
        "settings": protocol.settings(),
        "data": {
            "layout": data.layout,
            "hash": data.hash(),
            "fakes": dict(sorted(families.items())),
            "reals": dict(sorted(sources.items())),
            "note": data.note,
        },
        "weights": protocol.hashes(),
        "measures": protocol.measures(),
    }
    return json.loads(json.dumps(about))


def run_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages on which results depend."""
    versions = {"python": platform.python_version(), "machine": platform.machine()} | weights.package_versions()
    return versions | {package: metadata.version(package) for package in PACKAGES}


def _check_same(store: Store, about: dict[str, Any], protocol: Protocol) -> None:
    """Store the description of a new run, or refuse to resume a run with another one."""
    before = store.about()
    if not before:
        store.describe(about)
        return
    if before["protocol"] != about["protocol"]:
        raise UserError(f"The folder holds a run of the protocol {before['protocol']}.", OTHER_FOLDER)
    for name, value in about["settings"].items():
        old = _setting_before(protocol, before["settings"], name)
        if old != value:
            raise UserError(f"The setting {name} was {old} in this run and is {value} now.", OTHER_FOLDER)
    if before["data"]["hash"] != about["data"]["hash"]:
        raise UserError("The pictures are not those that the run began with.", OTHER_FOLDER)
    for name in sorted({*before["weights"], *about["weights"]}):
        if before["weights"].get(name) != about["weights"].get(name):
            raise UserError(f"The model {name} is not the one that the run began with.", OTHER_FOLDER)
    if before["measures"] != about["measures"]:
        raise UserError("What can be measured on this machine has changed since the run began.", OTHER_FOLDER)


def _setting_before(protocol: Protocol, settings: Mapping[str, Any], name: str) -> Any:
    """Return a setting of an earlier run in today's form; the setting may be newer than that run."""
    field = next(field for field in dataclasses.fields(protocol.config) if field.name == name)
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    value = settings.get(name, protocol.defaults_of_old_runs.get(name, default))
    return json.loads(json.dumps(getattr(dataclasses.replace(protocol.config, **{name: value}), name)))


def _do_items(
    protocol: Protocol, data: Dataset, engine: Engine, store: Store, waiting: list[Any], total: int
) -> Job[None]:
    """Do the items that are left, and store each before the next step."""
    if not waiting:
        return
    started = time.perf_counter()
    session = store.begin_session(datetime.now(timezone.utc).isoformat(timespec="seconds"), engine.name, run_versions())
    before = total - len(waiting)
    outcomes = engine.run(protocol, data, waiting)
    try:
        done, message = 0, f"{before} of {total} done."
        for outcome in outcomes:
            if isinstance(outcome, Outcome):
                done += 1
                passed = time.perf_counter() - started
                store.add(outcome, session, passed)
                left = time_in_words(passed / done * (len(waiting) - done))
                message = f"{before + done} of {total} done, {left} left."
            yield Step(before + done, total, message)
    finally:
        outcomes.close()


def time_in_words(seconds: float) -> str:
    if seconds < 90:
        return f"about {max(1, round(seconds))} seconds"
    if seconds < 5400:
        return f"about {round(seconds / 60)} minutes"
    return f"about {seconds / 3600:.1f} hours"


def _evaluation(protocol: Protocol, data: Dataset, store: Store, total: int) -> Evaluation:
    failed, skipped = store.reasons("failed"), store.reasons("skipped")
    rows = list(store.rows())
    if not rows:
        reason = next((reason for _, reason in [*failed, *skipped]), "")
        raise UserError("Not one picture could be measured.", f"The first reason: {reason}")
    left_out = [(file.name, file.reason) for file in data.skipped]
    sessions = store.sessions()
    seconds = sum(session["seconds"] for session in sessions)
    counts = {"done": store.count("done"), "skipped": len(skipped), "failed": len(failed), "rows": len(rows)}
    return Evaluation(
        protocol=protocol.name,
        title=protocol.title,
        description=f"{protocol.about} {protocol.source}",
        about=store.about(),
        sessions=tuple(sessions),
        tables=tuple(sorted(protocol.tables(rows), key=lambda table: not table.by_family)),
        published=tuple(protocol.published()),
        plots=tuple(protocol.plots(rows)),
        limits=tuple(_run_limits(protocol, data, sessions)),
        counts=counts,
        skipped=tuple(left_out + skipped + [(key, f"Failed: {reason}") for key, reason in failed]),
        seconds=seconds,
        summary=_run_summary(protocol, data, counts, total, seconds),
        finding=protocol.finding(rows),
    )


def _run_limits(protocol: Protocol, data: Dataset, sessions: list[dict[str, Any]]) -> list[str]:
    limits = protocol.limits(data)
    if data.note:
        limits.append(data.note)
    if len({json.dumps(session["versions"], sort_keys=True) for session in sessions}) > 1:
        limits.append("The run was resumed with other package versions; last digits may differ from one to the other.")
    return limits


def _run_summary(protocol: Protocol, data: Dataset, counts: Mapping[str, int], total: int, seconds: float) -> str:
    text = (
        f"{protocol.title}: {counts['done']} of {total} items over {len(data.fakes)} fakes and {len(data.reals)} real "
        f"pictures were measured in {time_in_words(seconds)}."
    )
    if counts["skipped"]:
        text += f" {counts['skipped']} were skipped for a reason that lies in the picture."
    if counts["failed"]:
        text += f" {counts['failed']} failed; resuming tries them again."
    return text
