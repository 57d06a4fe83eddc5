"""Our explanation methods beside what they are measured against, on the same face and detector, in one run.

A section compares one method with its peer: the package, or the released program written down plainly. Both sides
take turns in one process, and the fastest turn of each counts. A new section is one function and one line in
`SECTIONS`.

    python benchmarks/explain.py [SECTION...] [--detector NAME] [--rounds 3] [--threads N]
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from backend import images, runtime
from backend.attacks import nes
from backend.attacks.nes import AS_RELEASED, NESSettings
from backend.attacks.probes import draw, noise_source
from backend.detectors import registry
from backend.detectors.card import Detector
from backend.progress import finish

FACE = Path(__file__).resolve().parent.parent / "examples" / "results" / "generated_1" / "crop.png"


@dataclass(frozen=True)
class Case:
    """What both sides are given.

    Args:
        face: (1, 3, S, S) in [0, 1], at the size of the detector, which calls it fake.
        detector: Frozen, in float32.
        options: The command line.
    """

    face: Tensor
    detector: Detector
    options: argparse.Namespace


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Args:
        name: What it is.
        images: Pictures that the detector was asked about.
        calls: Batches that it was asked in.
        seconds: Of its fastest turn.
        cpu_seconds: Processor time of the turn that took least of it; other programs disturb it less.
    """

    name: str
    images: int
    calls: int
    seconds: float = float("inf")
    cpu_seconds: float = float("inf")


@dataclass(frozen=True)
class Comparison:
    """What a section found.

    Args:
        peer: The package, or the plain program.
        ours: Our method.
        goal: Smallest ratio of seconds that is good enough.
        agreement: How well both results agree, in words.
        agrees: Whether that is good enough.
    """

    peer: Side
    ours: Side
    goal: float
    agreement: str
    agrees: bool


Turn = Callable[[], Side]  # runs once, and says what was asked


def main() -> int:
    """Run the sections and print what each found; return 1 where results disagree or a goal is missed."""
    options = _options()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    runtime.keep_freed_memory()
    case = _case(options)
    good = True
    for section in options.sections or SECTIONS:
        found = SECTIONS[section](case)
        ratio, cpu_ratio = found.peer.seconds / found.ours.seconds, found.peer.cpu_seconds / found.ours.cpu_seconds
        print(f"{section}, {case.detector.card.title}, {case.face.shape[-1]} pixels, {options.threads} threads")
        for side in (found.peer, found.ours):
            print(
                f"  {side.name:32s} {side.seconds:8.2f} s  {side.cpu_seconds:8.2f} s of processor  "
                f"{side.images:6d} images  {side.calls:6d} calls"
            )
        print(f"  ratio {ratio:.2f}, of processor time {cpu_ratio:.2f} (goal {found.goal:g})")
        print(f"  {found.agreement}")
        good &= found.agrees and ratio >= found.goal
    return 0 if good else 1


def in_turns(rounds: int, *turns: Turn) -> list[Side]:
    """Run the sides one after the other, several times, and return each with its least times."""
    best: list[Side | None] = [None] * len(turns)
    for _ in range(rounds):
        for place, turn in enumerate(turns):
            wall, processor = time.perf_counter(), time.process_time()
            side = turn()
            side = replace(side, seconds=time.perf_counter() - wall, cpu_seconds=time.process_time() - processor)
            known = best[place] or side
            best[place] = replace(
                side,
                seconds=min(side.seconds, known.seconds),
                cpu_seconds=min(side.cpu_seconds, known.cpu_seconds),
            )
    return [side for side in best if side is not None]


def nes_section(case: Case) -> Comparison:
    """Compare NES with the released loop of Adv-XAI-Deepfakes (2502.03957): one picture a call, same noise."""
    settings = replace(AS_RELEASED, iterations=case.options.iterations, early_stop=False)
    once = replace(settings, iterations=1)  # also pays what only a first run pays
    theirs_first, ours_first = nes_loop(case, once), finish(nes.attack(case.face, case.detector, once)).images
    same = (theirs_first - case.face).sign() == (ours_first - case.face).sign()
    share = float(same.float().mean())

    def ours() -> Side:
        found = finish(nes.attack(case.face, case.detector, settings))
        return Side("NES, in batches", found.image_count, found.call_count)

    def peer() -> Side:
        nes_loop(case, settings)
        asked = (2 * settings.probes + 1) * settings.iterations
        return Side("NES, one picture a call", asked, asked)

    theirs, own = in_turns(case.options.rounds, peer, ours)
    agreement = f"{share:.2%} of the signs of an update are equal (goal 99 %)"
    return Comparison(theirs, own, goal=2.0, agreement=agreement, agrees=share >= 0.99)


@torch.inference_mode()
def nes_loop(case: Case, settings: NESSettings) -> Tensor:
    """Attack as the released program does, but go on after a flip; return the picture (1, 3, S, S).

    It draws its noise from a covariance matrix of the size of the picture; here it gets ours, which is quicker.
    """
    source = noise_source(settings.seed, 0, case.face.device)
    unit = case.detector.std[0]
    picture = case.face[0].clone()

    def p_real(one: Tensor) -> Tensor:
        return torch.sigmoid(-case.detector.logit_fake(one[None]))[0]

    for _ in range(settings.iterations):
        p_real(picture)  # the test
        gradient = torch.zeros_like(picture)
        for noise in draw(source, settings.probes, picture, "grey"):
            gradient += p_real(picture + settings.sigma * unit * noise) * noise
            gradient -= p_real(picture - settings.sigma * unit * noise) * noise
        gradient /= 2 * settings.probes * settings.sigma
        picture = picture + (settings.alpha * gradient.sign()).clamp(max=settings.delta) * unit
    return picture[None].clone()


SECTIONS: dict[str, Callable[[Case], Comparison]] = {"nes": nes_section}


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
    parser.add_argument("--iterations", type=int, default=2, help="of NES; each costs 81 pictures")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    unknown = set(options.sections) - set(SECTIONS)
    if unknown:
        parser.error(f"unknown section: {', '.join(sorted(unknown))}")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
