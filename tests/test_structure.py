"""Rules about the code itself: which way imports point, and how long files are."""

import ast
import graphlib
import subprocess
import sys

import pytest

from backend.settings import ROOT

FILES = sorted(path for folder in ("backend", "tabs") for path in (ROOT / folder).rglob("*.py"))
# Inside backend a layer may import from its own and from lower ones.
LAYERS = {
    "generators": 1,
    "detectors": 1,
    "verdicts": 2,
    "hub": 2,
    "attacks": 3,
    "counterfactual": 3,
    "trace_removal": 4,
    "explain": 4,
    "evaluate": 5,
    "training": 6,
    "examples": 7,
    "samples": 7,
    "cli": 8,
    "__main__": 9,
}


def imported(path, *, for_types=True):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    left_out = set() if for_types else {inner for node in typing for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in left_out:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(name):
    parts = name.split(".")
    return LAYERS.get(parts[1].removesuffix(".py"), 0) if len(parts) > 1 else 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    relative = path.relative_to(ROOT)
    own = relative.parts[0]
    for name in imported(path):
        if own == "backend":
            assert not name.startswith(("gradio", "tabs", "app")), name
            if name.startswith("backend."):
                here = LAYERS.get(relative.parts[1].removesuffix(".py"), 0)
                assert layer(name) <= here, f"{relative} imports {name}"
        else:
            assert name != "app"


def test_imports_go_in_no_circle():
    own = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}
    graph = {
        name: {found if found in own else found.rpartition(".")[0] for found in imported(path, for_types=False)}
        - {name}
        for name, path in own.items()
    }
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises an error that names the circle


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_two_ideas(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_importing_the_command_line_loads_no_training_package():
    packages = ("stlpips_pytorch", "sklearn.metrics", "gradio")
    code = f"import backend.cli, sys; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_waits_for_no_package_that_only_models_need():
    packages = ("timm", "torchvision", "facenet_pytorch", "matplotlib", "scipy", "skimage", "pytorch_grad_cam", "lpips")
    code = f"import app, sys; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
