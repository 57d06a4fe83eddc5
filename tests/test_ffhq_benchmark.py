"""The benchmark's arbitrary weights have the published layout, and its three sides run."""

from functools import partial

import pytest
import torch

from backend import runtime
from backend.counterfactual.search import SearchSettings
from backend.generators import official
from backend.generators.e4e import E4EEncoder
from benchmarks import ffhq, filled
from benchmarks.counterfactual import untrained
from tests.toys import Brightness

SIZE = 32


@pytest.fixture(scope="module")
def inverter():
    """An e4e pair of 32 pixels, built as the app builds that of 1024."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "FFHQ_SIZE", SIZE)
        patch.setattr(official, "E4EEncoder", partial(E4EEncoder, width=0.0625))
        content = filled.e4e(SIZE, width=0.0625)
        yield official.from_tensors(official.from_e4e(content), "filled")


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
    assert all(one["step"] > 0 and one["seconds"] >= one["step"] for one in (drawn, full, loop))
    assert lines[0].startswith(f"{precision} against float32") and lines[0].endswith("signs agree")


class _Two(Brightness):
    """A detector of two logits."""

    def __init__(self) -> None:
        super().__init__(8.0, 0.4)

    def forward(self, images):
        return torch.cat([torch.zeros(len(images), 1), super().forward(images)], dim=1)
