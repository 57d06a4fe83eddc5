"""The stored verdicts of the examples are those of the finder and the detectors that ship."""

import pytest

from backend import examples, images
from backend.alignment import locate_all
from backend.detectors import predict, registry


@pytest.mark.parametrize("example", examples.load_examples(), ids=lambda example: example.file)
def test_every_example_keeps_its_scores(example):
    judged = predict.judge_faces(locate_all(images.read(example.photo_path)), registry.loadable("embedded"))
    stored = example.stored_faces()
    assert len(judged) == len(stored) >= 1
    for face, record in zip(judged, stored, strict=True):
        assert face.problem == record["problem"]
        assert face.p_fake == pytest.approx(record["p_fake"], abs=1e-3)
