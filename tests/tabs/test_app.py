"""The app's structure, its endpoints and how it shows errors."""

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio.data_classes import ImageData

import app
from backend import faces
from backend.alignment import AlignedFace
from backend.counterfactual import photo as counterfactual_photo
from backend.counterfactual.search import SearchSettings, search
from backend.detectors import predict
from backend.detectors.predict import JudgedFace
from backend.errors import UserError
from backend.generators.refinement import RefineSettings
from backend.progress import Step
from backend.settings import ROOT, SETTINGS
from tabs import components, events, photo, visitors
from tabs.counterfactual import CounterfactualTab
from tabs.photo import MAX_LISTED, ChosenPhoto, PhotoStep, open_photo
from tests import pictures
from tests.toys import grey, toy_detector, toy_inverter

PICTURES = (gr.Image, gr.ImageSlider, gr.AnnotatedImage, gr.Gallery)
PUBLIC = {"detect", "counterfactual"}
JOBS = {"_search", "_remove", "_compare", "_explain", "_begin", "counterfactual"}
LONG_JOBS = {"_compare", "_test", "_run", "_search_video"}
VERDICTS = {"_look", "_look_where_needed", "_judge", "_turn", "detect"}
needs_models = pytest.mark.skipif(
    not (SETTINGS.weights_dir / "registry.toml").exists(), reason="the models are not in weights/"
)


@pytest.fixture(scope="module")
def demo() -> gr.Blocks:
    return app.build()


def test_pictures_are_shown_without_loss(demo: gr.Blocks) -> None:
    images = [block for block in demo.blocks.values() if isinstance(block, PICTURES)]
    assert images
    assert {block.format for block in images} == {"png"}


def test_nothing_can_be_shared_or_filmed(demo: gr.Blocks) -> None:
    for block in demo.blocks.values():
        assert "share" not in (getattr(block, "buttons", None) or [])
        if getattr(block, "interactive", None):
            assert "webcam" not in (getattr(block, "sources", None) or [])


def test_jobs_of_each_kind_run_one_at_a_time(demo: gr.Blocks) -> None:
    kinds = ("verdict", "job", "long job", "fetch")
    waiting = [event for event in demo.fns.values() if event.concurrency_id in kinds]
    by_kind = {kind: {event.name for event in waiting if event.concurrency_id == kind} for kind in kinds}
    assert by_kind == {"verdict": VERDICTS, "job": JOBS, "long job": LONG_JOBS, "fetch": {"_fetch"}}
    assert {event.concurrency_limit for event in waiting} == {1}
    others = [event for event in demo.fns.values() if event not in waiting and event.outputs]
    assert not [event.name for event in others if event.queue]


def test_only_documented_endpoints_are_public(demo: gr.Blocks) -> None:
    public = {str(event.api_name) for event in demo.fns.values() if event.api_visibility == "public"}
    assert public == PUBLIC


def test_user_error_is_shown_word_for_word() -> None:
    def handler() -> None:
        raise UserError("The picture is damaged.", "Use another copy of it.")

    with pytest.raises(gr.Error) as caught:
        events.with_shown_errors(handler)()
    assert caught.value.message == "The picture is damaged. Use another copy of it."


def test_unknown_error_shows_a_code_and_no_detail(caplog: pytest.LogCaptureFixture) -> None:
    def handler() -> Iterator[int]:
        yield 1
        raise RuntimeError("/home/someone/secret.py is broken")

    updates = events.with_shown_errors(handler)()
    assert next(updates) == 1
    with pytest.raises(gr.Error) as caught:
        next(updates)
    code = re.search(r"\b[0-9a-f]{8}\b", caught.value.message)
    assert code is not None
    assert "/" not in caught.value.message
    assert "secret.py" not in caught.value.message
    assert code.group() in caplog.text


