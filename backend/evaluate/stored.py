"""Results that ship with the app: a run without its database, small enough for the repository.

`results/NAME/` holds `report.json`, the plots as compressed SVG, and the rows as compressed CSV. Pages are written from
them when somebody looks. `python -m backend evaluate all --data DIR --out results` makes them all.
"""

import csv
import gzip
import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backend import made_with
from backend.evaluate.data import FEW
from backend.evaluate.files import JSON, PACKED_PLOT, PACKED_ROWS, PLOTS, ROWS
from backend.settings import SETTINGS

if TYPE_CHECKING:
    from backend.evaluate.runs import Evaluation  # its packages would keep the app's page waiting

FOLDER = SETTINGS.weights_dir.parent / "results"
NUMBER = re.compile(r"-?\d+\.\d+(e[+-]?\d+)?")
COMMAND = "python -m backend evaluate all --preset quick --data DIR --out results"


def keep(run: Path, out: Path) -> Path:
    """Write the stored form of a finished run, in place of an earlier one, and return its folder.

    Args:
        run: Folder of the run with its report.
        out: Folder of the stored result.
    """
    unfinished = out.with_name(f".{out.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / PLOTS).mkdir(parents=True)
    said = json.loads((run / JSON).read_text(encoding="utf-8"))
    text = json.dumps(said, separators=(",", ":"))
    (unfinished / JSON).write_text(text + "\n", encoding="utf-8")
    for plot in said["plots"]:
        drawn = (run / PLOTS / f"{plot['name']}.svg").read_bytes()
        (unfinished / PLOTS / f"{plot['name']}{PACKED_PLOT}").write_bytes(_packed(drawn))
    (unfinished / PACKED_ROWS).write_bytes(_packed(_shortened(run / ROWS)))
    shutil.rmtree(out, ignore_errors=True)
    unfinished.rename(out)
    return out


@dataclass(frozen=True)
class Stored:
    """What is said of a stored result before it is opened.

    Args:
        name: Of its folder, and of the protocol.
        title: For people.
        finding: The main finding, one sentence.
        basis: From how many pictures it is, and whether these are too few, one sentence.
    """

    name: str
    title: str
    finding: str
    basis: str


def found(folder: Path | None = None) -> list[Stored]:
    """Return the stored results of a folder, by default those of the app; none where they were not made."""
    reports = sorted((folder or FOLDER).glob(f"[!.]*/{JSON}"))
    said = [(path.parent.name, json.loads(path.read_text(encoding="utf-8"))) for path in reports]
    return [
        Stored(name, one["title"], one["finding"] or one["summary"], _basis(one["about"]["data"])) for name, one in said
    ]


def _basis(data: Mapping[str, Mapping[str, int]]) -> str:
    """Say from how many pictures a result is."""
    counts = {"fakes": sum(data["fakes"].values()), "real pictures": sum(data["reals"].values())}
    measured = [(count, word) for word, count in counts.items() if count]
    few = ": too few to conclude from" if measured and min(measured)[0] < FEW else ""
    return f"Measured on {' and '.join(f'{count} {word}' for count, word in measured)}{few}."


def other_weights(evaluation: "Evaluation") -> list[str]:
    """Return the models whose files are not those that a result was made with any more."""
    return made_with.changed(evaluation.about["weights"])


def _shortened(path: Path) -> bytes:
    """Return a CSV with 6 significant digits, which is what 32-bit numbers hold."""
    buffer = io.StringIO()
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[f"{float(cell):.6g}" if NUMBER.fullmatch(cell) else cell for cell in row] for row in csv.reader(file)]
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue().encode()


def _packed(content: bytes) -> bytes:
    return gzip.compress(content, 9, mtime=0)
