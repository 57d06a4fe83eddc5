"""Ask detectors about faces: crops, verdicts and their words, fast inference in batches, and a suggested detector.

For many pictures, batch norm is folded into the convolution before it, and tensors are laid out channels last on a
CPU, where a small Xception then takes three quarters of the time. Answers change only by float32 rounding.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from backend import images, runtime
from backend.alignment import AlignedFace, CroppedPhoto, DetectorView, LocatedFace
from backend.detectors import registry
from backend.detectors.base import FAKE_KINDS, THRESHOLD, Card, Detector, ErrorRate, Verdict, verdict
from backend.runtime import MODEL_LOCK, device, frozen

RetestScores = dict[str, tuple[Tensor, Tensor]]
VERDICT_WORDS = {"real": "Probably real", "fake": "Probably fake", "uncertain": "Uncertain"}
EMBEDDED_TEMPLATE = "embedded"
FACES_AT_ONCE = 16  # faces of a crowd that are judged together; other requests get their turn in between
FOLDING_TOLERANCE = 1e-3  # of log-odds, absolute and relative, up to which a fast copy agrees


@dataclass(frozen=True)
class JudgedFace:
    """One face of a photo with its verdicts.

    Args:
        number: From 1, the largest face first.
        aligned: The crop that the embedded detectors saw and its place in the photo. Detectors from the Hub see crops
            of the position and size on their cards.
        problem: Why the verdicts should not be trusted, or None.
        p_fake: Probability of fake in [0, 1] by detector; 0.5 is the threshold.
    """

    number: int
    aligned: AlignedFace
    problem: str | None
    p_fake: dict[str, float]

    def verdicts(self) -> dict[str, Verdict]:
        return {name: verdict(score) for name, score in self.p_fake.items()}

    def record(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "box": [round(float(value), 1) for value in self.aligned.face.box],
            "problem": self.problem,
            "verdicts": {name: {"p_fake": score, "verdict": verdict(score)} for name, score in self.p_fake.items()},
        }


def embedded_crop(located: LocatedFace) -> CroppedPhoto:
    """Return a photo with the crop that the embedded detectors see."""
    return located.cropped(EMBEDDED_TEMPLATE, registry.EMBEDDED_SIZE)


def judge_faces(located: Sequence[LocatedFace], detectors: list[str] | None = None) -> list[JudgedFace]:
    """Ask detectors (all loadable ones by default) about the faces of a photo, the largest first."""
    judged = []
    for start in range(0, len(located), FACES_AT_ONCE):
        batch = located[start : start + FACES_AT_ONCE]
        sources = [embedded_crop(face) for face in batch]
        crops = torch.cat([images.to_tensor(source.aligned.crop) for source in sources])
        scores = predict_p_fake(crops, detectors, sources)
        for index, (face, source) in enumerate(zip(batch, sources, strict=True)):
            p_fake = {name: values[index] for name, values in scores.items()}
            judged.append(JudgedFace(face.number, source.aligned, face.facts.problem, p_fake))
    return judged


@torch.no_grad()
def predict_p_fake(
    crops: torch.Tensor,
    detectors: list[str] | None = None,
    sources: CroppedPhoto | Sequence[CroppedPhoto] | None = None,
) -> dict[str, list[float]]:
    """Return the probability of fake of crops, by detector.

    Args:
        crops: (N, 3, H, W) in [0, 1].
        detectors: Names; by default all that can be loaded.
        sources: Photos of the crops: one for all, or one for each. A detector that needs another crop then sees its
            own, cut from the photo, with the changes of ours; without photos, every detector sees ours.
    """
    scores = {}
    crops = crops.to(runtime.device())
    with runtime.MODEL_LOCK:
        for name in detectors if detectors is not None else registry.loadable():
            detector = registry.load(name)
            views = cut_for_detector(detector.card, crops, sources)
            scores[name] = [round(value, 6) for value in detector.p_fake(views).tolist()]
    return scores


def cut_for_detector(
    card: Card, crops: torch.Tensor, sources: CroppedPhoto | Sequence[CroppedPhoto] | None
) -> torch.Tensor:
    """Return what a detector sees of crops (N, 3, H, W) in [0, 1]; see `predict_p_fake`."""
    if sources is None:
        return crops
    if isinstance(sources, CroppedPhoto):
        view = sources.view(card.template, card.input_size)
        return crops if view is None else view.to(crops.device).of(crops)
    return torch.cat([cut_for_detector(card, crop[None], source) for crop, source in zip(crops, sources, strict=True)])


def group_by_crop(detectors: Sequence[str] | None = None) -> dict[tuple[str, int], list[str]]:
    """Return detectors (by default all that can be loaded), grouped by the position and size of their crop."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name in detectors if detectors is not None else registry.loadable():
        card = registry.card(name)
        groups.setdefault((card.template, card.input_size), []).append(name)
    return groups


