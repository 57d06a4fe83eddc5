"""Measure speeds as ratios against peers in the same run, and write `docs/PERFORMANCE.md`.

    python -m benchmarks [ROW...] [--quick] [--runs 5] [--threads 2] [--keep benchmarks/figures.json]

Each side of a row has a process of its own, so that its memory can be measured; the sides take turns, and nothing else
should run on the machine. `--quick` does less work in each turn, leaves out what takes minutes, and is done in about
five; it writes nothing unless told to. All rows take more than an hour, so the figures of each are kept with day and
machine as soon as they are there, and some rows can be measured again alone.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rows import ROWS, Row

OUT = Path(__file__).resolve().parent.parent / "docs" / "PERFORMANCE.md"
KEPT = Path(__file__).with_name("figures.json")
GPU_ROWS = ("Counterfactual with FFHQ-1024 on a GPU", "All maps on a GPU")  # no row measures them yet
NOT_TIMED = "not measured"


@dataclass(frozen=True)
class Measured:
    """The figures of one row.

    Args:
        ratios: Least, median and largest ratio of a turn of the peer to the turn of ours after it.
        seconds: Medians of the peer's turns and of ours.
        memory: Largest resident memory of our process in MB.
        difference: Largest difference of the two results, of the largest value; None where they are not compared.
        runs: Turns of each side.
        day: When it was measured.
        machine: Where: processor, threads, versions.
    """

    ratios: tuple[float, float, float]
    seconds: tuple[float, float]
    memory: float
    difference: float | None
    runs: int
    day: str
    machine: str


def main() -> int:
    """Run the rows and write the table; return 1 where a row misses its figure."""
    options = _options()
    if options.serve:
        _serve(options)
        return 0
    measured = {}
    for name in options.rows or [name for name, row in ROWS.items() if not (options.quick and row.takes_minutes)]:
        measured[name] = measure(name, options)
        print(_line(name, measured[name]), flush=True)
        if options.keep is not None:
            _keep(name, measured[name], options.keep)
    if options.keep == KEPT:
        OUT.write_text(table(read_figures(KEPT)), encoding="utf-8")
        print(f"Written to {OUT}.")
    return 0 if all(_good(ROWS[name], figures) for name, figures in measured.items()) else 1


def read_figures(path: Path) -> dict[str, Measured]:
    """Return the figures that were kept, by row, in the order of the rows."""
    stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept = {
        name: values | {"ratios": tuple(values["ratios"]), "seconds": tuple(values["seconds"])}
        for name, values in stored.items()
    }
    return {name: Measured(**kept[name]) for name in ROWS if name in kept}


def _keep(name: str, figures: Measured, path: Path) -> None:
    known = read_figures(path) | {name: figures}
    text = json.dumps({row: asdict(known[row]) for row in ROWS if row in known}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")


def measure(name: str, options: argparse.Namespace) -> Measured:
    """Let both sides of a row take turns."""
    row = ROWS[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        _side(name, "theirs", row.peer_environment, folder, options) as theirs,
        _side(name, "ours", row.environment, folder, options) as ours,
    ):
        seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(options.runs + 1):  # the first turn of each warms up
            for side, run in (("theirs", theirs), ("ours", ours)):
                answer = run()
                if number:
                    seconds[side].append(answer["seconds"])
                memory = answer["memory"] if side == "ours" else 0.0
        difference = None
        if row.tolerance is not None:
            expected, answers = (np.load(Path(folder) / f"{side}.npy") for side in ("theirs", "ours"))
            difference = float(np.abs(expected - answers).max() / np.abs(expected).max())
    ratios = [theirs / ours for ours, theirs in zip(seconds["ours"], seconds["theirs"], strict=True)]
    return Measured(
        (min(ratios), statistics.median(ratios), max(ratios)),
        (statistics.median(seconds["theirs"]), statistics.median(seconds["ours"])),
        memory,
        difference,
        options.runs,
        f"{datetime.now(timezone.utc):%Y-%m-%d}",
        _machine(options.threads),
    )


@contextmanager
def _side(
    name: str, side: str, environment: Mapping[str, str], folder: str, options: argparse.Namespace
) -> Iterator[Callable[[], dict[str, Any]]]:
    """Start the process of one side, and yield a function that lets it take a turn."""
    command = [sys.executable, "-m", "benchmarks", name, "--serve", side, "--folder", folder]
    command += ["--threads", str(options.threads), *(["--quick"] if options.quick else [])]
    process = subprocess.Popen(
        command, env=os.environ | environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None

    def run() -> dict[str, Any]:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{name}, {side}: its process ended with {process.wait()}")
        return json.loads(answer)

    try:
        yield run
    finally:
        process.stdin.close()
        process.wait()


def _serve(options: argparse.Namespace) -> None:
    """Prepare one side of a row, and do its work once for every line on standard input."""
    import torch

    from backend import runtime

    answers = sys.stdout
    sys.stdout = sys.stderr  # whatever a package prints
    torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    name = options.rows[0]
    row = ROWS[name]
    turn = (row.ours if options.serve == "ours" else row.theirs)("quick" if options.quick else "full")
    for _ in sys.stdin:
        started = time.perf_counter()
        result = turn()
        seconds = float(result[0]) if row.timed else time.perf_counter() - started
        np.save(Path(options.folder) / f"{options.serve}.npy", result)
        answers.write(json.dumps({"seconds": seconds, "memory": _peak_memory()}) + "\n")
        answers.flush()


def _peak_memory() -> float:
    """Return the largest resident memory of this process in MB; 0 where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # on Windows
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def _good(row: Row, figures: Measured) -> bool:
    _, median, _ = figures.ratios
    if row.tolerance is not None and not (figures.difference is not None and figures.difference <= row.tolerance):
        return False  # and where a result is not a number
    if row.at_most is not None:
        return 1 / median <= row.at_most
    return row.at_least is None or median >= row.at_least


