"""What an explanation method takes and returns, and the registry of the methods.

LIME, SHAP, SOBOL and RISE query the detector with mixtures of the face and a reference. A mask says for every pixel how
much of the face is left: the picture is `face * mask + reference * (1 - mask)`. Masks are computed on the detector's
device, and one batch of masks is one forward pass.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from backend import runtime
from backend.detectors.base import Detector
from backend.detectors.inference import BatchedDetector
from backend.progress import Job, Step
from backend.registration import LAST, Registry
from backend.runtime import MODEL_LOCK, frozen

Reference = Literal["original", "adversarial"]
Preset = Literal["quick", "full", "as_released"]
Towards = Literal["fake", "real"]

REFERENCES: tuple[Reference, ...] = get_args(Reference)
BFLOAT16_TOLERANCE = 1e-2  # largest change of an answer that the fast path may cause
BFLOAT16_TRIALS = 8  # masks on which the fast path is measured
BLUR_SIDE, BLUR_OF = 128, 224  # Adv-XAI (2502.03957) blurs SHAP's faces of 224 pixels over 128


@dataclass(frozen=True)
class Inferences:
    """How many pictures a detector judged, and in how many batches."""

    images: int = 0
    calls: int = 0

    def __add__(self, other: "Inferences") -> "Inferences":
        return Inferences(self.images + other.images, self.calls + other.calls)


@dataclass(frozen=True)
class Precision:
    """Number format of the forward passes.

    Args:
        dtype: `float32` or `bfloat16`.
        deviation: Largest change of an answer against float32, measured on this face; 0 for float32.
        reason: Why this format, one sentence.
    """

    dtype: Literal["float32", "bfloat16"]
    deviation: float
    reason: str


class MaskedFace:
    """One face, what stands in for its hidden parts, and the detector that judges mixtures of both.

    An answer is the probability of the class `towards`, in [0, 1].

    Args:
        face: (1, 3, H, W) in [0, 1].
        reference: The same size; what a hidden pixel shows.
        detector: It is not changed; a fast copy of it is used.
        towards: The class whose probability is the answer.
        batch: Pictures per forward pass; None takes as many as are fast on the device and fit into its memory.
        double_softmax: Put the two class probabilities through a second softmax, as the released code of LIME and RISE
            does in Adv-XAI (2502.03957).
        bfloat16: Use bfloat16 where the processor computes it fast and the answers stay within
            `BFLOAT16_TOLERANCE`.
    """

    def __init__(
        self,
        face: Tensor,
        reference: Tensor,
        detector: Detector,
        towards: Towards = "fake",
        *,
        batch: int | None = None,
        double_softmax: bool = False,
        bfloat16: bool = True,
    ) -> None:
        if face.shape != reference.shape or face.ndim != 4 or len(face) != 1:
            raise ValueError(f"face {tuple(face.shape)} and reference {tuple(reference.shape)} must be (1, 3, H, W)")
        self.detector, self.towards, self.double_softmax = detector, towards, double_softmax
        self.judge = BatchedDetector(detector, batch)
        self.device = self.judge.device
        self.face = face.detach().to(self.device, torch.float32)
        self.reference = reference.detach().to(self.device, torch.float32)
        self._face, self._reference = self.face.contiguous(), self.reference.contiguous()
        if self.judge.colours_last:
            self._face, self._reference = (
                picture.permute(0, 2, 3, 1).contiguous() for picture in (self.face, self.reference)
            )
        self._given_batch = batch is not None
        self.precision = Precision("float32", 0.0, "float32 was requested.")
        self.checks = Inferences()
        self._by_gradients = Inferences()
        if bfloat16:
            self.precision = self._measure_bfloat16()
            self.checks = Inferences(self.judge.images, self.judge.calls)

    @property
    def size(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        return self.face.shape[2], self.face.shape[3]

    @property
    def batch(self) -> int:
        return self.judge.batch

    @property
    def inferences(self) -> Inferences:
        """Return the inferences so far, without the checks."""
        queries = Inferences(self.judge.images - self.checks.images, self.judge.calls - self.checks.calls)
        return queries + self._by_gradients

    def mixtures(self, masks: Tensor) -> Tensor:
        """Return the pictures (B, 3, H, W) of masks (B, H, W), or (B, H, W, C) with C = 1 or one mask a colour.

        Args:
            masks: Boolean, or real values in [0, 1]; 1 shows the face, 0 the reference.
        """
        masks = masks.to(self.device)
        if masks.ndim == 3:
            masks = masks[..., None]
        if not self.judge.colours_last:
            masks = masks.permute(0, 3, 1, 2)
        if masks.dtype == torch.bool:
            mixed = torch.where(masks, self._face, self._reference)
        else:
            mixed = torch.lerp(self._reference, self._face, masks)
        return mixed.permute(0, 3, 1, 2) if self.judge.colours_last else mixed

    def ask(self, masks: Tensor) -> Tensor:
        """Return the answers (B,), float32 on the CPU, to masks as `mixtures` takes them, and count them.

        Larger batches than `batch` are split.

        Raises:
            torch.cuda.OutOfMemoryError: The batch given by the caller, or a single picture, does not fit into memory.
        """
        answers: list[Tensor] = []
        done = 0
        while done < len(masks):
            part = masks[done : done + self.batch]
            try:
                answers.append(self._answers(part, self.precision.dtype))
            except torch.cuda.OutOfMemoryError:
                if self._given_batch or self.batch == 1:
                    raise
                self.judge.batch = max(1, self.batch // 2)
                torch.cuda.empty_cache()
                continue
            done += len(part)
        return torch.cat(answers)

    def ask_all(self, title: str, total: int, masks: Callable[[slice], Tensor]) -> Job[Tensor]:
        """Return the answers (total,) to many masks, of which only one batch exists at a time.

        Args:
            title: Title of the method, for the progress line.
            total: How many masks there are.
            masks: Returns the masks of a slice, as `mixtures` takes them.
        """
        answers: list[Tensor] = []
        done = 0
        while done < total:
            answers.append(self.ask(masks(slice(done, min(done + self.batch, total)))))
            done += len(answers[-1])
            yield Step(done, total, f"{title}: {done} of {total} pictures.")
        return torch.cat(answers)

    def gradients(self, pictures: Tensor) -> Tensor:
        """Return the gradients (B, 3, H, W) of the log-odds of `towards` at pictures (B, 3, H, W), and count them.

        They are 0 for a detector that no gradient passes through.
        """
        sign = 1.0 if self.towards == "fake" else -1.0
        with MODEL_LOCK, frozen(self.judge.detector), torch.enable_grad():
            leaf = pictures.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
            logit = sign * self.judge.detector.logit_fake(leaf)
            gradient = torch.autograd.grad(logit.sum(), leaf)[0] if logit.requires_grad else torch.zeros_like(leaf)
        self.count(len(pictures), 1)
        return gradient

    def count(self, images: int, calls: int) -> None:
        """Add inferences that were made without this class."""
        self._by_gradients += Inferences(images, calls)

    def _answers(self, masks: Tensor, dtype: str) -> Tensor:
        mixed = self.mixtures(masks)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logit = self.judge.logit_fake(mixed)
        p_fake = torch.sigmoid(logit.float())
        p = p_fake if self.towards == "fake" else 1 - p_fake
        # softmax([p, 1 - p]) of the class `towards`
        return (torch.sigmoid(2 * p - 1) if self.double_softmax else p).cpu()

    def _measure_bfloat16(self) -> Precision:
        """Compare both number formats on the face, the reference and mixtures of both."""
        if not runtime.fast_bfloat16(self.device):
            return Precision("float32", 0.0, "This processor does not compute bfloat16 fast.")
        height, width = self.size
        shares = torch.linspace(0, 1, BFLOAT16_TRIALS, device=self.device)
        columns = torch.arange(width, device=self.device) / width
        masks = (columns < shares[:, None])[:, None, :].expand(-1, height, -1)
        exact, fast = (self._answers(masks, dtype) for dtype in ("float32", "bfloat16"))
        deviation = float((exact - fast).abs().max())
        if deviation <= BFLOAT16_TOLERANCE:
            return Precision("bfloat16", deviation, f"In bfloat16 the answers stay within {deviation:.1e} of float32.")
        return Precision("float32", 0.0, f"In bfloat16 the answers would be off by up to {deviation:.1e}.")


@dataclass(frozen=True, eq=False)
class Question:
    """What to explain, and how thoroughly.

    Args:
        masked: Face, reference and detector.
        labels: Segment of every pixel, int64 (H, W) from 0 without gaps.
        samples: How many samples the method draws; its file says what a sample is.
        seed: Seed of all random numbers.
        as_released: Follow the released code of Adv-XAI (2502.03957) where it differs.
    """

    masked: MaskedFace
    labels: Tensor
    samples: int
    seed: int = 0
    as_released: bool = False


@dataclass(frozen=True, eq=False)
class RawMap:
    """A map before it is judged.

    Args:
        saliency: float32 (H, W) on the CPU.
        answers: The detector's answers to the masks (M,); if all are the same, there is nothing to explain. None for
            methods that follow gradients.
        empty: Why there is no map, one sentence, if the method itself finds none.
    """

    saliency: Tensor
    answers: Tensor | None = None
    empty: str = ""


def stretched(saliency: Tensor) -> Tensor:
    """Scale a map to [0, 1] from its least to its largest value, as the released code does; a constant map is 0."""
    low, high = saliency.min(), saliency.max()
    return (saliency - low) / (high - low) if high > low else saliency * 0


def segment_means(face: Tensor, labels: Tensor) -> Tensor:
    """Paint every segment of a face (1, 3, H, W) in its own mean colour: LIME's fill.

    `labels` are the segments of the pixels (H, W), from 0 without gaps.
    """
    flat, index = face[0].flatten(1).double(), labels.to(face.device).flatten()
    count = int(index.max()) + 1
    sizes = torch.bincount(index, minlength=count)
    sums = torch.zeros(len(flat), count, dtype=flat.dtype, device=flat.device).index_add_(1, index, flat)
    return (sums / sizes)[:, index].reshape(face.shape).to(face.dtype)


def blurred_face(face: Tensor, side: int | None = None) -> Tensor:
    """Blur a face (1, 3, H, W) with a box: SHAP's fill, and SOBOL's in its paper.

    `side` is that of the box in pixels; None takes 128 / 224 of the picture's height.
    """
    from scipy import ndimage

    side = side or max(2, round(face.shape[2] * BLUR_SIDE / BLUR_OF))
    # Mirror the border without its edge pixel, as OpenCV's box filter does.
    blur = ndimage.uniform_filter(face.detach().cpu().double().numpy(), (1, 1, side, side), mode="mirror")
    return torch.from_numpy(blur).to(face)


def neutral_colour(face: Tensor, detector: Detector) -> Tensor:
    """Return the colour that the detector's normalisation turns into 0, everywhere: RISE's fill."""
    return detector.mean.to(face).expand_as(face).contiguous()


@dataclass(frozen=True)
class Fill:
    """What a hidden part shows with the reference `original`.

    Args:
        words: What it is, for people.
        paint: Returns it (1, 3, H, W) for a face, its labels, the detector, and whether the preset is `as_released`.
        released_words: What it is in the preset `as_released`; empty where it is the same.
    """

    words: str
    paint: Callable[[Tensor, Tensor, Detector, bool], Tensor]
    released_words: str = ""


@dataclass(frozen=True)
class Explainer:
    """One explanation method.

    Args:
        name: Its name on the command line.
        title: Its name for people.
        about: What it does, one sentence in plain words.
        signed: Whether a map shows what speaks for the verdict (above 0) and what speaks against it (below 0).
        samples: How many samples by preset.
        run: The method; it yields one step for each batch.
        passes: Forward passes of one picture that a sample costs; a backward pass counts as two.
        needs: Method that a detector's network must have; empty where every network can be explained.
        fill: What a hidden part shows with the reference `original`; None for methods that hide nothing.
        released_batch: Pictures per forward pass in the preset `as_released`.
        released_signed: Whether a signed map stays so in that preset.
        double_softmax: Whether the released code puts probabilities through a second softmax.
    """

    name: str
    title: str
    about: str
    signed: bool
    samples: Mapping[Preset, int]
    run: Callable[[Question], Job[RawMap]]
    passes: int = 1
    needs: str = ""
    fill: Fill | None = None
    released_batch: int | None = None
    released_signed: bool = True
    double_softmax: bool = False

    @property
    def references(self) -> tuple[Reference, ...]:
        return REFERENCES if self.fill else ()

    def can_explain(self, detector: Detector) -> bool:
        return not self.needs or hasattr(detector.network, self.needs)

    def pictures(self, preset: Preset) -> int:
        """Return how many pictures' forward passes a map costs, without the attack; seconds go with it."""
        return self.samples[preset] * self.passes


EXPLAINERS: Registry[Explainer] = Registry("method", "backend.explain")


def general_methods() -> tuple[str, ...]:
    """Return the names of the methods that can explain every detector."""
    return tuple(name for name, explainer in EXPLAINERS.items() if not explainer.needs)


def register_explainer(
    name: str, *, samples: tuple[int, int] = (1, 1), order: float = LAST, **description: Any
) -> Callable[[Callable[[Question], Job[RawMap]]], Callable[[Question], Job[RawMap]]]:
    """Return a decorator that makes a function an explainer.

    Args:
        name: Its name on the command line.
        samples: How many samples in the presets `quick` and `full`; `as_released` draws as many as `full`.
        order: Its place in lists, from the least.
        description: The other fields of `Explainer`.
    """
    quick, full = samples
    counts: dict[Preset, int] = {"quick": quick, "full": full, "as_released": full}
    return EXPLAINERS.register(
        name, lambda function: Explainer(name=name, samples=counts, run=function, **description), order
    )
