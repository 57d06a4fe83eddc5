"""Seconds per training step of every detector: float32 beside bfloat16, in one run.

Both take turns on the same random pictures, and the fastest step of each counts. Drawing a batch is not timed; it takes
equally long for both.

    python -m benchmarks.training [NAME...] [--rounds 5] [--batch 32] [--threads N]
"""

import argparse
import time
from dataclasses import replace

import numpy as np
import torch

from backend import runtime
from backend.detectors import registry
from backend.training import data, detector


def main() -> None:
    """Print one line per detector."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every architecture that is trained in steps")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, help="default: PyTorch's number")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    print(f"{runtime.device()}, {torch.get_num_threads()} threads, {options.batch} pictures per step")
    print(f"{'network':18}{'float32':>10}{'bfloat16':>10}{'ratio':>7}")
    for name in options.names or [name for name in registry.names() if name not in detector.MEASURED_ONLY]:
        plain, half = seconds(name, options.batch, options.rounds)
        print(f"{name:18}{plain:9.3f}s{half:9.3f}s{plain / half:7.2f}", flush=True)


def seconds(name: str, batch: int, rounds: int) -> tuple[float, float]:
    """Return the seconds of the fastest step in float32 and in bfloat16."""
    randomness = np.random.default_rng(0)
    pictures = randomness.integers(0, 256, (batch, 3, registry.EMBEDDED_SIZE, registry.EMBEDDED_SIZE), dtype=np.uint8)
    kinds = np.array([data.REAL] * (batch // 2) + ["swap"] * (batch - batch // 2))
    origins = np.array([-1] * (batch // 2) + list(range(batch - batch // 2)))
    training_set = data.LabelledPictures(torch.from_numpy(pictures), kinds, origins)
    tasks = []
    for precision in ("float32", "bfloat16"):
        settings = replace(detector.read_detector_settings(name, precision=precision), batch=batch, partial_share=0.0)
        network, card = registry.build_embedded(name, {}), detector.untrained_card(name)
        task = detector.build_detector_task(name, network, card, training_set, settings)
        first = task.batches.draw(0)  # type: ignore[attr-defined]
        task.batches.draw = lambda _number, first=first: first  # type: ignore[attr-defined]
        tasks.append(task)
    fastest = [float("inf")] * len(tasks)
    for number in range(rounds + 1):  # the first round warms up
        for place, task in enumerate(tasks):
            started = time.perf_counter()
            task.step(number)
            if number:
                fastest[place] = min(fastest[place], time.perf_counter() - started)
    return fastest[0], fastest[1]


if __name__ == "__main__":
    main()
