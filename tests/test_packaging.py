"""The project as a package: what an installation holds, its command, and the hooks before a commit."""

import sys
from fnmatch import fnmatch
from importlib import import_module

import pytest
import yaml
from setuptools import find_packages

import backend
from backend import weights
from backend.errors import UserError
from backend.settings import ROOT, Settings

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_every_file_below_backend_and_tabs_is_part_of_the_package():
    packages = find_packages(str(ROOT), include=SETUPTOOLS["packages"]["find"]["include"])
    patterns = [
        f"{package.replace('.', '/')}/{pattern}"
        for package, package_patterns in SETUPTOOLS["package-data"].items()
        for pattern in package_patterns
    ]
    for path in (path for folder in ("backend", "tabs") for path in (ROOT / folder).rglob("*") if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix == ".py":
            assert ".".join(path.relative_to(ROOT).parent.parts) in packages, name
        elif path.suffix != ".pyc":
            assert any(fnmatch(name, pattern) for pattern in patterns), name


def test_the_command_is_the_command_line_and_the_version_stands_once():
    module, _, function = PROJECT["project"]["scripts"]["face-forgery"].partition(":")
    assert callable(getattr(import_module(module), function))
    starter = (ROOT / "backend" / "__main__.py").read_text(encoding="utf-8")
    assert f"from {module} import {function}" in starter
    assert SETUPTOOLS["dynamic"]["version"] == {"attr": "backend.__version__"}
    assert weights.package_versions()["face-forgery-explained"] == backend.__version__
    assert f"## [{backend.__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_without_the_repositorys_models_the_app_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "SETTINGS", Settings(weights_dir=tmp_path))
    weights.read_entries.cache_clear()
    with pytest.raises(UserError, match="pip install -e"):
        weights.read_entries()


def test_hooks_are_local_and_run_no_tests():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}
    assert {hook["id"] for hook in hooks} == {"ruff-format", "ruff-check", "mypy", "lint-imports"}
    assert not any("pytest" in hook["entry"] for hook in hooks)
