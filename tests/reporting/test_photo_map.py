"""The map of the photos: its two directions, its small photos, and what of it goes into the page."""

import base64
import csv
import io
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from components.data.photos import Photos
from components.evaluation.embeddings import KEY, Embeddings
from components.reporting import photo_map as module
from components.reporting.page import render
from components.reporting.photo_map import POINTS, SIDE, color_groups, photo_map, project, sprite
from components.stages.embed import EmbedConfig, embed
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.conftest import draw
from tests.connector import tiny
from tests.reporting.test_page import results  # noqa: F401
from tests.tolerances import FLOAT64

CLASSES = ["</script><script>document.title = 'broken'</script>", '<!--<b>"it\'s" & &lt;', "plain"]
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory):
    """Prepared and embedded photos: of three classes, one with two labels, one with none."""
    root = tmp_path_factory.mktemp("map")
    lines = []
    for number in range(32):
        draw(root / "photos" / f"{number}.png", number, (40, 40 + number), number % 3)
        lines.append((f"{number}.png", {0: "", 1: "plain|other"}.get(number, CLASSES[number % 3])))
    with (root / "photos" / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *lines])
    settings = ResolvedConfig(data=DataConfig(source=str(root / "photos"), size=16), prepare=PrepareConfig())
    prepare(settings, root / "prepare", root)
    embed(EmbedConfig(method="simclr"), tiny.backbone(root / "simclr"), root / "prepare", root / "embed")
    return root


@pytest.fixture
def mapped(artifacts):
    return photo_map(artifacts / "embed", Photos(artifacts / "prepare"))


def test_the_directions_are_those_of_the_largest_variance():
    vectors = torch.randn(30, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    vectors = vectors * torch.tensor([3.0, 1, 2, 0.5, 0.2, 0.1]) + 7
    points, shares = project(vectors)
    centered = vectors.numpy() - vectors.numpy().mean(0)
    variances, directions = np.linalg.eigh(centered.T @ centered)  # ascending
    for number, (direction, share) in enumerate(zip(directions.T[:-3:-1], shares, strict=True)):
        expected = centered @ direction
        sign = np.sign(expected @ points[:, number].numpy())
        assert points[:, number].numpy() == pytest.approx(sign * expected, abs=FLOAT64)
        assert share == pytest.approx(variances[-1 - number] / variances.sum(), rel=FLOAT64)
    mirrored, _ = project(-vectors)
    assert torch.allclose(mirrored, -points, atol=FLOAT64)  # the directions keep their signs


def test_equal_vectors_have_no_variance_to_share():
    points, shares = project(torch.full((5, 3), 0.3))
    assert shares is None
    assert points.abs().max() < FLOAT64


def test_each_point_is_its_own_photo(mapped, artifacts):
    photos = Photos(artifacts / "prepare")
    data, table = mapped.data, photos.manifest
    assert data["path"] == table["path"].to_list()
    directions = Embeddings.read(artifacts / "embed").directions(np.arange(len(photos)))
    points, shares = project(directions)
    assert np.column_stack([data["x"], data["y"]]) == pytest.approx(points.numpy(), abs=1e-4)  # written with 4 decimals
    assert mapped.shares == pytest.approx(shares)
    for number, labels in enumerate(table["labels"].to_list()):
        assert data["label"][number] == " · ".join(labels)
        name = labels[0] if len(labels) == 1 else "several labels" if labels else "no label"
        assert data["groups"][data["group"][number]] == name
    picture = Image.open(io.BytesIO(base64.b64decode(data["sprite"].partition(",")[2])))
    assert picture.size == (6 * SIDE, 6 * SIDE)  # 32 photos in rows of 6
    for number, square in enumerate(photos.squares(np.arange(len(photos)), SIDE, "crop")):
        row, column = divmod(number, data["columns"])
        tile = picture.crop((column * SIDE, row * SIDE, (column + 1) * SIDE, (row + 1) * SIDE))
        difference = np.abs(np.asarray(tile, float) - square.permute(1, 2, 0).numpy())
        assert difference.mean() < 8  # of 255: a smooth photo by JPEG; another photo differs by 30 and more


def test_many_photos_are_chosen_evenly_and_a_photo_that_is_gone_is_left_out(artifacts, monkeypatch):
    photos = Photos(artifacts / "prepare")
    monkeypatch.setattr(module, "POINTS", 5)
    few = photo_map(artifacts / "embed", photos)
    assert (few.shown, few.total) == (5, len(photos))
    paths = photos.manifest["path"].to_list()
    assert few.data["path"] == [paths[row] for row in (0, 7, 15, 23, 31)]
    gone = photos.manifest[[0, *range(2, len(photos))]]
    monkeypatch.setattr(Photos, "manifest", gone)
    assert photo_map(artifacts / "embed", photos).total == len(photos) - 1


def test_frequent_classes_have_a_color_of_their_own():
    labels = [[f"class {number}"] for number in range(30) for _ in range(40 - number)]
    groups, names, others = color_groups([*labels, [], ["class 1", "class 2"]])
    assert names == [*(f"class {number}" for number in range(20)), "10 other classes", "several labels", "no label"]
    assert others == 10
    assert groups[-2:] == [22, 21]
    assert groups[0] == 0
    assert groups[len(labels) - 1] == 20
    assert color_groups([[], []]) == ([0, 0], [], 0)
    assert color_groups([["a"], []]) == ([0, 1], ["a", "no label"], 0)


def test_without_vectors_of_three_photos_there_is_no_map(artifacts, tmp_path, monkeypatch):
    photos = Photos(artifacts / "prepare")
    assert photo_map(tmp_path, photos) is None
    manifest = photos.manifest
    monkeypatch.setattr(Photos, "manifest", manifest[:2])
    assert photo_map(artifacts / "embed", photos) is None
    monkeypatch.setattr(Photos, "manifest", manifest[:3])
    assert photo_map(artifacts / "embed", photos).shown == 3
    for file in (artifacts / "embed").iterdir():
        if file.name != KEY:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert photo_map(tmp_path, photos) is None  # embed was stopped


def test_the_page_holds_the_map_whatever_the_classes_are_called(mapped, results, photos):  # noqa: F811
    html = render(results, photos, {}, 4, photo_map=mapped)
    found = re.search(r'<script type="application/json" id="map-data">(.*?)</script>', html, re.S)
    assert json.loads(found[1]) == mapped.data
    assert "<" not in found[1]
    assert html.count("</script>") == 3  # data, plotly, page.js
    shares = " and ".join(f"{100 * share:.0f}" for share in mapped.shares)
    assert f"These hold {shares} % of the variance" in html
    assert "All 32 photos are shown." in html
    assert "The map needs JavaScript" in html
    without = render(results, photos, {}, 4)
    for text in ("Map of the photos", 'id="map-data"', "plotly.js"):
        assert text in html
        assert text not in without


def test_the_largest_map_fits_a_page_of_15_megabytes(mapped, monkeypatch):
    """Noise is the largest JPEG that there is."""

    def noise(photos, rows, size, square):
        yield torch.randint(0, 256, (len(rows), 3, size, size), dtype=torch.uint8)

    monkeypatch.setattr(Photos, "batches", noise)
    count = 100
    bytes_of_photo = len(sprite(Photos.__new__(Photos), np.arange(count))["sprite"]) / count
    without_photos = {**mapped.data, "sprite": ""}
    bytes_of_point = len(json.dumps(without_photos)) / mapped.shown
    assert len(mapped.plotly) + POINTS * (bytes_of_photo + bytes_of_point) < 15 * MEGABYTE
