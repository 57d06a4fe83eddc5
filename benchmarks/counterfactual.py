"""Our latent search beside a straightforward loop, on the same faces, codes, step and detector.

The straightforward loop is what one would write first, and what the released program of Artifact-Eraser does: at
every step it draws the whole face once to record its score, once with gradients for the step, and once more
after the step to test for success. Its generator is the one that such programs use (`plain_stylegan2.py`), with the
same weights; a check makes sure that both draw the same faces. Both sides run frozen, in float32. Each side runs in
a separate process, so that its peak memory can be measured; the sides take turns, and the fastest turn counts.

    python benchmarks/counterfactual.py [--detector NAME] [--faces 4] [--steps 60] [--level S,M,D]
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from backend import runtime
from backend.counterfactual import search as counterfactual_search
from backend.counterfactual.search import SearchSettings, search
from backend.detectors import registry
from backend.detectors.base import Detector
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.progress import Step, finish
from backend.training.detector import untrained_card
from benchmarks.plain_stylegan2 import synthesize

SIDES = ("ours", "loop")
UNTRAINED = "untrained"
AGREEMENT = 0.02  # largest difference of p_fake that counts as the same result
SAME_FACES = 1e-4  # largest difference of a pixel between the two generators


def main() -> int:
    """Run both sides in turns and print the comparison; return 1 where they disagree."""
    options = _options()
    if options.side:
        print(json.dumps(_run(options)))
        return 0
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in (*SIDES, "stopping")}
    for _ in range(options.rounds):
        for side, turns in runs.items():
            turns.append(_run_in_child(side))
    best = {side: min(turns, key=lambda turn: turn["seconds"]) for side, turns in runs.items()}
    for side in SIDES:
        per_step, seconds, peak = (best[side][name] for name in ("per_step", "seconds", "peak_mb"))
        print(f"{side:9s} {per_step:8.1f} ms per step, {seconds:6.1f} s in total, peak {peak:.0f} MB")
    print(f"ratio     {best['loop']['per_step'] / best['ours']['per_step']:8.2f} per step, early stop off in both")
    early = best["stopping"]
    ratio = best["ours"]["seconds"] / early["seconds"]
    print(f"with early stop: {early['steps']} steps, {early['seconds']:.1f} s, {ratio:.2f} times faster again")
    ours, loop = torch.tensor(best["ours"]["p_fake"]), torch.tensor(best["loop"]["p_fake"])
    difference = float((ours - loop).abs().max())
    same = bool(((ours < 0.5) == (loop < 0.5)).all())
    print(f"flips: {'the same' if same else 'NOT the same'}")
    # Steps follow the sign of the gradient, and where that is nearly zero the last bit decides. Half-way down, where
    # p_fake falls fastest, two correct programs may differ by some hundredths; at the end of a long search they do not.
    verdict = "within" if difference <= AGREEMENT else "beyond"
    print(f"final p_fake differs by at most {difference:.4f} ({verdict} {AGREEMENT})")
    return 0 if same else 1


def loop(
    inverter: Inverter, detector: Detector, faces: Tensor, settings: SearchSettings, tolerance: float = SAME_FACES
) -> tuple[Tensor, float]:
    """Search with a straightforward loop; return the final p_fake (N,) and the seconds that the steps took."""
    mask = counterfactual_search.level_mask(settings.levels, inverter.rows)[None, :, None]
    start = inverter.invert(faces)
    epsilon = inverter.epsilon if settings.epsilon is None else settings.epsilon
    with torch.no_grad():
        drawn_start = _draw(inverter, start)
    with torch.no_grad(), _all_digits():
        difference = float((_draw(inverter, start) - inverter.synthesize(start, clamp=False)).abs().max())
    if difference > tolerance:
        raise RuntimeError(f"the two generators draw different faces, by up to {difference:.1e}")

    def picture(codes: Tensor) -> Tensor:
        return (faces + _draw(inverter, codes) - drawn_start).clamp(0, 1)

    def score(codes: Tensor) -> Tensor:
        with torch.no_grad():
            return detector.p_fake((picture(codes) * 255).round() / 255)

    codes = start.clone()
    scores = []
    started = time.perf_counter()
    for _ in range(settings.steps):
        scores.append(score(codes))
        codes.requires_grad_(True)
        loss = detector.p_fake(picture(codes)).square().mean()
        (gradient,) = torch.autograd.grad(loss, codes)
        codes = codes.detach() - epsilon * gradient.sign() * mask
        scores.append(score(codes))
    return scores[-1].cpu(), time.perf_counter() - started


def _all_digits() -> AbstractContextManager[None]:
    """Compute convolutions in full float32 even on a GPU, which otherwise rounds their factors to 10 bits (TF32)."""
    cudnn = torch.backends.cudnn
    flags = {name: getattr(cudnn, name) for name in ("enabled", "benchmark", "deterministic")}
    return cudnn.flags(**flags, allow_tf32=False)


def _draw(inverter: Inverter, codes: Tensor) -> Tensor:
    """Draw faces (N, 3, S, S) around [0, 1] with the plain generator."""
    return (synthesize(inverter.generator, codes) + 1) / 2


def ours(inverter: Inverter, detector: Detector, faces: Tensor, settings: SearchSettings) -> tuple[Tensor, float, int]:
    """Search as the app does; return the final p_fake (N,), the seconds of the steps, and their number."""
    started = 0.0

    def clock(_: Step) -> None:
        nonlocal started
        started = started or time.perf_counter()  # the first step is the inversion

    result = finish(search(inverter, detector, faces, settings), clock)
    return result.p_counterfactual, time.perf_counter() - started, len(result.trajectory) - 1


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in this process."""
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    inverter = inversion.load_embedded_inverter()
    faces = _faces(inverter, options.faces)
    detector = (
        untrained(faces, registry.build_embedded("xception", {}).eval())
        if options.detector == UNTRAINED
        else registry.load(options.detector)
    )
    stopping = options.side == "stopping"
    level = counterfactual_search.parse_levels(options.level)
    published = {"epsilon": options.epsilon, "lengths": "equal"}
    settings = SearchSettings(level, steps=options.steps, early_stop=stopping, **published)
    # A warm-up step takes the costs of the first step.
    warm = SearchSettings(level, steps=1, early_stop=False, **published)
    with runtime.frozen(*inverter.modules(), detector):
        if options.side == "loop":
            loop(inverter, detector, faces, warm)
            p_fake, seconds = loop(inverter, detector, faces, settings)
            steps = options.steps
        else:
            ours(inverter, detector, faces, warm)
            p_fake, seconds, steps = ours(inverter, detector, faces, settings)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    per_step = 1000 * seconds / max(1, steps)
    return {"per_step": per_step, "seconds": seconds, "steps": steps, "peak_mb": peak, "p_fake": p_fake.tolist()}


