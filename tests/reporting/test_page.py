"""The page from made-up numbers: it is complete and self-contained, and says what is missing."""

import copy
import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

from components.data.entries import DESCRIBE
from components.evaluation.statistics import proportion_with_ci
from components.reporting import provenance
from components.reporting.answers import KINDS, kinds, sight
from components.reporting.figures import data_uri
from components.reporting.for_dvc import plain_metrics
from components.reporting.formats import percent
from components.reporting.maps import Maps
from components.reporting.method_summary import method_summary
from components.reporting.page import render
from components.reporting.results import Results, read_results
from components.reporting.summary import summary
from components.reporting.table import table_rows
from components.reporting.verdict import backbone_sentence

SCORE = {"knn": {**proportion_with_ci(40, 50), "k": 20}, "linear": {**proportion_with_ci(45, 50), "penalty": 0.01}}
LOW = {"knn": proportion_with_ci(10, 50), "linear": proportion_with_ci(12, 50)}


@pytest.fixture
def results():
    metrics = {
        "majority": {"top1": proportion_with_ci(5, 50)},
        "pixels": LOW,
        "random": LOW,
        "backbone": SCORE,
        "health": {"effective_rank": 31.4, "feature_std": 0.9, "dimensions": 64},
        "blocks": [LOW, SCORE],
        "selection": {"knn": proportion_with_ci(9, 10), "on": "the 10 labeled val photos"},
    }
    worse = {**copy.deepcopy(metrics), "backbone": LOW, "selection": {**metrics["selection"], "knn": LOW["knn"]}}
    log = [{"step": step, "loss": 5 / step} for step in range(1, 20)]
    return Results(
        config={"data": {"source": "<my> photos"}},
        validation={
            "offered": 102, "used": 96, "rejected": {"broken": 6}, "splits": {"train": 70, "test": 26},
            "classes": {"red": {"train": 35, "test": 13}, "green": {"train": 35, "test": 13}}, "unlabeled": 0,
            "captioned": 0, "converted": {"converted from P": 2}, "width": {"min": 1, "median": 2, "max": 3},
            "height": {"min": 1, "median": 2, "max": 3}, "notes": ["a note"], "warnings": ["a warning"],
        },
        rejected=[{"path": "a.jpg", "kind": "broken", "why": "cannot be decoded: truncated"}] * 6,
        methods={"simclr": worse, "moco": metrics},
        logs={"simclr": log, "moco": log},
        measured={},
        origins={},
        teachers={},
        starts={},
        configs={name: {"epochs": n, "batch_size": 16, "seed": 7} for name, n in (("simclr", 2), ("moco", 4))},
        adapter={
            "accuracy": proportion_with_ci(44, 50), "majority": proportion_with_ci(5, 50),
            "classes": ["a", "b"], "confusion": [[3, 1], [0, 4]],
        },
        words={
            "method": "moco", "photos": 70, "texts": 2100,
            "found": [{"text": "a <red> car", "rows": [0, 2]}, {"text": "a door", "rows": [1]}],
            "zero_shot": {
                "top1": proportion_with_ci(35, 50), "majority": proportion_with_ci(5, 50), "chance": 0.25,
                "names": "not learned",
            },
            "retrieval": {
                "photos": 50, "texts": 40,
                "photo_to_text": {"1": {**proportion_with_ci(7, 50), "chance": 0.025, "shuffled": 0.04}},
                "text_to_photo": {
                    "1": {**proportion_with_ci(9, 40), "chance": 0.024, "shuffled": 0.05},
                    "5": {**proportion_with_ci(22, 40), "chance": 0.12, "shuffled": 0.13},
                },
            },
        },
        pending={},
        answering={
            "exact_match": proportion_with_ci(30, 50), "blind": proportion_with_ci(10, 50),
            "gap": {"value": 0.8, "low": 0.5, "high": 1.1},
        },
        answers=[
            {"row": 3, "question": "What?", "expected": "a wall", "answer": "a door", "correct": False},
            {"row": 3, "question": "Color?", "expected": "red", "answer": "red", "correct": True},
        ],
        embedded={"method": "moco"},
        issues=[],
        quality=[],
    )  # fmt: skip


