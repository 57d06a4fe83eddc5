"""Measure the checks of a picture: drawings of ten kinds, photographs as they are, and photographs that were spoilt.

python -m benchmarks.suitability --data ../shared/faces --count 20

Drawings are made from portraits in the public domain that packages carry and, with --data, from photographs of
`real-val`. Four of the ten kinds taught nothing. A drawing is refused where it is called one, or where no face is found
in it. Intervals are Wilson's at 95 %.
"""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib.cbook
import numpy as np
import skimage.data
from PIL import Image, ImageFilter

from backend import face_packs, images
from backend.alignment import locate_all
from backend.evaluate.metrics.base import proportion
from backend.images import as_jpeg
from backend.suitability import CHECKS, Suitability, check_suitability
from backend.training import covers, drawings

PORTRAIT_SIDE = 384  # pixels
FIRST_SEED = 1000


def main() -> None:
    """Print a line of JSON for each kind of drawing, and for each way to spoil a photograph."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with the packs of photographs")
    parser.add_argument("--count", type=int, default=20, help="drawings of each kind")
    parser.add_argument("--spoilt", type=int, default=200, help="so many photographs are spoilt in each way")
    parser.add_argument("--kinds", nargs="*", default=drawings.KINDS)
    options = parser.parse_args()
    photographs: list[np.ndarray] = []
    if options.data:
        pack = face_packs.load_photographs(options.data, 128, face_packs.VALIDATION_PACKS)
        photographs = [picture.permute(1, 2, 0).numpy().copy() for picture in pack.pictures]
    for kind in options.kinds:
        print_drawings(kind, [judge(picture) for picture in draw_kind(kind, options.count, photographs)])
    if photographs:
        print_photographs("as they are", [judge(picture) for picture in photographs])
        order = np.random.default_rng(0).permutation(len(photographs))[: options.spoilt]
        for name, spoil in SPOILERS.items():
            randomness = np.random.default_rng(0)
            print_photographs(name, [judge(spoil(photographs[index], randomness)) for index in order])


def package_portraits() -> list[np.ndarray]:
    """Return two portraits in the public domain, uint8 (H, W, 3)."""
    hopper = images.read(str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)))
    return [skimage.data.astronaut()[:300, 80:380], hopper[20:500, 20:500]]


def draw_kind(kind: str, count: int, photographs: Sequence[np.ndarray] = ()) -> Iterator[np.ndarray]:
    """Yield drawings of a kind, uint8 (H, W, 3): of portraits of packages and, in turn with them, of photographs."""
    portraits = package_portraits()
    for number in range(count):
        randomness = np.random.default_rng([number, drawings.KINDS.index(kind)])
        if photographs and number % 2:
            source = photographs[int(randomness.integers(len(photographs)))]
        else:
            source = _recut(portraits[number // 2 % len(portraits)], randomness)
        portrait = Image.fromarray(source).resize((PORTRAIT_SIDE, PORTRAIT_SIDE), Image.Resampling.BICUBIC)
        yield drawings.make_drawing(kind, FIRST_SEED + number, np.asarray(portrait))


def _recut(portrait: np.ndarray, randomness: np.random.Generator) -> np.ndarray:
    """Cut a square out of a portrait that leaves the head in it, and mirror every other one."""
    side = min(portrait.shape[:2])
    width = round(side * randomness.uniform(0.85, 1))
    left = round((side - width) * randomness.uniform())
    cut = portrait[:width, left : left + width]
    return cut[:, ::-1] if randomness.random() < 0.5 else cut


def judge(picture: np.ndarray) -> Suitability | None:
    """Return the checks of the largest face of a picture, uint8 (H, W, 3); None where no face is found."""
    found = locate_all(np.ascontiguousarray(picture))
    return check_suitability(found[0]) if found else None


def print_drawings(kind: str, judged: Sequence[Suitability | None]) -> None:
    """Print how many drawings of a kind are refused."""
    nowhere = sum(result is None for result in judged)
    drawn = sum(result is not None and not result.checks[0].passed for result in judged)
    refused = proportion(nowhere + drawn, len(judged))
    learned = "learned" if kind in drawings.LEARNED_KINDS else "held out"
    row = {"kind": kind, "use": learned, "count": len(judged), "no_face": nowhere, "drawing": drawn}
    print(json.dumps(row | {"refused": refused.value, "low": refused.low, "high": refused.high}), flush=True)


def print_photographs(name: str, judged: Sequence[Suitability | None]) -> None:
    """Print how often each check fails."""
    found = [result for result in judged if result is not None]
    row: dict[str, object] = {"pictures": name, "count": len(judged), "no_face": len(judged) - len(found)}
    for number, check in enumerate(CHECKS):
        share = proportion(sum(not result.checks[number].passed for result in found), len(found))
        row[check] = [share.value, share.low, share.high]
    row["any"] = proportion(sum(not result.suitable for result in found), len(found)).value
    print(json.dumps(row), flush=True)


Spoiler = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def _blur(radius: float) -> Spoiler:
    return lambda picture, _: np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(radius)))


def _jpeg(quality: int) -> Spoiler:
    return lambda picture, _: np.asarray(as_jpeg(Image.fromarray(picture), quality))


def _shrink(side: int) -> Spoiler:
    return lambda picture, _: np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS))


def _cover(cover: str) -> Spoiler:
    return lambda picture, randomness: covers.cover_face(cover, picture, int(randomness.integers(1 << 31)))


def _letterbox(picture: np.ndarray, randomness: np.random.Generator) -> np.ndarray:
    """Add bars of one colour above and below, or on all sides."""
    height, width = randomness.integers(6, 50, 2) * (1, randomness.integers(2))
    colour = (0, 255, int(randomness.integers(256)))[randomness.integers(3)]
    return np.pad(picture, ((height, height), (width, width), (0, 0)), constant_values=colour)


SPOILERS: dict[str, Spoiler] = {
    "blur 1": _blur(1),
    "blur 2": _blur(2),
    "blur 3": _blur(3),
    "jpeg 50": _jpeg(50),
    "jpeg 30": _jpeg(30),
    "jpeg 20": _jpeg(20),
    "jpeg 10": _jpeg(10),
    "96 pixels": _shrink(96),
    "56 pixels": _shrink(56),
    "bars": _letterbox,
} | {cover: _cover(cover) for cover in covers.COVERS}

if __name__ == "__main__":
    main()
