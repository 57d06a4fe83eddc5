"""The results that ship with the app, and the command that makes them."""

import gzip
import json
import re
import shutil
import zipfile
from pathlib import Path

import gradio as gr
import pytest

from backend import examples
from backend.cli import evaluate, main
from backend.detectors import registry as detectors
from backend.errors import UserError
from backend.evaluate import report
from backend.evaluate.protocols import base
from backend.evaluate.report import JSON_FILE, PACKED_PLOT, PACKED_ROWS, report_article
from backend.registration import Registry
from backend.settings import ROOT, SETTINGS
from backend.trace_removal import references
from tabs import evaluate as tab
from tabs.evaluate import UNPACKING_LIMITS
from tests.toy_protocol import ToyProtocol, toy_data

LARGEST = 300_000  # bytes of one stored result
NAMES = [result.name for result in report.stored_results()]
MACHINE_PATH = re.compile(r"(?<![\w.:/])/(home|root|tmp|work|Users|mnt|var|opt|srv|data)/|[A-Z]:\\\\")


@pytest.mark.skipif(not NAMES, reason=f"results/ was not made yet: {report.STORED_COMMAND}")
class TestShipped:
    """What lies in results/."""

    def test_every_protocol_has_a_stored_result(self):
        assert set(NAMES) == set(base.PROTOCOLS), f"Make them again with: {report.STORED_COMMAND}"
        assert not (report.RESULTS_FOLDER / evaluate.UNFINISHED_RUNS).exists()

    @pytest.mark.parametrize("name", NAMES)
    def test_a_stored_result_was_made_with_the_weights_that_ship(self, name):
        evaluation, _ = report.load_report(report.RESULTS_FOLDER / name)
        others = report.changed_weights(evaluation)
        assert not others, (
            f"results/{name} was made with other weights of {', '.join(others)}. Make all results again with: "
            f"{report.STORED_COMMAND} (DIR holds real/ and fake/)"
        )

    @pytest.mark.parametrize("name", NAMES)
    def test_a_stored_result_is_small_complete_and_names_no_machine(self, name):
        folder = report.RESULTS_FOLDER / name
        check(folder)
        evaluation, command = report.load_report(folder)
        assert evaluation.finding.endswith(".")
        assert command.startswith("python -m backend evaluate ")
        assert evaluation.counts["failed"] == 0
        assert len(evaluation.about["data"]["hash"]) == 64
        assert {"python", "torch"} <= set(evaluation.sessions[0]["versions"])


