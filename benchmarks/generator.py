"""Measure the embedded generator and encoder on photographs held out from training, and draw their figures.

python -m benchmarks.generator --data faces --figures weights/figures

The photographs are those of the validation part. For inversions: PSNR, SSIM, a perceptual distance, the share in which
a face is found, the similarity of the identity, and the effect of a refinement. For samples: the kernel distance (KID)
to photographs, beside that of further photographs, and the share in which a face is found. The features are the last
block of the VGG network of stlpips-pytorch, averaged over the picture and scaled to a mean square of 1; training used
its AlexNet. Then sizes in bytes and times in milliseconds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backend import examples, face_packs, faces, fakes, images, runtime, similarity, weights
from backend.counterfactual import search
from backend.evaluate.metrics import identity, likeness
from backend.generators import inversion
from backend.generators.inversion import Inverter
from backend.generators.refinement import RefineSettings, refine
from backend.progress import finish
from backend.training import encoder

BATCH = 32
FIGURE_SEED = 2026
FACES = 4  # in the figure of the levels
SHEET_ROW = 8


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of aligned faces, or of tar packs")
    parser.add_argument("--count", type=int, default=700, help="maximum number of photographs and samples")
    parser.add_argument("--refined", type=int, default=64, help="photographs on which a refinement is measured")
    parser.add_argument("--truncation", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figures", type=Path, help="folder for the figures of the model card")
    options = parser.parse_args()
    runtime.keep_freed_memory()
    inverter = inversion.load_embedded_inverter()
    further, held_out = face_packs.split_photographs(options.data, inverter.size)
    photographs = held_out.pictures[: options.count]
    vgg = similarity.build_st_lpips("vgg")
    figures = {
        "settings": {key: str(value) for key, value in vars(options).items() if key not in {"data", "figures"}},
        "weights": {name: weights.find_entry(name).sha256 for name in ("generator", "encoder")},
        "inversion": inversions(inverter, photographs, vgg),
        "refined": refined(inverter, photographs[:: max(1, len(photographs) // options.refined)], vgg),
        "samples": samples(inverter, photographs, further.pictures, vgg, options),
        "bytes": sum(weights.find_entry(name).path.stat().st_size for name in ("generator", "encoder")),
        "milliseconds": milliseconds(inverter, photographs),
    }
    print(json.dumps(figures, indent=1))
    if options.figures:
        draw_figures(inverter, options.figures)


@torch.no_grad()
def compared(photographs: Tensor, drawn: Tensor, vgg: nn.Module) -> dict[str, float]:
    """Compare uint8 pictures (N, 3, S, S): mean PSNR in dB, SSIM, perceptual distance, identity."""
    pairs = list(zip(*(part.permute(0, 2, 3, 1).numpy() for part in (photographs, drawn)), strict=True))
    distances = [
        vgg(*(part.float() / 127.5 - 1 for part in both)).flatten()
        for both in zip(photographs.split(BATCH), drawn.split(BATCH), strict=True)
    ]
    figures = {
        "count": float(len(pairs)),
        "psnr": statistics.fmean(value for a, b in pairs if (value := similarity.picture_psnr(a, b)) is not None),
        "ssim": statistics.fmean(similarity.picture_ssim(a, b) for a, b in pairs),
        "perceptual": float(torch.cat(distances).mean()),
    }
    if identity.best_recogniser() is not None:
        identities = [
            identity.compare_identity(a[None].float() / 255, b[None].float() / 255, "embedded")
            for a, b in list(zip(photographs, drawn, strict=True))[:: max(1, len(pairs) // 100)]
        ]
        figures["identity_similarity"] = statistics.fmean(result.similarity for result in identities)
        figures["identity_retained"] = statistics.fmean(float(result.retained) for result in identities)
    return figures


def inversions(inverter: Inverter, photographs: Tensor, vgg: nn.Module) -> dict[str, float]:
    """Measure the encoder alone."""
    drawn = encoder.reconstruct_pictures(inverter, photographs)
    return compared(photographs, drawn, vgg) | {"faces_found": faces_found(drawn)}


def refined(inverter: Inverter, photographs: Tensor, vgg: nn.Module) -> dict[str, Any]:
    """Measure the encoder with and without the default refinement, on the same pictures."""
    drawn = []
    started = time.perf_counter()
    for part in photographs.split(BATCH):
        batch = part.float() / 255
        codes = finish(refine(inverter, batch, inverter.invert(batch))).codes
        with torch.no_grad():
            drawn.append((inverter.synthesize(codes) * 255).round().byte())
    seconds = (time.perf_counter() - started) / len(photographs)
    before = compared(photographs, encoder.reconstruct_pictures(inverter, photographs), vgg)
    after = compared(photographs, torch.cat(drawn), vgg)
    return {"steps": RefineSettings.steps, "seconds_a_face": seconds, "before": before, "after": after}


def samples(
    inverter: Inverter, photographs: Tensor, further: Tensor, vgg: nn.Module, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure samples against photographs, and further photographs against the same photographs."""
    new_faces = drawn_from_z(inverter, len(photographs), options)
    chosen = np.random.default_rng(options.seed).choice(len(further), len(photographs), replace=False)
    sets = {
        "photographs": photographs,
        "samples": new_faces,
        "samples_drawn_once": drawn_from_z(inverter, len(photographs), options, reinvert=False),
        "inversions": encoder.reconstruct_pictures(inverter, photographs),
        "further_photographs": further[torch.from_numpy(np.sort(chosen))],
    }
    features_by_set = {name: features(vgg, part) for name, part in sets.items()}
    reference, size = features_by_set["photographs"], len(photographs) // 2
    kid = {
        name: vars(likeness.kernel_distance_of_draws(features_by_set[name], reference, size, options.seed))
        for name in sets
        if name != "photographs"
    }
    return {"kid": kid, "size_of_a_draw": size, "faces_found": faces_found(new_faces)}


