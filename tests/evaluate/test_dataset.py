"""Which pictures a run has: layouts, pairs, families, selection, and what is left out."""

import json

import numpy as np
import pytest
from PIL import Image

from backend.errors import UserError
from backend.evaluate import dataset as evaluate_dataset
from backend.evaluate.dataset import Dataset, Sample, open_data
from tests import pictures
from tests.toy_protocol import write_picture


def write(folder, *names):
    for number, name in enumerate(names):
        write_picture(folder / name, number)


def by_name(folder):
    return open_data(folder, folder).by_name


def test_real_and_fake_with_families_sources_and_pairs(tmp_path):
    write(
        tmp_path,
        *("real/celeba/1.png", "real/celeba/2.png", "real/ffhq/1.png", "real/3.png"),
        *("fake/swap/2.jpg", "fake/swap/1.png", "fake/edit/3.png", "fake/ffhq/1.png", "fake/lone.png"),
    )
    (tmp_path / "real/notes.txt").write_text("x")
    (tmp_path / "fake/clip.mp4").write_bytes(b"x")
    write(tmp_path, "elsewhere/4.png")
    data = open_data(tmp_path, tmp_path)
    samples = data.by_name
    assert samples["fake/swap/2.jpg"] == Sample("fake/swap/2.jpg", "fake", "swap", "celeba", "real/celeba/2.png")
    assert samples["fake/swap/1.png"].pair == ""  # two real pictures have that name, so neither is its original
    assert samples["fake/ffhq/1.png"].pair == "real/ffhq/1.png"  # the whole path is equal
    assert samples["fake/edit/3.png"].pair == "real/3.png"
    assert (samples["fake/lone.png"].family, samples["fake/lone.png"].pair) == ("fake", "")
    assert (samples["real/3.png"].source, samples["real/ffhq/1.png"].source) == ("real", "ffhq")
    assert {file.name: file.reason for file in data.skipped} == {
        "elsewhere/4.png": "It lies neither in real/ nor in fake/.",
        "fake/clip.mp4": "It is a video; extract its frames first.",
        "real/notes.txt": "Its name does not end like a picture's.",
    }


def test_faceforensics(tmp_path):
    write(
        tmp_path,
        "original_sequences/youtube/c23/frames/000/0001.png",
        "original_sequences/youtube/raw/frames/000/0001.png",
        "original_sequences/actors/c23/frames/01__walking/0001.png",
        "manipulated_sequences/Deepfakes/c23/frames/000_003/0001.png",
        "manipulated_sequences/NeuralTextures/c23/frames/003_000/0001.png",
        "manipulated_sequences/DeepFakeDetection/c23/frames/01_02__walking__ABCDEFGH/0001.png",
    )
    samples = by_name(tmp_path)
    fake = samples["manipulated_sequences/Deepfakes/c23/frames/000_003/0001.png"]
    assert (fake.label, fake.family, fake.source) == ("fake", "Deepfakes", "youtube")
    assert fake.pair == "original_sequences/youtube/c23/frames/000/0001.png"
    assert samples["manipulated_sequences/NeuralTextures/c23/frames/003_000/0001.png"].pair == ""
    actor = samples["manipulated_sequences/DeepFakeDetection/c23/frames/01_02__walking__ABCDEFGH/0001.png"]
    assert actor.pair == "original_sequences/actors/c23/frames/01__walking/0001.png"


def test_celeb_df_and_its_list_of_testing_videos(tmp_path):
    write(
        tmp_path,
        *("Celeb-real/id0_0000/1.png", "Celeb-real/frames/id1_0002/1.png", "YouTube-real/00170/1.png"),
        *("Celeb-synthesis/id0_id1_0000/1.png", "Celeb-synthesis/id1_id0_0002/1.png"),
    )
    samples = by_name(tmp_path)
    assert samples["Celeb-synthesis/id0_id1_0000/1.png"].pair == "Celeb-real/id0_0000/1.png"
    assert samples["Celeb-synthesis/id1_id0_0002/1.png"].pair == "Celeb-real/frames/id1_0002/1.png"
    assert samples["YouTube-real/00170/1.png"].source == "YouTube-real"
    listed = "1 YouTube-real/00170.mp4\n0 Celeb-synthesis/id0_id1_0000.mp4\n"
    (tmp_path / "List_of_testing_videos.txt").write_text(listed)
    data = open_data(tmp_path, tmp_path)
    assert sorted(data.by_name) == ["Celeb-synthesis/id0_id1_0000/1.png", "YouTube-real/00170/1.png"]
    assert "List_of_testing_videos" in data.note


def test_dfdc(tmp_path):
    write(tmp_path, "part_0/aaa/001.png", "part_0/bbb/001.png", "part_0/ccc/001.png")
    metadata = {"aaa.mp4": {"label": "FAKE", "original": "bbb.mp4"}, "bbb.mp4": {"label": "REAL"}}
    (tmp_path / "part_0/metadata.json").write_text(json.dumps(metadata))
    data = open_data(tmp_path, tmp_path)
    root = data.folder.name == "part_0"
    prefix = "" if root else "part_0/"
    assert data.by_name[f"{prefix}aaa/001.png"].pair == f"{prefix}bbb/001.png"
    assert data.by_name[f"{prefix}bbb/001.png"].label == "real"
    assert [file.name for file in data.skipped if "metadata.json says" in file.reason] == [f"{prefix}ccc/001.png"]


