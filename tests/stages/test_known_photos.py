"""Generated photos: from prepare to the page, what each backbone keeps of them."""

import json
import re

import pytest
import torch

from components.data.truth import MASKS
from components.models.backbone import ViTBackbone, build
from components.reporting.formats import percent
from components.stages.evaluate import EvaluateConfig, evaluate
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from components.stages.report import ReportConfig, report

SHAPES = {
    "simclr": ViTBackbone(image_size=32, patch_size=8, width=16, depth=1, heads=2),
    "contextprediction": ViTBackbone(image_size=32, patch_size=8, width=16, depth=1, heads=2, patches=16),
}


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Evaluates untrained backbones of several kinds on 60 generated photos."""
    folder = tmp_path_factory.mktemp("artifacts")
    config = ResolvedConfig(data=DataConfig(source="scenes", size=32), prepare=PrepareConfig(count=60))
    prepare(config, folder / "prepare", folder)
    for name, shape in SHAPES.items():
        trained = folder / "pretrain" / name
        torch.manual_seed(1)
        build(shape).save(trained / "backbone")
        settings = {"epochs": 1, "batch_size": 8, "seed": 0, "backbone": shape.model_dump(mode="json")}
        (trained / "config.json").write_text(json.dumps(settings))
        (trained / "log.jsonl").write_text('{"step": 1, "loss": 1.0}\n')
        evaluate(EvaluateConfig(neighbors=5), trained, folder / "prepare", folder / "evaluate" / name)
    return folder


def measured(artifacts, name):
    return json.loads((artifacts / "evaluate" / name / "metrics.json").read_text())


def test_evaluate_measures_what_is_kept_beside_pixels_and_untrained_weights(artifacts):
    for name in SHAPES:
        metrics = measured(artifacts, name)
        assert set(metrics["kept"]) == set(metrics["dense"]) == {"pixels", "random", "backbone"}
        for scores in metrics["kept"].values():
            assert set(scores) == {"kind", "number", "place", "ground", "colors"}
            for values in (
                *scores.values(),
                *(metrics["dense"]["backbone"][key] for key in ("knn", "linear", "corloc")),
            ):
                assert 0 <= values["low"] <= values["value"] <= values["high"] <= 1
        assert metrics["dense"]["pixels"]["places"] == [8, 8]
        assert {"knn", "linear", "best", "places", "fixed_box"} == set(metrics["dense"]["pixels"])
    assert measured(artifacts, "simclr")["dense"]["backbone"]["places"] == [4, 4]
    assert measured(artifacts, "contextprediction")["dense"]["backbone"]["places"] == [4, 4]  # 2 × 2 patches of 2 × 2
    assert measured(artifacts, "simclr")["kept"]["pixels"] == measured(artifacts, "contextprediction")["kept"]["pixels"]


def test_the_page_and_dvc_have_the_table(artifacts, tmp_path):
    report(ReportConfig(), list(SHAPES), artifacts, tmp_path)
    html = (tmp_path / "index.html").read_text()
    table = html[html.index("What each backbone keeps") :]
    probes, dense = (measured(artifacts, "simclr")[name]["backbone"] for name in ("kept", "dense"))
    counts = f"{probes['kind']['of']} test photos for the probes, {dense['linear']['of']} for mIoU and CorLoc"
    assert f"n = up to {counts}; 1 seed, the first of each method; <code>dvc repro evaluate@METHOD</code>" in table
    table = table[table.index("<table") : table.index("</table>")]
    names = re.findall(r'<td class="name">([^<]*)<', table)
    assert names == ["chance", "pixels", *(f"random as in {name}" for name in SHAPES), *SHAPES]
    numbers = json.loads((tmp_path / "metrics.json").read_text())
    best = 0.0
    for name in SHAPES:
        metrics = measured(artifacts, name)
        cells = {**metrics["kept"]["backbone"], "miou": metrics["dense"]["backbone"]["linear"]}
        cells["corloc"] = metrics["dense"]["backbone"]["corloc"]
        for column, scores in cells.items():
            assert numbers[f"keeps_{column}"][name] == scores["value"]
            assert percent(scores).split(" %")[0] in table
        best = max(best, cells["colors"]["value"])
    assert re.search(rf'<td class="num best"[^>]*>{100 * best:.1f}<', table)


def test_photos_of_which_nothing_is_known_are_not_measured(artifacts, tmp_path):
    file = artifacts / "prepare" / MASKS
    hidden = file.rename(tmp_path / MASKS)
    try:
        metrics = evaluate(
            EvaluateConfig(neighbors=5), artifacts / "pretrain" / "simclr", file.parent, tmp_path / "out"
        )
    finally:
        hidden.rename(file)
    assert "it is not known what these photos show" in metrics["kept"]["not_measured"]
    assert "not_measured" not in metrics