def drawn_from_z(inverter: Inverter, count: int, options: argparse.Namespace, *, reinvert: bool = True) -> Tensor:
    """Return samples, uint8 (count, 3, S, S)."""
    seeds = range(options.seed * 1009, options.seed * 1009 - (-count // BATCH))
    parts = [
        fakes.draw_samples(inverter, BATCH, seed=s, truncation=options.truncation, reinvert=reinvert) for s in seeds
    ]
    return (torch.cat(parts)[:count] * 255).round().byte()


@torch.no_grad()
def features(vgg: nn.Module, pictures: Tensor) -> np.ndarray:
    """Return the features of the last block, averaged over the picture and scaled to mean square 1, (N, 512)."""
    parts = []
    for part in pictures.split(BATCH):
        scaled = vgg.scaling_layer(part.float() / 127.5 - 1)  # type: ignore[operator]
        parts.append(vgg.net(scaled)[-1].mean((2, 3)))  # type: ignore[operator]
    joined = torch.cat(parts)
    return (joined / joined.square().mean(1, keepdim=True).sqrt()).numpy()


def faces_found(pictures: Tensor) -> float:
    """Return the share of uint8 pictures in which a face is found."""
    return statistics.fmean(bool(faces.find_faces(picture.permute(1, 2, 0).numpy())) for picture in pictures)


def milliseconds(inverter: Inverter, photographs: Tensor) -> dict[str, float]:
    """Return the median time of one inversion and of one synthesis."""
    face = photographs[:1].float() / 255
    codes = inverter.invert(face)
    with torch.no_grad():
        return {
            "inversion": _median(lambda: inverter.invert(face)),
            "synthesis": _median(lambda: inverter.synthesize(codes)),
            "threads": float(torch.get_num_threads()),
        }


def _median(work: Callable[[], Any], repeats: int = 20) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


@torch.no_grad()
def draw_figures(inverter: Inverter, folder: Path) -> None:
    """Write the figures of the model card; no photograph of the training or validation data is in them."""
    folder.mkdir(parents=True, exist_ok=True)
    first = fakes.draw_samples(inverter, 64, seed=FIGURE_SEED, truncation=1.0)
    _write(folder / "samples.jpg", [list(first[row : row + SHEET_ROW]) for row in range(0, 64, SHEET_ROW)])
    others = fakes.draw_samples(inverter, 32, seed=FIGURE_SEED + 1, truncation=1.0)
    originals = torch.cat([_shippable(inverter), others])[:32]
    inverted = inverter.synthesize(inverter.invert(originals))
    pairs = zip(originals.split(SHEET_ROW), inverted.split(SHEET_ROW), strict=True)
    rows = [list(row) for pair in pairs for row in pair]
    _write(folder / "inversions.jpg", rows)
    _write(folder / "levels.jpg", _levels(inverter))


def _levels(inverter: Inverter) -> list[list[Tensor]]:
    """Return rows: faces; others; then, for every level, the faces with this level of the others."""
    z = torch.randn(2 * FACES, inverter.generator.style_dim, generator=torch.Generator().manual_seed(FIGURE_SEED + 2))
    codes = inverter.generator.mapping(z)[:, None].repeat(1, inverter.rows, 1)
    base, others = codes[:FACES], codes[FACES:]
    rows = [[*inverter.synthesize(base)], [*inverter.synthesize(others)]]
    for level in search.LEVELS:
        mixed = base.clone()
        level_rows = list(search.rows_of_level(level, inverter.rows))
        mixed[:, level_rows] = others[:, level_rows]
        rows.append([*inverter.synthesize(mixed)])
    return rows


def _shippable(inverter: Inverter) -> Tensor:
    """Return the faces of the app's examples, aligned."""
    from backend import alignment

    crops = []
    for path in sorted(examples.FOLDER.glob("*.png")):
        photo = images.read(path)
        faces_in_photo = faces.find_faces(photo)
        if faces_in_photo:
            face = faces.choose_face(faces_in_photo)
            crops.append(images.to_tensor(alignment.align_face(photo, face, inverter.template, inverter.size).crop))
    return torch.cat(crops)


def _write(path: Path, rows: list[list[Tensor]]) -> None:
    from PIL import Image

    sheet = torch.cat([torch.cat(row, 2) for row in rows], 1)
    Image.fromarray(images.to_array(sheet[None])).save(path, quality=85, subsampling=0)


if __name__ == "__main__":
    main()
