"""The web application: it answers what the commands say, and tells in one sentence what cannot be done."""

import base64
import io
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from components.adapters.classifier import save
from components.adapters.saved import load_classifier, write_key
from components.commands import app as module
from components.commands.app import HOST, make_app
from components.commands.photo_uses import PhotoUses
from components.commands.search import Folders, by_photos
from components.connector.answering import generate_answers, load_vlm
from components.data.photos import Photos
from components.models.backbone import load
from components.stages.embed import EmbedConfig, embed
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.connector import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
QUESTION = "What color is it?"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("app")
    (root / "photos").mkdir()
    for number in range(24):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 32), Image.Resampling.BICUBIC).save(root / "photos" / f"{number}.png")
    settings = ResolvedConfig(data=DataConfig(source=str(root / "photos"), size=16), prepare=PrepareConfig())
    prepare(settings, root / "prepare", root)
    folders = Folders(tiny.backbone(root / "simclr"), root / "prepare", root / "embed", root / "words")
    embed(EmbedConfig(method="simclr"), folders.backbone, folders.data, folders.embed)
    torch.manual_seed(0)
    backbone = load(folders.backbone / "backbone").as_stock()
    save(root / "adapt" / "model", backbone, torch.nn.Linear(32, 3), ("red", "green", "blue"))
    write_key(root / "adapt", folders.backbone / "backbone")
    vlm, processor = tiny.vlm(root / "connect")
    vlm.generation_config.max_new_tokens = 6
    for part in (vlm, processor):
        part.save_pretrained(root / "connect" / "model")
    return folders


@pytest.fixture(scope="module")
def client(folders):
    root = folders.data.parent
    application = make_app(PhotoUses(folders, root / "adapt", root / "connect"))
    with TestClient(application, base_url=f"http://{HOST}:1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def photo(folders):
    return (folders.data.parent / "photos" / "3.png").read_bytes()


def test_the_neighbors_are_those_that_search_finds(client, folders, photo):
    answer = client.post("/similar?name=3.png", content=photo)
    assert answer.status_code == 200
    (found,) = by_photos([folders.data.parent / "photos" / "3.png"], module.K, folders)
    photos, told = Photos(folders.data), answer.json()["photos"]
    assert [one["cosine"] for one in told] == pytest.approx(found.cosines, abs=1e-5)
    assert told[0]["path"].endswith("photos/3.png")
    shown = Image.open(io.BytesIO(base64.b64decode(told[0]["image"].partition(",")[2])))
    error = np.asarray(shown).astype(float) - photos[found.rows[0]].permute(1, 2, 0).numpy()
    assert np.abs(error).mean() < 10  # a JPEG


def test_the_answer_is_the_models_and_depends_on_the_question(client, folders, photo):
    model, processor = load_vlm(folders.data.parent / "connect" / "model")
    told = client.post("/answer", params={"question": QUESTION}, content=photo).json()["answer"]
    image = PhotoUses(folders, folders, folders).open(photo, "3.png")
    assert told == generate_answers(model, processor, [image], [QUESTION], 6)[0]
    refused = client.post("/answer", params={"question": " "}, content=photo)
    assert (refused.status_code, refused.json()["error"]) == (
        422,
        "the question is empty; try: What is in the picture?",
    )


def test_the_classes_are_the_classifiers(client, folders, photo):
    told = dict(client.post("/classes", content=photo).json()["classes"])
    classifier = load_classifier(folders.data.parent / "adapt" / "model")
    row = Photos(folders.data).manifest["path"].to_list().index("3.png")
    expected = classifier.probabilities(Photos(folders.data).squares(np.array([row]), 16, "squash"))[0]
    assert list(told.values()) == sorted(told.values(), reverse=True)
    assert told == pytest.approx(dict(zip(("red", "green", "blue"), expected.tolist(), strict=True)), abs=1e-5)


def test_of_several_labels_all_that_are_probable_are_told(folders, photo):
    root = folders.data.parent
    head = torch.nn.Linear(32, 3)
    torch.nn.init.zeros_(head.weight)
    for folder, biases in (("two", (1.0, -1.0, 2.0)), ("none", (-3.0, -2.0, -4.0))):
        head.bias.data = torch.tensor(biases)
        backbone = load(folders.backbone / "backbone").as_stock()
        save(root / folder / "model", backbone, head, ("red", "green", "blue"), multi_label=True)
        write_key(root / folder, folders.backbone / "backbone")
    uses = {name: PhotoUses(folders, root / name, root / "connect") for name in ("two", "none")}
    found = {name: use.classes(use.open(photo, "3.png"), 1) for name, use in uses.items()}
    assert [name for name, _ in found["two"]] == ["blue", "red"]
    assert [value for _, value in found["two"]] == pytest.approx([1 / (1 + math.exp(-2)), 1 / (1 + math.exp(-1))])
    assert [name for name, _ in found["none"]] == ["green"]


def test_attention_is_the_photo_made_darker(client, photo):
    told = client.post("/attention", content=photo).json()
    assert "attention of the class token" in told["shown"]
    dark = np.asarray(Image.open(io.BytesIO(base64.b64decode(told["image"].partition(",")[2]))))
    assert dark.shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/text?words=red", "the stage words has not run; run: dvc repro words"),
        ("/nothing", "no use 'nothing'; allowed: open, similar, classes, attention, answer"),
        (f"/answer?question={'x' * 501}", "the question has 501 characters; allowed: 500"),
    ],
)
def test_what_cannot_be_done_says_why(client, photo, path, message):
    answer = client.get(path) if path.startswith("/text") else client.post(path, content=photo)
    assert answer.status_code in (404, 422)
    assert message in answer.json()["error"]


