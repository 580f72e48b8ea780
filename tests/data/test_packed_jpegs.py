"""Photos packed as JPEGs are what their files decode to, for every reader."""

import io
import shutil
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from components.data.augment import Jitter, View
from components.data.fields import make_batch
from components.data.photos import Photos
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare


def pack(folder, out, quality=None):
    data = DataConfig(source=str(folder), size=32, jpeg_quality=quality)
    return prepare(ResolvedConfig(data=data, prepare=PrepareConfig()), out, out)


@pytest.fixture(scope="module")
def small(folder, tmp_path_factory) -> Photos:
    """The photos of `photos`, packed as JPEGs."""
    out = tmp_path_factory.mktemp("small")
    pack(folder, out, 90)
    return Photos(out)


def test_packed_as_jpegs_only_the_bytes_are_others(photos, small):
    actual, expected = (p.manifest.drop("offset", "packed_bytes") for p in (small, photos))
    assert actual.equals(expected)
    assert (small.folder / "pixels.bin").stat().st_size == small.manifest["packed_bytes"].sum()
    for row in (0, 41, 95):
        file = io.BytesIO()
        Image.fromarray(photos[row].permute(1, 2, 0).numpy()).save(file, "JPEG", quality=90, subsampling=0)
        expected = np.array(Image.open(file))
        assert np.array_equal(small[row].permute(1, 2, 0).numpy(), expected)
        assert 0 < np.abs(expected.astype(int) - photos[row].permute(1, 2, 0).numpy()).mean() < 8
    assert torch.equal(small.labels(small.rows("train")), photos.labels(photos.rows("train")))


def test_views_of_jpegs_are_views_of_what_they_decode_to(photos, small, tmp_path, monkeypatch):
    """With any number of threads, by either renderer, and of whole photos.

    To the bit: the decoded pixels are the same, and so is all that is computed from them, photo by photo.
    """
    for file in ("index.npz", "manifest.parquet"):
        shutil.copy(photos.folder / file, tmp_path)
    np.concatenate([small[row].permute(1, 2, 0).numpy().ravel() for row in range(96)]).tofile(tmp_path / "pixels.bin")
    decoded, rows = Photos(tmp_path), small.rows("train")[::-1].copy()
    views = [View(24, jitter=Jitter(0.4, 0.4, 0.4, 0.1), blur=0.5), View(16)]
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        for actual, expected in zip(*(make_batch(p, rows, views, 0, 1) for p in (small, decoded)), strict=True):
            assert torch.equal(actual, expected)
    assert torch.equal(*(p.stack(rows, torch.device("cpu")) for p in (small, decoded)))
    assert torch.equal(*(p.squares(rows, 20) for p in (small, decoded)))


def test_photos_that_do_not_fit_in_memory_are_reported(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**18))
    (warning,) = pack(folder, tmp_path)["warnings"]
    assert warning.endswith("every epoch will read the disk; try data.jpeg_quality, 95 say, or a smaller data.size")
    (warning,) = pack(folder, tmp_path, 100)["warnings"]
    assert warning.endswith("try a smaller data.size")
