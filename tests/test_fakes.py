"""The fakes builder: families, pairs, resumption, and manifests of earlier versions."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from backend import face_packs, fakes
from backend.errors import UserError
from backend.fakes import NEAREST_SPACE, NearestPhotograph
from backend.progress import finish
from tests import pictures, toys

SIZE = 32


def photographs(count=5):
    levels = torch.arange(count) * 40 + 20
    pictures = levels[:, None, None, None].expand(-1, 3, SIZE, SIZE).to(torch.uint8).contiguous()
    return face_packs.Photographs([f"{int(level)}.png" for level in levels], pictures)


class MappingToyGenerator(toys.ToyGenerator):
    """Faces whose grey level comes from z."""

    style_dim = toys.CODE

    def mapping(self, z):
        return z * 60


class ExactEncoder(toys.ToyEncoder):
    """Codes, up to an average of 2, that the toy generator draws at the brightness of the faces."""

    def forward(self, faces, lacking=None):
        return super().forward(faces) / float(MappingToyGenerator(SIZE).gain.sum()) - 2


@pytest.fixture
def inverter():
    toy = toys.toy_inverter(SIZE)
    generator = MappingToyGenerator(SIZE)
    toy.generator, toy.encoder = generator, ExactEncoder()
    toy.latent_average = torch.full((toys.ROWS, toys.CODE), 2.0)
    return toy


def manifest(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_nearest_photograph_is_the_one_of_the_same_brightness():
    nearest = NearestPhotograph(photographs())
    for level, expected in ((22, "20.png"), (85, "100.png"), (75, "60.png"), (255, "180.png")):
        assert nearest.name(np.full((SIZE, SIZE, 3), level, np.uint8)) == expected


def test_samples_are_paired_with_the_nearest_photograph(tmp_path, inverter):
    settings = fakes.FakesSettings(per_kind=6, kinds=("sample",))
    finish(fakes.build_fakes(photographs(), tmp_path, inverter, settings))
    rows = manifest(tmp_path)
    assert len(rows) == 6
    assert len({row["target"] for row in rows}) > 1
    for row in rows:
        level = np.asarray(Image.open(tmp_path / row["file"])).mean()
        distances = {name: abs(level - int(name.removesuffix(".png"))) for name in photographs().names}
        assert distances[row["target"]] == min(distances.values())
        assert (row["family"], row["pairing"]) == ("synthesis", NEAREST_SPACE)
    assert fakes.read_origins(tmp_path) == {row["file"]: row["target"] for row in rows}


def test_samples_are_inverted_once_and_drawn_again(inverter):
    chosen = {"count": 3, "seed": 1, "truncation": 0.7}
    once = fakes.draw_samples(inverter, **chosen, reinvert=False)
    assert torch.allclose(fakes.draw_samples(inverter, **chosen), once, atol=1e-5)  # the encoder is exact
    inverter.encoder = toys.ToyEncoder()
    again = fakes.draw_samples(inverter, **chosen)
    assert torch.equal(again, inverter.synthesize(inverter.invert(once)))
    assert not torch.allclose(again, once, atol=1e-2)
    assert once.std(0).min() > 0.01  # three different faces


def test_renderings_are_paired_with_their_photograph(tmp_path, inverter):
    settings = fakes.FakesSettings(per_kind=3, kinds=("reconstruction",))
    finish(fakes.build_fakes(photographs(), tmp_path, inverter, settings))
    for row in manifest(tmp_path):
        assert (row["family"], row["pairing"], row["source"]) == ("synthesis", fakes.MADE_FROM, "")
        assert row["target"] in photographs().names


def faces(count=8):
    """Return different crops of one portrait, all with a face in its place."""
    portrait = np.ascontiguousarray(pictures.hopper()[30:430, 60:460])
    step = portrait.shape[0] // 128
    crop = portrait[::step, ::step][:128, :128].astype(int)
    variants = [np.clip(crop * (0.7 + 0.06 * number) + 4 * number, 0, 255).astype(np.uint8) for number in range(count)]
    tensor = torch.from_numpy(np.stack(variants)).permute(0, 3, 1, 2).contiguous()
    return face_packs.Photographs([f"{number}.png" for number in range(count)], tensor)


def test_the_generator_redraws_some_swaps_and_leaves_the_others_as_they_were(tmp_path):
    inverter = toys.toy_inverter(128)
    settings = fakes.FakesSettings(per_kind=12, kinds=("swap",))
    finish(fakes.build_fakes(faces(), tmp_path / "half", inverter, settings))
    finish(fakes.build_fakes(faces(), tmp_path / "none", None, replace(settings, redrawn=0)))
    half_redrawn, none_redrawn = ({row["file"]: row for row in manifest(tmp_path / name)} for name in ("half", "none"))
    assert half_redrawn.keys() == none_redrawn.keys() and len(half_redrawn) > 8
    assert {row["drawn"] for row in none_redrawn.values()} == {fakes.NOTHING_DRAWN}
    redrawn = [name for name, row in half_redrawn.items() if row["drawn"] == fakes.FACE_DRAWN]
    assert 0.2 < len(redrawn) / len(half_redrawn) < 0.8
    for name, row in half_redrawn.items():
        same = (tmp_path / "half" / name).read_bytes() == (tmp_path / "none" / name).read_bytes()
        assert same == (name not in redrawn)
        assert (row["family"], row["target"], row["source"]) == tuple(
            none_redrawn[name][column] for column in ("family", "target", "source")
        )
    with pytest.raises(UserError, match="another share of redrawn"):
        finish(fakes.build_fakes(faces(), tmp_path / "half", inverter, replace(settings, redrawn=1)))
    with pytest.raises(ValueError, match="needs an inverter"):
        finish(fakes.build_fakes(faces(), tmp_path / "new", None, settings))


def test_a_stopped_run_continues_to_the_same_bytes(tmp_path, inverter):
    settings = fakes.FakesSettings(per_kind=60, kinds=("sample",))
    finish(fakes.build_fakes(photographs(), tmp_path / "whole", inverter, settings))
    job = fakes.build_fakes(photographs(), tmp_path / "parts", inverter, settings)
    next(job), next(job)
    job.close()
    assert 50 <= len(manifest(tmp_path / "parts")) < 60  # what is done is in the manifest when a run is stopped
    finish(fakes.build_fakes(photographs(), tmp_path / "parts", inverter, settings))
    uninterrupted, continued = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("whole", "parts")
    )
    assert len(uninterrupted) == 61
    assert uninterrupted == continued


def test_another_seed_in_the_same_folder_is_refused(tmp_path, inverter):
    finish(fakes.build_fakes(photographs(), tmp_path, inverter, fakes.FakesSettings(per_kind=2, kinds=("sample",))))
    before = manifest(tmp_path)
    with pytest.raises(UserError, match="another seed"):
        finish(fakes.build_fakes(photographs(), tmp_path, inverter, fakes.FakesSettings(3, seed=1, kinds=("sample",))))
    assert manifest(tmp_path) == before


def test_manifests_of_earlier_versions_are_read_and_completed(tmp_path):
    settings = fakes.FakesSettings(per_kind=3, kinds=("sample", "reconstruction", "swap"), redrawn=0)
    inverter = toys.toy_inverter(128)
    inverter.generator = MappingToyGenerator(128)
    finish(fakes.build_fakes(faces(), tmp_path, inverter, settings))
    expected = manifest(tmp_path)
    with (tmp_path / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("file", "kind", "target", "source", "seed"), extrasaction="ignore")
        writer.writeheader()
        for row in expected:
            writer.writerow(row | ({"target": ""} if row["kind"] == "sample" else {}))
    assert sum(not target for target in fakes.read_origins(tmp_path).values()) == 3
    finish(fakes.build_fakes(faces(), tmp_path, inverter, settings))
    assert manifest(tmp_path) == expected
    assert {(row["kind"], row["drawn"]) for row in expected} == {
        ("sample", fakes.ALL_DRAWN), ("reconstruction", fakes.ALL_DRAWN), ("swap", fakes.NOTHING_DRAWN)
    }  # fmt: skip
