"""Train the two linear models of `backend.suitability`: for drawings, and for faces that something covers.

Photographs teach in many forms, because a picture may be blurred, small, grey, smoothed by a filter or compressed and
still be a photograph. Drawings and covers are made by code. One photograph in five does not teach, but sets the
thresholds, so that they hold for people that the models never saw.
"""

import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageEnhance, ImageFilter
from scipy import ndimage
from skimage import restoration
from sklearn.datasets import load_sample_image
from sklearn.linear_model import LogisticRegression

from backend import face_packs, suitability
from backend.images import as_jpeg, round_to_bytes
from backend.progress import Step
from backend.suitability import SIDE, LinearModel
from backend.training import covers, drawings, install, loop
from backend.training.degradation import Degradation, degrade_picture
from backend.training.loop import OnStep

CALIBRATION_PART = 5  # one photograph in so many sets thresholds and does not train
DIGITS = 5  # of a stored number
MIN_VARIANCE = 0.001  # of a direction of the standardised features

Randomness = np.random.Generator
Change = Callable[[np.ndarray, Randomness], np.ndarray]
Report = Callable[[str], None]  # takes a line that says what was done


@dataclass(frozen=True)
class SuitabilityTrainingSettings:
    """Settings of one run; `settings/suitability.toml` explains them."""

    photographs: int
    variants: int
    textures: int
    drawings: int
    covered: int
    strength: float
    drawing_alarms: float
    changed_alarms: float
    covered_alarms: float
    seed: int


@dataclass(frozen=True)
class _Examples:
    """Features of pictures of one group.

    Args:
        features: (N, F).
        group: What they are, for example a kind of drawing.
        refused: Whether the model is to refuse them.
    """

    features: np.ndarray
    group: str
    refused: bool


