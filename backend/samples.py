"""The bundled sample set: enough to see a protocol work, and too small to conclude from.

The real pictures are the two portraits in the public domain that are among the app's examples. The fakes are drawn by
the project's own models from a seed: invented faces, swaps, and the generator's renderings and edits of the portraits.
"""

import itertools
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from backend import examples, fakes, images
from backend.alignment import locate
from backend.counterfactual import search
from backend.errors import UserError
from backend.generators import inversion
from backend.generators.inversion import Inverter

PORTRAITS = ("collins", "hopper")
INVENTED, EDITED = 4, ("S", "M")  # further invented faces; levels of which each portrait is edited
FIRST_SEED, LAST_SEED = 100, 160  # the examples have the seeds below


def draw_sample_set(out: Path, seed: int = 0) -> Path:
    """Write the sample set to a folder as real/ and fake/, and return the folder; an existing one is kept.

    `seed` decides the invented faces and the edits.

    Raises:
        UserError: The app's examples are missing, or the folder cannot be written.
    """
    if out.exists():
        return out
    folder = examples.FOLDER
    if not all((folder / f"{name}.png").is_file() for name in PORTRAITS):
        raise UserError("The app's example pictures are missing.", "Install the app again.")
    unfinished = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        for name, content in _sample_files(folder, seed):
            path = unfinished / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        unfinished.rename(out)
    except OSError:
        raise UserError("The folder for the pictures cannot be used.", "Choose another one with --out.") from None
    return out


def _sample_files(folder: Path, seed: int) -> Iterator[tuple[str, bytes]]:
    inverter = inversion.load_embedded_inverter()
    crops = {}
    for name in PORTRAITS:
        located = locate(images.read(folder / f"{name}.png"))
        crops[name] = located.aligned(inverter.template, inverter.size).crop
        yield f"real/portraits/{name}.png", images.encode_png(crops[name])
    for path in sorted(folder.glob("generated_*.png")) + sorted(folder.glob("swapped_*.png")):
        family = "generated" if path.stem.startswith("generated") else "swap"
        yield f"fake/{family}/{path.name}", images.encode_png(images.read(path))
    invented = examples.draw_faces(inverter, range(seed * 1009 + FIRST_SEED, seed * 1009 + LAST_SEED))
    for number, (picture, _) in enumerate(itertools.islice(invented, INVENTED), 1):
        yield f"fake/generated/sample_{number}.png", images.encode_png(picture)
    yield from _of_portraits(inverter, crops, seed)


def _of_portraits(inverter: Inverter, crops: dict[str, np.ndarray], seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield renderings, edits and swaps; each has the name of the portrait that it was made from."""
    landmarks = {name: locate(crop).face.landmarks for name, crop in crops.items()}
    for number, (name, crop) in enumerate(crops.items()):
        with torch.no_grad():
            codes = inverter.invert(images.to_tensor(crop).to(inverter.latent_average.device))
            yield f"fake/reconstruction/{name}.png", _synthesize_png(inverter, codes)
            for level in EDITED:
                moved = _moved(inverter, codes, level, seed=seed * 1009 + number)
                yield f"fake/edit_{level}/{name}.png", _synthesize_png(inverter, moved)
        other = PORTRAITS[1 - PORTRAITS.index(name)]
        swapped = fakes.swap_faces(
            crop, crops[other], landmarks[name], landmarks[other], blend="poisson", feather=examples.FEATHER
        )
        yield f"fake/swap/{name}.png", images.encode_png(swapped)


def _moved(inverter: Inverter, codes: torch.Tensor, level: str, *, seed: int) -> torch.Tensor:
    """Move the codes of one level half way to those of a face drawn from the seed."""
    rows = list(search.rows_of_level(level, inverter.rows))
    z = torch.randn(1, inverter.generator.style_dim, generator=torch.Generator().manual_seed(seed))
    other = inverter.generator.mapping(z.to(codes.device))
    moved = codes.clone()
    moved[:, rows] = torch.lerp(codes[:, rows], other[:, None].expand(-1, len(rows), -1), 0.5)
    return moved


def _synthesize_png(inverter: Inverter, codes: torch.Tensor) -> bytes:
    return images.encode_png(images.to_array(inverter.synthesize(codes)))
