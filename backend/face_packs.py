"""Read aligned faces from folders and tar packs into memory, and draw batches that depend on seed and step alone."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from backend.errors import UserError

T = TypeVar("T", str, tuple[str, bytes])
TRAINING_PACKS, VALIDATION_PACKS = "real-train*", "real-val*"
VALIDATION_PART = 19  # one photograph in so many validates where there are no packs; coprime to the other parts
PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


@dataclass(frozen=True)
class Photographs:
    names: list[str]  # path of each within its pack or folder
    pictures: Tensor  # uint8 (N, 3, size, size) RGB

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, indices: list[int]) -> "Photographs":
        return Photographs([self.names[index] for index in indices], self.pictures[indices])

    def partition(self, held: list[bool]) -> tuple["Photographs", "Photographs"]:
        """Return the photographs that are not held out, and those that are."""
        first, second = ([index for index, value in enumerate(held) if value == side] for side in (False, True))
        return self.subset(first), self.subset(second)


def load_photographs(data: Path, size: int, packs: str = "*") -> Photographs:
    """Read a folder of pictures, or the tar packs in it whose name matches `packs`, sorted by name."""
    files = read_files(data, packs)
    pictures = torch.empty((len(files), 3, size, size), dtype=torch.uint8)
    for index, (_, content) in enumerate(files):
        pictures[index] = torch.from_numpy(decode_picture(content, size)).permute(2, 0, 1)
    return Photographs([name for name, _ in files], pictures)


def read_files(data: Path, packs: str = "*") -> list[tuple[str, bytes]]:
    """Return the names and contents of the files that `load_photographs` would read, sorted.

    Raises:
        UserError: There are no pictures.
    """
    archives = sorted(data.glob(f"{packs}.tar"))
    if archives:
        return _sorted_or_refuse(((name, file.read()) for name, file in _members(archives)), data)
    return _sorted_or_refuse(((name, path.read_bytes()) for name, path in _files(data)), data)


def list_names(data: Path, packs: str = "*") -> list[str]:
    """Return the names of the files that `load_photographs` would read, sorted.

    Raises:
        UserError: There are no pictures.
    """
    archives = sorted(data.glob(f"{packs}.tar"))
    names = (name for name, _ in (_members(archives) if archives else _files(data)))
    return _sorted_or_refuse(names, data)


def split_photographs(data: Path, size: int) -> tuple[Photographs, Photographs]:
    """Read training and validation photographs; a folder without packs gives one in 19 to validation."""
    if list(data.glob("*.tar")):
        return load_photographs(data, size, TRAINING_PACKS), load_photographs(data, size, VALIDATION_PACKS)
    photographs = load_photographs(data, size)
    return photographs.partition([falls_into_part(name, VALIDATION_PART) for name in photographs.names])


def _members(archives: list[Path]) -> Iterator[tuple[str, IO[bytes]]]:
    for archive in archives:
        with tarfile.open(archive) as pack:
            for member in pack:
                if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                    file = pack.extractfile(member)
                    assert file is not None
                    yield member.name.removeprefix("./"), file


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix.lower() in PICTURE_SUFFIXES:
            yield path.relative_to(folder).as_posix(), path


def _sorted_or_refuse(files: Iterable[T], data: Path) -> list[T]:
    result = sorted(files)  # type: ignore[type-var]
    if not result:
        raise UserError(f"There are no pictures in {data.name}.", "Name a folder with JPEG or PNG files or packs.")
    return result


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
        members = epochs == epoch
        chosen[members] = order[positions[members] % count]
    return chosen


def falls_into_part(name: str, parts: int) -> bool:
    """Say whether the hash of a file's name (without folders) puts it among the one in `parts` files."""
    return int(hashlib.sha256(base_name(name).encode()).hexdigest(), 16) % parts == 0


def base_name(name: str) -> str:
    return name.rsplit("/", 1)[-1]