def check(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < LARGEST
    assert {path.name for path in files if path.parent == folder} == {JSON_FILE, PACKED_ROWS}
    assert all(path.name.endswith(PACKED_PLOT) for path in files if path.parent != folder)
    for path in files:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        assert not MACHINE_PATH.search(content.decode()), path.name


class OtherProtocol(ToyProtocol):
    name = "other"
    title = "Other"

    def finding(self, rows):
        return f"There are {len(rows)} rows."


class EmptyProtocol(ToyProtocol):
    name = "empty"

    def items(self, data):
        return []


@pytest.fixture
def toys(monkeypatch):
    table = Registry("protocol", "tests")
    table._complete = True  # it holds these two and looks for no others
    table.add("toy", ToyProtocol)
    table.add("other", OtherProtocol)
    monkeypatch.setattr(base, "PROTOCOLS", table)


def command(capsys, *arguments):
    code = main.main(["evaluate", "all", *map(str, arguments), "--workers", "0", "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_one_command_makes_all_results(toys, tmp_path, capsys):
    toy_data(tmp_path / "data")
    code, answer = command(capsys, "--data", tmp_path / "data", "--out", tmp_path / "results")
    assert code == 0
    assert answer["findings"] == {"toy": answer["findings"]["toy"], "other": "There are 10 rows."}
    assert [(result.name, result.title) for result in report.stored_results(tmp_path / "results")] == [
        ("other", "Other"),
        ("toy", "Toy"),
    ]
    assert report.stored_results(tmp_path / "results")[0].finding == "There are 10 rows."
    assert not (tmp_path / "results" / evaluate.UNFINISHED_RUNS).exists()
    for name in ("toy", "other"):
        check(tmp_path / "results" / name)
        evaluation, typed = report.load_report(tmp_path / "results" / name)
        assert typed == "python -m backend evaluate all --data data --out results --preset quick"
        assert evaluation.plots[0].svg.startswith(b"<?xml")
        assert "data:image/svg+xml;base64," in report_article(evaluation, typed)
        rows = gzip.decompress((tmp_path / "results" / name / PACKED_ROWS).read_bytes()).decode()
        assert len(rows.splitlines()) == 11
        assert rows.splitlines()[1].startswith("fake/drawn/2.png,fake,drawn,1,210,")
    before = {path: path.read_bytes() for path in (tmp_path / "results").rglob("*.gz") if PACKED_PLOT in path.name}
    assert command(capsys, "--data", tmp_path / "data", "--out", tmp_path / "results")[0] == 0  # made anew
    assert {path: path.read_bytes() for path in before} == before


def test_what_cannot_measure_is_named_and_the_rest_can_go_on(toys, tmp_path, capsys, monkeypatch):
    toy_data(tmp_path / "data")
    out = ("--data", tmp_path / "data", "--out", tmp_path / "results")
    base.PROTOCOLS.add("empty", EmptyProtocol)
    code, answer = command(capsys, *out)
    assert code == 2
    assert "nothing to measure" in answer["left_out"]["empty"]
    assert set(answer["findings"]) == {"toy", "other"}
    code, answer = command(capsys, *out)
    assert (code, answer["error"]) == (2, "The folder holds unfinished runs.")
    base.PROTOCOLS._items.pop("empty")
    monkeypatch.setattr(ToyProtocol, "run_item", None)  # nothing is done again
    assert command(capsys, *out, "--resume")[0] == 0
    assert not (tmp_path / "results" / evaluate.UNFINISHED_RUNS).exists()


def test_wrong_commands_run_nothing(toys, tmp_path, capsys):
    toy_data(tmp_path / "data")
    for wrong in (("--compare", tmp_path), ("--set", "unknown=1")):
        code, answer = command(capsys, "--data", tmp_path / "data", "--out", tmp_path / "results", *wrong)
        assert code == 2
        assert answer["error"]
        assert not (tmp_path / "results").exists()


def test_folders_of_files_in_settings_are_not_revealed():
    from backend.cli.evaluate import typed_command

    changes = ['removers=["x=/secret/place/trnet.safetensors", "y=~/mine/y.st"]', "seed=3", "factors=[0.5]"]
    line = typed_command("trace-removal", None, Path("/a/b/out"), "quick", changes, "ray")
    assert "secret" not in line
    assert "mine" not in line
    assert "x=trnet.safetensors" in line
    assert "seed=3 --set 'factors=[0.5]' --engine ray" in line


@pytest.fixture
def results_folder(toys, tmp_path, capsys, monkeypatch):
    toy_data(tmp_path / "data")
    command(capsys, "--data", tmp_path / "data", "--out", tmp_path / "results")
    monkeypatch.setattr(report, "RESULTS_FOLDER", tmp_path / "results")
    monkeypatch.setattr(tab, "session_folder", lambda _: tmp_path)
    return tmp_path / "results"


def test_the_tab_shows_findings_at_once_and_a_report_on_request(results_folder):
    caution = "Measured on 2 fakes and 3 real pictures: too few to conclude from."
    assert f"<dt>Other</dt><dd>There are 10 rows. <small>{caution}</small></dd>" in tab.render(
        "findings", results=report.stored_results()
    )
    html, download = tab._show_stored("other", None)
    assert "There are 10 rows." in html
    assert "earlier weights" not in html
    assert "<details>" in html
    page = Path(download.value if isinstance(download.value, str) else download.value["path"])
    assert "<details>" not in page.read_text(encoding="utf-8")  # on paper nothing may be folded
    assert tab._show_stored("../other", None)[0] == ""


def zipped(folder, out):
    with zipfile.ZipFile(out, "w") as pack:
        for path in folder.rglob("*.png"):
            pack.write(path, path.relative_to(folder))
    return str(out)


def run_in_the_app(monkeypatch, folder, data):
    """Run the toy protocol as a click does, and return the tab and its last update."""
    monkeypatch.setattr(tab, "session_folder", lambda _: folder)
    with gr.Blocks():
        evaluate_tab = tab.EvaluateTab()
    *_, last = evaluate_tab._run(data, "toy", False, None)
    return evaluate_tab, last


def test_a_run_in_the_app_is_the_preset_and_says_its_command(toys, tmp_path, monkeypatch):
    toy_data(tmp_path / "pictures")
    evaluate_tab, last = run_in_the_app(monkeypatch, tmp_path, zipped(tmp_path / "pictures", tmp_path / "a.zip"))
    assert "10 of 10 items over 2 fakes and 3 real pictures" in last[evaluate_tab.own_report]  # as the command below
    assert "python -m backend evaluate toy --data ZIP --out DIR --preset quick" in last[evaluate_tab.own_report]
    download = last[evaluate_tab.download].value
    with zipfile.ZipFile(download if isinstance(download, str) else download["path"]) as pack:
        names = pack.namelist()
    assert "report.html" in names
    assert not any(name.startswith("data/") for name in names)
    # With another model, fetched in the same visit, it is another run, not one that cannot be resumed.
    monkeypatch.setattr(ToyProtocol, "measures", lambda _: {"identity": "ArcFace"})
    evaluate_tab, last = run_in_the_app(monkeypatch, tmp_path, str(tmp_path / "a.zip"))
    assert "10 of 10 items" in last[evaluate_tab.own_report]


def test_a_zip_that_would_fill_the_disk_of_all_visitors_is_refused(toys, tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as pack:
        for number in range(UNPACKING_LIMITS.files + 1):
            pack.writestr(f"real/{number}.png", b"")
    with pytest.raises(UserError, match="more than 5,000 files"):
        run_in_the_app(monkeypatch, tmp_path, str(tmp_path / "a.zip"))


def test_other_weights_are_noticed_and_reported(results_folder):
    path = results_folder / "other" / JSON_FILE
    content = json.loads(path.read_text())
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        pytest.skip("the models are not in weights/")
    from backend import weights

    embedded = next(name for name, entry in weights.read_entries().items() if entry.profile == "embedded")
    hub = next(name for name, entry in weights.read_entries().items() if entry.profile == "hub")
    content["about"]["weights"] = {embedded: "0" * 64, hub: "0" * 64, "gone": "0" * 64}
    path.write_text(json.dumps(content))
    assert report.changed_weights(report.load_report(results_folder / "other")[0]) == [embedded, "gone"]
    assert f"Measured with earlier weights of {embedded}, gone;" in tab._show_stored("other", None)[0]


def test_examples_and_traces_were_made_by_the_models_that_ship():
    if not (SETTINGS.weights_dir / "registry.toml").exists():
        pytest.skip("the models are not in weights/")
    loaded = examples.load_examples()
    assert loaded and not [example.label for example in loaded if examples.is_stale(example)]
    attentive = [name for name in detectors.loadable("embedded") if detectors.card(name).cam_layer]
    assert all(references.load_references().knows(name) for name in attentive)


def test_a_damaged_result_gives_one_sentence(results_folder):
    shutil.rmtree(results_folder / "toy" / "plots")
    with pytest.raises(UserError, match="no finished report in toy"):
        report.load_report(results_folder / "toy")


def test_results_are_not_ignored_by_the_repository():
    ignored = (ROOT / ".gitignore").read_text().split()
    assert "results/" not in ignored
    assert "results/.*" in ignored