def page(results, photos, **changes):
    found = {"rows": photos.rows("train")[:5].tolist(), "cosines": [0.9, 0.8, 0.7, 0.6, 0.5]}
    near = {str(row): found for row in photos.rows("test").tolist()}
    return render(Results(**{**vars(results), **changes}), photos, near, 4)


def test_everything_is_on_one_page_that_needs_nothing_else(results, photos):
    html = page(results, photos)
    assert not re.search(r"(?:src|href)=[\"'](?!data:|#)", html)  # figures refer to their own parts only
    assert "@import" not in html
    assert "url(http" not in html
    for text in (
        "&lt;my&gt; photos",
        "majority",
        "raw pixels",
        "80.0 %",
        "a door",
        "a wall",
        "cannot be decoded",
        "a warning",
    ):
        assert text in html
    assert html.count("<figure") == 4 * 6 + 3  # nearest photos, and those found by captions
    assert "by the backbone of <b>moco</b>" in html
    assert "Best method: <b>moco</b>, with a kNN accuracy of 90.0 % (59.6 to 98.2) on the 10 labeled val" in html


def test_maps_and_the_worst_mistakes_are_shown(results, photos):
    mistakes = [{"row": 1, "predicted": "a <b>", "probability": 0.93}]
    shown = render(
        Results(**{**vars(results), "adapter": {**results.adapter, "mistakes": mistakes}}),
        photos,
        {},
        1,
        maps=Maps("simclr", "similarity", [("data:,1", "data:,2", "data:,3")]),
    )
    assert "taken for a &lt;b&gt;, 93 %" in shown
    assert "where the backbone looks least (similarity)" in shown
    assert "by the backbone of <b>simclr</b> (moco has too few positions to draw)" in shown
    assert all(f'src="data:,{number}"' in shown for number in (1, 2, 3))
    assert "Where the backbone looks" not in page(results, photos)


def test_what_was_learned_when_is_drawn(results, photos):
    lines = [{"step": step, "value": value, "measured": "a <measure>"} for step, value in ((0, 0.2), (9, 0.4))]
    other = [{**line, "measured": "another"} for line in lines]
    html = page(results, photos, measured={"moco": lines, "simclr": other})
    assert "a &lt;measure&gt;, by the number of photos" in html
    assert "another, by the number of photos" in html  # what cannot be compared has a figure of its own
    assert html.count("<svg") == page(results, photos).count("<svg") + 2


def test_how_the_results_were_made_is_said(results, photos):
    log = [{"step": 30, "loss": 1.0, "images_per_second": 4.0}]
    html = page(results, photos, logs={**results.logs, "moco": log})
    assert "480 photos seen in batches of 16, seed 7, 2.0 minutes" in html
    assert "304 photos seen in batches of 16, seed 7<" in html
    configs = {**results.configs, "moco": {**results.configs["moco"], "seeds": 3}}
    html = page(results, photos, logs={**results.logs, "moco": log}, configs=configs)
    assert "with each of the seeds 7 to 9, the first took 2.0 minutes" in html
    assert f"torch {torch.__version__}" in html


def test_words_are_beside_the_labels_and_beside_chance(results, photos):
    html = page(results, photos)
    for text in (
        "from 70 photos with 2,100 different captions",
        "<b>70.0 % (56.2 to 80.9)</b> of 50 photos (the names were not learned)",
        "With labels, from the same features: kNN 80.0 % (67.0 to 88.8), linear 90.0 %",
        "photos by a caption, k = 5",
        "captions by a photo, k = 1",
        '<td class="num">12.0 %</td><td class="num">13.0 %</td>',
    ):
        assert text in html
    part = html[html.index("a &lt;red&gt; car") : html.index("<b>a door</b>")]
    assert part.count(data_uri(photos[0])) == part.count(data_uri(photos[2])) == 1
    assert part.count("<img") == 2
    line = next(line for line in summary(results).splitlines() if line.startswith("words: "))
    assert line.startswith("words: 70.0 % (56.2 to 80.9) of test photos named by class names; a photo by its caption")
    assert "among the best 5: 55.0 % (39.8 to 69.3), by chance 12.0 %" in line
    only = {"method": "moco", "photos": 70, "texts": 4, "not_measured": {"retrieval": "no captions"}}
    html = page(results, photos, words=only)
    assert "Not measured: retrieval: no captions" in html
    assert "Recall at k" not in html
    assert "words: not measured: no captions" in summary(Results(**{**vars(results), "words": only}))


