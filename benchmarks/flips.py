"""Measure the counterfactuals of detected fakes: flips, PSNR, transfer, seconds.

python -m benchmarks.flips --fakes runs/fakes/val --detector xception --count 50

The fakes are drawn at random with a seed, equally many of each kind; those that the detector does not call fake are
skipped. Verdict and PSNR are those of the aligned crop as saved, in 8 bits.
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args

import numpy as np

from backend import face_packs, runtime
from backend.alignment import locate
from backend.counterfactual.photo import find_counterfactual
from backend.counterfactual.search import SearchSettings, StepLengths
from backend.errors import UserError
from backend.progress import finish


def main() -> None:
    """Print one JSON line per fake, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fakes", type=Path, required=True)
    parser.add_argument("--detector", default="xception")
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--composite", default="transfer")
    parser.add_argument("--lengths", choices=get_args(StepLengths), default=SearchSettings.lengths)
    options = parser.parse_args()
    runtime.keep_freed_memory()
    settings = SearchSettings(composite=options.composite, lengths=options.lengths)
    rows: list[dict[str, Any]] = []
    skipped = 0
    for name, picture in _draw_fakes(face_packs.load_photographs(options.fakes, 128), options.seed):
        if len(rows) == options.count:
            break
        try:
            result = finish(find_counterfactual(locate(picture), options.detector, settings))
        except UserError:
            skipped += 1
            continue
        if result.already_real:
            skipped += 1
            continue
        record = result.record()
        rows.append(record)
        shown = {key: record[key] for key in ("flipped", "steps", "p_fake", "p_pasted", "retest", "seconds")}
        print(json.dumps({"fake": name, "psnr": record["metrics"]["psnr"]} | shown), flush=True)
    print(json.dumps(_summarise(rows) | {"passed_over": skipped, "settings": rows[0]["settings"]}, indent=1))


def _draw_fakes(fakes: face_packs.Photographs, seed: int) -> list[tuple[str, np.ndarray]]:
    """Return the fakes in a random order in which the kinds take turns."""
    order = np.random.default_rng(seed).permutation(len(fakes))
    by_kind: dict[str, list[int]] = defaultdict(list)
    for index in order:
        by_kind[fakes.names[index].split("/")[0]].append(int(index))
    turns = [index for turn in zip(*by_kind.values(), strict=False) for index in turn]
    return [(fakes.names[index], fakes.pictures[index].permute(1, 2, 0).numpy().copy()) for index in turns]


def _summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    good = [row["flipped"] and (row["metrics"]["psnr"] or 99) >= 30 for row in rows]
    transfer = {}
    for name in rows[0]["retest"]:
        detected = [row for row in rows if row["flipped"] and row["retest"][name]["original"] >= 0.5]
        flipped = sum(row["retest"][name]["counterfactual"] < 0.5 for row in detected)
        transfer[name] = {"detected": len(detected), "turned": flipped}
    pasted = [row["p_pasted"] for row in rows if row["flipped"] and row["p_pasted"] is not None]
    return {
        "fakes": len(rows),
        "flipped": sum(row["flipped"] for row in rows),
        "flipped_at_30_db": sum(good),
        "psnr_median": statistics.median(row["metrics"]["psnr"] or 99 for row in rows),
        "steps_median": statistics.median(row["steps"] for row in rows),
        "seconds_median": statistics.median(row["seconds"] for row in rows),
        "pasted_still_real": f"{sum(p < 0.5 for p in pasted)} of {len(pasted)}",
        "transfer": transfer,
    }


if __name__ == "__main__":
    main()
