"""Images per second of every detector and of TR-Net: plain float32 beside the fast path, in one run.

The plain path is the network as it was trained, in float32 and PyTorch's default layout. The fast path is what the
app uses: batch norms folded, channels last. Where the processor or GPU computes bfloat16 fast, that is timed too.
All paths take turns, and the fastest turn of each counts. The last column is the largest difference of p_fake (for
TR-Net: of a pixel in [0, 1]) from the plain path. Networks that are not installed get random weights.

    python benchmarks/detectors.py [NAME...] [--rounds 3] [--threads N] [--json]
"""

import argparse
import contextlib
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor, nn

from backend import images, runtime, weights
from backend.detectors import registry
from backend.detectors.base import Detector
from backend.detectors.predict import for_inference
from backend.trace_removal import removal
from backend.trace_removal.network import TRNet
from backend.training.detector import untrained_card

TRNET = "trnet"
BATCHES = (1, 32)
MIN_SECONDS = 0.3  # a turn repeats the call until it has taken this long
FACES = Path(__file__).resolve().parent.parent / "examples" / "results"
Path_ = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Row:
    """The figures of one path of one network."""

    name: str  # of the detector, or `trnet`
    path: str  # `float32`, `fast` or `bfloat16`
    batch: int  # pictures per call
    images_per_second: float  # in the fastest turn
    ratio: float  # to the plain path in the same run
    difference: float  # largest difference from the plain path, in p_fake or in pixel values in [0, 1]
    trained: bool  # whether the weights are the installed ones


def main() -> None:
    """Print one line for each network, path and batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: every architecture and trnet")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: PyTorch's number")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    device = runtime.device()
    if not options.json:
        print(
            f"{device}, {torch.get_num_threads()} threads, bfloat16 {'timed' if fast_bfloat16(device) else 'not fast'}"
        )
        print(f"{'network':24}{'path':10}{'batch':>6}{'images/s':>10}{'ratio':>7}{'difference':>12}")
    for name in options.names or [*registry.names(), TRNET]:
        paths, trained = _paths(name, device)
        for batch in BATCHES:
            for row in measure(name, paths, faces(batch).to(device), options.rounds, trained=trained):
                print(json.dumps(asdict(row)) if options.json else _line(row), flush=True)


def measure(name: str, paths: dict[str, Path_], pictures: Tensor, rounds: int, *, trained: bool) -> list[Row]:
    """Time every path on the same pictures, in turns; the first path is the plain one."""
    with torch.inference_mode():
        answers = {path: call(pictures).float().cpu() for path, call in paths.items()}  # also warms up
        fastest = dict.fromkeys(paths, float("inf"))
        for _ in range(rounds):
            for path, call in paths.items():
                fastest[path] = min(fastest[path], _seconds(call, pictures))
    plain = next(iter(paths))
    return [
        Row(
            name,
            path,
            len(pictures),
            round(len(pictures) / fastest[path], 1),
            round(fastest[plain] / fastest[path], 2),
            float((answers[path] - answers[plain]).abs().max()),
            trained,
        )
        for path in paths
    ]


def faces(count: int) -> Tensor:
    """Return faces (count, 3, S, S) in [0, 1]: the crops of the examples, repeated with another brightness."""
    crops = [images.to_tensor(images.read(path)) for path in sorted(FACES.glob("*/crop.png"))]
    chosen = [crops[index % len(crops)] * (1 - 0.02 * (index // len(crops))) for index in range(count)]
    return torch.cat(chosen)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether the device has instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - there is no public function


def _paths(name: str, device: torch.device) -> tuple[dict[str, Path_], bool]:
    """Return the ways to ask one network, the plain one first, and whether its weights are trained."""
    if name == TRNET:
        trained = removal.TRNET_ENTRY in weights.read_entries()
        network = (
            (removal.load_trnet() if trained else TRNet(0.5, residual=True)).eval().requires_grad_(False).to(device)
        )
        return _with_bfloat16({"float32": network, "fast": _channels_last(network)}, device), trained
    trained = name in registry.loadable("all")
    if trained:
        detector = registry.load(name)
    else:
        detector = Detector(registry.build_embedded(name, {}), untrained_card(name)).eval().requires_grad_(False)
        detector = detector.to(device)
    fast = _channels_last(for_inference(detector))
    paths: dict[str, Path_] = {"float32": detector.p_fake, "fast": lambda pictures: fast.p_fake(_laid_out(pictures))}
    return _with_bfloat16(paths, device), trained


def _with_bfloat16(paths: dict[str, Path_], device: torch.device) -> dict[str, Path_]:
    if not fast_bfloat16(device):
        return paths
    fast = paths["fast"]

    def in_bfloat16(pictures: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return fast(pictures)

    return paths | {"bfloat16": in_bfloat16}


def _channels_last(module: nn.Module) -> nn.Module:
    return copy.deepcopy(module).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _laid_out(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)


def _seconds(call: Path_, pictures: Tensor) -> float:
    """Return the seconds of one call, averaged over at least `MIN_SECONDS`."""
    calls, started = 0, time.perf_counter()
    while True:
        call(pictures)
        calls += 1
        if pictures.device.type == "cuda":
            torch.cuda.synchronize()
        elapsed = time.perf_counter() - started
        if elapsed >= MIN_SECONDS:
            return elapsed / calls


def _line(row: Row) -> str:
    name = row.name if row.trained else f"{row.name} (random)"
    speed = f"{row.images_per_second:10.1f}{row.ratio:7.2f}"
    return f"{name:24}{row.path:10}{row.batch:6}{speed}{row.difference:12.1e}"


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
