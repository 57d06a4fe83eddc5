"""What a training command leaves beside the weights: a JSON file with figures, settings, hashes and options."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from backend import weights
from backend.training import harness

Report = dict[str, Any]


def write(path: Path, metrics: Report, run: harness.Run, files: dict[str, Path], options: Report) -> Report:
    """Write the report of a finished run and return it.

    Args:
        path: Where it goes.
        metrics: What was measured on held-out pictures.
        run: The run.
        files: Model files by the name under which they are installed.
        options: Options of the registry's entry, by the same names.
    """
    report = {
        "metrics": metrics,
        "seconds": round(run.seconds, 1),
        "run": dataclasses.asdict(run),
        "files": {name: str(file) for name, file in files.items()},
        "sha256": {name: weights.file_hash(file) for name, file in files.items()},
        "options": options,
    }
    path.write_text(json.dumps(report, indent=1), encoding="utf-8")
    return report
