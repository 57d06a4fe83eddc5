"""The peer of our latent search: a straightforward loop, on the same faces, codes, step and detector.

It is what one would write first, and what the released program of Artifact-Eraser does: at every step it draws the
whole face once to record its score, once with gradients for the step, and once more after the step to test for
success. Its generator is the one that such programs use (`plain_stylegan2.py`), with the same weights; a check makes
sure that both draw the same faces.
"""

import time
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from backend.counterfactual import search as counterfactual_search
from backend.counterfactual.search import SearchSettings
from backend.detectors import registry
from backend.detectors.base import Detector
from backend.generators.inversion import Inverter
from backend.training.detector import untrained_card
from benchmarks.plain_stylegan2 import synthesize

UNTRAINED = "untrained"
SAME_FACES = 1e-4  # largest difference of a pixel between the two generators


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


@torch.no_grad()
def drawn_faces(inverter: Inverter, count: int) -> Tensor:
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
