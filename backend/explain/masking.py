"""Ask a detector about many mixtures of one face and a reference: what LIME, SHAP, SOBOL and RISE share.

A mask says for every pixel how much of the face is left: the picture is `face * mask + reference * (1 - mask)`.
Masks are made where the detector computes, and one batch of them is one forward pass.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from backend.detectors.card import Detector
from backend.detectors.inference import Judge
from backend.progress import Job, Step
from backend.runtime import MODEL_LOCK, frozen

Towards = Literal["fake", "real"]

BFLOAT16_TOLERANCE = 1e-2  # largest change of an answer that the fast path may cause
_TRIALS = 8  # masks that the fast path is measured on


@dataclass(frozen=True)
class Inferences:
    """What a detector was asked.

    Args:
        images: How many pictures it saw.
        calls: In how many batches.
    """

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
    """One face, what stands in for its hidden parts, and the detector that is asked about mixtures of both.

    An answer is the probability of the class `towards`, in [0, 1].

    Args:
        face: (1, 3, H, W) in [0, 1].
        reference: The same size; what a hidden pixel shows.
        detector: Is not changed; a quick copy of it is asked.
        towards: The class whose probability is asked for.
        batch: Pictures a forward pass; None takes as many as are quick on the device and fit into its memory.
        doubled: Put the two class probabilities through a second softmax, as the released code of LIME and RISE
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
        doubled: bool = False,
        bfloat16: bool = True,
    ) -> None:
        if face.shape != reference.shape or face.ndim != 4 or len(face) != 1:
            raise ValueError(f"face {tuple(face.shape)} and reference {tuple(reference.shape)} must be (1, 3, H, W)")
        self.detector, self.towards, self.doubled = detector, towards, doubled
        self.judge = Judge(detector, batch)
        self.device = self.judge.device
        self.face = face.detach().to(self.device, torch.float32)
        self.reference = reference.detach().to(self.device, torch.float32)
        # Colours last, as convolutions read them fastest.
        self._face, self._reference = (one.permute(0, 2, 3, 1).contiguous() for one in (self.face, self.reference))
        self._given_batch = batch is not None
        self.precision = Precision("float32", 0.0, "float32 was asked for.")
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
        """Return how many pictures go into a forward pass."""
        return self.judge.batch

    @property
    def inferences(self) -> Inferences:
        """Return what was asked so far, the checks left out."""
        asked = Inferences(self.judge.images - self.checks.images, self.judge.calls - self.checks.calls)
        return asked + self._by_gradients

    def mixtures(self, masks: Tensor) -> Tensor:
        """Return the pictures (B, 3, H, W) of masks (B, H, W), or (B, H, W, C) with one mask a colour or for all.

        Args:
            masks: Boolean, or real values in [0, 1]; 1 shows the face, 0 the reference.
        """
        masks = masks.to(self.device)
        if masks.ndim == 3:
            masks = masks[..., None]
        if masks.dtype == torch.bool:
            mixed = torch.where(masks, self._face, self._reference)
        else:
            mixed = masks * self._face + (1 - masks) * self._reference
        return mixed.permute(0, 3, 1, 2)

    def ask(self, masks: Tensor) -> Tensor:
        """Return the answers (B,), float32 on the CPU, to masks as `mixtures` takes them; counts them.

        Batches are cut where they are larger than `batch`.

        Raises:
            torch.cuda.OutOfMemoryError: Not even the given batch, or one picture, fits into the memory.
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
        """Ask about many masks, each batch of them made when it is asked about.

        Args:
            title: Of the method, for the progress line.
            total: How many masks.
            masks: Returns those of a slice, as `mixtures` takes them.

        Yields:
            One step a batch.

        Returns:
            The answers (total,).
        """
        answers: list[Tensor] = []
        done = 0
        while done < total:
            answers.append(self.ask(masks(slice(done, min(done + self.batch, total)))))
            done += len(answers[-1])
            yield Step(done, total, f"{title}: {done} of {total} pictures.")
        return torch.cat(answers)

    def gradients(self, pictures: Tensor) -> Tensor:
        """Return the gradients (B, 3, H, W) of the log-odds of `towards` at pictures (B, 3, H, W); counts them.

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
        """Add what a method asked past this class."""
        self._by_gradients += Inferences(images, calls)

    def _answers(self, masks: Tensor, dtype: str) -> Tensor:
        mixed = self.mixtures(masks)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            logit = self.judge.logit_fake(mixed)
        p_fake = torch.sigmoid(logit.float())
        p = p_fake if self.towards == "fake" else 1 - p_fake
        # softmax([p, 1 - p]) of the class asked for
        return (torch.sigmoid(2 * p - 1) if self.doubled else p).cpu()

    def _measure_bfloat16(self) -> Precision:
        """Compare both formats on the face, the reference and mixtures of both."""
        if not fast_bfloat16(self.device):
            return Precision("float32", 0.0, "This processor does not compute bfloat16 fast.")
        height, width = self.size
        shares = torch.linspace(0, 1, _TRIALS, device=self.device)
        columns = torch.arange(width, device=self.device) / width
        masks = (columns < shares[:, None])[:, None, :].expand(-1, height, -1)
        exact, fast = (self._answers(masks, dtype) for dtype in ("float32", "bfloat16"))
        deviation = float((exact - fast).abs().max())
        if deviation <= BFLOAT16_TOLERANCE:
            return Precision("bfloat16", deviation, f"In bfloat16 the answers stay within {deviation:.1e} of float32.")
        return Precision("float32", 0.0, f"In bfloat16 the answers would be off by up to {deviation:.1e}.")


def fast_bfloat16(device: torch.device) -> bool:
    """Say whether a processor has its own instructions for bfloat16; without them it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        found = torch.cpu.get_capabilities()
        return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
    return False