def test_of_several_labels_the_page_shows_the_mean_average_precision(results, photos):
    adapter = {
        "kind": "mlp",
        "mean_average_precision": {"value": 0.712, "low": 0.65, "high": 0.77, "of": 50},
        "chance": 0.314,
        "linear": {"value": 0.6, "low": 0.55, "high": 0.65, "of": 50},
        "above_linear": {"value": 0.112, "low": 0.05, "high": 0.17, "of": 50},
        "calibration": {"temperature": 1.5, "ece_before": 0.125, "ece_after": 0.0425},
        "not_measured": {"few_labels": "a <reason>"},
        "classes": ["cat", "<dog>"],
        "by_class": {
            "cat": {"average_precision": 0.863, "chance": 0.14, "photos": 7},
            "<dog>": {"average_precision": None, "chance": 0.0, "photos": 0},
        },
    }
    html = page(results, photos, adapter=adapter)
    part = html[html.index("<h2>Classifier") : html.index("<h2>Words")]
    for text in (
        "A classifier with one hidden layer on the frozen backbone says of each class whether a photo shows it",
        "on 50 test photos is <b>71.2 % (65.0 to 77.0)</b>",
        "the difference is +11.2 points (+5.0 to +17.0). By chance: 31.4 %.",
        "off by 4.2 points",
        '<td class="name">cat</td><td><div class="num">86.3 %</div>',
        '<td class="num">14.0 %</td><td class="num">7</td>',
        '<td class="name">&lt;dog&gt;</td><td>–</td>',
        "few labels was not measured: a &lt;reason&gt;.",
    ):
        assert text in part
    assert "Confusion" not in part
    assert "most frequent class" not in part
    changed = Results(**{**vars(results), "adapter": adapter})
    assert "adapter: mlp, mAP 71.2 % (65.0 to 77.0), by chance 31.4 %" in summary(changed)
    numbers = plain_metrics(changed)
    assert numbers["adapter_map"] == 0.712
    assert "adapter" not in numbers
    assert "mean average precision" not in page(results, photos)
    several = {**results.validation, "several_labels": {"photos": 1234, "labels": {}}}
    assert "2 classes, 1,234 photos with several labels" in page(results, photos, validation=several)


def test_how_photos_find_their_class_is_a_column_beside_chance(results, photos):
    assert "MAP@R" not in page(results, photos)
    methods = copy.deepcopy(results.methods)
    found = {"by_class": {"gallery": 50, "map_at_r": {**proportion_with_ci(20, 50), "chance": 0.117}}}
    for metrics in methods.values():
        metrics["backbone"] = {**metrics["backbone"], "retrieval": found}
    html = page(results, photos, methods=methods, pending={"dino": "not trained yet"})
    assert html.count('<td class="num">40.0 %</td>') == 2
    assert "11.7 % by chance" in html


def test_accuracy_after_each_block_is_shown_with_its_method(results, photos):
    html = page(results, photos)
    assert html.count("after each block: 20 · 80</span>") == html.count("after each block: 24 · 90</span>") == 2


def test_the_best_method_is_chosen_on_val_and_not_on_test(results):
    assert results.best_method() == "moco"
    swapped = copy.deepcopy(results.methods)
    for name, other in (("simclr", "moco"), ("moco", "simclr")):
        swapped[name]["backbone"] = results.methods[other]["backbone"]  # test scores only
    assert Results(**{**vars(results), "methods": swapped}).best_method() == "moco"
    for name, other in (("simclr", "moco"), ("moco", "simclr")):
        swapped[name]["selection"] = results.methods[other]["selection"]
    assert Results(**{**vars(results), "methods": swapped}).best_method() == "simclr"