def format_p_fake(score: float) -> str:
    """Return a probability of fake with two digits, or more where two would suggest another verdict."""
    digits = next(count for count in range(2, 17) if verdict(round(score, count)) == verdict(score))
    return f"{score:.{digits}f}"


def describe_p_fake(score: float) -> str:
    """Return the verdict in words and the probability of fake with its scale."""
    return f"{VERDICT_WORDS[verdict(score)]}: {format_p_fake(score)} (0 = real, 1 = fake)"


def describe_call(score: float, what: str = "the face") -> str:
    """Say what a detector calls `what` at this probability of fake, as a predicate."""
    word = verdict(score)
    if word == "uncertain":
        return f"is uncertain about {what}, on the side of {'real' if score < THRESHOLD else 'fake'}"
    return f"calls {what} {word}"


def describe_error_rates(card: Card) -> str:
    """Say how often a detector is wrong, and on what data."""
    alarm = card.false_alarm()
    if alarm is None:
        return "How often this detector is wrong was not measured here."
    misses = "; ".join(_describe_rate(rate) for rate in card.misses() if not rate.kind.endswith("_real"))
    others = "".join(f", and {_describe_rate(rate)}" for rate in card.errors if rate.kind.endswith("_real"))
    return (
        f"Calls {alarm.rate:.0%} of {alarm.count} real photographs fake{others}. Misses {misses}. "
        "On photographs from yet other sources it may be wrong more often."
    )


def summarise_error_rates(card: Card) -> str:
    """Give the range of false alarms and of misses in one sentence."""
    alarm = card.false_alarm()
    if alarm is None:
        return describe_error_rates(card)
    alarms = [rate.rate for rate in card.errors if rate.kind == "real" or rate.kind.endswith("_real")]
    least, most = f"{min(alarms):.0%}", f"{max(alarms):.0%}"
    text = f"Calls {least} of real photographs fake"
    if least != most:
        text = f"Calls {least} to {most} of real photographs fake, by source"
    misses = [rate.rate for rate in card.misses() if not rate.kind.endswith("_real")]
    return f"{text}; misses {min(misses):.0%} to {max(misses):.0%} of fakes, by kind." if misses else f"{text}."


def _describe_rate(rate: ErrorRate) -> str:
    return f"{rate.rate:.0%} of {rate.count} {FAKE_KINDS.get(rate.kind, rate.kind)}"


class OwnCropDetector(Detector):
    """A detector that sees its own view of a photo when asked about the generator's crop; it shares the network."""

    def __init__(self, detector: Detector, view: DetectorView) -> None:
        super().__init__(
            detector.network, detector.card, temperature=detector.temperature, threshold=detector.threshold
        )
        self.to(detector.mean.device)
        self.view = view.to(detector.mean.device)

    def logit_fake(self, images: Tensor) -> Tensor:
        """Return calibrated, differentiable log-odds of fake (N,) for changed crops (N, 3, C, C) in [0, 1]."""
        return super().logit_fake(self.view.of(images))


# Fast copies with the state of the weights they were made from; None where the copy does not agree.
_quick_copies: WeakKeyDictionary[Detector, tuple[tuple[tuple[int, int], ...], Detector | None]] = WeakKeyDictionary()


