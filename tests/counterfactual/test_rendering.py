"""Drafts: searches that draw no more than the detector reads, or in half precision, and their results."""

from types import SimpleNamespace

import pytest
import torch

from backend import alignment
from backend.counterfactual.rendering import Judge, Renderer, RenderingEffort, draft_effort
from backend.counterfactual.search import HALF_PRECISION_SLOPE, SearchResult, SearchSettings, search
from backend.errors import UserError
from backend.generators.e4e import E4EEncoder
from backend.generators.inversion import Inverter
from backend.generators.stylegan2 import StyleGAN2, row_count
from backend.progress import finish
from tests.toys import toy_detector

SIZE, READ = 64, 16  # pixels that the generator draws, and that the detector reads
ROWS = row_count(SIZE)
FULL = RenderingEffort(SIZE, torch.float32)


@pytest.fixture(scope="module")
def inverter() -> Inverter:
    torch.manual_seed(0)
    generator = StyleGAN2(SIZE, mapping_layers=1, channels={4: 8, 8: 8, 16: 8, 32: 8, 64: 4})
    encoder = E4EEncoder(SIZE, 32, 0.0625)
    for module in (generator, encoder):
        module.eval().requires_grad_(False)
    return Inverter(generator, encoder, torch.linspace(-1, 1, 512)[None], "small", "embedded", 0.01)