def test_a_collapsed_run_is_never_the_best_and_is_named_everywhere(results, photos):
    """By its features, or by what the run's last point says of its targets; but not if an earlier point was kept."""
    words = "collapsed: all photos have nearly the same features; try another method"
    assert (results.best_method(), results.collapse("moco")) == ("moco", None)
    results.methods["moco"]["health"]["verdict"] = words
    assert (results.best_method(), results.collapse("moco")) == ("simclr", words)
    assert table_rows(results)[-1]["words"].endswith(f"; {words}")
    assert "of 64, **collapsed** |" in summary(results)
    assert words in render(results, photos, {}, 1)
    del results.methods["moco"]["health"]["verdict"]
    results.measured["moco"] = [{"step": 0, "verdict": None}, {"step": 9, "verdict": words}]
    assert (results.best_method(), results.collapse("moco")) == ("simclr", words)
    results.starts["moco"] = {"kept_step": 0}
    assert results.best_method() == "moco"
    for name in ("moco", "simclr"):
        results.methods[name]["health"]["verdict"] = words
    assert "Best method" not in page(results, photos, measured={})
    good, sentence = backbone_sentence(results)
    assert (good, sentence) == (False, "moco has collapsed: all photos have nearly the same features.")


def test_the_best_snapshot_has_a_row_of_its_own_beside_the_last(results):
    before = table_rows(results)
    health, chosen = {"effective_rank": 12.0, "dimensions": 64}, "kNN accuracy on 90 photos of train and val"
    results.methods["simclr"]["snapshot"] = {
        "name": "best snapshot",
        "step": 1500,
        "chosen_by": chosen,
        "backbone": SCORE,
        "health": health,
        "seeds": {"count": 1},
    }
    rows = table_rows(results)
    assert [row["name"] for row in rows if row not in before] == ["simclr, best snapshot"]
    assert [row["name"] for row in rows].index("simclr, best snapshot") == 1 + [r["name"] for r in rows].index("simclr")
    row = next(row for row in rows if row not in before)
    assert (row["knn"], row["words"]) == (SCORE["knn"], f"step 1,500; the best one is chosen by {chosen}")
    assert "| simclr, best snapshot |" in summary(results)
    over = {"count": 3, "knn": {"mean": 0.5, "deviation": 0.01}, "linear": {"mean": 0.6, "deviation": 0.02}}
    results.methods["simclr"]["snapshot"]["seeds"] = over
    line = next(line for line in summary(results).splitlines() if line.startswith("| simclr, best snapshot |"))
    assert "; 3 seeds: 50.0 ± 1.0 |" in line
    assert "; 3 seeds: 60.0 ± 2.0 |" in line
    assert any(row["words"].startswith("step 1,500 of the first seed; ") for row in table_rows(results))
    assert results.best_method() == "moco"  # snapshots take no part in the choice of a method


def test_the_table_has_each_baseline_once_and_each_method(results):
    assert [row["name"] for row in table_rows(results)] == ["majority", "pixels", "random", "simclr", "moco"]
    assert table_rows(results)[-1]["words"] == "4 epochs, 304 photos seen"


def test_a_method_no_better_than_untrained_is_named(results, photos):
    assert results.no_better_than_untrained() == ["simclr"]  # its interval overlaps the untrained one's
    methods = copy.deepcopy(results.methods)
    methods["moco"]["backbone"] = methods["moco"]["random"]
    changed = page(results, photos, methods=methods)
    assert "moco is not clearly better than the same backbone untrained" in changed
    assert "moco is not clearly better" not in page(results, photos)


def test_a_baseline_that_differs_between_methods_has_a_row_for_each(results):
    methods = copy.deepcopy(results.methods)
    methods["moco"]["random"] = SCORE
    names = [row["name"] for row in table_rows(Results(**{**vars(results), "methods": methods}))]
    assert names == ["majority", "pixels", "random as in simclr", "random as in moco", "simclr", "moco"]


