"""Reports: one page that stands alone, and the same numbers in every form; and the command that writes them."""

import base64
import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from backend.cli import main
from backend.errors import UserError
from backend.evaluate import plots, report, runs, tables
from backend.evaluate.metrics.base import Estimate
from backend.evaluate.plots import Series
from backend.evaluate.report import report_article
from backend.evaluate.tables import Column, Table
from backend.progress import finish
from tests.toy_protocol import ToyConfig, ToyProtocol, toy_data, write_picture

COMMAND = "python -m backend evaluate toy --data data --out out"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    write_picture(folder / "data/fake/a<b>&c/1.png", 90)
    data = toy_data(folder / "data", white=True)
    evaluation = finish(runs.run_protocol(ToyProtocol(ToyConfig()), data, folder / "out"))
    return evaluation, report.write_report(evaluation, folder / "out", COMMAND), folder / "out"


class Reader(HTMLParser):
    """Collects tags, and checks that they are closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_stands_alone(run):
    _, files, _ = run
    page = Path(files["html"]).read_text(encoding="utf-8")
    reader = Reader()
    reader.feed(page)
    assert not reader.open
    tags = [tag for tag, _ in reader.seen]
    assert not {"script", "link", "iframe", "object"} & set(tags)
    for tag, attributes in reader.seen:
        for name in ("src", "href", "srcset", "data"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, attributes)
    assert "url(" not in page
    assert "@import" not in page
    (picture,) = [attributes for tag, attributes in reader.seen if tag == "img"]
    svg = base64.b64decode(picture["src"].split(",", 1)[1])
    assert svg.startswith(b"<?xml")
    assert picture["alt"] == "Levels by factor."
    assert "@media print" in page


def test_the_page_says_what_a_reader_needs(run):
    evaluation, files, _ = run
    page = Path(files["html"]).read_text(encoding="utf-8")
    text = re.sub(r"<style>.*?</style>|<[^>]+>", " ", page, flags=re.DOTALL)
    assert "too few to conclude from" in text
    assert "The picture is white." in text
    assert COMMAND in text
    assert evaluation.about["data"]["hash"] in text
    assert "110.000 ± 10.000 (n = 3)" in " ".join(text.split())
    assert page.index("What cannot be concluded") < page.index("By family of fakes") < page.index("How it was made")
    assert "a&lt;b&gt;&amp;c" in page  # names of folders are a stranger's words
    assert "a<b>" not in page


def test_families_come_before_the_paper(run):
    evaluation, _, _ = run
    beside = Table("beside", "Beside", (Column("a", "A"),), (("x",),), beside=True)
    text = report_article(replace(evaluation, tables=(beside, *evaluation.tables)), COMMAND)
    assert text.index("By family of fakes") < text.index("Beside the paper") < text.index("All results")


def test_json_csv_and_the_loaded_report_agree(run):
    evaluation, files, out = run
    content = json.loads(Path(files["json"]).read_text(encoding="utf-8"))
    assert content["summary"] == evaluation.summary
    loaded, command = report.load_report(out)
    assert loaded == evaluation
    assert command == COMMAND
    with Path(files["csv"]["levels"]).open(newline="") as file:
        rows = {(row["family"], row["factor"]): row for row in csv.DictReader(file)}
    assert float(rows["swap", "x2"]["level"]) == 220
    assert float(rows["swap", "x2"]["level_std"]) == 20
    with Path(files["rows"]).open(newline="") as file:
        assert len(list(csv.DictReader(file))) == evaluation.counts["rows"]


def test_latex_is_plain_and_escaped(run):
    _, files, _ = run
    text = Path(files["latex"]).read_text(encoding="utf-8")
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 1
    assert r"a<b>\&c & x1" in text
    assert r"110.000 $\pm$ 10.000" in text
    assert r"\begin{tabular}{llr}" in text
    assert tables.table_to_latex(Table("t", "50 % of #1_a", (Column("a", "A ↓"),), ())).count(r"50 \% of \#1\_a") == 1


def test_cells_in_words():
    assert tables.cell_text(None, 3) == "not measured"
    assert tables.cell_text(Estimate(None, 0), 3) == "not measured"
    assert tables.cell_text(Estimate(0.5, 12, 0.25, 0.75), 2) == "0.50 [0.25, 0.75] (n = 12)"
    assert tables.cell_text(3, 3) == "3"
    assert Column("tv", "TV", "tv").heading == "TV ↓"
    assert Column("s", "Time", unit="s").heading == "Time (s)"


def test_a_name_with_dollars_is_no_formula():
    labels = ["$^$", "a$b$c"]
    drawn = plots.draw_bars("p", "P", "Two.", labels, [Series("one", (), [0.5, 1])], y_label="y")
    assert drawn.svg.startswith(b"<?xml")


def test_plots_are_described_in_words_with_what_was_not_measured():
    two = [Series("one", (), [0.5, float("nan")]), Series("two", (), [0, 1])]
    assert plots.values_in_words(two, ["a", "b"]) == "one: a 0.50, b not measured; two: a 0.00, b 1.00."


def test_a_folder_without_a_report_gives_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no finished report"):
        report.load_report(tmp_path)
    (tmp_path / report.JSON_FILE).write_text("{}")
    with pytest.raises(UserError, match="no finished report"):
        report.load_report(tmp_path)


def command(capsys, *arguments):
    code = main.main(["evaluate", *map(str, arguments), "--json"])
    output = capsys.readouterr()
    return code, json.loads(output.out), output.err


def test_the_command_measures_resumes_and_compares(tmp_path, capsys):
    options = ("--workers", "0", "--set", 'corruptions=["none"]', "--set", "fakes=2")
    code, answer, err = command(capsys, "detectors", "--sample", "--out", tmp_path / "one", *options)
    assert code == 0
    assert "Settings:" in err
    assert {row["table"] for row in answer["rows"]} >= {"families", "sources", "detectors", "robustness", "calibration"}
    assert answer["settings"]["fakes"] == 2
    assert answer["seconds"] > 0
    assert "too few to conclude" in " ".join(answer["limits"])
    for name in ("json", "html", "latex"):
        assert Path(answer["files"][name]).is_file()
    code, again, _ = command(capsys, "detectors", "--sample", "--out", tmp_path / "one", *options)
    assert code == 2
    assert "holds a run already" in again["error"]
    code, again, _ = command(capsys, "detectors", "--sample", "--out", tmp_path / "one", *options, "--resume")
    assert code == 0
    assert again["rows"] == answer["rows"]
    code, again, _ = command(
        capsys, "detectors", "--sample", "--out", tmp_path / "one", *options, "--resume", "--set", "seed=3"
    )
    assert code == 2
    assert "The setting seed was 0" in again["error"]
    other = ("--workers", "0", "--set", 'corruptions=["none"]', "--set", "fakes=4", "--compare", tmp_path / "one")
    code, second, _ = command(capsys, "detectors", "--data", tmp_path / "one/sample", "--out", tmp_path / "two", *other)
    assert code == 0
    assert {"table": "compare_settings", "setting": "settings.fakes", "first": "2", "second": "4"} in second[
        "differences"
    ]
    assert str(tmp_path) not in Path(second["files"]["html"]).read_text(encoding="utf-8")


def test_the_command_searches_counterfactuals_with_the_real_models(tmp_path, capsys):
    options = ("--workers", "0", "--set", "fakes=1", "--set", "steps=4", "--set", 'detectors=["mesoinception4"]')
    options += ("--set", "attacked=mesoinception4")
    options += ("--set", 'methods=["transfer","pgd"]', "--set", "ablated=[]")
    code, answer, _ = command(capsys, "counterfactual", "--sample", "--out", tmp_path, *options)
    assert code == 0
    assert answer["counts"]["done"] == 2
    assert {row["method"] for row in answer["rows"] if row["table"] == "success"} == {
        "Counterfactual (transfer)",
        "PGD",
    }


def test_wrong_commands_give_one_sentence(tmp_path, capsys):
    for arguments in (
        ("detectors", "--sample", "--out", tmp_path / "long", "--compare", tmp_path / "absent"),
        ("nothing", "--sample", "--out", tmp_path),
        ("detectors", "--out", tmp_path),
        ("detectors", "--data", tmp_path / "absent", "--out", tmp_path),
        ("detectors", "--data", tmp_path, "--out", tmp_path),
        ("detectors", "--sample", "--out", tmp_path, "--set", "steps"),
    ):
        code, answer, err = command(capsys, *arguments)
        assert code == 2
        assert answer["error"]
        assert "Traceback" not in err
    assert not (tmp_path / "long").exists()  # nothing is measured, perhaps for hours, before --compare is read


def test_titles_of_detectors_and_families():
    from backend.evaluate.protocols import base

    assert base.detector_title("meso4") == "Meso-4"
    assert base.detector_title("mine") == "mine"  # a detector that is not installed here
    assert (base.family_title("swap"), base.family_title("my fakes")) == ("face swaps", "my fakes")
