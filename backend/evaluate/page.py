"""One HTML page that tells a run without the app, without a network, and on paper."""

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from backend.evaluate import tables
from backend.evaluate.metrics import registry
from backend.evaluate.metrics.metric import Estimate
from backend.evaluate.plots import Figure
from backend.evaluate.tables import Table

if TYPE_CHECKING:
    from backend.evaluate.runs import Evaluation

LONG = 24  # lines of a table that is folded where few readers need it
LISTED = 50  # skipped pictures that are named; the JSON names all
DIRECTIONS = {"higher": "higher is better", "lower": "lower is better", "neither": "depends on the row"}
STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 70rem; margin: 0 auto;
  padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; margin: .5rem 0; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border-bottom: 1px solid #ccc; padding: .25rem .6rem; text-align: right; white-space: nowrap; }
th.text, td.text { text-align: left; } td.text { white-space: normal; min-width: 6rem; }
thead th { white-space: normal; border-bottom: 2px solid #1a1a1a; vertical-align: bottom; }
td small { display: block; color: #444; }
.note { font-size: .85rem; max-width: 60rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
figure { margin: 0; } figure img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; }
.limits { border: 2px solid #1a1a1a; padding: .5rem 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f3f3f3; padding: .6rem; }
dt { font-weight: 600; } dd { margin: 0 0 .5rem 1rem; }
@media screen and (max-width: 640px) {
  caption span { display: inline-block; position: sticky; left: 0; max-width: calc(100vw - 3rem); } }
@media print { body { max-width: none; font-size: 10pt; } .scroll { overflow: visible; } table { font-size: 7.5pt; }
  th, td { white-space: normal; } figure, tr { break-inside: avoid; } }
"""


def page(evaluation: "Evaluation", command: str, comparison: Sequence[Table] = ()) -> str:
    """Return the page.

    Args:
        evaluation: What the run found.
        command: The command that made it.
        comparison: Tables of what differs from another run.
    """
    title = f"{evaluation.title}: results"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{article(evaluation, command, comparison)}\n</main>\n</body>\n</html>\n"
    )


def article(evaluation: "Evaluation", command: str, comparison: Sequence[Table] = (), *, folded: bool = False) -> str:
    """Return what stands on the page below its title.

    Args:
        evaluation: As of `page`, like the next two.
        command: The same.
        comparison: The same.
        folded: Close what few readers need; on paper it would be missing.
    """
    beside = [table for table in evaluation.tables if table.beside]
    first = [table for table in evaluation.tables if table.by_family and not table.beside]
    other = [table for table in evaluation.tables if not table.by_family and not table.beside]
    published = {table.name: table for table in evaluation.published}
    parts = [
        f'<p class="finding"><strong>{escape(evaluation.finding)}</strong></p>' if evaluation.finding else "",
        f"<p>{escape(evaluation.description)}</p>",
        f"<p>{escape(evaluation.summary)}</p>",
        '<section class="limits"><h2>What cannot be concluded</h2>',
        _list(evaluation.limits),
        "</section>",
        "<h2>By family of fakes</h2>" if first else "",
        *map(_table, first),
        "<h2>Beside the paper</h2>" if beside else "",
        *map(_table, beside),
        "<h2>Plots</h2>" if evaluation.plots else "",
        f'<div class="plots">{"".join(map(_figure, evaluation.plots))}</div>' if evaluation.plots else "",
        "<h2>All results</h2>",
        *(
            _section(one.title, _table(one), folded=True) if folded and len(one.rows) > LONG else _table(one)
            for one in other
        ),
        "<h2>What differs from the other run</h2>" if comparison else "",
        *map(_table, comparison),
        _section("As the papers print it", "".join(map(_table, published.values())), folded=folded),
        _section("What the numbers mean", _meanings(evaluation.tables), folded=folded),
        _section("What was left out", _skipped(evaluation.skipped), folded=folded),
        _section("How it was made", f"<pre>{escape(command)}</pre>{_facts(evaluation)}", folded=folded),
    ]
    return "\n".join(part for part in parts if part)


def _section(title: str, content: str, *, folded: bool) -> str:
    if not content:
        return ""
    if folded:
        return f"<details><summary><strong>{escape(title)}</strong></summary>{content}</details>"
    return f"<h2>{escape(title)}</h2>{content}"


def _table(table: Table) -> str:
    text = [all(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    kinds = [' class="text"' if one else "" for one in text]
    head = "".join(
        f'<th scope="col"{kind}>{escape(column.heading)}</th>'
        for kind, column in zip(kinds, table.columns, strict=True)
    )
    body = []
    for row in table.rows:
        cells = []
        for number, (kind, column, cell) in enumerate(zip(kinds, table.columns, row, strict=True)):
            shown = _cell(cell, column.digits)
            cells.append(f'<th scope="row"{kind}>{shown}</th>' if number == 0 else f"<td{kind}>{shown}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        body = [f'<tr><td colspan="{len(table.columns)}" class="text">Nothing was measured.</td></tr>']
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<div class="scroll"><table id="{escape(table.name)}"><caption><span>{escape(table.title)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>{note}"
    )


def _cell(cell: tables.Cell, digits: int) -> str:
    """Return a cell, the spread of an estimate in smaller letters so that columns stay narrow."""
    value, space, spread = tables.shown(cell, digits).partition(" ")
    if not isinstance(cell, Estimate) or cell.value is None:
        return escape(value + space + spread)
    return f"{escape(value)} <small>{escape(spread)}</small>"


def _figure(plot: Figure) -> str:
    return (
        f'<figure><img src="{plot.data_uri()}" alt="{escape(plot.alt)}">'
        f"<figcaption><strong>{escape(plot.title)}.</strong> {escape(plot.alt)}</figcaption></figure>"
    )


def _meanings(shown: Sequence[Table]) -> str:
    names = dict.fromkeys(column.metric for table in shown for column in table.columns if column.metric)
    said = []
    for name in names:
        metric = registry.METRICS[name]
        unit = f" Unit: {metric.unit}." if metric.unit else ""
        said.append(
            f"<dt>{escape(metric.title)}</dt><dd>{escape(metric.sentence)} {DIRECTIONS[metric.better].capitalize()}."
            f"{escape(unit)} Source: {escape(metric.source)}.</dd>"
        )
    explained = (
        "<p>Square brackets hold the 95 % confidence interval, ± the standard deviation over pictures, n how many "
        "pictures an average is over.</p>"
    )
    return f"{explained}<dl>{''.join(said)}</dl>"


def _skipped(skipped: Sequence[tuple[str, str]]) -> str:
    if not skipped:
        return "<p>Nothing.</p>"
    reasons = Counter(reason for _, reason in skipped)
    counted = _list([f"{count}: {reason}" for reason, count in reasons.most_common(20)])
    named = _list([f"{name}: {reason}" for name, reason in skipped[:LISTED]])
    more = f"<p>And {len(skipped) - LISTED} more; report.json names all.</p>" if len(skipped) > LISTED else ""
    return f"{counted}<h3>One by one</h3>{named}{more}"


def _facts(evaluation: "Evaluation") -> str:
    about = evaluation.about
    facts: dict[str, Any] = {f"Setting {name}": value for name, value in about["settings"].items()}
    facts |= {"Data": about["data"]["layout"], "Fakes": about["data"]["fakes"], "Real pictures": about["data"]["reals"]}
    facts["Hash of the data (SHA-256)"] = about["data"]["hash"]
    facts |= {f"Model {name} (SHA-256)": value for name, value in about["weights"].items()}
    for number, session in enumerate(evaluation.sessions, 1):
        versions = ", ".join(f"{name} {version}" for name, version in session["versions"].items())
        facts[f"Session {number}"] = (
            f"{session['started']}, engine {session['engine']}, {session['seconds']:.0f} seconds; {versions}"
        )
    rows = "".join(
        f'<tr><th scope="row" class="text">{escape(name)}</th><td class="text" style="white-space:normal">'
        f"{escape(_said(value))}</td></tr>"
        for name, value in facts.items()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name or 'unknown'}: {one}" for name, one in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "all" if value is None else str(value)


def _list(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"