@pytest.fixture(scope="module")
def faces(inverter) -> torch.Tensor:
    codes = torch.randn(3, ROWS, 512, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return (inverter.synthesize(codes) / 2 + 0.25) * 255 // 1 / 255


def detector(threshold: float = 0.44):
    """Return a detector that calls every one of the faces fake, and is turned by a slight darkening."""
    return toy_detector(slope=60, threshold=threshold, size=READ)


def run(inverter, faces, target=None, **settings) -> SearchResult:
    chosen = SearchSettings(**{"levels": ("S", "M"), "steps": 60} | settings)
    return finish(search(inverter, target or detector(), faces, chosen))


def open_rows(levels: str, rows: int) -> list[int]:
    from backend.counterfactual import search as thirds

    return thirds.level_mask(levels, rows).nonzero().flatten().tolist()


@pytest.mark.parametrize(
    ("size", "read", "levels", "drawn"),
    [
        (1024, 256, "SM", 256),
        (1024, 256, "S", 256),
        (1024, 299, "M", 512),
        (1024, 224, "M", 256),
        (1024, 128, "S", 128),
        (1024, 128, "M", 128),
        (1024, 64, "M", 128),  # row 11 colours the picture at 128 pixels
        (1024, 256, "D", 1024),
        (1024, 256, "SMD", 1024),
        (1024, 2000, "S", 1024),
        (128, 128, "S", 128),
        (128, 224, "M", 128),
    ],
)
def test_drafts_are_no_larger_than_needed_and_use_every_open_row(size, read, levels, drawn):
    generator = SimpleNamespace(size=size, latent_average=torch.zeros(1))
    opened = open_rows(levels, row_count(size))
    effort = draft_effort(generator, read, opened, truncate=True, precision="auto")
    assert effort == RenderingEffort(drawn, torch.float32) and max(opened) < row_count(effort.resolution)
    assert draft_effort(generator, read, opened, truncate=False, precision="auto").resolution == size
    half = draft_effort(generator, read, opened, truncate=True, precision="bfloat16")
    assert half == RenderingEffort(drawn, torch.bfloat16) and half.precision == "bfloat16"


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_draws_large_drafts_in_half_precision(monkeypatch, native, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    generator = SimpleNamespace(size=1024, latent_average=SimpleNamespace(device=torch.device("cuda")))
    options = {"truncate": True, "precision": "auto"}
    assert draft_effort(generator, 256, [0, 5], **options) == RenderingEffort(256, dtype)
    assert draft_effort(generator, 256, [0, 17], **options) == RenderingEffort(1024, dtype)
    assert draft_effort(generator, 128, [0, 5], **options) == RenderingEffort(128, torch.float32)
    assert draft_effort(generator, 256, [5], truncate=True, precision="float32") == RenderingEffort(256, torch.float32)


@pytest.mark.parametrize("composite", ["transfer", "reconstruction"])
def test_a_draft_begins_with_the_exact_picture(inverter, faces, composite):
    start = inverter.invert(faces)
    effort = RenderingEffort(READ, torch.float32)
    renderer = Renderer(inverter, [Judge(detector())], faces, start, [0, 1], composite, effort)
    chosen = torch.arange(3)
    small, rough = renderer.sketch(start.unbind(1), chosen)
    picture, exact = renderer.draw(start.unbind(1), chosen)
    assert small.shape == (3, 3, READ, READ) and picture.shape == faces.shape
    assert torch.allclose(rough, exact, atol=60 / 255)  # the exact picture is rounded to 8 bits
    assert torch.allclose(alignment.resize_square(picture, READ), small, atol=1 / 255)


@pytest.mark.parametrize("composite", ["transfer", "reconstruction"])
def test_a_search_draws_small_and_hands_back_the_full_size(inverter, faces, composite, monkeypatch):
    sizes = []
    sketch = Renderer.sketch
    monkeypatch.setattr(Renderer, "sketch", lambda *a: (drawn := sketch(*a), sizes.append(drawn[0].shape[-1]))[0])
    drawings = inverter.synthesize(inverter.invert(faces)) if composite == "reconstruction" else faces
    target = detector(float(drawings.mean((1, 2, 3)).min()) - 0.01)
    result = run(inverter, faces, target, composite=composite)
    assert (result.resolution, result.full_size, result.precision) == (READ, SIZE, "float32")
    assert set(sizes) == {READ} and result.counterfactual.shape == (3, 3, SIZE, SIZE)
    assert torch.equal(result.codes[:, 6:], result.codes_start[:, 6:])
    searched = ~result.already_real
    assert searched.any() and (result.codes[searched][:, :6] != result.codes_start[searched][:, :6]).any()
    # What is handed back is the exact picture of the codes, and its score.
    renderer = Renderer(inverter, [Judge(target)], result.original, result.codes_start, [0], composite, FULL)
    picture, logit = renderer.draw(result.codes.unbind(1), torch.arange(3))
    assert torch.allclose(result.counterfactual[searched], picture[searched], atol=1.01 / 255)
    assert torch.allclose(result.p_counterfactual[searched], torch.sigmoid(logit)[searched, 0], atol=0.02)
    assert "The search drew at 16 of 64 pixels; the result was drawn and judged at full size in float32." in (
        result.summary
    )


def test_every_face_that_is_done_passes_at_full_size(inverter, faces):
    result = run(inverter, faces, kappa=0.3)
    assert result.flipped.any()
    done = result.flipped & (result.steps < 60)
    assert (1 - 2 * result.p_counterfactual[done] > 0.3).all()


def test_where_the_verdict_differs_the_search_goes_on_at_full_size(inverter, faces, monkeypatch):
    plain = run(inverter, faces, truncate=False)
    assert plain.resolution == SIZE and not plain.fell_back.any() and "drew at" not in plain.summary
    # Drafts that pass at once: none is believed, and the search is the one without drafts.
    sketch = Renderer.sketch
    monkeypatch.setattr(Renderer, "sketch", lambda *a: (sketch(*a)[0], 0 * sketch(*a)[1] - 9))
    result = run(inverter, faces)
    assert torch.equal(result.fell_back, ~result.already_real) and result.fell_back.any()
    assert torch.equal(result.codes, plain.codes) and torch.equal(result.counterfactual, plain.counterfactual)
    assert torch.equal(result.steps, plain.steps) and torch.equal(result.trajectory, plain.trajectory)
    assert "the verdict differed at first, so the search went on at full size." in result.summary
    alone = run(inverter, faces[result.fell_back][:1])
    assert "There the verdict differed at first" in alone.summary


def test_drafts_without_numbers_are_not_followed(inverter, faces, monkeypatch):
    plain = run(inverter, faces, truncate=False)
    sketch = Renderer.sketch
    monkeypatch.setattr(Renderer, "sketch", lambda *a: (sketch(*a)[0], sketch(*a)[1] * float("nan")))
    result = run(inverter, faces)
    assert torch.equal(result.fell_back, ~result.already_real)
    # The first step was lost with the draft.
    assert result.codes.isfinite().all() and (result.flipped == plain.flipped).all()


def test_faces_are_searched_as_if_they_were_alone(inverter, faces):
    together = run(inverter, faces)
    for index in range(3):
        alone = run(inverter, faces[index : index + 1])
        assert alone.steps[0] == together.steps[index]
        assert torch.allclose(alone.codes[0], together.codes[index], atol=0.03)
        assert torch.allclose(alone.counterfactual[0], together.counterfactual[index], atol=0.03)


def test_too_few_steps_still_end_with_the_exact_picture(inverter, faces):
    result = run(inverter, faces, steps=1, early_stop=False)
    assert result.counterfactual.shape == faces.shape
    with torch.no_grad():
        p_fake = detector().p_fake(result.counterfactual)
    assert torch.allclose(result.p_counterfactual, p_fake, atol=1e-5)


def test_features_are_in_half_precision_and_pictures_are_not(inverter):
    codes = torch.randn(2, ROWS, 512, generator=torch.Generator().manual_seed(3))
    partial = inverter.begin(codes, 3, dtype=torch.bfloat16)
    assert partial.features.dtype == torch.bfloat16 and partial.picture.dtype == torch.float32
    drawn = inverter.synthesize_from(partial, codes, clamp=False)
    exact = inverter.synthesize(codes, clamp=False)
    assert drawn.dtype == torch.float32
    assert 0 < (drawn - exact).abs().mean() < 0.02 * exact.std()
    small = inverter.synthesize_from(partial, codes, resolution=READ, clamp=False)
    assert small.shape == (2, 3, READ, READ)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_search_in_half_precision_goes_the_same_way(inverter, faces, precision):
    exact = run(inverter, faces, truncate=False)
    result = run(inverter, faces, truncate=False, precision=precision)
    assert result.precision == precision and result.resolution == SIZE
    assert f"The search drew in {precision}; the result" in result.summary
    assert torch.equal(result.flipped, exact.flipped)
    assert ((result.steps - exact.steps).abs() <= 2).all()
    first = run(inverter, faces, truncate=False, precision=precision, steps=1, early_stop=False)
    other = run(inverter, faces, truncate=False, steps=1, early_stop=False)
    searched = ~first.already_real
    agree = ((first.codes - first.codes_start).sign() == (other.codes - other.codes_start).sign())[searched][:, :6]
    assert agree.float().mean() > 0.9
    with torch.no_grad():  # what is handed back was judged in float32
        assert torch.allclose(result.p_counterfactual, detector().p_fake(result.counterfactual), atol=1e-5)


def test_the_slope_of_float16_is_lifted(inverter, faces):
    # A gradient this small rounds to zero in float16; lifted, it does not, and only its sign counts.
    flat = toy_detector(slope=1e-5, threshold=0.0, size=READ)
    result = run(inverter, faces[:1], flat, precision="float16", steps=2, early_stop=False)
    assert ((result.codes - result.codes_start)[:, :6] != 0).float().mean() > 0.9
    assert HALF_PRECISION_SLOPE < 65504


def test_an_unknown_precision_is_refused(inverter, faces):
    with pytest.raises(UserError, match="precision"):
        run(inverter, faces, precision="int8")