def _line(name: str, figures: Measured) -> str:
    row = ROWS[name]
    least, median, most = figures.ratios
    seconds = " / ".join(f"{value:.3g} s" for value in figures.seconds)
    difference = "" if figures.difference is None else f", results differ by {figures.difference:.1e}"
    verdict = "good" if _good(row, figures) else "NOT GOOD"
    ratio = f"{median:6.2f} ({least:.2f} to {most:.2f})"
    return f"{name:10} {ratio}  {seconds}  {figures.memory:.0f} MB{difference}: {verdict}"


def table(measured: Mapping[str, Measured]) -> str:
    """Return the page with all rows."""
    machines = list(dict.fromkeys(figures.machine for figures in measured.values()))
    lines = [
        "# Speed",
        "",
        "Measured with `python -m benchmarks`, which keeps the figures in `benchmarks/figures.json`. A ratio says how",
        "many times less time our side needs than its peer: the median of several turns, and from the least to the",
        "largest. Both sides took turns in the same run, each in a process of its own, and nothing else ran. Memory is",
        "the largest that our process held. On another machine seconds differ, ratios less.",
        "",
        "| work | compared with | ratio | from, to | asked | goal | seconds: peer, ours | memory | turns, day |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, figures in measured.items():
        row = ROWS[name]
        least, median, most = figures.ratios
        seconds = ", ".join(f"{value:.3g}" for value in figures.seconds)
        if row.at_most is not None:
            shown, span = f"takes {1 / median:.2f} times as long", f"{1 / most:.2f} to {1 / least:.2f}"
            asked, goal = f"at most {row.at_most:g}", ""
        else:
            shown, span = f"**{median:.1f}**", f"{least:.1f} to {most:.1f}"
            asked = "" if row.at_least is None else f"{row.at_least:g}"
            goal = "" if row.goal is None else f"{row.goal:g}"
        when = f"{figures.runs}, {figures.day}" + (f" ({machines.index(figures.machine) + 1})" if machines[1:] else "")
        memory = "" if row.in_others else f"{figures.memory:.0f} MB"
        lines.append(
            f"| {row.work} | {row.peer} | {shown} | {span} | {asked} | {goal} | {seconds} | {memory} | {when} |"
        )
    unmeasured = [row.work for name, row in ROWS.items() if name not in measured]
    lines += [f"| {work} | | {NOT_TIMED} | | | | | | |" for work in (*unmeasured, *GPU_ROWS)]
    limits = [f"- {ROWS[name].work}: {ROWS[name].limit}" for name in measured if ROWS[name].limit]
    if limits:
        lines += ["", "What keeps ratios from growing:", "", *limits]
    compared = {name: figures.difference for name, figures in measured.items() if figures.difference is not None}
    if compared:
        listed = ", ".join(f"{ROWS[name].work.split(',')[0]} {value:.1e}" for name, value in compared.items())
        lines += ["", f"Largest difference of the results, as a share of the largest value: {listed}."]
    numbers = [f"({place}) " if machines[1:] else "" for place in range(1, len(machines) + 1)]
    for number, machine in zip(numbers, machines, strict=True):
        lines += ["", f"{number}{machine}"]
    return "\n".join([*lines, ""])


def _machine(threads: int) -> str:
    """Return processor, threads and versions in one or two sentences."""
    import torch

    from backend import engine, runtime, weights

    versions = weights.package_versions() | {"python": platform.python_version()}
    if engine.is_available():
        versions["openvino"] = importlib.metadata.version("openvino")
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    native = "computes" if runtime.fast_bfloat16(torch.device("cpu")) else "does not compute"
    return (
        f"{_processor()}, {threads} threads, {platform.system()} {platform.machine()}, which {native} bfloat16 itself; "
        f"{listed}."
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "a processor"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({os.cpu_count()} cores)" if names else f"{os.cpu_count()} cores"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(ROWS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="less work in each turn")
    parser.add_argument("--runs", type=int, default=5, help="turns of each side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--keep", type=Path, help="where figures are kept; by default benchmarks/figures.json unless --quick is given"
    )
    parser.add_argument("--serve", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := sorted(set(options.rows) - set(ROWS)):
        parser.error(f"unknown row: {', '.join(unknown)}")
    if options.keep is None and not options.quick:
        options.keep = KEPT
    options.keep = options.keep and options.keep.resolve()
    return options


if __name__ == "__main__":
    raise SystemExit(main())