def test_no_gap_is_shown_where_there_is_no_other_photo(results, photos):
    answering = {key: value for key, value in results.answering.items() if key != "gap"}
    assert "nats" not in summary(Results(**{**vars(results), "answering": answering}))
    assert "nats" not in page(results, photos, answering=answering)


def test_the_page_says_why_something_was_not_measured(results, photos):
    why = {"knn, linear and their baselines": "the photos have no labels"}
    unscored = {name: {"health": m["health"], "not_measured": why} for name, m in results.methods.items()}
    html = page(
        results,
        photos,
        methods=unscored,
        adapter={"skipped": "no classifier"},
        words={"skipped": "no words: a reason"},
        answering={"skipped": "no questions"},
        answers=[],
    )
    for text in ("Accuracy was not measured: the photos have no labels", "no classifier", "no questions"):
        assert text in html
    assert "majority" not in html
    lines = summary(Results(**{**vars(results), "methods": unscored, "adapter": {"skipped": "no classifier"}}))
    assert "| moco | – | – | 31 of 64 |" in lines


def test_the_page_says_which_classifier_it_is_and_how_far_above_a_linear_one(results, photos):
    adapter = {
        **results.adapter,
        "kind": "lora",
        "linear": proportion_with_ci(40, 50),
        "above_linear": {"value": 0.08, "low": -0.01, "high": 0.17, "of": 50},
        "calibration": {"temperature": 1.5, "ece_before": 0.123, "ece_after": 0.045},
        "few_labels": {"5": {"linear": {"mean": 0.61, "lowest": 0.5, "highest": 0.7, "draws": 5}}},
    }
    html = page(results, photos, adapter=adapter)
    assert "The backbone with low-rank updates (LoRA) and a linear layer predicts <b>88.0 % (76.2 to 94.4)</b>" in html
    assert "on the same photos the difference is +8.0 points (-1.0 to +17.0)" in html
    assert "off by 4.5 points" in html
    assert "61.0 % (50.0 to 70.0) with 5 per class (mean and range over 5 draws" in html
    assert "A linear classifier on the frozen backbone predicts" in page(results, photos)
    assert "adapter: lora, 88.0 % (76.2 to 94.4)" in summary(Results(**{**vars(results), "adapter": adapter}))


def test_the_summary_has_the_numbers_of_the_page(results):
    text = summary(results)
    assert "| moco | 80.0 % (67.0 to 88.8) | 90.0 % (78.6 to 95.7) | 31 of 64 |" in text
    assert "answers: 60.0 % (46.2 to 72.4) correct, without the photo 20.0 %" in text
    assert percent(None) == "–"


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value) + "\n", encoding="utf-8")


def test_stages_that_have_not_run_are_named_with_their_command(results, photos, tmp_path):
    with pytest.raises(ValueError, match=r"prepare/config.json is missing; run the first stage: dvc repro prepare"):
        read_results(tmp_path, ["moco"])
    for name in ("config", "validation"):
        write(tmp_path / "prepare" / f"{name}.json", getattr(results, name))
    nothing = read_results(tmp_path, ["moco"])
    assert nothing.best_method() is None
    assert "not trained yet: dvc repro evaluate@moco" in render(nothing, photos, {}, 4)
    for name in ("moco", "simclr"):
        write(tmp_path / "pretrain" / name / "log.jsonl", {"step": 9, "loss": 1.0})
        write(tmp_path / "pretrain" / name / "config.json", results.configs[name])
    write(tmp_path / "evaluate" / "moco" / "metrics.json", results.methods["moco"])
    one = read_results(tmp_path, ["simclr", "moco", "dino"])
    assert one.pending == {
        "simclr": "not evaluated yet: dvc repro evaluate@simclr",
        "dino": "not trained yet: dvc repro evaluate@dino",
    }
    html, text = render(one, photos, {"0": {"rows": [1, 2], "cosines": [0.5, 0.4]}}, 4), summary(one)
    for command in ("evaluate@simclr", "evaluate@dino", "adapt", "answer"):
        assert f"yet: dvc repro {command}" in html
        assert f"yet: dvc repro {command}" in text
    assert "| moco | 80.0 %" in text
    assert "80.0 %" in html


