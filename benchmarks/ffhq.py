"""The search with FFHQ-1024: drawn no larger than the detector's input, drawn in full, and a straightforward loop.

Generator and encoder are the fetched ones; where they are absent, networks of the same size get arbitrary weights,
since time and memory do not depend on them. Everything is built as the app builds it. The straightforward loop is that
of `counterfactual.py`: full synthesis in float32 by a plainly written generator, and two more scoring passes per step.
Each side runs in a separate process, so that its peak memory can be measured.

    python benchmarks/ffhq.py [--steps 100] [--device cuda] [--batch 1 8] [--dtype auto] [--level S,M] [--detector NAME]

On a CPU, one face and one step are the default; they take about two minutes on two cores.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ENTRY = "ffhq_1024"
GOAL_SECONDS, GOAL_RATIO = 2.0, 5.0
READ = 256  # pixels that the untrained detector reads
SIDES = ("truncated", "full", "loop")
TITLES = {
    "truncated": "drawn as large as needed",
    "full": "drawn in full, float32",
    "loop": "straightforward loop",
}


def main() -> int:
    """Run each side in a separate process and print the comparison."""
    options = _options()
    if options.side:
        print(json.dumps(_run_or_fail(options)))
        return 0
    for batch in options.batch:
        runs = {side: _child(options, side, batch) for side in SIDES if side not in options.skip}
        truncated = runs.get("truncated", {})
        for side in [side for side, run in runs.items() if "failed" in run]:
            print(f"  {TITLES[side]}, batch {batch}: {runs.pop(side)['failed']}")
        if "truncated" not in runs:
            continue
        device, weights, detector = (truncated[name] for name in ("device", "weights", "detector"))
        print(f"\n{device}, batch {batch}, {weights}, levels {options.level}, detector {detector}")
        for side, run in runs.items():
            print(
                f"  {TITLES[side]:26s} {run['step']:8.3f} s per step ({run['core_step']:.2f} of a core), "
                f"{run['seconds']:8.2f} s for {run['steps']} steps ({run['core_seconds']:.1f}), "
                f"peak {run['peak']:6.0f} MB, {run['drawn']} px, {run['dtype']}"
            )
        for side in (side for side in SIDES[1:] if side in runs):
            by = "" if truncated["gpu"] else "core_"  # on a CPU, other programs disturb the wall-clock time
            per_step, in_total = (runs[side][by + name] / truncated[by + name] for name in ("step", "seconds"))
            print(f"  {TITLES[side]}: {per_step:.1f} times the time of a step, {in_total:.1f} times in total")
        for line in [*truncated["difference"], *_goals(runs)]:
            print(f"  {line}")
    return 0


def _run_or_fail(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side, or report that the GPU has too little memory."""
    import torch

    try:
        return _run(options)
    except torch.OutOfMemoryError:
        return {"failed": "the GPU has too little memory"}


def _goals(runs: dict[str, dict[str, Any]]) -> list[str]:
    """Say whether the goals for a data-centre GPU are met; a CPU has none."""
    truncated = runs["truncated"]
    if not truncated["gpu"]:
        return []
    seconds = 100 * truncated["seconds"] / truncated["steps"]
    lines = [
        f"goal, {GOAL_SECONDS:g} s for 100 steps: {'met' if seconds <= GOAL_SECONDS else 'missed'} ({seconds:.2f} s)"
    ]
    if "loop" in runs:
        ratio = runs["loop"]["seconds"] / truncated["seconds"]
        met = "met" if ratio >= GOAL_RATIO else "missed"
        lines.append(f"goal, {GOAL_RATIO:g} times faster than the straightforward loop: {met} ({ratio:.1f} times)")
    return lines


