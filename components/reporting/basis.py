"""What stands behind the numbers of each part of the report: how many photos, how many seeds, and the command."""

from __future__ import annotations

from collections import defaultdict

from components.reporting.results import Results

ONE = "1 seed"


def basis(results: Results) -> dict[str, str]:
    """Returns n, seeds and the command of each part of the report that has numbers, by the part's name."""
    found = {}
    if results.methods:
        found["backbones"] = f"{_backbones(results)}; {_seeds(results)}; dvc repro evaluate@METHOD"
    if kept := _kept(results):
        found["kept"] = f"{kept}; {ONE}, the first of each method; dvc repro evaluate@METHOD"
    if results.logs:
        found["pretrain"] = f"{ONE}, the first of each method; dvc repro pretrain@METHOD"
    adapter, answering = results.adapter, results.answering
    if accuracy := adapter.get("accuracy") or adapter.get("mean_average_precision"):
        found["adapter"] = f"n = {accuracy['of']:,} test photos; {ONE}; dvc repro adapt"
    if photos := _named(results) or results.words.get("retrieval", {}).get("photos"):
        found["words"] = f"n = {photos:,} test photos; {ONE}; dvc repro words"
    if exact := answering.get("exact_match"):
        found["answers"] = f"n = {exact['of']:,} answers; {ONE}; dvc repro answer"
    return found


def scored_photos(results: Results) -> int | None:
    """Returns the number of labeled test photos that backbones were scored on, None if none was scored."""
    scored = (metrics["backbone"] for metrics in results.methods.values() if "backbone" in metrics)
    return next((int(scores["knn"]["of"]) for scores in scored), None)


def _named(results: Results) -> int | None:
    """Returns the number of test photos that were named by words, None if none was."""
    return results.words.get("zero_shot", {}).get("top1", {}).get("of")


def _backbones(results: Results) -> str:
    if n := scored_photos(results):
        return f"n = {n:,} test photos"
    health = next(iter(results.methods.values()))["health"]
    return f"n = {health['photos']:,} photos" if "photos" in health else "n: all photos"


def _kept(results: Results) -> str | None:
    """Returns of how many test photos it was measured what backbones keep, None if it was not."""
    for metrics in results.methods.values():
        if probes := metrics.get("kept", {}).get("backbone"):
            most = max(scores["of"] for scores in probes.values())  # some are not asked of all photos
            places = metrics["dense"]["backbone"]["linear"]["of"]
            return f"n = up to {most:,} test photos for the probes, {places:,} for mIoU and CorLoc"
    return None


def _seeds(results: Results) -> str:
    """Returns the number of seeds of the methods, each number once, as words."""
    by_count = defaultdict(list)
    for name in results.methods:
        by_count[results.seeds(name)].append(name)
    words = {count: ONE if count == 1 else f"{count} seeds" for count in by_count}
    if len(by_count) == 1:
        return words[next(iter(by_count))] + " of each method"
    return ", ".join(f"{words[count]} of {', '.join(names)}" for count, names in sorted(by_count.items(), reverse=True))
