"""Options and output that several commands share."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from backend.errors import UserError
from backend.progress import Step

Answer = dict[str, Any]

JsonFlag = Annotated[bool, typer.Option("--json", help="print one JSON object on stdout and nothing else")]
Image = Annotated[Path, typer.Argument(metavar="IMAGE")]
Detector = Annotated[str, typer.Option(metavar="NAME", help="a detector, for example xception")]
Face = Annotated[int | None, typer.Option(metavar="N", help="which face, 1 is the largest")]
PictureFolder = Annotated[Path, typer.Option(metavar="DIR", help="folder for the results")]
Changes = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="change a setting; repeatable")]


def show_step(step: Step) -> None:
    print(f"{step.number}/{step.total} {step.message}", file=sys.stderr, flush=True)


def show_changed_steps(title: str = "") -> Callable[[Step], None]:
    """Return a printer of steps that leaves out those of which only the figures change: a download has thousands.

    `title` is put before every message.
    """
    last: tuple[int, str] | None = None

    def show(step: Step) -> None:
        nonlocal last
        current = (step.number, step.message.partition(":")[0])
        if last != current:
            last = current
            show_step(replace(step, message=f"{title}: {step.message}") if title else step)

    return show


def write_files(out: Path, contents: Mapping[str, bytes], stale: Sequence[str] = ()) -> dict[str, str]:
    """Write files, by name, into the folder `out`, and remove `stale` ones that an earlier command left there.

    Returns:
        The paths of the written files by name without its ending.

    Raises:
        UserError: The folder cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (out / name).write_bytes(content)
        for name in stale:
            (out / name).unlink(missing_ok=True)
    except OSError:
        raise UserError("The results could not be written.", "Choose another folder with --out.") from None
    return {Path(name).stem: str(out / name) for name in contents}
