"""Sweep the step length of the latent search: share of flips, number of steps, PSNR.

python -m benchmarks.epsilon --fakes runs/fakes/val --detector xception --count 24
"""

import argparse
import json
from pathlib import Path
from typing import get_args

import torch

from backend import face_packs, runtime
from backend.counterfactual.search import SearchSettings, StepLengths, search
from backend.detectors import registry
from backend.generators import inversion
from backend.progress import finish
from backend.similarity import batch_psnr

EPSILONS = (0.0005, 0.001, 0.002, 0.003, 0.004, 0.005, 0.02, 0.05)


def main() -> None:
    """Print one JSON line per epsilon."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fakes", type=Path, required=True)
    parser.add_argument("--detector", default="xception")
    parser.add_argument("--count", type=int, default=24)
    parser.add_argument("--kappa", type=float, default=SearchSettings.kappa)
    parser.add_argument("--lengths", choices=get_args(StepLengths), default=SearchSettings.lengths)
    options = parser.parse_args()
    runtime.keep_freed_memory()
    inverter, detector = inversion.load_embedded_inverter(), registry.load(options.detector)
    fakes = face_packs.load_photographs(options.fakes, inverter.size)
    chosen = face_packs.draw_indices(len(fakes), min(len(fakes), 4 * options.count), seed=0, step=0)
    faces = fakes.pictures[chosen].float() / 255
    with torch.no_grad():
        detected = torch.cat([detector.p_fake(part) for part in faces.split(16)]) > 0.5
    faces = faces[detected][: options.count]
    for epsilon in EPSILONS:
        settings = SearchSettings(epsilon=epsilon, kappa=options.kappa, lengths=options.lengths)
        result = finish(search(inverter, detector, faces, settings))
        psnr = batch_psnr(result.counterfactual, result.original)
        row = {
            "epsilon": epsilon,
            "faces": len(faces),
            "flipped": float(result.flipped.float().mean()),
            "steps": float(result.steps[result.flipped].float().median()) if result.flipped.any() else None,
            "psnr_median": float(psnr[result.flipped].median()) if result.flipped.any() else None,
            "psnr_at_least_30": float((result.flipped & (psnr >= 30)).float().mean()),
            "seconds_a_face": result.seconds / len(faces),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
