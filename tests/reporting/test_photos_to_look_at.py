"""Photos to look at, on the page: near-duplicates once, whatever found them, and every kind with its limit."""

import pytest

from components.data.quality import LIMITS
from components.reporting.figures import data_uri
from components.reporting.issues import PIXELS, QUALITY, SHOWN, issue_sections


@pytest.fixture
def names(photos):
    """One photo of train and one of test first."""
    manifest = photos.manifest
    split = manifest["split"].to_list()
    first = [split.index("train"), split.index("test")]
    return [manifest["path"][row] for row in [*first, *(row for row in range(len(split)) if row not in first)]]


def by_pixels(path, kind="near_duplicate", other="", score="0.98"):
    return {"path": path, "split": "", "kind": kind, "score": score, "other": other}


def by_features(path, kind="duplicate", other="", score="0.93", label="red"):
    return {"path": path, "split": "", "label": label, "kind": kind, "score": score, "other": other}


def test_a_pair_is_shown_once_whether_pixels_or_features_or_both_found_it(photos, names):
    first, second, third, fourth, *_ = names
    features = [
        by_features(second, other=first),
        by_features(third, other=fourth),
        by_features(first, other="gone.png"),
    ]
    pixels = [by_pixels(first, other=second), by_pixels(second, other=first)]
    (section,) = issue_sections(photos, features, pixels)
    assert section["words"].startswith(
        "2 pairs of photos look nearly the same: 1 by their pixels (correlation), 2 by their features (cosine). In 1 "
        "of these pairs, the two photos are in different splits: if"
    )
    assert [card["caption"] for card in section["cards"]] == ["correlation 0.980 · cosine 0.930", "cosine 0.930"]
    rows = {path: row for row, path in enumerate(photos.manifest["path"])}
    shown = [data_uri(photos[rows[path]], most=PIXELS) for path in sorted((first, second))]
    assert section["cards"][0]["images"] == shown
    assert section["cards"][0]["title"] == " · ".join(sorted((first, second)))
    (section,) = issue_sections(photos, [], pixels[:1])
    assert section["words"].startswith("1 pair of photos looks nearly the same: 1 by their pixels (correlation).")


def test_kinds_have_their_limits_and_a_caption_with_their_score(photos, names):
    lines = [by_pixels(names[0], kind, score="0.12") for kind in QUALITY]
    sections = issue_sections(photos, [], lines)
    assert len(sections) == len(QUALITY) == len(LIMITS)
    for section, kind in zip(sections, LIMITS, strict=True):
        assert section["words"].startswith("1 photo is ")
        assert f"{LIMITS[kind].value:g}" in section["words"]
        assert "0.12" in section["cards"][0]["caption"]


def test_doubtful_labels_and_odd_photos_and_how_many_are_not_shown(photos, names):
    doubtful = [by_features(name, "doubtful label", other="<green>") for name in names[: SHOWN + 3]]
    odd = [by_features(names[0], "odd", label=""), by_features("gone.png", "odd")]
    first, second = issue_sections(photos, [*doubtful, *odd], [])
    assert first["words"].startswith(f"{SHOWN + 3} photos look more like photos of another class")
    assert (len(first["cards"]), first["more"]) == (SHOWN, 3)
    assert first["cards"][0]["caption"] == "red → <green>?"
    assert second["words"].startswith("1 photo looks like no other")
    assert second["cards"][0]["caption"] == names[0]
    assert issue_sections(photos, [], []) == []
