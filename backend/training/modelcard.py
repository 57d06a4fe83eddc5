"""Keep the tables of `weights/MODELCARD.md` equal to the registry."""

from backend import verdicts, weights
from backend.detectors import registry
from backend.settings import SETTINGS

FILES, RATES = "files", "error rates"


def update() -> None:
    """Write both tables of the model card anew from the registry."""
    path = SETTINGS.weights_dir / "MODELCARD.md"
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    for title, table in ((FILES, files_table()), (RATES, rates_table())):
        before, _, rest = text.partition(f"<!-- {title} -->")
        text = f"{before}<!-- {title} -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    path.write_text(text, encoding="utf-8")


def files_table() -> str:
    """Return one line a file: name, bytes, hash, command."""
    lines = ["| model | bytes | sha256 (start) | trained by |", "|---|---|---|---|"]
    for name, entry in sorted(weights.entries().items()):
        if entry.profile != "embedded":
            continue
        command = entry.source.split(",")[0]
        lines.append(f"| {name} | {entry.bytes:,} | `{entry.sha256[:16]}` | `{command}` |")
    return "\n".join(lines)


def rates_table() -> str:
    """Return one line a detector and kind: how many, how often wrong, AUC."""
    lines = ["| detector | pictures | count | judged wrongly | AUC |", "|---|---|---|---|---|"]
    for name in registry.loadable("embedded"):
        for rate in registry.card(name).errors:
            kind = verdicts.KINDS.get(rate.kind, rate.kind)
            auc = "" if rate.auc is None else f"{rate.auc:.3f}"
            lines.append(f"| {name} | {kind} | {rate.count} | {rate.rate:.1%} | {auc} |")
    return "\n".join(lines)
