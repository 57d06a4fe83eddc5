"""Installed detectors judge the forgery, not the file.

Sixty pictures of most sorts are enough to see a detector that lives on a shortcut. What is demanded of them comes
from what was measured on all of them when the detector was trained: the figures of its card and of its entry.
"""

import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from backend import face_packs, fakes, weights
from backend.detectors import registry
from backend.detectors.inference import for_inference
from backend.generators import inversion
from backend.images import like_photographs
from backend.progress import finish
from backend.training import calibration, data, encoder

COUNT = 60
CHANCE = 0.5
CLAIM = 0.65  # a card that says this much of a kind of fake must be right about it
NAMES = registry.loadable("embedded")


def save_like(picture: np.ndarray, original: bytes) -> np.ndarray:
    """Save a picture, uint8 (S, S, 3), with the tables and the subsampling of a JPEG file, and read it again."""
    with Image.open(io.BytesIO(original)) as image:
        assert isinstance(image, JpegImagePlugin.JpegImageFile)
        tables, subsampling = image.quantization, JpegImagePlugin.get_sampling(image)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", qtables=tables, subsampling=subsampling)
    with Image.open(io.BytesIO(buffer.getvalue())) as saved:
        return np.array(saved.convert("RGB"))


def evenly_spaced(items):
    return items[:: max(1, len(items) // COUNT)][:COUNT]


@pytest.fixture(scope="module")
def originals(shared_folder):
    """Return the bytes of validation photographs by name."""
    with tarfile.open(shared_folder / "faces" / "real-val.tar") as pack:
        members = evenly_spaced(
            sorted((member for member in pack if member.name.endswith(".jpg")), key=lambda member: member.name)
        )
        return {member.name.removeprefix("./"): pack.extractfile(member).read() for member in members}


@pytest.fixture(scope="module")
def photographs(originals):
    pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in originals.values()]
    return face_packs.Photographs(list(originals), torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous())


@pytest.fixture(scope="module")
def sets(shared_folder, originals, photographs, tmp_path_factory):
    """Return fakes and photographs that differ in the forgery alone, by kind of fake."""
    folder = tmp_path_factory.mktemp("swaps")
    inverter = inversion.load_embedded_inverter().to(torch.device("cpu"))
    finish(fakes.build_fakes(photographs, folder, inverter, fakes.FakesSettings(COUNT, seed=5, kinds=("swap",))))
    swaps, targets = face_packs.load_photographs(folder, registry.EMBEDDED_SIZE), fakes.read_origins(folder)
    own_photographs = photographs.subset([photographs.names.index(targets[name]) for name in swaps.names])
    drawn = encoder.reconstruct_pictures(inverter, photographs.pictures)
    rendered = [
        save_like(picture.permute(1, 2, 0).numpy(), content)
        for picture, content in zip(drawn, originals.values(), strict=True)
    ]
    wild = face_packs.load_photographs(shared_folder / "faces", registry.EMBEDDED_SIZE, data.WILD_PACKS)
    ciplab = {}
    for kind in ("ciplab_photoshop", "ciplab_real"):
        measuring = [
            index
            for index, name in enumerate(wild.names)
            if name.startswith(f"{kind}/") and face_packs.falls_into_part(name, data.MEASURING_PART)
        ]
        ciplab[kind] = like_photographs(wild.pictures[measuring])  # the faintest traces need all there are
    return {
        "swap": (like_photographs(swaps.pictures), like_photographs(own_photographs.pictures)),
        "reconstruction": (torch.from_numpy(np.stack(rendered)).permute(0, 3, 1, 2), photographs.pictures),
        "ciplab_photoshop": (ciplab["ciplab_photoshop"], ciplab["ciplab_real"]),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["swap", "reconstruction", "ciplab_photoshop"])
def test_like_for_like_a_detector_is_as_good_as_its_card_says(name, kind, sets):
    card_rate = next(rate for rate in registry.card(name).errors if rate.kind == kind)
    separation = calibration.compare_like_for_like(for_inference(registry.load(name)), *sets[kind])
    allowed = calibration.separation_of(card_rate.auc, *(len(pictures) for pictures in sets[kind]))
    assert separation.auc >= card_rate.auc - 4 * max(allowed.standard_error, 0.02)
    if card_rate.auc >= CLAIM:
        assert separation.low > CHANCE


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_saving_blurring_and_resizing_photographs_raises_no_alarm(name, photographs):
    stored = weights.find_entry(name).options.get("false_alarms")
    if stored is None:
        pytest.skip(f"{name} was trained before this was measured on all photographs")
    changes = calibration.changes_for(name)
    alarms = calibration.measure_false_alarms(for_inference(registry.load(name)), photographs.pictures, changes)
    before = stored[calibration.UNCHANGED]
    assert before == next(rate.rate for rate in registry.card(name).errors if rate.kind == data.REAL) or before < 0.06
    for change in changes:
        assert stored[change] <= before + calibration.MAX_ADDED_ALARMS
        # The share among sixty of as many as the entry says, within three standard errors.
        spread = np.sqrt(max(stored[change] * (1 - stored[change]), 0.02) / COUNT)
        assert alarms[change] <= stored[change] + 3 * spread


def test_a_threshold_rises_until_changes_add_few_false_alarms():
    scores = np.arange(100) / 100
    after = scores + 0.2  # at any threshold up to 0.99, twenty more of a hundred pass it
    assert calibration.choose_steady_threshold(0.95, scores, [scores], 0.05) == 0.95
    assert calibration.choose_steady_threshold(0.5, scores, [after], 0.2) == 0.5
    risen = calibration.choose_steady_threshold(0.5, scores, [scores, after], 0.05)
    assert risen == pytest.approx(1.14)
    assert (after > risen).mean() == 0.05


def test_fakes_by_others_are_compared_with_photographs_of_their_own_source():
    class Brightness(torch.nn.Module):
        mean = torch.zeros(1)

        def logit_fake(self, images):
            return images.mean((1, 2, 3))

    # Dark: 10 and 30 of celeba are no likes of StyleGAN's faces, 60 of ffhq is one; of 50 and 90 one is above it.
    rows = [("real", "celeba", 10), ("real", "celeba", 30), ("real", "ffhq", 60), ("ciplab_real", "ciplab_real", 5)]
    rows += [("stylegan_140k", "stylegan_140k", 50), ("stylegan_140k", "stylegan_140k", 90)]
    pictures = torch.stack([torch.full((3, 8, 8), level, dtype=torch.uint8) for _, _, level in rows])
    kinds, sources = (np.array(column) for column in list(zip(*rows, strict=True))[:2])
    examples = data.LabelledPictures(pictures, kinds, sources=sources)
    result = calibration.compare_same_source(Brightness(), examples)
    assert set(result) == {"stylegan_140k"}
    comparison = result["stylegan_140k"]
    assert (comparison["auc"], comparison["photographs"]) == (0.5, 1)
    assert comparison["low"] < 0.5 < comparison["high"]


def test_an_auc_has_the_standard_error_of_hanley_and_mcneil():
    # Equation 1 by hand: Q1 = .8/1.2 = 2/3, Q2 = 1.28/1.8; ten of each.
    expected = np.sqrt((0.16 + 9 * (2 / 3 - 0.64) + 9 * (1.28 / 1.8 - 0.64)) / 100)
    separation = calibration.separation_of(0.8, 10, 10)
    assert separation.standard_error == pytest.approx(expected)
    assert separation.low == pytest.approx(0.8 - 1.96 * expected)
    assert calibration.separation_of(1.0, 10, 10).standard_error == 0


@pytest.mark.parametrize(("quality", "subsampling"), [(60, 0), (85, 2)])
def test_a_picture_is_saved_with_the_tables_of_another(quality, subsampling):
    randomness = np.random.default_rng(1)
    pictures = [
        np.asarray(Image.fromarray(randomness.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64)))
        for _ in range(2)
    ]
    files = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
        files.append(buffer.getvalue())
    expected = np.asarray(Image.open(io.BytesIO(files[0])).convert("RGB"))
    assert np.array_equal(save_like(pictures[0], files[1]), expected)