def test_the_summary_of_one_method_has_its_path_and_numbers(results, tmp_path):
    with pytest.raises(ValueError, match="run: dvc repro pretrain@moco"):
        method_summary(tmp_path, "moco")
    (tmp_path / "pretrain" / "moco" / "backbone").mkdir(parents=True)
    assert method_summary(tmp_path, "moco").endswith("not evaluated yet; run: dvc repro evaluate@moco")
    write(tmp_path / "evaluate" / "moco" / "metrics.json", results.methods["moco"])
    assert method_summary(tmp_path, "moco").splitlines() == [
        f"backbone: {tmp_path / 'pretrain' / 'moco' / 'backbone'}",
        "kNN top-1: 80.0 % (67.0 to 88.8) of 50 test photos; untrained: 20.0 % (11.2 to 33.0)",
        "linear top-1: 90.0 % (78.6 to 95.7) of 50 test photos; untrained: 24.0 % (14.3 to 37.4)",
        "effective rank: 31 of 64",
    ]
    unlabeled = {"health": results.methods["moco"]["health"], "not_measured": {"knn": "the photos have no labels"}}
    write(tmp_path / "evaluate" / "moco" / "metrics.json", unlabeled)
    assert "not measured: the photos have no labels" in method_summary(tmp_path, "moco")


def test_a_photo_is_inline(photos):
    assert data_uri(photos[0]).startswith("data:image/jpeg;base64,")


ORIGIN = {"source": "somebody/net", "revision": "abc", "trained_on": "ImageNet, with labels", "license": "mit"}


def test_a_published_backbone_says_what_it_is_and_a_continued_one_how_it_compares(results, photos):
    methods = copy.deepcopy(results.methods)
    methods["simclr"]["against_start"] = {
        "knn": {"value": -0.02, "low": -0.035, "high": -0.005, "of": 50},
        "verdict": "worse than its start",
    }
    changed = Results(
        **{
            **vars(results),
            "methods": methods,
            "origins": {"simclr": ORIGIN, "moco": ORIGIN},
            "configs": {**results.configs, "moco": {"epochs": 0, "batch_size": 16}},
            "logs": {"simclr": results.logs["simclr"]},
        }
    )
    words = {row["name"]: row["words"] for row in table_rows(changed)}
    assert words["moco"] == "as published: somebody/net (abc), trained on: ImageNet, with labels, license: mit"
    assert words["simclr"] == "2 epochs, 304 photos seen, from somebody/net: worse than its start"
    distilled = Results(**{**vars(results), "teachers": {"moco": ORIGIN}})
    words = {row["name"]: row["words"] for row in table_rows(distilled)}
    assert words["moco"] == (
        "4 epochs, 304 photos seen, distilled from somebody/net (abc), trained on: ImageNet, with labels, license: mit"
    )
    html = render(changed, photos, {}, 4)
    assert "simclr is worse than its start" in html
    assert "-2.0 points (-3.5 to -0.5" in html


def of_kind(answers, wordings=1, more_answers=0, asked=50):
    scores = {"exact_match": proportion_with_ci(30, asked), "blind": 0.25}
    return {"answers": answers, "wordings": wordings, "more_answers": more_answers, **scores}


@pytest.fixture
def answering(results):
    return {
        **results.answering,
        "sees": True,
        "over_blind": {"value": 0.4, "low": 0.2, "high": 0.6, "of": 50},
        "gap_blank": {"value": 1.5, "low": 1.2, "high": 1.75},
        "cider_d": {"value": 3.21, "low": 2.5, "high": 3.75, "of": 24, "blind": 1.25, "shuffled": 0.75},
        "per_kind": {
            "Color?": of_kind(["red", "a <b>"], wordings=3, more_answers=2),
            DESCRIBE: of_kind(["a red car"]),
        },
    }


