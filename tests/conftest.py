"""Small real data for every test: pictures on disk, prepared once."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image

from components.data.photos import Photos
from components.models.backbone import ViTBackbone
from components.precision import PRECISION, uses_bf16
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare

# the same on all machines, unless matrix.sh asks for another: where a chip has bf16 units, auto would choose bf16
os.environ.setdefault(PRECISION, "fp32")
# tests are small, and two pools of threads on two cores starve each other
torch.set_num_threads(int(os.environ.get("SELFSIGHT_TEST_THREADS", "1")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tests first, so that at the end no process waits for one of them."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True, scope="session")
def own_scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELFSIGHT_SCRATCH", str(tmp_path_factory.mktemp("scratch")))
        yield


@pytest.fixture(autouse=True)
def own_precision() -> Iterator[None]:
    """Lets a test choose its precision: accelerate keeps the first one of a process and refuses every other."""
    yield
    kept = AcceleratorState._shared_state.get("_mixed_precision")
    if kept is not None and kept != ("bf16" if uses_bf16() else "no"):
        AcceleratorState._reset_state()


def draw(path: Path, seed: int, size: tuple[int, int] = (40, 52), hue: int = 0) -> Path:
    """A smooth random picture (width, height), reddish, greenish or bluish by `hue`."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    coarse[:, :, hue] = 255 - coarse[:, :, hue] // 4
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96 pictures in two class folders."""
    root = tmp_path_factory.mktemp("pictures")
    for index in range(96):
        name = ("red", "green")[index % 2]
        draw(root / name / f"{index:03d}.png", index, (40 + index % 7, 52), index % 2)
    return root


@pytest.fixture(scope="session")
def prepared(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("prepared")
    prepare(
        ResolvedConfig(data=DataConfig(source=str(folder), size=32), prepare=PrepareConfig()), out, out / "downloads"
    )
    return out


@pytest.fixture(scope="session")
def photos(prepared: Path) -> Photos:
    return Photos(prepared)


@pytest.fixture
def tiny() -> ViTBackbone:
    return ViTBackbone(image_size=16, patch_size=8, width=16, depth=2, heads=2)