def test_a_folder_of_no_known_layout_gives_one_sentence(tmp_path):
    write(tmp_path, "cats/1.png", "dogs/1.png")
    with pytest.raises(UserError, match="neither real/ and fake/"):
        open_data(tmp_path, tmp_path)
    with pytest.raises(UserError, match="no folder or zip"):
        open_data(tmp_path / "absent", tmp_path)
    (tmp_path / "only/real").mkdir(parents=True)
    with pytest.raises(UserError, match="no pictures in only"):
        open_data(tmp_path / "only", tmp_path)


def dataset(tmp_path):
    fakes = [
        Sample(f"fake/{family}/{n}.png", "fake", family)
        for family, count in (("a", 20), ("b", 3))
        for n in range(count)
    ]
    reals = [Sample(f"real/{n}.png", "real", source="x") for n in range(9)]
    fakes[0] = Sample("fake/a/0.png", "fake", "a", "x", "real/4.png")
    return Dataset(tmp_path, "toy", tuple(sorted(fakes + reals, key=lambda sample: sample.name)))


def test_selection_is_even_over_families_and_decided_by_the_seed(tmp_path):
    data = dataset(tmp_path)
    chosen = data.select(10, 4, seed=0)
    assert sum(sample.family == "b" for sample in chosen.fakes) == 3
    assert sum(sample.family == "a" for sample in chosen.fakes) == 7
    assert len(chosen.reals) == 4
    assert chosen == data.select(10, 4, seed=0)
    assert chosen != data.select(10, 4, seed=1)
    assert data.select(None, None, seed=0) == data
    assert data.select(0, None, seed=0).fakes == ()
    assert [sample.name for sample in data.select_pairs(5, seed=0).samples] == ["fake/a/0.png", "real/4.png"]


def test_another_picture_takes_the_place_of_one_that_cannot_be_used(tmp_path):
    data = dataset(tmp_path)
    first = next(iter(data.select(1, 0, seed=0).fakes)).name
    chosen = data.select(1, 0, seed=0, problem=lambda name: "It is blurred." if name == first else None)
    assert len(chosen.fakes) == 1
    assert chosen.fakes[0].name != first
    assert [(sample.name, sample.reason) for sample in chosen.skipped] == [(first, "It is blurred.")]
    assert data.select(5, 5, seed=0, problem=lambda _: "No.").samples == ()


def test_the_hash_covers_names_labels_and_contents(tmp_path):
    write(tmp_path, "real/1.png", "fake/1.png")
    first = open_data(tmp_path, tmp_path).hash()
    assert first == open_data(tmp_path, tmp_path).hash()
    write_picture(tmp_path / "fake/1.png", 77)
    second = open_data(tmp_path, tmp_path).hash()
    (tmp_path / "fake/1.png").rename(tmp_path / "fake/2.png")
    assert len({first, second, open_data(tmp_path, tmp_path).hash()}) == 3


def test_crops_are_those_of_the_app_and_reasons_are_sentences(tmp_path):
    for name, picture in (("hopper", pictures.hopper()), ("drawing", pictures.drawing())):
        (tmp_path / "real").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / f"real/{name}.png")
    (tmp_path / "real/text.jpg").write_text("this is not a picture")
    data = open_data(tmp_path, tmp_path)
    aligned = evaluate_dataset.crop_face(data, "real/hopper.png")
    assert aligned.crop.shape == (128, 128, 3)
    assert aligned.resampled
    Image.fromarray(aligned.crop).save(tmp_path / "real/aligned.png")
    again = evaluate_dataset.crop_face(
        open_data(tmp_path, tmp_path), "real/aligned.png"
    )  # an aligned crop is normal input
    assert not again.resampled
    np.testing.assert_array_equal(again.crop, aligned.crop)
    for name, message in (("drawing.png", "No face"), ("text.jpg", "not a picture")):
        with pytest.raises(UserError, match=message):
            evaluate_dataset.crop_face(data, f"real/{name}")


def test_a_pair_is_cut_out_alike(tmp_path):
    photo = pictures.hopper()
    edited = photo.copy()
    edited[200:300, 150:350] = 255 - edited[200:300, 150:350]  # the finder would see another face here, if any
    for name, picture in (("real/a.png", photo), ("fake/swap/a.png", edited)):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(picture).save(tmp_path / name)
    real, fake = evaluate_dataset.crop_pair(open_data(tmp_path, tmp_path), "fake/swap/a.png")
    np.testing.assert_array_equal(real.matrix, fake.matrix)
    untouched = (real.crop == fake.crop).all(axis=2)
    assert 0.2 < untouched.mean() < 0.95