def test_the_photo_input_of_a_visit_passes_the_file_on_unchanged(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_bytes(b"this is no picture")
    uploaded = ImageData(path=str(tmp_path / "text.jpg"), orig_name="text.jpg")
    with gr.Blocks():
        box = components.photo_input("A photo")
    again = box.__class__(**box.constructor_args | {"render": False})  # as the library does for every visit
    assert box.get_block_name() == again.get_block_name() == "image"
    assert box.preprocess(uploaded) == again.preprocess(uploaded) == uploaded.path
    assert again.preprocess(None) is None
    assert not Path(components.__file__).with_suffix(".pyi").exists()


def test_a_missing_photo_gives_one_sentence() -> None:
    with pytest.raises(UserError, match="There is no photo yet"):
        photo.read_photo(None)


@needs_models
def test_detect_endpoint_answers_with_json(demo: gr.Blocks, tmp_path: Path) -> None:
    client_library = pytest.importorskip("gradio_client")
    photo = tmp_path / "photo.png"
    photo.write_bytes(pictures.encode(pictures.astronaut(), "PNG"))
    text = tmp_path / "text.jpg"
    text.write_bytes(b"no picture")
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=None)
    try:
        client = client_library.Client(address, verbose=False)
        answer = client.predict(client_library.handle_file(photo), api_name="/detect")
        assert len(answer["faces"]) == 1
        assert answer["faces"][0]["combined"]["grade"] in {"none", "few", "mixed", "strong"}
        for verdict in answer["faces"][0]["verdicts"].values():
            assert 0 <= verdict["p_fake"] <= 1
            assert verdict["verdict"] in {"signs", "unsure", "no_known_signs"}
        with pytest.raises(Exception, match="This file is not a picture"):
            client.predict(client_library.handle_file(text), api_name="/detect")
    finally:
        demo.close()


@pytest.mark.parametrize("closer", [True, False])
def test_a_closer_reconstruction_can_be_requested(
    closer: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photo.png").write_bytes(pictures.encode(pictures.astronaut(), "PNG"))
    captured = []

    def no_search(located, detector, settings, **_):
        captured.append(settings)
        yield Step(0, 1, "The face was inverted.")
        raise UserError("Enough.")

    monkeypatch.setattr(counterfactual_photo, "find_counterfactual", no_search)
    with gr.Blocks():
        tab = CounterfactualTab(PhotoStep())
    path = str(tmp_path / "photo.png")
    arguments = [
        ChosenPhoto(path),
        predict.judge_faces(open_photo(path).faces, []),
        1,
        "xception",
        "smallest",
        ["S"],
        5,
        None,
        "equal",
        "transfer",
        0.3,
        closer,
        0,
        "generator",
    ]
    with pytest.raises(UserError, match="Enough"):
        list(tab._search(*arguments, None))
    assert captured[0].refine == (RefineSettings.steps if closer else 0)
    assert (captured[0].lengths, captured[0].composite, captured[0].kappa) == ("equal", "transfer", 0.3)


def test_as_many_faces_are_marked_as_can_be_picked() -> None:
    landmarks = np.array([[85, 90], [115, 90], [100, 108], [88, 122], [112, 122]], dtype=np.float64)
    face = faces.Face((60.0, 50.0, 140.0, 160.0), 0.99, landmarks)
    crop = AlignedFace(np.zeros((128, 128, 3), np.uint8), np.eye(2, 3), "embedded", resampled=True, face=face)
    judged = [JudgedFace(number, crop, None, {}) for number in range(1, MAX_LISTED + 3)]
    with gr.Blocks():
        step = PhotoStep()
    updates = step.show_faces(np.zeros((200, 220, 3), np.uint8), judged)
    assert len(updates[step.which].choices) == MAX_LISTED
    assert len(updates[step.faces_picture].value["annotations"]) == MAX_LISTED
    assert "14 faces were found" in updates[step.summary] and "another of the 12 largest" in updates[step.summary]
    assert "another below" in step.show_faces(np.zeros((200, 220, 3), np.uint8), judged[:3])[step.summary]


def test_downloads_are_private_and_removed_with_their_visitor_and_process() -> None:
    code = (
        "from types import SimpleNamespace as R; from tabs import visitors; "
        "one, two = (visitors.session_folder(R(session_hash=name)) for name in ('../a1', 'b2')); "
        "(one / 'x.zip').write_bytes(b'x'); (two / 'y.zip').write_bytes(b'y'); "
        "visitors.forget_visitor(R(session_hash='../a1')); "
        "odd = [visitors.session_folder(R(session_hash=name)) for name in ('--', '', 'a-b', 'ab', '..', 'x' * 9999)]; "
        "assert len(set(odd)) == len(odd) and all(folder.parent == one.parent for folder in odd); "
        "[visitors.forget_visitor(R(session_hash=name)) for name in ('--', '..', '../..', '/', 'never seen')]; "
        "root = one.parent; mode = oct(root.stat().st_mode & 0o777); "
        "print(mode, root == two.parent, one.exists(), two.exists(), root)"
    )
    outputs = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
        outputs.append(done.stdout.split())
    assert outputs[0][:4] == ["0o700", "True", "False", "True"]
    assert outputs[0][4] != outputs[1][4]
    assert not any(Path(output[4]).exists() for output in outputs)


def test_files_are_removed_an_hour_after_the_last_event_even_if_the_page_is_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visitors, "_downloads", lambda: tmp_path)
    first, second = (visitors.session_folder(SimpleNamespace(session_hash=name)) for name in ("one", "two"))
    (first / "runs").mkdir()
    (second / "runs").mkdir()
    for folder in (first, second):
        os.utime(folder, (0, time.time() - visitors.KEPT_SECONDS - 1))
    visitors.session_folder(SimpleNamespace(session_hash="one"))  # something happens on this page
    visitors.sweep_folders(tmp_path)
    assert (first / "runs").exists()
    assert not second.exists()


