"""Rules about the code itself: which way imports point, what is a file of its own, and what is loaded when."""

import ast
import graphlib
import subprocess
import sys
from collections import defaultdict

from backend.settings import ROOT

FILES = sorted(path for folder in ("backend", "tabs") for path in (ROOT / folder).rglob("*.py"))


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in FILES}


def imported_modules(path):
    """Yield the project's modules that a file imports, those that are imported for types only included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            for module in (name, name.rpartition(".")[0]):
                if module in MODULES and module != module_name(path):
                    yield module
                    break


def test_imports_point_one_way():
    # In a process of its own, because the linter sets up logging for itself.
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_imports_go_in_no_circle():
    graph = {name: set(imported_modules(path)) for name, path in MODULES.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())  # raises an error that names the circle


def test_importing_the_command_line_loads_no_training_package():
    packages = ("stlpips_pytorch", "sklearn.metrics", "gradio")
    code = f"import backend.cli.main, sys; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_page_waits_for_no_package_that_only_models_need():
    packages = ("timm", "torchvision", "facenet_pytorch", "matplotlib", "scipy", "skimage", "pytorch_grad_cam", "lpips")
    code = f"import app, sys; print([name for name in {packages} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_public_class_name_stands_twice_in_the_backend():
    modules_of = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and name.startswith("backend"):
                modules_of[node.name].append(name)
    assert {name: modules for name, modules in modules_of.items() if len(modules) > 1} == {}


def test_a_small_file_that_one_other_uses_is_a_registered_item():
    importers = defaultdict(set)
    for name, path in MODULES.items():
        for module in imported_modules(path):
            importers[module].add(name)
    for name, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if len(text.splitlines()) < 80 and len(importers[name]) <= 1 and not path.name.startswith("__"):
            assert "\nregister_" in text or "\n@register_" in text, f"{name} belongs into {importers[name]}"


def test_entry_points_keep_their_arguments():
    """Scripts of others call these."""
    import inspect

    from backend.counterfactual.search import search
    from backend.detectors import registry
    from backend.explain import explain
    from backend.generators.arcface import ArcFace
    from backend.generators.e4e import E4EEncoder
    from backend.generators.stylegan2 import StyleGAN2

    def arguments(function):
        return list(inspect.signature(function).parameters)

    assert arguments(StyleGAN2) == ["size", "style_dim", "mapping_layers", "channel_multiplier", "channels"]
    assert arguments(E4EEncoder)[:3] == ["output_size", "input_size", "width"]
    assert arguments(ArcFace) == []
    assert arguments(registry.names) == [] and arguments(registry.build) == arguments(registry.load) == ["name"]
    assert inspect.isgeneratorfunction(search) and inspect.isgeneratorfunction(explain)
