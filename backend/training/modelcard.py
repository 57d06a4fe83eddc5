"""Keep the tables of `weights/MODELCARD.md` equal to the registry."""

from backend import verdicts, weights
from backend.detectors import registry
from backend.settings import SETTINGS
from backend.training import honesty

FILES, RATES, SAME_SOURCE = "files", "error rates", "same source"


def update() -> None:
    """Write the tables of the model card anew from the registry."""
    path = SETTINGS.weights_dir / "MODELCARD.md"
    if not path.exists():
        return
    text = path.read_text(encoding="utf-8")
    for title, table in ((FILES, files_table()), (RATES, rates_table()), (SAME_SOURCE, same_source_table())):
        before, _, rest = text.partition(f"<!-- {title} -->")
        text = f"{before}<!-- {title} -->\n{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
    path.write_text(text, encoding="utf-8")


def files_table() -> str:
    """Return one line a file: name, bytes, hash, command."""
    lines = ["| model | bytes | sha256 (start) | trained by |", "|---|---|---|---|"]
    for name, entry in sorted(weights.entries().items()):
        if entry.profile != "embedded":
            continue
        command = entry.source.split(", on ")[0]
        lines.append(f"| {name} | {entry.bytes:,} | `{entry.sha256[:16]}` | `{command}` |")
    return "\n".join(lines)


def rates_table() -> str:
    """Return one line a detector of either set and kind: how many, how often wrong, AUC; photographs also changed."""
    lines = ["| detector | pictures | count | judged wrongly | AUC |", "|---|---|---|---|---|"]
    for name in [*registry.loadable("embedded"), *registry.loadable("plain")]:
        card = registry.card(name)
        for rate in card.errors:
            kind = verdicts.KINDS.get(rate.kind, rate.kind)
            auc = "" if rate.auc is None else f"{rate.auc:.3f}"
            lines.append(f"| {name} | {kind} | {rate.count} | {rate.rate:.1%} | {auc} |")
        alarm = card.false_alarm()
        for change, share in weights.entry(name).options.get("false_alarms", {}).items():
            after = "as they are" if change == honesty.UNCHANGED else f"after {change}"
            lines.append(f"| {name} | real photographs, {after} | {alarm.count if alarm else ''} | {share:.1%} | |")
    return "\n".join(lines)


def same_source_table() -> str:
    """Return one line a detector: its AUC on fakes by others against photographs of the same source."""
    kinds = list(honesty.LIKES)
    heads = [f"{verdicts.KINDS[kind]}, against {' and '.join(honesty.LIKES[kind])}" for kind in kinds]
    lines = [f"| detector | {' | '.join(heads)} |", "|---" * (len(kinds) + 1) + "|"]
    for name in [*registry.loadable("embedded"), *registry.loadable("plain")]:
        found = weights.entry(name).options.get("same_source", {})
        told = (found.get(kind) for kind in kinds)
        cells = ("" if one is None else f"{one['auc']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in told)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)
