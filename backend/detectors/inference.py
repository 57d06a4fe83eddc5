"""Fast answers of detectors: batch norms folded into convolutions, and networks that OpenVINO compiled on a CPU.

A folded copy passes gradients; it is laid out channels last on a CPU. A compiled copy only answers. Both change
answers by float32 rounding alone, which is checked before their first use.
"""

import copy
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backend import engine, runtime
from backend.detectors.base import Detector
from backend.engine import CompiledNetwork
from backend.runtime import MODEL_LOCK, frozen

WORTH_COMPILING = 8  # pictures in one batch, after which more will follow
ASKED_OFTEN = 50  # pictures that came one by one, after which more will follow
R = TypeVar("R")
TOLERANCE = 1e-3  # of log-odds, absolute and relative, up to which a fast copy agrees


logger = logging.getLogger(__name__)


@dataclass
class _Copies:
    """The fast copies of a detector.

    Args:
        weights: What they were made from.
        state: Of the weights at that time.
        folded: None where batch norms cannot be folded.
        compiled: None where PyTorch is to be used, or while `asked` is False.
        asked: Whether it was tried to compile it.
    """

    weights: list[Tensor]
    state: tuple[tuple[int, int], ...]
    folded: Detector | None
    compiled: CompiledNetwork | None = None
    asked: bool = False

    def are_current(self) -> bool:
        return self.state == _state(self.weights)


_copies: WeakKeyDictionary[Detector, _Copies] = WeakKeyDictionary()
_asked: WeakKeyDictionary[Detector, int] = WeakKeyDictionary()  # pictures, by `ask_once`


class BatchedDetector:
    """Asks a detector about many pictures in batches, and counts pictures and batches.

    Args:
        detector: It is not changed. One that `registry.load` returned is compiled on a CPU before its first full batch.
        batch: Largest number of pictures in a batch; None takes what is fast on the device.
    """

    def __init__(self, detector: Detector, batch: int | None = None) -> None:
        self.detector = for_inference(detector)  # passes gradients
        self.device = detector.mean.device
        self.batch = batch or default_batch(self.device) // (2 if detector.card.mirrored else 1)
        self.images = self.calls = 0
        # How pictures should lie in memory: convolutions of PyTorch read them fastest with their colours last.
        self.colours_last = not engine.is_available()
        self._whole = detector
        self._compiled: CompiledNetwork | None = None

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return log-odds of fake (N,) for one batch of pictures (N, 3, H, W) in [0, 1], in float32.

        TF32, which CUDA uses by default, is off: it keeps ten bits, too few for differences of 0.001.
        """
        self.images += len(images)
        self.calls += 1
        if self._compiled is None:
            self._compiled = (compile_detector if len(images) >= WORTH_COMPILING else compiled_copy)(self._whole)
        if self._compiled is not None and len(images) and not torch.is_autocast_enabled("cpu"):
            with MODEL_LOCK:
                answers = _ask_compiled(self._whole, lambda network: network(self.detector.resize(images)))
            if answers is not None:
                return answers
        if self.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        with MODEL_LOCK, frozen(self.detector), _full_precision(self.device), torch.inference_mode():
            logit = self.detector.logit_fake(images)
        return logit.clone()  # outside inference mode, so that it is an ordinary tensor

    def logit_fake_of_all(self, images: Tensor) -> Tensor:
        """Return log-odds of fake (N,) for any number of pictures, in batches."""
        return torch.cat([self.logit_fake(part) for part in images.split(self.batch)])


def default_batch(device: torch.device) -> int:
    """Return the number of pictures in a batch; more is no faster on a CPU, and a stop would wait longer."""
    return 40 if device.type == "cpu" else 320


@torch.no_grad()
def ask_once(questions: Mapping[str, tuple[Detector, Tensor]]) -> dict[str, Tensor]:
    """Return the log-odds of fake (N,) of several detectors at once, each about its own pictures (N, 3, H, W).

    Those that are compiled answer side by side. Nothing is compiled before a detector was asked often.
    """
    for detector, images in questions.values():  # without the lock, because compiling takes seconds
        _compile_if_worth_it(detector, len(images))
    with MODEL_LOCK:
        answers: dict[str, Tensor | None] = {}
        started = [
            name
            for name, (detector, images) in questions.items()
            if len(images) and _ask_compiled(detector, lambda network: _start(network, detector.resize(images)))  # noqa: B023 - called at once
        ]
        for name in started:
            answers[name] = _ask_compiled(questions[name][0], lambda network: network.wait())
        result = {}
        for name, (detector, images) in questions.items():
            answer = answers.get(name)
            if answer is None:
                with frozen(detector):
                    answer = detector.logit_fake(images)
            result[name] = answer
    return result


def _start(network: CompiledNetwork, images: Tensor) -> bool:
    network.start(images)
    return True


def _ask_compiled(detector: Detector, ask: Callable[[CompiledNetwork], R]) -> R | None:
    """Return what the compiled copy answers; None where there is none, or where it fails and is given up."""
    compiled = compiled_copy(detector)
    if compiled is None:
        return None
    try:
        return ask(compiled)
    except Exception:
        logger.warning("%s goes on with PyTorch: OpenVINO failed", detector.card.name, exc_info=True)
        _copies[detector].compiled = None
        return None


def _compile_if_worth_it(detector: Detector, count: int) -> None:
    asked = _asked[detector] = _asked.get(detector, 0) + count
    if count and asked >= ASKED_OFTEN:
        compile_detector(detector)


def compile_detector(detector: Detector) -> CompiledNetwork | None:
    """Return the compiled copy of a detector, made at the first call; None where PyTorch is to be used.

    Only the process's own copies are compiled (`registry.load`): others are made for a moment. While one thread
    compiles, others get None.
    """
    if not engine.is_available() or not runtime.is_loaded_once(detector):
        return None
    with MODEL_LOCK:
        copies = _find_copies(detector)
        if copies.asked:
            return copies.compiled
        copies.asked = True
        network = _LogOdds(copy.deepcopy(copies.folded or detector)).eval().requires_grad_(requires_grad=False)
    size = detector.card.input_size
    card = detector.card
    facts = (card.outputs, card.mirrored, detector.temperature, detector.threshold)
    copies.compiled = engine.compile_network(network, (size, size), detector.card.name, facts, TOLERANCE)
    return copies.compiled


def compiled_copy(detector: Detector) -> CompiledNetwork | None:
    """Return the compiled copy of a detector if there is one already."""
    copies = _copies.get(detector)
    return copies.compiled if copies is not None and copies.are_current() else None


class _LogOdds(nn.Module):
    """A detector as a network from pictures at its own size to log-odds."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> Tensor:
        return self.detector.logit_fake(images)