def test_the_first_lines_say_whether_the_language_model_sees(results, photos, answering):
    html = page(results, photos, answering=answering)
    first = html[html.index("<h1>") : html.index('<div class="strip">')]
    numbers = (
        "60.0 % of its answers are right, and 20.0 % of the guesses without the photo (+40.0 points, +20.0 to "
        "+60.0); with a wrong photo, the loss of the expected answer rises by 0.80 nats (0.50 to 1.10)."
    )
    assert f"<b>The language model sees:</b> {numbers}" in first
    assert "the language model sees; 60.0 %" in summary(Results(**{**vars(results), "answering": answering}))
    blind = {**answering, "sees": False}
    html = page(results, photos, answering=blind)
    first = html[html.index("<h1>") : html.index('<div class="strip">')]
    assert f'<p class="warn"><b>The language model does not see:</b> {numbers} A difference' in first
    assert "the language model does not see; 60.0 %" in summary(Results(**{**vars(results), "answering": blind}))


def test_whether_it_sees_is_not_said_where_it_was_not_measured(results, photos, answering):
    for metrics in (results.answering, {"skipped": "no questions"}):
        assert sight(metrics) is None
        assert "language model sees" not in page(results, photos, answering=metrics)
    captions_only = {name: answering[name] for name in ("sees", "gap")}
    assert sight(captions_only)[1].startswith("with a wrong photo, the loss")


def test_each_kind_of_question_has_a_row(results, photos, answering):
    html = page(results, photos, answering=answering)
    row = next(part for part in html.split("<tr>") if part.startswith('<td class="name kind">Color?'))
    assert "and 2 other wordings; answers: red, a &lt;b&gt; and 2 more" in row
    assert "60.0 % <small>46.2 to 72.4</small>" in row
    assert "25.0 %" in row
    assert '<td class="num">50</td>' in row
    row = next(part for part in html.split("<tr>") if part.startswith(f'<td class="name kind">{DESCRIBE}'))
    assert "CIDEr-D 3.21 <small>2.50 to 3.75</small>" in row
    assert "captions of other photos: 0.75" in row
    assert "CIDEr-D 1.25" in row
    assert "60.0 %" not in row  # a caption is not right or wrong
    assert "with a gray picture by 1.50 nats (1.20 to 1.75)" in html
    assert [row["name"] for row in kinds(answering)] == ["Color?", DESCRIBE]
    assert kinds(results.answering) == []


def test_no_more_kinds_are_shown_than_fit(results, photos, answering):
    many = {f"Question {number}?": of_kind(["yes"]) for number in range(KINDS + 3)}
    html = page(results, photos, answering={**answering, "per_kind": many})
    assert html.count('class="name kind"') == KINDS
    assert "and 3 more kinds" in html


def test_answers_are_marked_right_or_wrong_and_captions_are_not(results, photos):
    said = {"row": 3, "question": DESCRIBE, "expected": "a red car", "answer": "a car", "correct": False}
    html = page(results, photos, answers=[*results.answers, said])
    marks = re.findall(r'<td class="said">(.*?)</td><td>.*?</td>\s*<td(?: class="(\w+)")?>', html)
    assert marks == [("a door", "wrong"), ("red", "right"), ("a car", "")]


def test_issues_are_read_from_their_file(results, tmp_path):
    for name in ("config", "validation"):
        write(tmp_path / "prepare" / f"{name}.json", getattr(results, name))
    assert read_results(tmp_path, []).quality == []
    (tmp_path / "prepare" / "issues.csv").write_text(
        'path,split,kind,score,other\n"a, b.png",train,dark,0.1,\n', encoding="utf-8"
    )
    assert read_results(tmp_path, []).quality == [
        {"path": "a, b.png", "split": "train", "kind": "dark", "score": "0.1", "other": ""}
    ]


def test_the_commit_is_that_of_this_project(results):
    root = Path(__file__).parents[2]
    assert root == provenance.ROOT
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    commit = provenance.provenance(results).commit
    if git.returncode or not (root / ".git").exists():
        assert commit is None
    else:
        assert commit
        assert git.stdout.startswith(commit.removesuffix(" with changes"))
