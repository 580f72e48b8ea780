"""The stage embed: a vector for each photo, computed once; and the search by photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from components.commands import search
from components.commands.one_photo import photo_files
from components.commands.search import Folders, by_photos
from components.data.photos import Photos
from components.evaluation import embeddings, index, knn
from components.evaluation.embeddings import CENTER, KEY, NORMS, TABLE, VECTORS
from components.evaluation.features import features
from components.models.backbone import load
from components.reporting import found as found_page
from components.stages import embed as module
from components.stages.embed import ISSUES, EmbedConfig, embed
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.connector import tiny
from tests.tolerances import LAYERS_FLOAT32

COUNT = 30
CONFIG = EmbedConfig(method="simclr")


def draw(folder: Path, numbers: range) -> None:
    folder.mkdir(exist_ok=True)
    for number in numbers:
        pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")


def prepared(photos: Path, out: Path, **data: int) -> Path:
    settings = DataConfig(source=str(photos), size=16, **data)
    prepare(ResolvedConfig(data=settings, prepare=PrepareConfig()), out, out)
    return out


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    draw(tmp_path / "photos", range(COUNT))
    prepared(tmp_path / "photos", tmp_path / "prepare")
    return Folders(tiny.backbone(tmp_path / "simclr"), tmp_path / "prepare", tmp_path / "embed", tmp_path / "words")


def run(folders: Folders) -> dict[str, int]:
    counts = embed(CONFIG, folders.backbone, folders.data, folders.embed)
    return {name: counts[name] for name in ("computed", "kept")}


def test_the_vectors_are_the_features_of_all_photos_in_order(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "CHUNK", 7)
    assert run(folders) == {"computed": COUNT, "kept": 0}
    photos = Photos(folders.data)
    vectors, expected = np.load(folders.embed / VECTORS), features(load(folders.backbone / "backbone"), photos)
    torch.testing.assert_close(torch.from_numpy(vectors), expected, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
    mean = expected[photos.rows("train")].mean(0)
    torch.testing.assert_close(torch.from_numpy(np.load(folders.embed / CENTER)), mean, atol=1e-5, rtol=1e-5)
    columns = ["path", "sha256", "pixels_sha256", "split", "label"]
    assert pl.read_parquet(folders.embed / TABLE).equals(photos.manifest.select(columns))


def test_photos_that_are_new_are_computed_alone(folders: Folders, tmp_path: Path) -> None:
    run(folders)
    before = dict(zip(table(folders)["path"], np.load(folders.embed / VECTORS), strict=True))
    (tmp_path / "photos" / "3.png").unlink()
    draw(tmp_path / "photos", range(100, 110))
    prepared(tmp_path / "photos", folders.data)
    assert run(folders) == {"computed": 10, "kept": COUNT - 1}
    after = np.load(folders.embed / VECTORS)
    new = {f"{number}.png" for number in range(100, 110)}
    assert {*table(folders)["path"]} == ({*before} - {"3.png"}) | new
    for name, vector in zip(table(folders)["path"], after, strict=True):
        if name not in new:
            assert np.array_equal(vector, before[name]), name
    expected = features(load(folders.backbone / "backbone"), Photos(folders.data))
    torch.testing.assert_close(torch.from_numpy(after), expected, atol=LAYERS_FLOAT32, rtol=LAYERS_FLOAT32)
    assert run(folders) == {"computed": 0, "kept": COUNT + 9}
    assert np.array_equal(np.load(folders.embed / VECTORS), after)
    (folders.embed / NORMS).unlink()  # as an earlier version left the folder
    assert run(folders) == {"computed": 0, "kept": COUNT + 9}
    lengths = np.linalg.norm(after - np.load(folders.embed / CENTER), axis=1)
    np.testing.assert_allclose(np.load(folders.embed / NORMS), lengths, rtol=1e-5)


def test_all_are_computed_again_for_what_changes_them_all(folders: Folders, tmp_path: Path) -> None:
    every = {"computed": COUNT, "kept": 0}
    run(folders)
    tiny.backbone(folders.backbone, seed=1)  # another backbone
    assert run(folders) == every
    prepared(tmp_path / "photos", folders.data, jpeg_quality=60)  # other pixels, though the files are the same
    assert run(folders) == every
    (folders.embed / KEY).unlink()  # stopped while it wrote
    assert run(folders) == every


def test_a_photo_finds_itself_first(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folders)
    monkeypatch.setattr(knn, "BANK", 7)
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    found = by_photos(photo_files([tmp_path / "photos"]), 3, folders)
    assert "left out: " in capsys.readouterr().err
    assert len(found) == COUNT
    for one in found:
        assert search.paths(folders.data, one.rows)[0] == one.query
        assert one.cosines[0] == pytest.approx(1, abs=1e-4)
        assert one.cosines == sorted(one.cosines, reverse=True)
    html = search.page(found[:2], Photos(folders.data))
    assert html.count("<figure>") == 6
    assert html.count('class="query"') == 2
    assert "queries are shown" not in html
    assert html.count('<a href="#query-') == 2
    monkeypatch.setattr(found_page, "MOST", 1)
    assert "The first 1 of 2 queries are shown." in search.page(found[:2], Photos(folders.data))
    with pytest.raises(ValueError, match="no photo to search by"):
        by_photos([tmp_path / "photos" / "notes.txt"], 3, folders)


def test_many_photos_are_searched_by_an_index(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIG.model_copy(update={"index_from": COUNT})

    def lines() -> list[str]:
        return embed(config, folders.backbone, folders.data, folders.embed)["lines"]

    monkeypatch.setattr(module, "MOST_WITHOUT_INDEX", COUNT)
    monkeypatch.setattr(index, "installed", lambda: False)
    without, unlooked = lines()
    assert without.endswith("is not installed: pip install faiss-cpu")
    assert "not looked for without an index" in unlooked
    assert (folders.embed / ISSUES).read_text() == "path,split,label,kind,score,other\n"
    monkeypatch.undo()
    with_index, _ = lines()
    assert with_index.startswith("an index of ")
    written = (folders.embed / index.INDEX).stat().st_mtime_ns
    lines()
    assert (folders.embed / index.INDEX).stat().st_mtime_ns == written  # nothing has changed
    photo = [tmp_path / "photos" / "0.png"]
    (found,) = by_photos(photo, 3, folders)
    assert with_index in capsys.readouterr().err
    assert search.paths(folders.data, found.rows)[0] == str(photo[0])
    assert by_photos(photo, 3, folders, exact=True)[0].cosines[0] == pytest.approx(found.cosines[0], abs=1e-5)
    assert capsys.readouterr().err == ""
    draw(tmp_path / "photos", range(100, 101))
    prepared(tmp_path / "photos", folders.data)
    lines()
    assert (folders.embed / index.INDEX).stat().st_mtime_ns > written
    run(folders)  # fewer photos than the default
    assert not list(folders.embed.glob("index*"))


def test_vectors_of_another_backbone_or_of_other_photos_are_refused(folders: Folders, tmp_path: Path) -> None:
    run(folders)
    photo = [tmp_path / "photos" / "0.png"]
    draw(tmp_path / "photos", range(100, 101))
    prepared(tmp_path / "photos", folders.data)
    with pytest.raises(ValueError, match="not from the photos that are prepared; run: dvc repro embed"):
        by_photos(photo, 3, folders)
    run(folders)
    tiny.backbone(folders.backbone, seed=1)
    with pytest.raises(ValueError, match=r"not of the backbone in .*; run: dvc repro embed"):
        by_photos(photo, 3, folders)


def table(folders: Folders) -> pl.DataFrame:
    return pl.read_parquet(folders.embed / TABLE)
