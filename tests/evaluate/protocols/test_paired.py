"""The protocol that attacks a fake where the map of its photo points, computed by hand."""

import pytest

from backend.errors import UserError
from backend.evaluate.dataset import open_data
from backend.evaluate.protocols import paired, sufficiency
from backend.evaluate.protocols.base import configure_protocol
from tests.map_toys import (
    LEVELS,
    PIECE,
    SLOPE,
    VALUES,
    assert_every_engine_gives_the_same_rows,
    assert_settings_are_refused,
    detector,
    evaluated,
    sigmoid,
    toys,
    write,
)
from tests.toy_runs import stored

# A real photo is bright in quarter 1 above all, and what was made from it is darker.
REAL_WEIGHTS = [-SLOPE, -4 * SLOPE, 0.0, -2 * SLOPE]
FAKE_BEFORE, BRIGHTER = 1.0, 3
REAL_BEFORE = FAKE_BEFORE + 3 * PIECE * BRIGHTER / 255 * sum(REAL_WEIGHTS)
PAIRED = {
    "grey_levels": LEVELS,
    "fakes": None,
    "detectors": ["first"],
    "methods": ["rise", "lime", "gradcam"],
    "resolutions": [1, 0.5],
    "segments": 4,
    "curve_steps": 1,
    "fill": "black",
}


def of_pairs():
    return detector(REAL_WEIGHTS, FAKE_BEFORE, "first")


def paired_data(folder):
    """Write two photos; of one, two fakes were made, of the other one that is as bright as its photo."""
    for name, change in (
        ("real/1", BRIGHTER),
        ("real/2", BRIGHTER),
        ("fake/swap/1", 0),
        ("fake/drawn/1", 0),
        ("fake/drawn/2", BRIGHTER),
        ("fake/drawn/alone", 0),
    ):
        write(folder / f"{name}.png", change)
    return open_data(folder, folder)


@pytest.fixture(scope="module")
def paired_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paired")
    protocol = configure_protocol(paired.PairedProtocol, "quick", PAIRED)
    with toys(first=of_pairs()):
        data = paired_data(folder / "data")
        return protocol, data, folder / "out", *evaluated(protocol, data, folder / "out")


def p_after_rise(*segments):
    """Return p_fake of the fake after the values of some quarters rose by LEVELS."""
    return sigmoid(FAKE_BEFORE + 3 * PIECE * LEVELS / 255 * sum(REAL_WEIGHTS[segment] for segment in segments))


def test_the_fake_is_attacked_where_the_map_of_the_real_photo_points_by_hand(paired_run):
    *_, tables = paired_run
    row = tables["paired"]["first", "1 x (32 pixels)", "RISE"]
    for top, segments in ((1, (1,)), (2, (1, 3)), (3, (1, 3, 0))):
        assert row[f"sufficiency_{top}"] == pytest.approx(sigmoid(FAKE_BEFORE) - p_after_rise(*segments), abs=1e-4)
        assert row[f"accuracy_{top}"] == (p_after_rise(*segments) >= 0.5)
        assert row[f"sufficiency_{top}_n"] == 2
    assert tables["families"]["face swaps", "first", "1 x (32 pixels)", "RISE"]["accuracy_1_n"] == 1
    # At half the size 64 pixels of four times the weight are attacked; enlarging smears a little over the edges.
    half = tables["paired"]["first", "0.5 x (16 pixels)", "RISE"]["sufficiency_1"]
    assert half == pytest.approx(row["sufficiency_1"], rel=0.1)
    assert half != pytest.approx(row["sufficiency_1"], rel=1e-4)


def test_maps_that_show_nothing_are_left_out(paired_run):
    _, _, out, _, tables = paired_run
    assert tables["paired"]["first", "1 x (32 pixels)", "LIME"]["accuracy_1"] is None
    reasons = {row["method"]: row["reason"] for row in stored(out)}
    assert "face itself" in reasons["lime"] and "no layer" in reasons["gradcam"]


def test_curves_by_hand(paired_run):
    *_, tables = paired_run
    # In one step everything is removed, so every map has the mean of both ends.
    black = REAL_BEFORE - PIECE * (VALUES + 3 * BRIGHTER / 255) * sum(REAL_WEIGHTS)
    expected = (sigmoid(-REAL_BEFORE) + sigmoid(-black)) / 2
    for method in ("RISE", sufficiency.RANDOM_SEGMENTS):
        for curve in ("deletion", "insertion"):
            area = tables["curves"]["first", "1 x (32 pixels)", method][curve]
            assert area == pytest.approx(expected, abs=1e-4)


def test_pairs_that_are_judged_wrongly_are_skipped_or_replaced(paired_run, tmp_path):
    protocol, data, _, evaluation, _ = paired_run
    assert evaluation.counts == {"done": 4, "skipped": 2, "failed": 0, "rows": 16}
    assert {reason for _, reason in evaluation.skipped} == {"First does not call the fake fake."}
    assert evaluation.about["data"]["fakes"] == {"drawn": 2, "swap": 1}  # `alone` has no photo
    with toys(first=of_pairs()):
        chosen = configure_protocol(type(protocol), "quick", PAIRED | {"fakes": 2}).select_samples(data)
        assert [sample.name for sample in chosen.samples] == ["fake/drawn/1.png", "fake/swap/1.png", "real/1.png"]
        write(tmp_path / "fake/1.png")
        with pytest.raises(UserError, match="No fake has its real photo"):
            evaluated(protocol, open_data(tmp_path, tmp_path), tmp_path / "out")


def test_what_paired_reports_in_words(paired_run):
    _, _, _, evaluation, _ = paired_run
    assert "3 segments that RISE ranks highest" in evaluation.finding
    assert any("only as a summary" in sentence for sentence in evaluation.limits)
    assert {plot.name for plot in evaluation.plots} == {"sufficiency_first", "deletion"}
    assert evaluation.published == ()


def test_agreement_of_curves_and_test_by_hand():
    protocol = configure_protocol(
        paired.PairedProtocol, "quick", {"methods": ["sobol", "rise", "lime"], "resolutions": [1]}
    )
    name = protocol.config.detectors[0]
    common = {"detector": name, "resolution": 1.0, "side": 8, "family": "swap", "degenerate": False, "images": 1}
    measured = {"sobol": (0.2, 0.1, 0.3), "rise": (0.4, 0.2, 0.2), "lime": (0.6, 0.3, 0.1)}  # p_after, two areas
    rows = []
    for sample in ("a", "b"):
        for method, (after, deletion, insertion) in measured.items():
            row = common | {
                "sample": sample,
                "method": method,
                "p_before": 0.9,
                "deletion": deletion,
                "insertion": insertion,
            }
            row |= {f"{key}_{top}": after for top in (1, 2, 3) for key in ("p_after", "random_p_after")}
            rows.append(row | {f"random_called_fake_{top}": 1.0 for top in (1, 2, 3)})
    (line,) = next(table for table in protocol.tables(rows) if table.name == "agreement").records()
    assert line["deletion"] == pytest.approx(1) and line["insertion"] == pytest.approx(1)
    assert line["deletion_n"] == 2


def test_every_engine_and_a_resumed_run_give_the_same_rows(paired_run, tmp_path):
    assert_every_engine_gives_the_same_rows(paired_run, of_pairs(), tmp_path)


def test_settings_that_test_nothing_are_refused(tmp_path):
    assert_settings_are_refused(paired.PairedProtocol, tmp_path, [{"resolutions": [0]}, {"segments": 1}])
