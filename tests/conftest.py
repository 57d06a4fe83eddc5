"""Fixtures that several tests share."""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes share the cores; read when torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from backend import alignment, faces, images
from tests import pictures

TESTS = Path(__file__).resolve().parent
SHARED = TESTS.parent.parent / "shared"
# Files that take ten seconds or more; the tests of all others, unless slow or in a browser, are the quick set.
THOROUGH = {
    "benchmarks/test_ffhq.py",
    "cli/test_cli.py",
    "counterfactual/test_video.py",
    "detectors/test_detectors.py",
    "detectors/test_mat.py",
    "detectors/test_recce.py",
    "evaluate/protocols/test_faithfulness.py",
    "evaluate/protocols/test_paired.py",
    "evaluate/protocols/test_protocols.py",
    "evaluate/protocols/test_trace_removal.py",
    "evaluate/test_attack_table.py",
    "evaluate/test_engines.py",
    "evaluate/test_report.py",
    "evaluate/test_runs.py",
    "evaluate/test_stored_results.py",
    "explain/test_explain.py",
    "explain/test_explain_command.py",
    "generators/test_inversion.py",
    "generators/test_row_visibility.py",
    "hub/test_forms.py",
    "tabs/test_app.py",
    "tabs/test_explain.py",
    "tabs/test_models.py",
    "tabs/test_one_face.py",
    "test_container.py",
    "test_images.py",
    "test_settings.py",
    "test_structure.py",
    "trace_removal/test_discriminators.py",
    "trace_removal/test_removal.py",
    "training/test_detector.py",
    "training/test_finetune.py",
    "training/test_joint.py",
    "training/test_shortcut_checks.py",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick set, and keep the tests of a file, and all browser tests, in one process."""
    for item in items:
        name = item.path.relative_to(TESTS).as_posix()
        markers = {marker.name for marker in item.iter_markers()}
        if name not in THOROUGH and not {"slow", "browser"} & markers:
            item.add_marker(pytest.mark.quick)
        item.add_marker(pytest.mark.xdist_group("browser" if "browser" in markers else name))


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
    crops = {}
    for name, photo in (("astronaut", pictures.astronaut()), ("hopper", pictures.hopper())):
        face = faces.find_faces(photo)[0]
        for template, size in (("embedded", 128), ("ffhq", 256)):
            crops[name, template] = images.to_tensor(alignment.align_face(photo, face, template, size).crop)
    return crops
