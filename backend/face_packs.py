"""Aligned faces from folders and tar packs, in memory.

Their order depends on seed and step alone.
"""

import hashlib
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.errors import UserError

TRAINING_PACKS, VALIDATION_PACKS = "real-train*", "real-val*"  # packs
VALIDATION_PART = 19  # of a folder without packs, one photograph in so many only measures; prime to other such parts
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class Photographs:
    """Pictures with their names.

    Args:
        names: Path of each within its pack or folder.
        pictures: uint8 (N, 3, size, size) RGB.
    """

    names: list[str]
    pictures: Tensor

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self.names)

    def subset(self, indices: list[int]) -> "Photographs":
        """Return some of them, in the given order."""
        return Photographs([self.names[index] for index in indices], self.pictures[indices])


def load_photographs(data: Path, size: int, packs: str = "*") -> Photographs:
    """Read a folder of pictures, or the tar packs in it whose name matches `packs`, sorted by name."""
    found = read_files(data, packs)
    pictures = torch.empty((len(found), 3, size, size), dtype=torch.uint8)
    for place, (_, content) in enumerate(found):
        pictures[place] = torch.from_numpy(decode_picture(content, size)).permute(2, 0, 1)
    return Photographs([name for name, _ in found], pictures)


def read_files(data: Path, packs: str = "*") -> list[tuple[str, bytes]]:
    """Return names and files of what `load` would read, sorted.

    Raises:
        UserError: There is nothing to read.
    """
    archives = sorted(data.glob(f"{packs}.tar"))
    found = sorted(_from_archives(archives) if archives else _from_folder(data))
    if not found:
        raise _nothing_in(data)
    return found


def list_names(data: Path, packs: str = "*") -> list[str]:
    """Return the names of what `load` would read, sorted.

    Raises:
        UserError: There is nothing to read.
    """
    archives = sorted(data.glob(f"{packs}.tar"))
    source = _members(archives) if archives else (path.relative_to(data).as_posix() for path in _files(data))
    found = sorted(source)
    if not found:
        raise _nothing_in(data)
    return found


def split_photographs(data: Path, size: int) -> tuple[Photographs, Photographs]:
    """Read training and validation photographs; a folder without packs gives one in 19 to validation."""
    if list(data.glob("*.tar")):
        return load_photographs(data, size, TRAINING_PACKS), load_photographs(data, size, VALIDATION_PACKS)
    everything = load_photographs(data, size)
    held = [is_one_in(VALIDATION_PART, name) for name in everything.names]
    indices = range(len(held))
    return everything.subset([i for i in indices if not held[i]]), everything.subset([i for i in indices if held[i]])


def _from_archives(archives: list[Path]) -> Iterator[tuple[str, bytes]]:
    for archive in archives:
        with tarfile.open(archive) as pack:
            for member in _pictures(pack):
                file = pack.extractfile(member)
                assert file is not None
                yield member.name.removeprefix("./"), file.read()


def _members(archives: list[Path]) -> Iterator[str]:
    for archive in archives:
        with tarfile.open(archive) as pack:
            yield from (member.name.removeprefix("./") for member in _pictures(pack))


def _pictures(pack: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    return (member for member in pack if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES)


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    return ((path.relative_to(folder).as_posix(), path.read_bytes()) for path in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob("*") if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES)


def _nothing_in(data: Path) -> UserError:
    return UserError(f"There are no pictures in {data.name}.", "Name a folder with JPEG or PNG files, or with packs.")


def decode_picture(content: bytes, size: int) -> np.ndarray:
    """Return a picture's file as uint8 (size, size, 3) RGB."""
    with Image.open(io.BytesIO(content)) as picture:
        rgb = picture.convert("RGB")
        if rgb.size != (size, size):
            rgb = rgb.resize((size, size), Image.Resampling.LANCZOS)
        return np.array(rgb)


def draw_indices(count: int, batch: int, *, seed: int, step: int) -> Tensor:
    """Return `batch` indices below `count`, the same for the same seed and step.

    Every epoch is one permutation, so each picture is seen equally often; a resumed run needs no state.
    """
    positions = torch.arange(step * batch, (step + 1) * batch)
    epochs = positions // count
    chosen = torch.empty(batch, dtype=torch.long)
    for epoch in epochs.unique().tolist():
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 100003 + epoch))
        here = epochs == epoch
        chosen[here] = order[positions[here] % count]
    return chosen


def is_one_in(parts: int, name: str) -> bool:
    """Say whether a file belongs to the one part in `parts` that its name (without folder) decides."""
    base = name.rsplit("/", 1)[-1]
    return int(hashlib.sha256(base.encode()).hexdigest(), 16) % parts == 0