def test_the_first_visitors_import_the_packages_one_after_the_other() -> None:
    code = (
        "import sys, threading; from tabs import events; before = 'timm' in sys.modules; seen = []; "
        "look = lambda: seen.append('torchvision' in sys.modules and 'skimage' in sys.modules); "
        "look = events.with_shown_errors(look); "
        "threads = [threading.Thread(target=one) for one in (look, look, events.import_packages, look)]; "
        "[one.start() for one in threads]; [one.join() for one in threads]; print(before, seen)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False [True, True, True]"
    assert "Error" not in done.stderr


@needs_models
def test_a_verdict_does_not_wait_for_the_search_of_another_visitor(
    demo: gr.Blocks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client_library = pytest.importorskip("gradio_client")
    photo = tmp_path / "photo.png"
    photo.write_bytes(pictures.encode(pictures.astronaut(), "PNG"))
    ended = threading.Event()
    slow = toy_detector()
    slow.network.register_forward_pre_hook(lambda *_: time.sleep(0.1))

    def slow_search(*_):
        for step in search(toy_inverter(), slow, grey(250), SearchSettings(steps=5000, early_stop=False)):
            if ended.is_set():
                break
            yield step
        return SimpleNamespace(record=dict)

    monkeypatch.setattr(counterfactual_photo, "find_counterfactual", slow_search)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", server_port=None)
    try:
        search_client, verdict_client = (client_library.Client(address, verbose=False) for _ in range(2))
        job = search_client.submit(client_library.handle_file(photo), "xception", api_name="/counterfactual")
        deadline = time.monotonic() + 60
        while job.status().code.name != "PROCESSING" and time.monotonic() < deadline:
            time.sleep(0.05)
        answer = verdict_client.predict(client_library.handle_file(photo), api_name="/detect")
        assert answer["faces"][0]["verdicts"]
        assert not job.done()
        ended.set()
        assert job.result(timeout=60) == {}
    finally:
        ended.set()
        demo.close()
