"""The inference engine of a CPU: networks that OpenVINO compiles, each checked against PyTorch before its first use.

A compiled network answers without gradients, in float32. CUDA and MPS stay with PyTorch, and so does everything where
OpenVINO is not installed, where a network cannot be converted, or where the two disagree; the log says so.
"""

import hashlib
import importlib.util
import logging
import re
import shutil
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend import runtime
from backend.settings import SETTINGS

# Without this package OpenVINO reports nothing to its makers; with it, it would do so at every import and conversion.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

FORMAT = "1"  # of the cached files; a change of this module that changes them counts it up
PIECE = 5  # pictures that a thread reads at once: their feature maps stay in its cache
FOLDER = "openvino"  # in the cache of fetched weights
CHECKED_BATCHES = (1, PIECE + 1)  # pictures
FINGERPRINT_LENGTH = 32
UNFINISHED = "unfinished-"  # how folders begin that are being written, or were when a process ended

logger = logging.getLogger(__name__)


class CompiledNetwork:
    """A network that OpenVINO compiled for pictures (N, 3, H, W), N from 1; it returns what the network returns.

    It may be called from one thread at a time (`runtime.MODEL_LOCK`).
    """

    def __init__(self, compiled: Any) -> None:
        import openvino

        self._queue = openvino.AsyncInferQueue(compiled)  # as many requests at once as there are streams
        self._pictures: list[np.ndarray] = []
        self._answers: dict[int, Tensor] = {}
        answers = self._answers  # a callback that knew this object would keep it, and its network, for ever

        def keep(request: Any, number: int) -> None:
            answers[number] = torch.from_numpy(request.get_output_tensor(0).data.copy())

        self._queue.set_callback(keep)

    def __call__(self, images: Tensor) -> Tensor:
        self.start(images)
        return self.wait()

    def start(self, images: Tensor) -> None:
        """Begin to answer; `wait` returns the answers."""
        self._queue.wait_all()  # what an interrupted caller left running
        self._answers.clear()
        self._pictures = [part.numpy() for part in images.detach().to(torch.float32).contiguous().split(PIECE)]
        for number, part in enumerate(self._pictures):  # they live until they are read
            self._queue.start_async({0: part}, userdata=number, share_inputs=True)

    def wait(self) -> Tensor:
        self._queue.wait_all()
        self._pictures = []
        return torch.cat([self._answers[number] for number in sorted(self._answers)])


def is_available() -> bool:
    """Return whether networks can be compiled here: on a CPU, with OpenVINO, unless the settings say otherwise."""
    if SETTINGS.engine != "auto" or importlib.util.find_spec("openvino") is None:
        return False
    return runtime.device().type == "cpu"


@torch.no_grad()
def compile_network(
    network: nn.Module, size: tuple[int, int], name: str, facts: Sequence[object] = (), tolerance: float = 1e-3
) -> CompiledNetwork | None:
    """Compile a network, or read it from the cache; return None where PyTorch is to be used.

    Args:
        network: On the CPU, in evaluation mode. It takes pictures (N, 3, H, W) in [0, 1] and returns one tensor.
        size: Height and width of the pictures.
        name: What the log and the cache call it.
        facts: Whatever else decides its answers besides its class, weights and buffers, such as a threshold.
        tolerance: Largest difference of an answer, absolute and relative.
    """
    if not is_available():
        return None
    try:
        folder = f"{_folder_name(name)}-{_fingerprint(network, size, facts)}"
        path = SETTINGS.cache_dir / FOLDER / folder / "network.xml"
        if (compiled := _read_kept(network, size, path, tolerance)) is not None:
            return compiled
        model = _convert(network, size)
        compiled = _compile(model)
        difference = _difference(network, compiled, size, tolerance)
        if difference is not None:
            logger.warning("%s stays with PyTorch: OpenVINO's answers differ by %.2g", name, difference)
            return None
        _keep(model, path, name)
    except Exception:
        logger.warning("%s stays with PyTorch: OpenVINO cannot run it", name, exc_info=True)
        return None
    finally:
        runtime.release_freed_memory()
    return compiled


