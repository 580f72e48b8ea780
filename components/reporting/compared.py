"""Which rows of the table differ by more than chance: all pairs, on the same test photos."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from components.evaluation.paired import NO_DIFFERENCE, Comparison, Right, compare_pairs
from components.evaluation.scoring import Correct
from components.evaluation.seeds import CORRECT, read_correct
from components.reporting.results import Results
from components.reporting.table import BASELINES

KINDS = {"knn": "kNN", "linear": "linear"}
MATRIX_FROM = 3  # methods; with fewer, the list has all of their pairs


def compare(results: Results, folder: Path) -> dict[str, list[Comparison]]:
    """Returns the comparisons of all pairs of methods, and of each method with its baselines, by kind (see KINDS).

    folder: with what evaluate wrote for each method. A method is left out if it was evaluated on other photos than the
    first one, or before evaluate wrote which photos are right. {} if there is nothing to compare.
    """
    by_method: dict[str, dict[str, Correct]] = {}  # of each method, by name in its file
    photos: tuple[object, ...] = ()
    for method, metrics in results.methods.items():
        if (file := folder / method / CORRECT).is_file():
            rows, correct = read_correct(file)
            evaluated_on = (metrics.get("manifest"), *rows.tolist())
            photos = photos or evaluated_on
            if evaluated_on == photos:
                by_method[method] = correct
    compared = {}
    for kind in KINDS:
        rights = {method: Right(method, correct["backbone"][kind]) for method, correct in by_method.items()}
        pairs = list(combinations(rights.values(), 2))
        for method, correct in by_method.items():
            pairs += [(rights[method], Right(name, correct[name][kind])) for name in BASELINES if name in correct]
        compared[kind] = compare_pairs(pairs)
    return compared if any(compared.values()) else {}


class Against(NamedTuple):
    """One row of the table beside the best method. words: by kind."""

    name: str
    words: dict[str, str]
    shown: dict[str, bool]


def against_best(results: Results) -> list[Against]:
    """Returns the comparison of the best method with each of its baselines and with every other method."""
    best, rows = str(results.best_method()), []
    for name in (*BASELINES, *results.methods):
        pairs = {kind: pair for kind in KINDS if (pair := results.comparison(kind, best, name))}
        if pairs:
            words = {kind: _beside(best, pair) for kind, pair in pairs.items()}
            rows.append(Against(name, words, {kind: pair.shown for kind, pair in pairs.items()}))
    return rows


def _beside(best: str, pair: Comparison) -> str:
    low, high = (pair.low, pair.high) if pair.first == best else (-pair.high, -pair.low)
    value = pair.value if pair.first == best else -pair.value
    points, interval = f"{100 * value:+.1f}", f"{100 * low:+.1f} to {100 * high:+.1f}"
    return f"{points} points ({interval})" if pair.shown else f"{NO_DIFFERENCE} ({points}, {interval}{pair.why()})"


def matrix(results: Results, kind: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns a row for each method: its name, and beside each method a class and the difference in points.

    The class is "yes" above, "no" below, "" where this data shows no difference.
    """
    names = [name for name in results.methods if any(name in (p.first, p.second) for p in results.compared[kind])]
    return [(name, [_cell(results, kind, name, other) for other in names]) for name in names]


def _cell(results: Results, kind: str, name: str, other: str) -> tuple[str, str]:
    if not (pair := results.comparison(kind, name, other)):
        return "", ""
    above = pair.first == name
    points = f"{100 * (pair.value if above else -pair.value):+.1f}"
    return ("yes" if above else "no", points) if pair.shown else ("", f"≈ {points}")


def tables(results: Results) -> dict[str, Any]:
    """Returns what the page shows of the comparisons, {} if there are none."""
    if not results.compared:
        return {}
    pairs = results.compared["knn"]
    methods = {name for pair in pairs for name in (pair.first, pair.second)} & results.methods.keys()
    matrices = {words: matrix(results, kind) for kind, words in KINDS.items()} if len(methods) >= MATRIX_FROM else {}
    return {"against": against_best(results), "matrices": matrices, "notes": list(notes(results))}


def notes(results: Results) -> Iterator[str]:
    """Yields how the comparisons were made, and what they do not say."""
    pairs = results.compared["knn"]
    single = [name for name in results.methods if results.configs[name]["epochs"] and results.seeds(name) == 1]
    seeds = {pair.seeds == (1, 1) for pair in pairs}
    tests = [words for one, words in ((True, "McNemar's exact test"), (False, "a t-test over seeds")) if one in seeds]
    yield (
        f"n = {pairs[0].photos:,} test photos, the same for both of a pair. In brackets: the 95 % interval of the "
        f"pair alone. A difference counts if its interval excludes 0 and p is below 0.05 by {' or '.join(tests)}, "
        f"adjusted for {len(pairs)} pairs (Holm)."
    )
    if single:
        yield (
            f"One seed of {', '.join(single)}: this compares these backbones, not the methods in general. Another "
            "seed may give another order. Set seeds: 3 in pretrain.common to train three."
        )


def lines(results: Results) -> list[str]:
    """Returns for a terminal: the best method against all others, and all other pairs that cannot be told apart."""
    if not results.compared:
        return []
    best, text = results.best_method(), []
    for kind, name in KINDS.items():
        pairs = results.compared[kind]
        of_best = [pair.words() for pair in pairs if best in (pair.first, pair.second)]
        rest = [pair for pair in pairs if best not in (pair.first, pair.second)]
        equal = [pair.words() for pair in rest if not pair.shown]
        text += [f"compared by {name} accuracy:", "", *(f"- {words}" for words in [*of_best, *equal])]
        if differ := len(rest) - len(equal):
            text.append(f"- all other pairs ({differ}) differ: comparisons.json")
        text.append("")
    return [*text, *notes(results)]