class BatchedDetector:
    """Asks a detector about many pictures in batches, and counts pictures and batches.

    Args:
        detector: It is not changed.
        batch: Largest number of pictures in a batch; None takes what is fast on the device.
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
        return logit.clone()  # outside inference mode, so that it is an ordinary tensor

    def logit_fake_of_all(self, images: Tensor) -> Tensor:
        """Return log-odds of fake (N,) for any number of pictures, in batches."""
        return torch.cat([self.logit_fake(part) for part in images.split(self.batch)])


def default_batch(device: torch.device) -> int:
    """Return the number of pictures in a batch; more is no faster on a CPU, and a stop would wait longer."""
    return 40 if device.type == "cpu" else 320


def for_inference(detector: Detector) -> Detector:
    """Return a fast copy of a detector, or the detector itself where there is no batch norm to fold.

    The copy is kept as long as the detector lives and its weights do not change.
    """
    if not any(isinstance(module, nn.BatchNorm2d) for module in detector.modules()):
        return detector
    state = _weights_state(detector)
    with MODEL_LOCK:
        known = _quick_copies.get(detector)
        if known is None or known[0] != state:
            known = _quick_copies[detector] = state, _quick_copy(detector)
    return known[1] or detector


def _weights_state(detector: Detector) -> tuple[tuple[int, int], ...]:
    """Return a value that changes whenever a weight of the detector does, without any arithmetic."""
    tensors = [*detector.parameters(), *detector.buffers()]
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
    return quick if torch.allclose(expected, folded, rtol=FOLDING_TOLERANCE, atol=FOLDING_TOLERANCE) else None


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


def suggest_detector(p_fake: Mapping[str, float]) -> str | None:
    """Return the first detector that calls the face fake, else the one nearest to it, else the most reliable one.

    Args:
        p_fake: Probability of fake in [0, 1] by detector.
    """
    fake = [name for name, score in p_fake.items() if verdict(score) == "fake"]
    leaning = sorted((name for name, score in p_fake.items() if score >= THRESHOLD), key=lambda name: -p_fake[name])
    reliable = sorted(p_fake, key=lambda name: mean_error(registry.card(name)))
    return next(iter(fake + leaning + reliable), None)


def mean_error(card: Card) -> float:
    """Return the mean of the false-alarm rate and the mean miss rate, in [0, 1]; 1 where they were not measured."""
    alarm, misses = card.false_alarm(), card.misses()
    if alarm is None or not misses:
        return 1.0
    return (alarm.rate + sum(miss.rate for miss in misses) / len(misses)) / 2


def retest(
    original: Tensor,
    counterfactual: Tensor,
    attacked: str,
    detectors: Iterable[str] | None = None,
    sources: CroppedPhoto | Sequence[CroppedPhoto] | None = None,
) -> RetestScores:
    """Return p_fake before and after by every other detector.

    Args:
        original: Faces (N, 3, H, W) in [0, 1].
        counterfactual: The same faces as they are saved.
        attacked: Name of the detector that was searched against; it is left out.
        detectors: Names; by default all that can be loaded.
        sources: As in `predict_p_fake`.

    Returns:
        By name, p_fake (N,) of `original` and of `counterfactual`.
    """
    both = torch.cat([original, counterfactual]).to(device())
    twice = [*sources, *sources] if isinstance(sources, Sequence) else sources
    scores: RetestScores = {}
    for name in detectors if detectors is not None else registry.loadable():
        if name == attacked:
            continue
        detector = registry.load(name)
        with MODEL_LOCK, frozen(detector), torch.no_grad():
            p_fake = detector.p_fake(cut_for_detector(detector.card, both, twice)).cpu()
        scores[name] = (p_fake[: len(original)], p_fake[len(original) :])
    return scores


def retest_in_words(scores: Mapping[str, tuple[float, float]]) -> str:
    """Say in one sentence how many of the other detectors changed their verdict too, for one face."""
    detected = [verdict(after) for before, after in scores.values() if verdict(before) == "fake"]
    if not scores:
        return "There is no other detector to ask."
    if not detected:
        return "No other detector called the face fake to begin with."
    real, uncertain = detected.count("real"), detected.count("uncertain")
    others = "1 other detector" if len(detected) == 1 else f"{len(detected)} other detectors"
    text = f"Of {others} that called it fake, {real} now {'calls' if real == 1 else 'call'} it real"
    return f"{text} and {uncertain} {'is' if uncertain == 1 else 'are'} uncertain." if uncertain else f"{text}."
