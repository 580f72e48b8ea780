"""What the page shows of photos to look at: near-duplicates, doubtful labels, odd, blurred, dark … photos."""

from __future__ import annotations

from typing import Any

from components.data.photos import Photos
from components.data.quality import LIMITS
from components.evaluation.issues import DOUBTFUL, DUPLICATE, ODD
from components.reporting.figures import data_uri

SHOWN = 8  # of each kind
PIXELS = 160  # of a photo's longer side
NEAR_DUPLICATE = "near_duplicate"  # by prepare, from pixels; DUPLICATE is by embed, from features
QUALITY = {  # kinds of prepare: what a photo is, with the limit, and its caption, with its score
    "blurred": ("blurred: their sharpness is below {:g}", "sharpness {:.2g}"),
    "dark": ("dark: 95 % of their pixels are below {:g}, where white is 1", "95 % below {:.2g}"),
    "bright": ("overexposed: 95 % of their pixels are above {:g}, where white is 1", "95 % above {:.2g}"),
    "blank": ("almost blank: the entropy of their gray values is below {:g} of 8 bits", "{:.2g} bits"),
    "aspect": ("of an odd shape: one side is more than {:g} times the other", "{:.2g} to 1"),
    "tiny": ("tiny: their shorter side is below {:g} times data.size", "{:.2g} of data.size"),
}


def issue_sections(photos: Photos, by_features: list[dict[str, str]], by_pixels: list[dict[str, str]]) -> list[Any]:
    """Returns for each kind of issue that there is: `words`, `cards` of the first few, and how many `more` there are.

    A card has `images`, of near-duplicates two, a `caption` and a `title`. by_features, by_pixels: the lines of
    issues.csv of embed and of prepare. Photos that are not prepared any more are left out.
    """
    if not by_features and not by_pixels:
        return []
    manifest = photos.manifest
    rows = {path: row for row, path in enumerate(manifest["path"])}
    lines = [line for line in [*by_pixels, *by_features] if line["path"] in rows]
    splits = dict(zip(manifest["path"], manifest["split"], strict=True))
    sections = [_near_duplicates(photos, rows, splits, lines)]
    for kind in (DOUBTFUL, ODD, *QUALITY):
        of_kind = [line for line in lines if line["kind"] == kind]
        cards = [_card(photos, rows, [line["path"]], _caption(line)) for line in of_kind[:SHOWN]]
        sections.append(_section(_words(kind, len(of_kind)), cards, len(of_kind)))
    return [section for section in sections if section["cards"]]


def _near_duplicates(
    photos: Photos, rows: dict[str, int], splits: dict[str, str], lines: list[dict[str, str]]
) -> dict[str, Any]:
    """Returns the section of near-duplicates, in which each pair is once, whether pixels, features or both found it."""
    measures = {NEAR_DUPLICATE: "correlation", DUPLICATE: "cosine"}
    pairs: dict[tuple[str, str], dict[str, float]] = {}
    for line in lines:
        if line["kind"] in measures and line["other"] in rows:
            first, second = sorted((line["path"], line["other"]))
            pairs.setdefault((first, second), {})[measures[line["kind"]]] = float(line["score"])
    by_score = sorted(pairs, key=lambda pair: -max(pairs[pair].values()))
    found_alone = {name: [pair for pair in by_score if list(pairs[pair]) == [name]] for name in measures.values()}
    rank_alone = {pair: rank for alone in found_alone.values() for rank, pair in enumerate(alone)}
    ordered = sorted(by_score, key=lambda pair: rank_alone.get(pair, -1))  # found by both, then by either in turn
    cards = []
    for pair in ordered[:SHOWN]:
        caption = " · ".join(f"{name} {score:.3f}" for name, score in pairs[pair].items())
        cards.append(_card(photos, rows, list(pair), caption))
    one = len(pairs) == 1
    words = f"{len(pairs):,} pair{'' if one else 's'} of photos look{'s' * one} nearly the same: "
    sources = [
        f"{count:,} by their {of} ({name})"
        for of, name in (("pixels", "correlation"), ("features", "cosine"))
        if (count := sum(name in scores for scores in pairs.values()))
    ]
    words += f"{', '.join(sources)}."
    if crossing := sum(splits[first] != splits[second] for first, second in pairs):
        words += (
            f" In {crossing:,} of these pairs, the two photos are in different splits: if they show the same, one in "
            "train and one in test, accuracy on test is too high."
        )
    return _section(words, cards, len(pairs))


def _words(kind: str, count: int) -> str:
    one = count == 1
    number = f"{count:,} photo{'' if one else 's'}"
    if kind == DOUBTFUL:
        return f"{number} look{'s' * one} more like photos of another class; the most doubtful first."
    if kind == ODD:
        return f"{number} look{'s' * one} like no other; those farthest from their neighbors first."
    return f"{number} {'is' if one else 'are'} {QUALITY[kind][0].format(LIMITS[kind].value)}."


def _caption(line: dict[str, str]) -> str:
    if line["kind"] == DOUBTFUL:
        return f"{line['label']} → {line['other']}?"
    if line["kind"] == ODD:
        return line["label"] or line["path"]
    return QUALITY[line["kind"]][1].format(float(line["score"]))


def _card(photos: Photos, rows: dict[str, int], paths: list[str], caption: str) -> dict[str, Any]:
    images = [data_uri(photos[rows[path]], most=PIXELS) for path in paths]
    return {"images": images, "caption": caption, "title": " · ".join(paths)}


def _section(words: str, cards: list[dict[str, Any]], count: int) -> dict[str, Any]:
    return {"words": words, "cards": cards, "more": count - len(cards)}
