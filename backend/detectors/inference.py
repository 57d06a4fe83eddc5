"""Make a detector quick at judging many pictures without gradients.

Batch norm is folded into the convolution before it, and tensors are laid out channels last on a CPU: three
quarters of the time of a small Xception there. Answers stay those of the detector up to float32 rounding.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backend.detectors.card import Detector
from backend.runtime import MODEL_LOCK, frozen

TOLERANCE = 1e-3  # of log-odds, absolute and relative, within which a quick copy says the same

# Quick copies, and the state of the weights that they were made of; None where none says the same.
_copies: WeakKeyDictionary[Detector, tuple[tuple[tuple[int, int], ...], Detector | None]] = WeakKeyDictionary()


class Judge:
    """Asks a detector about many pictures in batches, and counts.

    Args:
        detector: Who is asked; it is not changed.
        batch: How many pictures at most are asked about at once; None takes what is quick on the device.
    """

    def __init__(self, detector: Detector, batch: int | None = None) -> None:
        self.detector = for_inference(detector)
        self.device = detector.mean.device
        self.batch = batch or default_batch(self.device) // (2 if detector.card.mirrored else 1)
        self.images = self.calls = 0

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return log-odds of fake (N,) for one batch of pictures (N, 3, H, W) in [0, 1], in float32.

        TF32, which CUDA uses by default, is off: it keeps ten bits, too few for differences of 0.001.
        """
        self.images += len(images)
        self.calls += 1
        if self.device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        with MODEL_LOCK, frozen(self.detector), _full_precision(self.device), torch.inference_mode():
            logit = self.detector.logit_fake(images)
        return logit.clone()  # outside inference mode, so that it is a tensor like any other

    def logit_fake_of_all(self, images: Tensor) -> Tensor:
        """Return log-odds of fake (N,) for any number of pictures, asked in batches."""
        return torch.cat([self.logit_fake(part) for part in images.split(self.batch)])


def default_batch(device: torch.device) -> int:
    """Return how many pictures are asked about at once; more is no quicker on a CPU, and a stop would wait longer."""
    return 40 if device.type == "cpu" else 320


def for_inference(detector: Detector) -> Detector:
    """Return a quick copy of a detector, or itself where there is no batch norm to fold.

    The copy is kept for as long as the detector lives and its weights stay as they are.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
        return detector
    state = _state(detector)
    with MODEL_LOCK:
        known = _copies.get(detector)
        if known is None or known[0] != state:
            known = _copies[detector] = state, _quick(detector)
    return known[1] or detector


def _state(detector: Detector) -> tuple[tuple[int, int], ...]:
    """Return what changes whenever a weight of the detector changes, at the cost of no arithmetic."""
    tensors = [*detector.parameters(), *detector.buffers()]
    return tuple((one.data_ptr(), 0 if one.is_inference() else one._version) for one in tensors)  # noqa: SLF001 - counts writes in place


@torch.no_grad()
def _quick(detector: Detector) -> Detector | None:
    """Copy a detector and fold its batch norms; return None where the copy would say something else."""
    size = detector.card.input_size
    sample = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(detector.mean.device)
    with frozen(detector):
        quick = copy.deepcopy(detector)
        for convolution, norm in _foldable(quick, sample):
            _fold(quick, convolution, norm)
        if sample.device.type == "cpu":
            quick = quick.to(memory_format=torch.channels_last)
        expected, found = detector.logit_fake(sample), quick.logit_fake(sample)
    # They differ where a convolution's output is also used elsewhere, which no hook sees.
    return quick if torch.allclose(expected, found, rtol=TOLERANCE, atol=TOLERANCE) else None


def _foldable(detector: Detector, sample: Tensor) -> list[tuple[str, str]]:
    """Return the names of convolutions and of the batch norms that take their output, each of them run once."""
    made: dict[int, tuple[str, Tensor]] = {}  # the tensors are kept, so that no id is used twice
    found: list[tuple[str, str]] = []
    runs: Counter[str] = Counter()
    hooks = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, taken: tuple[Tensor, ...], output: Tensor) -> None:
            runs[name] += 1
            if isinstance(module, nn.Conv2d):
                made[id(output)] = (name, output)
            elif id(taken[0]) in made:
                found.append((made[id(taken[0])][0], name))

        return hook

    for name, module in detector.named_modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            hooks.append(module.register_forward_hook(watch(name)))
    try:
        detector.logit_fake(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return [pair for pair in found if all(runs[name] == 1 for name in pair)]


def _fold(detector: Detector, convolution: str, norm: str) -> None:
    """Put a batch norm into the convolution before it, and what else it did (timm's norms activate) in its place."""
    before, old = detector.get_submodule(convolution), detector.get_submodule(norm)
    assert isinstance(before, nn.Conv2d)
    assert isinstance(old, nn.BatchNorm2d)
    if old.running_mean is None:  # it uses the batch's own statistics, which no convolution holds
        return
    rest = [getattr(old, name) for name in ("drop", "act") if hasattr(old, name)]
    _replace(detector, convolution, fuse_conv_bn_eval(before, old))
    _replace(detector, norm, nn.Sequential(*rest) if rest else nn.Identity())


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, module)


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Switch TF32 off on CUDA, and back to what it was."""
    allowed = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = allowed and device.type != "cuda"
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = allowed
