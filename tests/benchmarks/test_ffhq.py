"""The benchmark's arbitrary weights have the published layout, and its three sides run."""

from functools import partial

import pytest
import torch

from backend import runtime
from backend.counterfactual.search import SearchSettings
from backend.generators import inversion
from backend.generators.e4e import E4EEncoder
from benchmarks import ffhq, filled
from benchmarks.counterfactual import untrained
from tests.toys import Brightness

SIZE = 32


@pytest.fixture(scope="module")
def inverter():
    """An e4e pair of 32 pixels, built as the app builds that of 1024."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inversion, "FFHQ_SIZE", SIZE)
        patch.setattr(inversion, "E4EEncoder", partial(E4EEncoder, width=0.0625))
        content = filled.e4e(SIZE, width=0.0625)
        yield inversion.build_e4e_inverter(inversion.tensors_from_e4e(content), "filled")


def test_filled_weights_are_the_same_everywhere_and_draw_something(inverter):
    again = filled.e4e(SIZE, width=0.0625)["state_dict"]
    assert torch.equal(again["decoder.conv1.conv.weight"], inverter.generator.conv1.conv.weight.cpu())
    assert torch.equal(again["decoder.convs.0.conv.blur.kernel"].sum(), torch.tensor(4.0))
    with torch.no_grad():
        drawn = inverter.synthesize(inverter.invert(torch.rand(2, 3, SIZE, SIZE)), clamp=False)
    assert drawn.isfinite().all() and 0.05 < drawn.std() < 50


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_sides_run(inverter, precision):
    faces = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    detector = untrained(faces, _Two(), 16)
    level = ("S",)
    settings = SearchSettings(level, steps=2, early_stop=False, precision=precision)
    with runtime.frozen(*inverter.modules(), detector):
        drawn = ffhq._search(inverter, detector, faces, settings)
        full = ffhq._search(inverter, detector, faces, SearchSettings(level, steps=2, truncate=False))
        loop = ffhq._loop(inverter, detector, faces, settings)
        lines = ffhq._difference(inverter, detector, faces, settings)
    assert (drawn["drawn"], full["drawn"], loop["drawn"]) == (16, 32, 32) and drawn["dtype"] == precision
    assert all(timing["step"] > 0 and timing["seconds"] >= timing["step"] for timing in (drawn, full, loop))
    assert lines[0].startswith(f"{precision} against float32") and lines[0].endswith("signs agree")


class _Two(Brightness):
    """A detector of two logits."""

    def __init__(self) -> None:
        super().__init__(8.0, 0.4)

    def forward(self, images):
        return torch.cat([torch.zeros(len(images), 1), super().forward(images)], dim=1)


def test_goals_by_hand():
    fast, slow = ({"gpu": True, "seconds": seconds, "steps": 50} for seconds in (0.9, 5.4))
    lines = ffhq._goals({"truncated": fast, "loop": slow})
    assert lines == [
        "goal, 2 s for 100 steps: met (1.80 s)",
        "goal, 5 times faster than the straightforward loop: met (6.0 times)",
    ]
    assert "missed (10.80 s)" in ffhq._goals({"truncated": slow})[0]
    assert ffhq._goals({"truncated": fast | {"gpu": False}}) == []


def test_a_side_that_does_not_fit_is_reported(monkeypatch, capsys):
    def full(_options):
        raise torch.OutOfMemoryError

    monkeypatch.setattr(ffhq, "_run", full)
    failed = ffhq._run_or_fail(None)
    run = {"step": 0.01, "core_step": 0.01, "seconds": 1.0, "core_seconds": 1.0, "steps": 100, "peak": 900.0}
    run |= {"drawn": 256, "dtype": "bfloat16", "difference": [], "gpu": True, "device": "a GPU"}
    run |= {"weights": "filled weights", "detector": "untrained"}
    monkeypatch.setattr(ffhq, "_child", lambda _options, side, _batch: failed if side == "loop" else run)
    monkeypatch.setattr(ffhq.sys, "argv", ["ffhq.py", "--device", "cuda", "--batch", "8"])
    assert ffhq.main() == 0
    output = capsys.readouterr().out
    assert "straightforward loop, batch 8: the GPU has too little memory" in output
    assert "a GPU, batch 8" in output and "goal, 2 s for 100 steps: met (1.00 s)" in output