def _run(options: argparse.Namespace) -> dict[str, Any]:
    """Run one side in this process."""
    import torch

    from backend import runtime
    from backend.counterfactual import search as counterfactual_search
    from backend.counterfactual.search import SearchSettings

    torch.manual_seed(0)
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    inverter, weights = _inverter()
    detector, faces = _detector_and_faces(inverter, options.detector, options.batch[0])
    settings = SearchSettings(
        counterfactual_search.parse_levels(options.level),
        steps=options.steps,
        early_stop=False,
        truncate=options.side == "truncated",
        precision=options.dtype if options.side == "truncated" else "float32",
    )
    with runtime.frozen(*inverter.modules(), detector):
        run = _loop if options.side == "loop" else _search
        if options.warm:  # a warm-up step takes the costs of the first step
            run(inverter, detector, faces, replace(settings, steps=1))
        if runtime.device().type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        result = run(inverter, detector, faces, settings)
        result["peak"] = _peak(runtime.device())
        compared = options.side == "truncated" and result["dtype"] != "float32"
        result["difference"] = _difference(inverter, detector, faces, settings) if compared else []
    return result | {
        "weights": weights,
        "detector": detector.card.name,
        "gpu": runtime.device().type == "cuda",
        "device": torch.cuda.get_device_name() if runtime.device().type == "cuda" else str(runtime.device()),
    }


def _search(inverter: Any, detector: Any, faces: Any, settings: Any) -> dict[str, Any]:
    """Search as the app does; the first step is the inversion, and the last waits for the picture at full size."""
    import torch

    from backend.counterfactual.search import search
    from backend.progress import finish

    times: list[float] = []
    cores: list[float] = []

    def note(_: Any = None) -> None:
        if faces.is_cuda:  # a call returns before the GPU has finished
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        cores.append(time.process_time())

    result = finish(search(inverter, detector, faces, settings), note)
    note()
    # After the last update there is only a forward pass, and the picture at full size.
    step, core_step = (
        median(after - before for before, after in pairwise(clocked[: settings.steps + 1]))
        for clocked in (times, cores)
    )
    return {
        "step": step,
        "core_step": core_step,
        "seconds": times[-1] - times[0],
        "core_seconds": cores[-1] - cores[0],
        "steps": settings.steps,
        "drawn": result.resolution,
        "dtype": result.precision,
    }


def _loop(inverter: Any, detector: Any, faces: Any, settings: Any) -> dict[str, Any]:
    """Search with the straightforward loop."""
    from benchmarks.counterfactual import loop

    before = time.process_time()
    _, seconds = loop(inverter, detector, faces, settings, tolerance=0.02)
    cores = time.process_time() - before
    return {
        "step": seconds / settings.steps,
        "core_step": cores / settings.steps,
        "seconds": seconds,
        "core_seconds": cores,
        "steps": settings.steps,
        "drawn": inverter.size,
        "dtype": "float32",
    }


def _difference(inverter: Any, detector: Any, faces: Any, settings: Any) -> list[str]:
    """Say how far half precision is from float32, in a draft before the first step and in its gradient."""
    import torch

    from backend.counterfactual import search as counterfactual_search
    from backend.counterfactual.rendering import Judge, Renderer, RenderingEffort, draft_effort

    opened = counterfactual_search.level_mask(settings.levels, inverter.rows).nonzero().flatten().tolist()
    low = draft_effort(inverter, detector.card.input_size, opened, truncate=True, precision=settings.precision)
    start = inverter.invert(faces)
    drafts = []
    for effort in (low, RenderingEffort(low.resolution, torch.float32)):
        renderer = Renderer(inverter, [Judge(detector)], faces, start, opened, "reconstruction", effort)
        rows = [row.clone().requires_grad_() for row in start.unbind(1)]
        with torch.no_grad():
            drawn = inverter.synthesize_from(renderer.draft.partial, rows, resolution=effort.resolution, clamp=False)
        _, logit = renderer.sketch(rows, torch.arange(len(faces), device=faces.device))
        gradient = torch.stack(torch.autograd.grad(logit.sum(), [rows[row] for row in opened]))
        drafts.append((drawn, logit.detach(), gradient))
    (picture, logit, gradient), (exact_picture, exact_logit, exact_gradient) = drafts
    spread = float(exact_picture.std())
    agree = float((gradient.sign() == exact_gradient.sign()).float().mean())
    text = f"{low.precision} against float32: drawings differ by {float((picture - exact_picture).abs().mean()):.1e} "
    text += f"(mean; spread {spread:.2f}), log-odds by {float((logit - exact_logit).abs().max()):.1e} at most, "
    return [f"{text}and {agree:.1%} of the steps' signs agree"]


