"""Fixtures that several tests share."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

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
