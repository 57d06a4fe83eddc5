"""A photo is decoded, searched for faces and cut out once, whatever the app is asked about it."""

import hashlib
import pickle
from collections import Counter
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest

from backend import alignment, examples, faces, images
from backend.alignment import LocatedFace
from backend.faces import Face
from backend.settings import SETTINGS
from tabs import visitors
from tabs.counterfactual import CounterfactualTab
from tabs.explain import ExplainTab
from tabs.photo import ChosenPhoto, PhotoStep, open_photo
from tabs.trace_removal import TraceRemovalTab
from tabs.visitors import KEPT_PHOTOS, KeptPhotos, OpenPhoto

REQUEST = SimpleNamespace(session_hash="oneface", client=SimpleNamespace(host="10.0.0.9"))
FACE = Face((8.0, 4.0, 56.0, 60.0), 0.99, np.array([[23.5, 26.9], [40.5, 26.9], [32, 36], [26, 46], [38, 46]]))


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(array)).hexdigest()


@pytest.fixture
def work_counts(monkeypatch):
    """Count decodings, face searches and alignments by the pixels of the picture."""
    counts = SimpleNamespace(decoded=Counter(), searched=Counter(), aligned=Counter())
    decode, find, align = images._decode, faces.find_faces, alignment.align_face

    def count_decode(content):
        pixels = decode(content)
        counts.decoded[digest(pixels)] += 1
        return pixels

    def count_find(image):
        counts.searched[digest(image)] += 1
        return find(image)

    def count_align(image, face, template, size):
        counts.aligned[digest(image), template, size] += 1
        return align(image, face, template, size)

    monkeypatch.setattr(images, "_decode", count_decode)
    monkeypatch.setattr(faces, "find_faces", count_find)
    monkeypatch.setattr(alignment, "align_face", count_align)
    return counts


@pytest.fixture
def upload(tmp_path):
    """Return the pixels of a fake and the file in which it was uploaded."""
    pixels = np.pad(images.read(examples.FOLDER / "swapped_1.png"), ((20, 24), (30, 10), (0, 0)), mode="edge")
    (tmp_path / "upload.png").write_bytes(images.encode_png(pixels))
    return pixels, str(tmp_path / "upload.png")


class Page:
    """The tabs, and what a visitor does in them."""

    def __init__(self) -> None:
        with gr.Blocks():
            self.step = PhotoStep()
            self.search, self.removal, self.explain = (
                tab(self.step) for tab in (CounterfactualTab, TraceRemovalTab, ExplainTab)
            )
        self.chosen = ChosenPhoto()

    def choose(self, path):
        self.step._choose(self.chosen, path)
        self.judged = self.step._look(self.chosen)[self.step.faces]
        self.face = self.chosen, self.judged, 1

    def find_counterfactual(self):
        options = ("smallest", ["S", "M", "D"], 5, None, "visible", "transfer", 0.3, False, 0, "generator")
        return list(self.search._search(*self.face, "xception", *options, REQUEST))[-1]

    def remove_traces(self):
        return list(self.removal._remove(*self.face, 1.0, REQUEST))[-1]

    def explain_verdict(self):
        options = ("gradcam", "original", "quick", True, 0, "fake", False, "")
        return list(self.explain._explain(*self.face, "xception", *options, REQUEST))[-1]


needs_models = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@needs_models
def test_one_decoding_and_one_search_answer_everything(work_counts, upload):
    pixels, path = upload
    page = Page()
    page.choose(path)
    counterfactual, removal, explained = page.find_counterfactual(), page.remove_traces(), page.explain_verdict()
    assert page.search.result.summary in counterfactual and removal[page.removal.result.summary]
    assert explained[page.explain.result.state].explanation.explainer.name == "gradcam"
    photo = digest(pixels)
    assert work_counts.decoded[photo] == 1
    assert work_counts.searched[photo] == 1
    assert {count for (picture, *_), count in work_counts.aligned.items() if picture == photo} == {1}
    # Each picture with a changed face is searched once, as anyone would who is given only that.
    assert len(work_counts.searched) <= 3 and set(work_counts.searched.values()) == {1}


@needs_models
def test_a_photo_that_is_kept_no_longer_is_decoded_but_not_searched_again(work_counts, upload):
    pixels, path = upload
    page = Page()
    page.choose(path)
    first = page.explain_verdict()[page.explain.result.state]
    KEPT_PHOTOS.drop(path)
    second = page.explain_verdict()[page.explain.result.state]
    assert (work_counts.decoded[digest(pixels)], work_counts.searched[digest(pixels)]) == (2, 1)
    assert np.array_equal(first.aligned.crop, second.aligned.crop)


def open_blank(level: int) -> OpenPhoto:
    return OpenPhoto(np.full((40, 40, 3), level, np.uint8), [])


def test_photos_are_kept_within_a_limit_and_no_longer_than_their_files(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_bytes(b"x")
    first, second, third = map(str, paths)
    photos = KeptPhotos(2 * 40 * 40 * 3)
    for level, path in enumerate((first, second)):
        photos.put(path, open_blank(level))
    assert photos.get(first).pixels[0, 0, 0] == 0
    photos.put(third, open_blank(2))  # the second was used least recently
    assert photos.get(second) is None and photos.get(first) and photos.get(third)
    paths[0].write_bytes(b"another")
    paths[2].unlink()
    assert photos.get(first) is None and photos.get(third) is None
    photos.sweep()
    assert not photos._photos
    single = KeptPhotos(1)
    for path in (first, second):
        single.put(path, open_blank(3))
    assert single.get(first) is None and single.get(second)
    monkeypatch.setattr(visitors, "KEPT_SECONDS", -1)
    single.sweep()
    assert single.get(second) is None


def test_another_photo_takes_the_place_of_the_one_before(upload, monkeypatch):
    _, path = upload
    monkeypatch.setattr(faces, "find_faces", lambda _image: [FACE])
    with gr.Blocks():
        step = PhotoStep()
    chosen = ChosenPhoto(path)
    opened = open_photo(path)
    step._choose(chosen, path)
    assert open_photo(path) is opened
    step._forget(chosen)
    assert KEPT_PHOTOS.get(path) is None


@needs_models
def test_a_session_holds_no_photo(upload):
    _, path = upload
    page = Page()
    page.choose(path)
    explained = page.explain_verdict()[page.explain.result.state]
    assert len(pickle.dumps((page.chosen, page.judged))) < 1_000_000
    assert len(pickle.dumps(explained)) < 1_000_000
    with pytest.raises(TypeError, match="whole photo"):
        pickle.dumps(LocatedFace(np.zeros((64, 64, 3), np.uint8), FACE))