@pytest.mark.parametrize(
    "content", [b"", b"no photo", b"\x89PNG\r\n\x1a\n" + b"x" * 100, b"<svg/>"], ids=["empty", "text", "broken", "svg"]
)
def test_a_file_that_is_no_photo_is_named(client, content):
    answer = client.post("/similar?name=notes.txt", content=content)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith("notes.txt: ")


@pytest.mark.parametrize("streamed", [False, True], ids=["announced", "streamed"])
def test_a_file_of_50_mb_is_refused_without_reading_all_of_it(client, streamed):
    read = 0

    def parts():
        nonlocal read
        for _ in range(50):
            read += 1
            yield bytes(2**20)

    answer = client.post("/similar?name=huge.tif", content=parts() if streamed else bytes(50 * 2**20))
    assert answer.status_code == 413
    assert answer.json()["error"] == "huge.tif is larger than 32 MB, which is the most allowed here"


def test_ten_at_once_are_all_answered(client, folders):
    files = [(folders.data.parent / "photos" / f"{number}.png") for number in range(10)]
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda file: client.post("/similar", content=file.read_bytes()), files))
    for file, answer in zip(files, answers, strict=True):
        assert answer.json()["photos"][0]["path"] == str(file)


def test_our_own_mistake_is_a_message_too(client, photo, monkeypatch):
    def fail(*_):
        raise RuntimeError("a secret")

    monkeypatch.setattr(PhotoUses, "similar", fail)
    answer = client.post("/similar", content=photo)
    assert answer.status_code == 500
    assert answer.json() == {"error": "this failed (RuntimeError); the terminal tells more"}


def test_pages_of_other_sites_are_refused(client, photo):
    other = client.post("/similar", content=photo, headers={"origin": "http://example.org"})
    assert other.status_code == 403
    assert client.get("/", headers={"host": "example.org"}).status_code == 400
    assert client.post("/similar", content=photo, headers={"origin": f"http://{HOST}:1"}).status_code == 200


def test_the_page_asks_nobody_else(client):
    page = client.get("/")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert not re.search(r"https?://|src=[\"'](?!data:)|@import|url\(", page.text)
