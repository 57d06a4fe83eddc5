"""Items per second of Evaluate with one worker and with two, and whether its memory stays constant.

`python -m benchmarks.evaluate throughput [--engine ray] [--items 120]` prints the items per second of both and their
ratio. `python -m benchmarks.evaluate memory [--items 2000]` prints the resident memory of one process several times.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

from backend import samples
from backend.evaluate import engines, runs
from backend.evaluate.dataset import Dataset, open_data
from backend.evaluate.protocols.detectors import DetectorsConfig, DetectorsProtocol

DETECTORS = ("xception", "efficientnet_b4", "mesoinception4")
PRINTED = 8  # lines about memory


def main() -> None:
    """Measure throughput or memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("throughput", "memory"))
    parser.add_argument("--engine", choices=engines.ENGINES, default="local")
    parser.add_argument("--items", type=int)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = open_data(samples.draw_sample_set(folder / "sample"), folder)
        if options.what == "memory":
            memory(data, folder, options.items or 2000)
        else:
            throughput(data, folder, options.engine, options.items or 120)


def throughput(data: Dataset, folder: Path, engine: str, items: int) -> None:
    """Print items per second with one worker and with two, after their models are loaded."""
    speeds = []
    for workers in (1, 2):
        job = runs.run_protocol(
            protocol(data, items), data, folder / f"{workers}", engine=engines.choose_engine(engine, workers)
        )
        times = [time.perf_counter() for step in job if step.number > 0]
        settled = times[2 * workers :]  # every worker has loaded its models
        speeds.append((len(settled) - 1) / (settled[-1] - settled[0]))
        print(
            f"{engine}, {workers} worker{'s' * (workers > 1)} of one thread: {speeds[-1]:.2f} items per second",
            flush=True,
        )
    print(f"ratio {speeds[1] / speeds[0]:.2f}")


def memory(data: Dataset, folder: Path, items: int) -> None:
    """Print the memory of the process a few times during the run."""
    total = len(protocol(data, items).items(data))
    for step in runs.run_protocol(protocol(data, items), data, folder / "run"):
        if step.number % max(1, total // PRINTED) == 0 and step.number > 0:
            now = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
            print(f"{step.number:5d} items: {now:6.0f} MB resident, {peak:6.0f} MB peak", flush=True)


def protocol(data: Dataset, items: int) -> DetectorsProtocol:
    """Return a protocol with about `items` items: every picture with several strengths of noise."""
    strengths = tuple(f"noise {1 + number / 100:g}" for number in range(-(-items // len(data.samples))))
    return DetectorsProtocol(DetectorsConfig(detectors=DETECTORS, corruptions=("none", *strengths)))


if __name__ == "__main__":
    main()