@torch.no_grad()
def _faces(inverter: Inverter, count: int) -> Tensor:
    """Draw faces (N, 3, S, S), rounded to 8 bits: no photo is needed, and detectors should call them fake."""
    generator = inverter.generator
    z = torch.randn(count, generator.style_dim, generator=torch.Generator().manual_seed(0))
    codes = generator.mapping(z)[:, None].expand(-1, inverter.rows, -1)
    return (inverter.synthesize(codes) * 255).round() / 255


@torch.no_grad()
def untrained(faces: Tensor, network: nn.Module, input_size: int = registry.EMBEDDED_SIZE) -> Detector:
    """Return an untrained Xception, shifted and scaled so that it calls all the faces fake."""
    card = replace(untrained_card("xception"), name=UNTRAINED, title="Untrained Xception", input_size=input_size)
    raw = Detector(network, card).to(faces.device).logit_fake(faces)
    spread = float(raw.std()) if len(raw) > 1 else float(raw.abs().max()) / 10
    return Detector(network, card, temperature=spread, threshold=float(raw.min()) - spread).eval()


def _run_in_child(side: str) -> dict[str, Any]:
    command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def _options() -> argparse.Namespace:
    loadable = registry.loadable()
    parser = argparse.ArgumentParser(description="Our latent search beside a straightforward loop.")
    parser.add_argument("--detector", default=loadable[0] if loadable else UNTRAINED, choices=[*loadable, UNTRAINED])
    parser.add_argument("--faces", type=int, default=4)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--level", default="S,M,D")
    parser.add_argument("--epsilon", type=float)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--side", choices=[*SIDES, "stopping"], help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
