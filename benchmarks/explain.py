"""Our explanation methods beside their peers, on the same face and detector, in one run.

A section compares one method with its peer: the package, or a plain version of the released program. Both sides take
turns in one process, and the fastest turn of each counts. A new section is one function and one line in `SECTIONS`.

    python benchmarks/explain.py [SECTION...] [--detector NAME] [--rounds 3] [--threads N]
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from torch import Tensor

from backend import images, runtime
from backend.attacks import nes
from backend.attacks.nes import AS_RELEASED, NESSettings, draw_probe_noise, probe_noise_source
from backend.detectors import registry
from backend.detectors.base import Detector
from backend.explain.base import MaskedFace, Question, blurred_face, segment_means
from backend.explain.lime import lime
from backend.explain.segments import slic_segments
from backend.explain.shap import BATCH, shap
from backend.explain.xrai import xrai
from backend.progress import finish

AGREEMENT = 1e-3  # of a map's largest value; both sides round differently, and their quick copies fold batch norms
FACE = Path(__file__).resolve().parent.parent / "examples" / "results" / "generated_1" / "crop.png"


@dataclass(frozen=True)
class Case:
    """The input of both sides."""

    face: Tensor  # (1, 3, S, S) in [0, 1], at the size of the detector, which calls it fake
    detector: Detector  # frozen, in float32
    options: argparse.Namespace


@dataclass(frozen=True)
class Side:
    """One side of a comparison."""

    name: str
    images: int  # pictures that the detector judged
    calls: int  # batches that it judged
    seconds: float = float("inf")  # of the fastest turn
    cpu_seconds: float = float("inf")  # least processor time of a turn; other programs disturb it less


@dataclass(frozen=True)
class Comparison:
    """The result of a section."""

    peer: Side
    ours: Side
    goal: float  # smallest ratio of seconds that is good enough
    agreement: str  # how well both results agree, in words
    agrees: bool  # whether that is good enough


Turn = Callable[[], Side]  # runs once


def main() -> int:
    """Run the sections and print their results; return 1 where results disagree or a goal is missed."""
    options = _options()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    case = _case(options)
    good = True
    for section in options.sections or SECTIONS:
        result = SECTIONS[section](case)
        ratio, cpu_ratio = result.peer.seconds / result.ours.seconds, result.peer.cpu_seconds / result.ours.cpu_seconds
        print(f"{section}, {case.detector.card.title}, {case.face.shape[-1]} pixels, {options.threads} threads")
        for side in (result.peer, result.ours):
            print(
                f"  {side.name:32s} {side.seconds:8.2f} s  {side.cpu_seconds:8.2f} s of processor  "
                f"{side.images:6d} images  {side.calls:6d} calls"
            )
        print(f"  ratio {ratio:.2f}, of processor time {cpu_ratio:.2f} (goal {result.goal:g})")
        print(f"  {result.agreement}")
        good &= result.agrees and ratio >= result.goal
    return 0 if good else 1


def in_turns(rounds: int, *turns: Turn) -> list[Side]:
    """Run the sides in turns, several times, and return each with its shortest times."""
    best: list[Side | None] = [None] * len(turns)
    for _ in range(rounds):
        for place, turn in enumerate(turns):
            wall, processor = time.perf_counter(), time.process_time()
            side = turn()
            side = replace(side, seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - processor)
            before = best[place] or side
            best[place] = replace(
                side,
                seconds=min(side.seconds, before.seconds),
                cpu_seconds=min(side.cpu_seconds, before.cpu_seconds),
            )
    return [side for side in best if side is not None]


def nes_section(case: Case) -> Comparison:
    """Compare NES with the released loop of Adv-XAI-Deepfakes (2502.03957): one picture per call, same noise."""
    settings = replace(AS_RELEASED, iterations=case.options.iterations, early_stop=False)
    once = replace(settings, iterations=1)  # also warms up
    theirs_first, ours_first = nes_loop(case, once), finish(nes.attack(case.face, case.detector, once)).images
    same = (theirs_first - case.face).sign() == (ours_first - case.face).sign()
    share = float(same.float().mean())

    def ours() -> Side:
        result = finish(nes.attack(case.face, case.detector, settings))
        return Side("NES, in batches", result.image_count, result.call_count)

    def peer() -> Side:
        nes_loop(case, settings)
        count = (2 * settings.probes + 1) * settings.iterations
        return Side("NES, one picture per call", count, count)

    peer_side, our_side = in_turns(case.options.rounds, peer, ours)
    agreement = f"{share:.2%} of the signs of an update are equal (goal 99 %)"
    return Comparison(peer_side, our_side, goal=2.0, agreement=agreement, agrees=share >= 0.99)


@torch.inference_mode()
def nes_loop(case: Case, settings: NESSettings) -> Tensor:
    """Attack as the released program does, but go on after a flip; return the picture (1, 3, S, S).

    That program draws its noise from a covariance matrix of the size of the picture; here it gets our noise, which is
    faster.
    """
    source = probe_noise_source(settings.seed, 0, case.face.device)
    unit = case.detector.std[0]
    picture = case.face[0].clone()

    def p_real(image: Tensor) -> Tensor:
        return torch.sigmoid(-case.detector.logit_fake(image[None]))[0]

    for _ in range(settings.iterations):
        p_real(picture)  # the test
        gradient = torch.zeros_like(picture)
        for noise in draw_probe_noise(source, settings.probes, picture, "grey"):
            gradient += p_real(picture + settings.sigma * unit * noise) * noise
            gradient -= p_real(picture - settings.sigma * unit * noise) * noise
        gradient /= 2 * settings.probes * settings.sigma
        picture = picture + (settings.alpha * gradient.sign()).clamp(max=settings.delta) * unit
    return picture[None].clone()


def lime_section(case: Case) -> Comparison:
    """Compare LIME with the package `lime`, called as its tutorial does, with batches of 10 and the same samples."""
    from lime.lime_image import LimeImageExplainer
    from torchvision.transforms.functional import to_tensor

    labels = slic_segments(case.face[0])
    picture = case.face[0].permute(1, 2, 0).cpu().double().numpy()
    samples = case.options.samples
    maps: dict[str, Tensor] = {}

    @torch.no_grad()
    def classify(pictures: np.ndarray) -> np.ndarray:
        batch = torch.stack([to_tensor(array).float() for array in pictures])
        p_fake = case.detector.p_fake(batch.to(case.face.device)).cpu().numpy()
        return np.stack([1 - p_fake, p_fake], axis=1)

    def peer() -> Side:
        explainer = LimeImageExplainer(random_state=0)
        with silence():
            result = explainer.explain_instance(
                picture,
                classify,
                labels=(1,),
                top_labels=None,
                num_samples=samples,
                batch_size=10,
                segmentation_fn=lambda _: labels.numpy(),
                random_seed=0,
            )
        weights = dict(result.local_exp[1])
        maps["peer"] = torch.tensor([weights[segment] for segment in range(len(weights))])[labels]
        return Side("the package lime", samples, -(-samples // 10))

    def ours() -> Side:
        masked = MaskedFace(case.face, segment_means(case.face, labels.to(case.face.device)), case.detector)
        maps["ours"] = finish(lime(Question(masked, labels, samples))).saliency
        return Side("LIME", masked.inferences.images, masked.inferences.calls)

    return _compared(case, peer, ours, maps, goal=3.0)


def shap_section(case: Case) -> Comparison:
    """Compare SHAP with the package `shap` and its image masker, after its helpers were compiled."""
    from shap import Explainer
    from shap.maskers import Image

    reference = blurred_face(case.face)
    hidden, picture = (image[0].permute(1, 2, 0).cpu().numpy() for image in (reference, case.face))
    samples = case.options.samples
    maps: dict[str, Tensor] = {}
    counts = [0, 0]  # pictures, calls

    @torch.no_grad()
    def model(pictures: np.ndarray) -> np.ndarray:
        counts[0], counts[1] = counts[0] + len(pictures), counts[1] + 1
        batch = torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous().float()
        return case.detector.p_fake(batch.to(case.face.device)).cpu().numpy()

    def package(evaluations: int) -> np.ndarray:
        state = np.random.get_state()  # noqa: NPY002 - the package breaks ties with it
        np.random.seed(0)  # noqa: NPY002
        result = Explainer(model, Image(hidden))(picture[None], max_evals=evaluations, batch_size=BATCH, silent=True)
        np.random.set_state(state)  # noqa: NPY002
        return result.values[0]

    def peer() -> Side:
        counts[:] = [0, 0]
        maps["peer"] = torch.from_numpy(package(samples).sum(2))
        return Side("the package shap", *counts)

    def ours() -> Side:
        masked = MaskedFace(case.face, reference, case.detector)
        maps["ours"] = finish(shap(Question(masked, torch.zeros(masked.size), samples))).saliency
        return Side("SHAP", masked.inferences.images, masked.inferences.calls)

    package(10)
    return _compared(case, peer, ours, maps, goal=1.0)


def xrai_section(case: Case) -> Comparison:
    """Compare XRAI with the package `saliency` alone, which asks for one gradient per call."""
    from saliency.core import INPUT_OUTPUT_GRADIENTS, XRAI, XRAIParameters

    picture = case.face[0].permute(1, 2, 0).cpu().double().numpy()
    steps = case.options.steps
    maps: dict[str, Tensor] = {}

    def call(pictures: np.ndarray, **_: object) -> dict[str, np.ndarray]:
        leaf = torch.from_numpy(pictures).permute(0, 3, 1, 2).float().to(case.face.device).requires_grad_()
        (gradient,) = torch.autograd.grad(case.detector.logit_fake(leaf).sum(), leaf)
        return {INPUT_OUTPUT_GRADIENTS: gradient.permute(0, 2, 3, 1).cpu().numpy()}

    def peer() -> Side:
        result = XRAI().GetMask(picture, call, extra_parameters=XRAIParameters(steps=steps))
        maps["peer"] = torch.from_numpy(result)
        return Side("the package saliency", 2 * steps, 2 * steps)

    def ours() -> Side:
        masked = MaskedFace(case.face, case.face, case.detector)
        maps["ours"] = finish(xrai(Question(masked, torch.zeros(masked.size), steps))).saliency
        return Side("XRAI", masked.inferences.images, masked.inferences.calls)

    return _compared(case, peer, ours, maps, goal=1.0)


def _compared(case: Case, peer: Turn, ours: Turn, maps: dict[str, Tensor], goal: float) -> Comparison:
    """Run both sides in turns and compare the maps that they leave in `maps`."""
    peer_side, our_side = in_turns(case.options.rounds, peer, ours)
    difference = float((maps["peer"] - maps["ours"]).abs().max() / maps["peer"].abs().max())
    agreement = f"the maps differ by {difference:.1e} of the largest value (goal {AGREEMENT:g})"
    return Comparison(peer_side, our_side, goal=goal, agreement=agreement, agrees=difference <= AGREEMENT)


@contextmanager
def silence() -> Iterator[None]:
    """Keep a package's progress bar off the screen."""
    with Path(os.devnull).open("w") as nowhere, redirect_stderr(nowhere):
        yield


SECTIONS: dict[str, Callable[[Case], Comparison]] = {
    "nes": nes_section,
    "lime": lime_section,
    "shap": shap_section,
    "xrai": xrai_section,
}


def _case(options: argparse.Namespace) -> Case:
    detector = registry.load(options.detector)
    face = images.to_tensor(images.read(options.face)).to(detector.mean.device)
    size = detector.card.input_size
    if face.shape[-2:] != (size, size):
        face = torch.nn.functional.interpolate(face, (size, size), mode="bilinear", antialias=True).clamp(0, 1)
    return Case(face, detector, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Our explanation methods beside their peers.")
    parser.add_argument("sections", nargs="*", help=f"some of {', '.join(SECTIONS)}; all by default")
    parser.add_argument("--detector", default="xception", choices=registry.loadable())
    parser.add_argument("--face", type=Path, default=FACE)
    parser.add_argument("--iterations", type=int, default=2, help="of NES; each needs 81 pictures")
    parser.add_argument("--samples", type=int, default=2000, help="of LIME and SHAP")
    parser.add_argument("--steps", type=int, default=100, help="of XRAI from each of its two baselines")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
