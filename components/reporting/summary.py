"""The report as a short text for a terminal."""

from __future__ import annotations

from typing import Any

from components.reporting import compared
from components.reporting.basis import basis
from components.reporting.formats import over_seeds, percent
from components.reporting.results import Results
from components.reporting.table import table_rows


def summary(results: Results) -> str:
    """Returns the table of methods, which of them differ, and the numbers of the other stages, as Markdown."""
    lines = ["| | kNN top-1 | linear top-1 | effective rank |", "|---|---|---|---|"]
    for row in table_rows(results):
        rank = f"{row['health']['effective_rank']:.0f} of {row['health']['dimensions']}" if "health" in row else ""
        if row["name"] in results.pending:
            rank = row["words"]
        if row["name"] in results.methods and results.collapse(row["name"]):
            rank += ", **collapsed**"
        knn, linear = (percent(row[kind]) + over_seeds(row.get("seeds", {}), kind, "; ") for kind in ("knn", "linear"))
        lines.append(f"| {row['name']} | {knn} | {linear} | {rank} |")
    under = under_table(results)
    return "\n".join([*lines, *(["", *under] if under else []), "", *uses(results)]) + "\n"


def under_table(results: Results) -> list[str]:
    """Returns what the table rests on, and which of its rows differ, as lines of Markdown."""
    stands, lines = basis(results), []
    if "backbones" in stands:
        lines += [f"{stands['backbones']}; in brackets the 95 % interval over photos"]
    if differences := compared.lines(results):
        lines += ["", *differences]
    return lines


def uses(results: Results) -> list[str]:
    """Returns the numbers of the adapter, of words and of the answers, a line for each, or why there are none."""
    stands = basis(results)
    texts = {
        "adapter": _adapter(results.adapter),
        "words": _words(results.words),
        "answers": _answers(results.answering),
    }
    return [f"{name}: {text}" + (f" [{stands[name]}]" if name in stands else "") for name, text in texts.items()]


def _adapter(adapter: dict[str, Any]) -> str:
    """Returns the numbers of the stage adapt, or why there are none."""
    if "skipped" in adapter:
        return str(adapter["skipped"])
    kind = f"{adapter['kind']}, " if "kind" in adapter else ""
    if several := adapter.get("mean_average_precision"):
        return f"{kind}mAP {percent(several)}, by chance {100 * adapter['chance']:.1f} %"
    return kind + percent(adapter.get("accuracy"))


def _answers(answering: dict[str, Any]) -> str:
    """Returns the numbers of the stage answer, or why there are none."""
    if "skipped" in answering:
        return str(answering["skipped"])
    correct, blind = percent(answering.get("exact_match")), percent(answering.get("blind"))
    sees = ""
    if "sees" in answering:
        sees = "the language model sees; " if answering["sees"] else "the language model does not see; "
    words = f"{sees}{correct} correct, without the photo {blind}"
    if gap := answering.get("gap"):  # with one photo there is no other to exchange it with
        cost = f"{gap['value']:.3f} ({gap['low']:.3f} to {gap['high']:.3f}) nats"
        words += f"; with the photo of another question the loss is higher by {cost}"
    return words


def _words(words: dict[str, Any]) -> str:
    """Returns the numbers of the stage words, or why there are none."""
    if "skipped" in words:
        return str(words["skipped"])
    parts = []
    if named := words.get("zero_shot"):
        parts.append(f"{percent(named['top1'])} of test photos named by class names")
    for direction, what in (("text_to_photo", "a photo by its caption"), ("photo_to_text", "a caption by its photo")):
        found = words.get("retrieval", {}).get(direction, {})
        k = max(map(int, found), default=0)
        if k:
            recall = found[str(k)]
            parts.append(f"{what} among the best {k}: {percent(recall)}, by chance {100 * recall['chance']:.1f} %")
    return "; ".join(parts) or "not measured: " + "; ".join(words.get("not_measured", {}).values())
