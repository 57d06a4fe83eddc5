"""Agreement of maps, quick with full and white-box shortcut with NES, and memory over many explanations.

python -m benchmarks.maps --fakes runs/fakes/val --detector xception --count 3

The faces are the first fakes of a seeded draw that the detector calls fake. Agreement is Spearman's rank correlation of
the two maps over the segments of the face, for every perturbing method with both references. Then `--repeats`
explanations in a row: the resident memory before and after, and the hooks that are left on the detector.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import Tensor

from backend import face_packs, runtime
from backend.detectors import registry as detectors_registry
from backend.detectors.base import Detector
from backend.explain import base
from backend.explain.base import EXPLAINERS
from backend.explain.explanation import ExplainSettings, Explanation, explain
from backend.progress import finish

PERTURBING = [name for name, method in EXPLAINERS.items() if method.references]


def main() -> None:
    """Print one JSON line per comparison, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fakes", type=Path, required=True)
    parser.add_argument("--detector", default="xception")
    parser.add_argument("--count", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    runtime.keep_freed_memory()
    detector = detectors_registry.load(options.detector)
    faces = fakes(options.fakes, detector, options.count, options.seed)
    rows = [row for face in faces for row in compared(face, detector, options.seed)]
    summary: dict[str, Any] = {"detector": options.detector, "count": len(faces)}
    for comparison in ("quick_and_full", "shortcut_and_nes"):
        for method, reference in itertools.product(PERTURBING, base.REFERENCES):
            of_method = [row for row in rows if (row["method"], row["reference"]) == (method, reference)]
            values = [row[comparison] for row in of_method if row.get(comparison) is not None]
            if values:
                summary[f"{comparison} {method} {reference}"] = statistics.fmean(values)
    print(json.dumps(summary | memory(faces[0], detector, options.repeats), indent=1))


def fakes(folder: Path, detector: Detector, count: int, seed: int) -> list[Tensor]:
    """Return the first fakes (1, 3, S, S) of a seeded draw that the detector calls fake."""
    pictures = face_packs.load_photographs(folder, detector.card.input_size).pictures
    faces: list[Tensor] = []
    for index in np.random.default_rng(seed).permutation(len(pictures)):
        face = pictures[int(index)][None].float() / 255
        if float(detector.p_fake(face)) > 0.5:
            faces.append(face)
        if len(faces) == count:
            break
    return faces


def compared(face: Tensor, detector: Detector, seed: int) -> list[dict[str, Any]]:
    """Explain one face in all ways and compare the maps."""
    rows = []
    for method, reference in itertools.product(PERTURBING, base.REFERENCES):
        started = time.perf_counter()
        quick = _map(face, detector, method=method, reference=reference, seed=seed)
        seconds = time.perf_counter() - started
        full = _map(face, detector, method=method, reference=reference, preset="full", seed=seed)
        row: dict[str, Any] = {"method": method, "reference": reference, "quick_and_full": agreement(quick, full)}
        row |= {"seconds_quick": seconds, "seconds_full": time.perf_counter() - started - seconds}
        if reference == "adversarial":
            short = _map(face, detector, method=method, reference=reference, shortcut=True, seed=seed)
            row["shortcut_and_nes"] = agreement(short, quick)
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def agreement(one: Explanation, other: Explanation) -> float | None:
    """Return the rank correlation in [-1, 1] of two maps over the segments of the face; None where one is empty."""
    if one.degenerate or other.degenerate:
        return None
    return float(spearmanr(one.segment_scores, other.segment_scores).statistic)


def memory(face: Tensor, detector: Detector, repeats: int) -> dict[str, Any]:
    """Explain a face many times, with every method in turn, and return the memory and hooks that are left."""
    names = itertools.cycle(EXPLAINERS)
    for _ in EXPLAINERS:
        _map(face, detector, method=next(names))
    before = resident_bytes()
    for number in range(repeats):
        _map(face, detector, method=next(names), seed=number)
    modules = list(detector.network.modules())
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    hooks = sum(len(getattr(module, kind)) for module in modules for kind in kinds)
    return {
        "explanations": repeats,
        "resident_megabytes_before": round(before / 1e6),
        "resident_megabytes_after": round(resident_bytes() / 1e6),
        "hooks_left": hooks,
    }


def resident_bytes() -> int:
    """Return the memory that the process holds now (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _map(face: Tensor, detector: Detector, **settings: Any) -> Explanation:
    method = EXPLAINERS[settings["method"]]
    if not method.references:
        settings.pop("reference", None)
    return finish(explain(face, detector, ExplainSettings(**settings)))


if __name__ == "__main__":
    main()