def train_suitability(data: Path, out: Path, on_step: OnStep, **changes: Any) -> dict[str, Any]:
    """Train both models on photographs, uint8 (128, 128, 3), and write `out` (a .json file)."""
    begun = time.perf_counter()
    settings = loop.read_settings(SuitabilityTrainingSettings, "suitability", **changes)
    trained_on = install.describe_photographs(data)
    photographs, _ = face_packs.split_photographs(data, SIDE)
    held = [face_packs.falls_into_part(name, CALIBRATION_PART) for name in photographs.names]
    learning, calibrating = (
        _draw_pictures(part, settings.photographs, settings.seed) for part in photographs.partition(held)
    )
    fewer = replace(settings, **{name: getattr(settings, name) // 3 for name in ("textures", "drawings", "covered")})
    groups = len(PHOTOGRAPH_CHANGES) + len(drawings.LEARNED_KINDS) + len(covers.LEARNED_COVERS) + 4
    numbers = itertools.count(1)

    def report(message: str) -> None:
        on_step(Step(next(numbers), 2 * groups, message))

    models, metrics = {}, {}
    for name, build in (("drawing", _drawing_examples), ("occlusion", _occlusion_examples)):
        training = list(build(learning, settings, settings.seed, report))
        checking = list(build(calibrating, fewer, settings.seed + 1, report))
        limits = _limits(name, settings)
        models[name] = _calibrate(_fit(name, training, settings), checking, limits)
        metrics[name] = {part.group: _share_refused(models[name], part) for part in checking}
        metrics[name + "_left_out"] = _leave_one_out(name, training, checking, settings, limits)
    content = {
        "source": f"python -m backend train suitability, on {trained_on}",
        "settings": asdict(settings),
        "calibration": metrics,
    } | {name: _plain_values(model) for name, model in models.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in content.items())
    out.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    return {"metrics": metrics, "seconds": round(time.perf_counter() - begun, 1), "files": {"suitability": str(out)}}


def _draw_pictures(photographs: face_packs.Photographs, count: int, seed: int) -> list[np.ndarray]:
    order = np.random.default_rng(seed).permutation(len(photographs))[:count]
    return [photographs.pictures[int(index)].permute(1, 2, 0).numpy().copy() for index in order]


def _drawing_examples(
    pictures: Sequence[np.ndarray], settings: SuitabilityTrainingSettings, seed: int, report: Report
) -> Iterator[_Examples]:
    describe = suitability.drawing_features
    yield _describe("photographs", pictures, describe, refused=False, report=report)
    for name, change in PHOTOGRAPH_CHANGES.items():
        randomness = np.random.default_rng([seed, len(name)])
        count = settings.variants * len(pictures) // len(PHOTOGRAPH_CHANGES)
        chosen = randomness.permutation(len(pictures))[:count]
        changed = (change(_recut_sometimes(pictures[index], randomness), randomness) for index in chosen)
        yield _describe(name, changed, describe, refused=False, report=report)
    yield _describe("textures", _cut_textures(settings.textures, seed), describe, refused=False, report=report)
    for kind in drawings.LEARNED_KINDS:
        made = (_example_drawing(kind, pictures, seed, number) for number in range(settings.drawings))
        yield _describe(kind, made, describe, refused=True, report=report)


def _occlusion_examples(
    pictures: Sequence[np.ndarray], settings: SuitabilityTrainingSettings, seed: int, report: Report
) -> Iterator[_Examples]:
    describe = suitability.occlusion_features
    yield _describe("photographs", pictures, describe, refused=False, report=report)
    randomness = np.random.default_rng([seed, 1])
    names = [name for name in PHOTOGRAPH_CHANGES if name != "studio"]
    changed = (PHOTOGRAPH_CHANGES[randomness.choice(names)](picture, randomness) for picture in pictures)
    yield _describe(
        "changed", (_jitter(picture, randomness) for picture in changed), describe, refused=False, report=report
    )
    for cover in covers.LEARNED_COVERS:
        made = (
            _example_cover(cover, pictures, seed, number)
            for number in range(settings.covered // len(covers.LEARNED_COVERS))
        )
        yield _describe(cover, made, describe, refused=True, report=report)


def _describe(
    group: str, pictures: Any, describe: Callable[[np.ndarray], np.ndarray], *, refused: bool, report: Report
) -> _Examples:
    features = np.stack([describe(picture) for picture in pictures])
    report(f"{len(features)} {group} described")
    return _Examples(features, group, refused)


def _example_drawing(kind: str, pictures: Sequence[np.ndarray], seed: int, number: int) -> np.ndarray:
    """Make a drawing from an aligned photograph, and cut it as a face is cut: uint8 (128, 128, 3)."""
    randomness = np.random.default_rng([seed, number, drawings.KINDS.index(kind)])
    picture = pictures[int(randomness.integers(len(pictures)))]
    side = int(randomness.choice([1.5, 2]) * SIDE)
    portrait = np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC))
    drawing = drawings.make_drawing(kind, int(randomness.integers(1 << 31)), portrait)
    drawing = _jitter(drawing, randomness)
    if randomness.random() < 0.5:
        return degrade_picture(drawing, randomness, Degradation())
    return drawing


def _recut_sometimes(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Resample every other photograph: a crop of a large photo has no blocks of JPEG at its own places either."""
    return _jitter(picture, randomness) if randomness.random() < 0.5 else picture


def _jitter(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Cut a square picture a little narrower and off its middle: uint8 (128, 128, 3)."""
    side = len(picture)
    width = side * randomness.uniform(0.86, 1.0)
    left, top = randomness.uniform(0, side - width, 2)
    box = (left, top, left + width, top + width)
    return np.asarray(Image.fromarray(picture).resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=box))


def _cut_textures(count: int, seed: int) -> Iterator[np.ndarray]:
    """Cut squares from photographs without a face that packages carry: uint8 (128, 128, 3)."""
    names = ("chelsea", "coffee", "rocket", "camera", "brick", "grass", "gravel")
    sources = [getattr(skimage.data, name)() for name in names] + [skimage.data.stereo_motorcycle()[0]]
    sources += [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    sources = [np.repeat(source[..., None], 3, axis=2) if source.ndim == 2 else source[..., :3] for source in sources]
    randomness = np.random.default_rng([seed, 2])
    for _ in range(count):
        source = sources[int(randomness.integers(len(sources)))]
        side = int(randomness.integers(SIDE, min(source.shape[:2]) + 1))
        top, left = (int(randomness.integers(limit - side + 1)) for limit in source.shape[:2])
        cut = Image.fromarray(source[top : top + side, left : left + side])
        yield np.asarray(cut.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _blurred(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(randomness.uniform(0.8, 3))))


def _enlarged(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    side = int(randomness.integers(40, 110))
    kinds = [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS]
    small = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling(int(randomness.choice(kinds)))))


def _compressed(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    return np.asarray(as_jpeg(Image.fromarray(picture), int(randomness.integers(12, 60))))


def _grey(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Return the picture in black and white or, as old ones are, in brown."""
    image = ImageEnhance.Contrast(Image.fromarray(picture).convert("L")).enhance(randomness.uniform(0.8, 1.5))
    tint = np.array([1, 1, 1] if randomness.random() < 0.6 else [1.0, 0.9, 0.75])
    return round_to_bytes(np.asarray(image, dtype=float)[..., None] * tint)


def _beautified(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Smooth the skin and brighten it, as beauty filters do."""
    smooth = restoration.denoise_tv_chambolle(picture, weight=randomness.uniform(0.04, 0.12), channel_axis=2) * 255
    share = randomness.uniform(0.5, 0.9)
    mixed = Image.fromarray(round_to_bytes(share * smooth + (1 - share) * picture))
    brighter = ImageEnhance.Brightness(mixed).enhance(randomness.uniform(1, 1.15))
    return np.asarray(ImageEnhance.Color(brighter).enhance(randomness.uniform(0.9, 1.3)))


def _vivid(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Sharpen the picture and raise contrast and colours, as phones do."""
    image = Image.fromarray(picture)
    if randomness.random() < 0.6:
        image = image.filter(ImageFilter.UnsharpMask(1, int(randomness.integers(40, 220)), 1))
    if randomness.random() < 0.6:  # "clarity": the contrast of wrinkles and hair
        image = image.filter(ImageFilter.UnsharpMask(randomness.uniform(2, 7), int(randomness.integers(30, 110)), 0))
    image = ImageEnhance.Contrast(image).enhance(randomness.uniform(0.9, 1.5))
    return np.asarray(ImageEnhance.Color(image).enhance(randomness.uniform(0.8, 1.8)))


def _cleaned(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Remove noise and sharpen, which comes close to a crop of a much larger photo."""
    smooth = restoration.denoise_tv_chambolle(picture, weight=randomness.uniform(0.01, 0.03), channel_axis=2) * 255
    mask = ImageFilter.UnsharpMask(randomness.uniform(0.5, 1.5), int(randomness.integers(30, 120)), 0)
    return np.asarray(Image.fromarray(round_to_bytes(smooth)).filter(mask))


def _noisy(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Add the noise of a sensor in dim light."""
    noise = randomness.normal(0, randomness.uniform(4, 16), picture.shape)
    return round_to_bytes(picture * randomness.uniform(0.4, 1) + noise)


def _grainy(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Add the grain of film, which is as coarse as that of paper, and often the contrast of a print."""
    if randomness.random() < 0.6:
        picture = _vivid(picture, randomness)
    shape = (*picture.shape[:2], int(randomness.choice([1, 3])))
    blur = randomness.uniform(0.4, 1.4)
    grain = ndimage.gaussian_filter(randomness.standard_normal(shape), (blur, blur, 0))
    return round_to_bytes(picture + grain / grain.std() * randomness.uniform(3, 14))


def _degraded(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    return degrade_picture(picture, randomness, Degradation())


def _studio(picture: np.ndarray, randomness: Randomness) -> np.ndarray:
    """Put a plain background behind the head, as in passport photographs."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE - 0.5
    head = np.hypot(x / 0.40, (y - 0.02) / 0.52) < 1
    body = (np.hypot(x / 0.5, (y - 0.62) / 0.3) < 1) & (y > 0.3)
    mask = ndimage.gaussian_filter((head | body).astype(float), 2)[..., None]
    tone = randomness.uniform(60, 256) + randomness.normal(0, 12, 3) + randomness.normal(0, 0.8, picture.shape)
    light = 1 + randomness.uniform(-0.15, 0.15) * x[..., None] + randomness.uniform(-0.15, 0.15) * y[..., None]
    return round_to_bytes(mask * picture + (1 - mask) * tone * light)


PHOTOGRAPH_CHANGES: Mapping[str, Change] = {
    "blurred": _blurred,
    "enlarged": _enlarged,
    "compressed": _compressed,
    "grey": _grey,
    "beautified": _beautified,
    "vivid": _vivid,
    "cleaned": _cleaned,
    "noisy": _noisy,
    "grainy": _grainy,
    "degraded": _degraded,
    "studio": _studio,
}


def _example_cover(cover: str, pictures: Sequence[np.ndarray], seed: int, number: int) -> np.ndarray:
    randomness = np.random.default_rng([seed, number, 100 + covers.COVERS.index(cover)])
    covered = covers.cover_face(
        cover, pictures[int(randomness.integers(len(pictures)))], int(randomness.integers(1 << 31))
    )
    covered = _jitter(covered, randomness)
    return degrade_picture(covered, randomness, Degradation()) if randomness.random() < 0.4 else covered


def _limits(name: str, settings: SuitabilityTrainingSettings) -> dict[str, float]:
    """Return the share of each group of photographs that may be refused."""
    if name == "occlusion":
        return {"photographs": settings.covered_alarms, "changed": settings.covered_alarms}
    changed = dict.fromkeys(PHOTOGRAPH_CHANGES, settings.changed_alarms)
    return {"photographs": settings.drawing_alarms} | changed


def _fit(name: str, examples: Sequence[_Examples], settings: SuitabilityTrainingSettings) -> LinearModel:
    """Fit a logistic model in which groups weigh the same, but unchanged photographs as much as all others together.

    Features of drawings are whitened by those of photographs: what photographs never vary in is then what betrays a
    kind of drawing that was not learned. Whitened parts of a face would be noise.
    """
    accepted = np.concatenate([part.features for part in examples if not part.refused])
    mean, scale = accepted.mean(axis=0), accepted.std(axis=0) + 1e-3
    transform = _whitening(accepted - mean, scale) if name == "drawing" else 1 / scale
    features = np.concatenate([part.features for part in examples])
    labels = np.concatenate([np.full(len(part.features), part.refused) for part in examples])
    weights = np.concatenate([np.full(len(part.features), _group_weight(part, examples)) for part in examples])
    model = LogisticRegression(C=settings.strength, max_iter=3000)
    model.fit(suitability.expand_features(features, mean, transform), labels, sample_weight=weights)
    return LinearModel(mean, transform, model.coef_[0], float(model.intercept_[0]))


def _whitening(centred: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the matrix (F, F) that gives centred features (N, F) a variance of one in every direction."""
    standardised = centred / scale
    variances, directions = np.linalg.eigh(standardised.T @ standardised / len(standardised))
    return directions / np.sqrt(np.maximum(variances, 0) + MIN_VARIANCE) / scale[:, None]


def _group_weight(part: _Examples, examples: Sequence[_Examples]) -> float:
    """Return the weight of each picture of a group; those of a side sum up to 5000."""
    groups = [other for other in examples if other.refused == part.refused]
    shares = {other.group: len(groups) - 1 if other.group == "photographs" else 1 for other in groups}
    return 5000 * shares[part.group] / sum(shares.values()) / len(part.features)


def _calibrate(model: LinearModel, examples: Sequence[_Examples], limits: Mapping[str, float]) -> LinearModel:
    """Move the threshold so far that no group of photographs is refused more often than its limit."""
    thresholds = [
        float(np.quantile(model.log_odds(part.features), 1 - limits[part.group]))
        for part in examples
        if part.group in limits
    ]
    return LinearModel(model.mean, model.transform, model.weights, model.bias - max(thresholds))


def _share_refused(model: LinearModel, part: _Examples) -> dict[str, float]:
    return {"refused": round(float((model.log_odds(part.features) > 0).mean()), 4), "count": len(part.features)}


def _leave_one_out(
    name: str,
    training: Sequence[_Examples],
    checking: Sequence[_Examples],
    settings: SuitabilityTrainingSettings,
    limits: Mapping[str, float],
) -> dict[str, dict[str, float]]:
    """Return how many of each refused group a model refuses that never saw this group."""
    shares = {}
    for part in checking:
        if part.refused:
            others = [other for other in training if other.group != part.group]
            shares[part.group] = _share_refused(_calibrate(_fit(name, others, settings), checking, limits), part)
    return shares


def _plain_values(model: LinearModel) -> dict[str, Any]:
    """Return a model as numbers of a few digits."""
    arrays = {"mean": model.mean, "transform": model.transform, "weights": model.weights}
    return {name: _rounded(values) for name, values in arrays.items()} | {"bias": _rounded(np.array(model.bias))}


def _rounded(values: np.ndarray) -> Any:
    return [_rounded(part) for part in values] if values.ndim else float(f"{values:.{DIGITS}g}")
