"""The Dockerfile as data: its instructions, what it sets, and which files of the repository a build sees."""

import fnmatch
import re
import shlex
from pathlib import Path

from backend.settings import ROOT

IGNORED = [
    line.strip()
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


def instructions() -> list[tuple[str, str]]:
    """Return the instructions, comments and line ends taken out."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, argument.strip()) for name, _, argument in (line.partition(" ") for line in lines if line.strip())]


STEPS = instructions()


def values(name: str) -> list[str]:
    """Return what follows every instruction of a name."""
    return [argument for instruction, argument in STEPS if instruction == name]


def assigned(argument: str) -> dict[str, str]:
    """Return the variables of one ENV or ARG."""
    return dict(part.split("=", 1) for part in shlex.split(argument))


def environment() -> dict[str, str]:
    """Return the variables that the image sets."""
    return {name: value for argument in values("ENV") for name, value in assigned(argument).items()}


def ignored(path: Path) -> bool:
    """Say whether the build does not see a file of the repository."""
    parts = path.relative_to(ROOT).parts
    beginnings = ["/".join(parts[: number + 1]) for number in range(len(parts))]
    for rule in IGNORED:
        if rule.startswith("**/") and any(fnmatch.fnmatch(part, rule[3:]) for part in parts):
            return True
        if any(fnmatch.fnmatch(start, rule) and start.count("/") == rule.count("/") for start in beginnings):
            return True
    return False


def left_out(folder: str, names: list[str]) -> list[str]:
    """Return which of the names in a folder the build does not see, as `shutil.copytree` asks."""
    return [name for name in names if ignored(Path(folder) / name)]
