"""Fixtures that several tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from backend import alignment, faces, images
from tests import pictures

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"


@pytest.fixture(scope="session")
def shared_folder() -> Path:
    """Return the project's data folder beside the repository, or skip."""
    if not SHARED.is_dir():
        pytest.skip("needs ../shared, the project's data folder")
    return SHARED


@pytest.fixture(scope="session")
def parity_fill(shared_folder: Path) -> ModuleType:
    """Return the module that fills networks with reproducible weights."""
    spec = importlib.util.spec_from_file_location("parity_fill", shared_folder / "parity" / "fill.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def aligned_crops() -> dict[tuple[str, str], torch.Tensor]:
    """Return the crops (1, 3, S, S) of two people by name and template."""
    found = {}
    for name, photo in (("astronaut", pictures.astronaut()), ("hopper", pictures.hopper())):
        face = faces.find_faces(photo)[0]
        for template, size in (("embedded", 128), ("ffhq", 256)):
            found[name, template] = images.to_tensor(alignment.align_face(photo, face, template, size).crop)
    return found
