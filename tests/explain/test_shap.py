import threading

import numpy as np
import pytest
import torch

from backend.explain import shap as ours
from backend.explain.base import MaskedFace, Question
from backend.explain.shap import loop_as_generator
from backend.progress import finish
from tests.patch_toys import face, in_patch, patch_detector, untextured

SHAPE = (64, 64, 3)


def package_masker(reference):
    """Return the package's masker; its tree is built by its own function, run as Python."""
    ours._import_explainer()
    from shap.maskers import Image
    from shap.maskers._image import _jit_build_partition_tree

    build = getattr(_jit_build_partition_tree, "py_func", _jit_build_partition_tree)

    class Uncompiled(Image):
        def build_partition_tree(self):
            height, width, colours = self.input_shape
            count = height * width * colours
            self.clustering = np.zeros((count - 1, 4))
            first = [(0, 0, height, 0, width, 0, colours, -1, False)]
            build(0, height, 0, width, 0, colours, width, colours, count, self.clustering, first)

    return Uncompiled(reference)


def members(tree):
    """Return the set of values of every part, by size and smallest member."""
    count = len(tree) + 1
    parts = {value: frozenset([value]) for value in range(count)}
    for row in np.argsort(tree[:, 3], kind="stable"):
        parts[count + row] = parts[int(tree[row, 0])] | parts[int(tree[row, 1])]
        assert len(parts[count + row]) == tree[row, 3]
    return set(parts.values())


@pytest.mark.parametrize("shape", [(8, 8, 3), (5, 7, 1), (6, 3, 2)])
def test_the_tree_is_that_of_the_package(shape):
    assert members(ours.halves(shape)) == members(package_masker(np.zeros(shape)).clustering)
    assert ours.halves(shape)[-1, 3] == np.prod(shape)


@pytest.mark.parametrize("as_released", [False, True])
def test_the_map_is_that_of_the_package(as_released):
    picture, reference, detector = face(), untextured(), patch_detector()
    question = Question(
        MaskedFace(picture, reference, detector, bfloat16=False), torch.zeros(64, 64), 400, 0, as_released
    )
    raw = finish(ours.shap(question))

    @torch.no_grad()
    def model(pictures):
        return detector.p_fake(torch.from_numpy(pictures).permute(0, 3, 1, 2).float()).numpy()

    explainer = ours._import_explainer()(model, package_masker(reference[0].permute(1, 2, 0).numpy()))
    outside = np.random.get_state()
    np.random.seed(0)
    explanation = explainer(picture.permute(0, 2, 3, 1).numpy(), max_evals=400, batch_size=50, silent=True)
    np.random.set_state(outside)
    values = torch.from_numpy(explanation.values[0])
    scaled = (values - values.min()) / (values.max() - values.min())
    expected = scaled.mean(2) if as_released else values.sum(2)
    assert (raw.saliency - expected).abs().max() < 1e-5
    assert float(values.sum()) == pytest.approx(float(raw.answers[1] - raw.answers[0]), abs=1e-4)
    assert in_patch(raw.saliency)


def test_values_add_up_and_do_not_depend_on_the_batch():
    maps = []
    for batch in (7, None):
        masked = MaskedFace(face(), untextured(), patch_detector(), batch=batch, bfloat16=False)
        raw = finish(ours.shap(Question(masked, torch.zeros(64, 64), 300, 2)))
        difference = float(masked.ask(torch.ones(1, 64, 64)) - masked.ask(torch.zeros(1, 64, 64)))
        assert float(raw.saliency.sum()) == pytest.approx(difference, abs=1e-4)
        maps.append(raw.saliency)
    assert (maps[0] - maps[1]).abs().max() < 1e-5


def test_turns_are_strict_and_end_with_the_generator():
    threads = threading.active_count()
    before = np.random.get_state()[1].copy()
    drawn = []

    def run(ask):
        drawn.append(np.random.rand())
        return ask(1) + ask(2)

    turns = loop_as_generator(run, seed=3)
    assert next(turns) == 1 and turns.send(10) == 2
    assert threading.active_count() == threads + 1
    turns.close()
    assert threading.active_count() == threads
    assert (np.random.get_state()[1] == before).all()  # nobody else's random numbers are touched
    assert drawn == [np.random.RandomState(3).rand()]

    again = loop_as_generator(run, seed=3)
    next(again), again.send(10)
    with pytest.raises(StopIteration) as end:
        again.send(20)
    assert end.value.value == 30


def test_an_error_of_the_package_is_raised_here():
    def run(ask):
        raise ValueError(ask(1))

    turns = loop_as_generator(run, seed=0)
    next(turns)
    with pytest.raises(ValueError, match="no"):
        turns.send("no")