def for_inference(detector: Detector) -> Detector:
    """Return a fast copy of a detector that passes gradients, or the detector itself where no batch norm can be folded.

    The copy is kept as long as the detector lives and its weights do not change.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
        return detector
    with MODEL_LOCK:
        return _find_copies(detector).folded or detector


def _find_copies(detector: Detector) -> _Copies:
    copies = _copies.get(detector)
    if copies is None or not copies.are_current():
        tensors = [*detector.parameters(), *detector.buffers()]
        copies = _copies[detector] = _Copies(tensors, _state(tensors), _quick_copy(detector))
    return copies


def _state(tensors: list[Tensor]) -> tuple[tuple[int, int], ...]:
    """Return a value that changes whenever a tensor does, without any arithmetic."""
    return tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)  # noqa: SLF001 - counts writes in place


@torch.no_grad()
def _quick_copy(detector: Detector) -> Detector | None:
    """Copy a detector and fold its batch norms; return None where the copy would not agree with it."""
    size = detector.card.input_size
    sample = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(detector.mean.device)
    with frozen(detector):
        quick = copy.deepcopy(detector)
        for convolution, norm in _foldable(quick, sample):
            _fold(quick, convolution, norm)
        if sample.device.type == "cpu":
            quick = quick.to(memory_format=torch.channels_last)
        expected, folded = detector.logit_fake(sample), quick.logit_fake(sample)
    # They differ where a convolution's output is also used elsewhere, which no hook detects.
    return quick if torch.allclose(expected, folded, rtol=TOLERANCE, atol=TOLERANCE) else None


def _foldable(detector: Detector, sample: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the batch norms that take their output, where each runs only once."""
    outputs: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no id is used twice
    pairs: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()
    hooks = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            if isinstance(module, nn.Conv2d):
                outputs[id(output)] = (name, output)
            elif id(inputs[0]) in outputs:
                pairs.append((outputs[id(inputs[0])][0], name))

        return hook

    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(watch(name)))
    try:
        detector.logit_fake(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in pairs if all(runs[name] == 1 for name in pair)]


def _fold(detector: Detector, convolution: str, norm: str) -> None:
    """Fold a batch norm into the convolution before it; its activation and dropout, if any (timm), take its place."""
    before, old = detector.get_submodule(convolution), detector.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(old, nn.BatchNorm2d)
    if old.running_mean is None:  # it uses the batch's own statistics, which no convolution holds
        return
    rest = [getattr(old, name) for name in ("drop", "act") if hasattr(old, name)]
    _replace_module(detector, convolution, fuse_conv_bn_eval(before, old))
    _replace_module(detector, norm, nn.Sequential(*rest) if rest else nn.Identity())


def _replace_module(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(root.get_submodule(parent), attribute, module)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Switch TF32 off on CUDA, and restore it afterwards."""
    allowed = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = allowed and device.type != "cuda"
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
