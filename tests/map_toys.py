"""Detectors that are weighted sums of four quarters, on which the protocols that test maps are computed by hand."""

import contextlib
import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from backend import images, runtime
from backend.detectors import registry as detector_registry
from backend.detectors.base import Detector
from backend.errors import UserError
from backend.evaluate import dataset, report, runs
from backend.evaluate.dataset import open_data
from backend.evaluate.protocols import faithfulness, paired
from backend.evaluate.protocols.base import configure_protocol
from backend.progress import finish
from tests.linear_toys import Weighted
from tests.toy_runs import FakePool, stored
from tests.toys import toy_detector

SIZE, PIECE = 32, 256  # four square segments of 256 pixels
LEVELS = 4
# Four colours of one brightness: blurring them, or painting a quarter in its mean colour, changes no sum.
COLOURS = np.array([[[200, 60, 60], [60, 200, 60]], [[60, 60, 200], [120, 110, 90]]])
VALUES = 320 / 255  # the sum of the three colours of a pixel
SLOPE = 0.05
NEUTRAL = 102 / 255  # what RISE hides with: a little darker, so that answers do not saturate


def quarters(values):
    """Return one value for each of four square segments, (SIZE, SIZE): 0 1 above 2 3."""
    return torch.tensor(values, dtype=torch.float32).view(2, 2).repeat_interleave(16, 0).repeat_interleave(16, 1)


def detector(weights, before, name):
    """Return a detector that gives the picture of `write` without change the log-odds `before`."""
    drawn = quarters(weights)
    card = dataclasses.replace(toy_detector(name=name, size=SIZE).card, mean=(NEUTRAL,) * 3, title=name.title())
    constant = before - PIECE * (VALUES - 3 * NEUTRAL) * sum(weights)
    return Detector(Weighted(drawn, constant), dataclasses.replace(card, cam_layer="")).eval()


def write(path, change=0):
    """Write the four quarters, every value changed by a number of grey levels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = (COLOURS + change).astype(np.uint8).repeat(16, 0).repeat(16, 1)
    Image.fromarray(picture).save(path)


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


@contextlib.contextmanager
def toys(**models):
    """Put toys where the real models and the face finder are."""

    def read(data, name, size):
        picture = Image.fromarray(images.read(data.path(name)))
        return SimpleNamespace(crop=np.asarray(picture.resize((size, size), Image.Resampling.NEAREST)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(detector_registry, "load", models.__getitem__)
        patch.setattr(detector_registry, "loadable", lambda: list(models))
        patch.setattr(faithfulness, "crop_face", lambda data, name, size, **_: read(data, name, size))
        patch.setattr(dataset, "crop_problem", lambda data, name: None)
        pair = lambda data, name, size, **_: (read(data, data.by_name[name].pair, size), read(data, name, size))  # noqa: E731
        patch.setattr(paired, "crop_pair", pair)
        runtime.forget_remembered()
        yield
        runtime.forget_remembered()


def evaluated(protocol, data, out, **options):
    evaluation = finish(runs.run_protocol(protocol, data, out, **options))
    return evaluation, {table.name: table.keyed() for table in evaluation.tables}


def assert_every_engine_gives_the_same_rows(run, model, tmp_path):
    """Do a run again with a worker that dies, and stopped and resumed, and load its report."""
    protocol, data, out, evaluation, _ = run
    with toys(first=model):
        deadly = protocol.items(protocol.select_samples(data))[1].key
        other, _ = evaluated(protocol, data, tmp_path / "pool", engine=FakePool(3, deadly, times=1))
        job = runs.run_protocol(protocol, data, tmp_path / "resumed")
        assert any(step.number for step in job)  # goes on until an item is done
        job.close()
        assert 0 < len(stored(tmp_path / "resumed")) < len(stored(out))
        resumed, _ = evaluated(protocol, data, tmp_path / "resumed", resume=True)
    assert stored(tmp_path / "pool") == stored(tmp_path / "resumed") == stored(out)
    for repeated in (other, resumed):
        assert [table for table in repeated.tables if table.name != "cost"] == [
            table for table in evaluation.tables if table.name != "cost"
        ]
    report.write_report(evaluation, out, "command")
    again, _ = report.load_report(out)
    assert again.tables == evaluation.tables and again.finding == evaluation.finding


def assert_settings_are_refused(protocol, folder, further):
    """Ask for settings that test nothing, of both protocols and of one."""
    wrong = [
        {"draws": 0},
        {"tops": [0]},
        {"tops": [3, 1]},
        {"grey_levels": 0.0},
        {"iterations": 0},
        {"methods": ["nothing"]},
        *further,
    ]
    write(folder / "fake/1.png")
    data = open_data(folder, folder)
    with toys(first=toy_detector(name="first")):
        for changes in wrong:
            with pytest.raises(UserError):
                configure_protocol(protocol, "quick", changes).items(data)