def _inverter() -> tuple[Any, str]:
    """Return FFHQ-1024 as the app loads it, or the same networks with arbitrary weights, and a word for which."""
    from backend import weights
    from backend.generators import inversion
    from benchmarks import filled

    if weights.find_entry(ENTRY).path.is_file():
        return inversion.load_fetched_inverter(ENTRY), "published weights"
    tensors = inversion.tensors_from_e4e(filled.e4e(inversion.FFHQ_SIZE))
    return inversion.build_e4e_inverter(tensors, ENTRY), "filled weights"


def _detector_and_faces(inverter: Any, name: str, count: int) -> tuple[Any, Any]:
    """Return the detector, and faces (N, 3, S, S) rounded to 8 bits that it calls fake."""
    import torch

    from backend import runtime
    from backend.detectors import registry
    from benchmarks.counterfactual import UNTRAINED, untrained

    z = torch.randn(count, inverter.generator.style_dim, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        codes = inverter.generator.mapping(z.to(runtime.device()))[:, None].expand(-1, inverter.rows, -1)
        drawn = torch.cat([inverter.synthesize(code) for code in codes.split(1)])
        faces = (drawn * 255).round() / 255
        if name != UNTRAINED:
            return registry.load(name), faces
        network = registry.build("xception").to(runtime.device()).eval()
        return untrained(faces, network, READ).to(runtime.device()), faces


def _peak(device: Any) -> float:
    """Return the peak memory in MB: of the GPU, or of this process."""
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _child(options: argparse.Namespace, side: str, batch: int) -> dict[str, Any]:
    command = [sys.executable, __file__, "--side", side, "--batch", str(batch), "--steps", str(options.steps)]
    command += ["--level", options.level, "--detector", options.detector, "--dtype", options.dtype]
    command += ["--warm"] if options.warm else []
    command += ["--threads", str(options.threads)] if options.threads else []
    environment = os.environ | ({"DEVICE": options.device} if options.device else {})
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(process.stdout.splitlines()[-1])


def _options() -> argparse.Namespace:
    from backend import runtime

    parser = argparse.ArgumentParser(description="The search with FFHQ-1024, timed.")
    parser.add_argument("--device", help="auto, cpu, cuda or cuda:N (default: auto)")
    parser.add_argument("--steps", type=int, help="(default: 100 on a GPU, 1 on a CPU)")
    parser.add_argument("--batch", type=int, nargs="+", help="(default: 1 and 8 on a GPU, 1 on a CPU)")
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16", "float16"), default="auto")
    parser.add_argument("--level", default="S,M")
    parser.add_argument("--detector", default="untrained", help="of the registry (default: an untrained Xception)")
    parser.add_argument("--skip", nargs="*", default=[], choices=SIDES[1:], help="sides to leave out")
    parser.add_argument("--threads", type=int, help="of the CPU (default: from the environment)")
    parser.add_argument("--warm", action=argparse.BooleanOptionalAction, help="(default: on a GPU)")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    gpu = (runtime.device().type if options.device in {None, "auto"} else options.device).startswith("cuda")
    options.steps = options.steps or (100 if gpu else 1)
    options.batch = options.batch or ([1, 8] if gpu else [1])
    options.warm = gpu if options.warm is None else options.warm
    return options


if __name__ == "__main__":
    raise SystemExit(main())