def _read_kept(network: nn.Module, size: tuple[int, int], path: Path, tolerance: float) -> CompiledNetwork | None:
    """Return the network that was kept, if it can be read and still agrees with PyTorch."""
    if not _is_file(path):
        return None
    try:
        compiled = _compile(_core().read_model(path))
        if _difference(network, compiled, size, tolerance) is None:
            return compiled
    except Exception:
        logger.info("%s cannot be read and is made again", path.parent.name, exc_info=True)
    return None


def _difference(network: nn.Module, compiled: CompiledNetwork, size: tuple[int, int], tolerance: float) -> float | None:
    """Return by how much the answers differ; None where they agree."""
    for count in CHECKED_BATCHES:
        images = torch.rand(count, 3, *size, generator=torch.Generator().manual_seed(count))
        expected, answers = network(images), compiled(images)
        if not torch.allclose(expected, answers, rtol=tolerance, atol=tolerance):
            return float((expected - answers).abs().max())
    return None


def _convert(network: nn.Module, size: tuple[int, int]) -> Any:
    """Return the network in the form of OpenVINO; one at a time, because tracing keeps its state in the process."""
    import openvino

    example = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    with _converting, warnings.catch_warnings():  # sizes and branches become constants, as the check confirms
        warnings.simplefilter("ignore")
        # The answers are checked later; the trace's own check compares graphs, and stumbles over other threads.
        traced = torch.jit.trace(network, example, check_trace=False)
        return openvino.convert_model(traced, example_input=example, input=[-1, 3, *size])


def _compile(model: Any) -> CompiledNetwork:
    threads = torch.get_num_threads()
    options = {
        "PERFORMANCE_HINT": "THROUGHPUT",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # two processes would be bound to the same core
    }
    return CompiledNetwork(_core().compile_model(model, "CPU", options))


def _fingerprint(network: nn.Module, size: tuple[int, int], facts: Sequence[object]) -> str:
    """Return a hash of everything that decides the answers of a network."""
    import openvino

    digest = hashlib.sha256()
    for fact in (FORMAT, openvino.__version__, torch.__version__, size, network, *facts):
        digest.update(f"{fact}\n".encode())
    for key, tensor in network.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()[:FINGERPRINT_LENGTH]


def _keep(model: Any, path: Path, name: str) -> None:
    """Write a converted network to the cache as a whole or not at all; processes may do so at the same time.

    What was kept of the same network before, with other weights or versions, is removed.
    """
    import openvino

    folder = path.parent.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob(f"{_folder_name(name)}-{'?' * FINGERPRINT_LENGTH}"), *_left_unfinished(folder)]:
            shutil.rmtree(old, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=UNFINISHED, dir=folder))
        try:
            openvino.save_model(model, work / path.name, compress_to_fp16=False)
            work.chmod(0o755)  # others who use this cache may read it
            work.rename(path.parent)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except (OSError, RuntimeError) as error:  # OpenVINO raises the latter where a disk is full
        if not _is_file(path):  # another process may have been first
            logger.info("%s was compiled but not kept: %s", name, error)


def _left_unfinished(folder: Path) -> list[Path]:
    """Return what processes left that ended while they wrote, at least an hour ago."""
    return [path for path in folder.glob(f"{UNFINISHED}*") if time.time() - path.stat().st_mtime > 3600]


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # somebody else's folder
        return False


def _folder_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.]", "_", name)


_converting = threading.Lock()
_core_lock = threading.Lock()
_cores: list[Any] = []


def _core() -> Any:
    """Return the process's one runtime of OpenVINO."""
    import openvino

    with _core_lock:
        if not _cores:
            _cores.append(openvino.Core())
        return _cores[0]
