"""`selfsight ask` shows the model what it saw in training, and answers as the stage `answer` does."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image

from components.commands.ask import ask, folders, frequent_questions, main
from components.commands.cli import command_line
from components.commands.one_photo import open_photo, prepare_settings
from components.connector.answering import AnswerPrinter, generate_answers, load_vlm
from components.connector.collate import chat, squares_for
from components.data.entries import DESCRIBE
from components.data.photos import Photos
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.commands.test_cli import ROOT
from tests.connector import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of photos that need all that prepare does: large, turned by EXIF, transparent, 16 bits."""
    folder = tmp_path_factory.mktemp("files")
    noise = np.random.default_rng(0).integers(0, 256, (24, 30, 4), dtype=np.uint8)
    large = Image.fromarray(noise).resize((700, 560), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    large.convert("RGB").save(folder / "turned.jpg", exif=exif)
    large.save(folder / "transparent.png")
    deep = np.linspace(0, 65535, 90 * 100).reshape(90, 100).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    for number in range(10):
        Image.fromarray(np.roll(noise[..., :3], number, 1)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What connect writes; the model has random weights."""
    folder = tmp_path_factory.mktemp("connect")
    vlm, processor = tiny.vlm(folder)
    vlm.generation_config.max_new_tokens = 12
    vlm.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


@pytest.mark.parametrize("quality", [None, 90])
def test_a_photo_has_the_pixels_that_were_trained_on(files, model, tmp_path, quality):
    data = DataConfig(source=str(files), size=48, jpeg_quality=quality)
    prepare(ResolvedConfig(data=data, prepare=PrepareConfig()), tmp_path, tmp_path)
    photos, settings = Photos(tmp_path), prepare_settings(tmp_path, 16)
    _, processor = load_vlm(model / "model")
    images = processor.image_processor
    rows = {Path(name).name: row for row, name in enumerate(photos.manifest["path"])}
    for name in ("turned.jpg", "transparent.png", "deep.png", "3.png"):
        photo = open_photo(files / name, settings)
        assert np.array_equal(np.asarray(photo), photos[rows[name]].permute(1, 2, 0).numpy()), name
        inputs = processor.apply_chat_template(chat("?", photo), tokenize=True, return_dict=True, return_tensors="pt")
        squares = squares_for(processor, photos)(np.array([rows[name]]))  # as connect trains on them
        pixels = inputs["pixel_values"] * torch.tensor(images.image_std).view(3, 1, 1)
        pixels = 255 * (pixels + torch.tensor(images.image_mean).view(3, 1, 1))
        assert (pixels - squares).abs().max() < 1.01, name  # levels of 255: the processor may round the other way
    assert photos.shapes[rows["turned.jpg"]].tolist() == [60, 48]  # 700 x 560 on its side


def test_without_prepares_settings_a_photo_is_reduced_to_the_models_size(files, tmp_path):
    for folder in (None, tmp_path):
        assert open_photo(files / "turned.jpg", prepare_settings(folder, 16)).size == (16, 20)


def test_the_answer_is_that_of_the_stage_and_is_printed_in_words(files, model, capsys, monkeypatch):
    vlm, processor = load_vlm(model / "model")
    photo = open_photo(files / "turned.jpg", prepare_settings(None, 16))
    expected = generate_answers(vlm, processor, [photo], [tiny.COLOR], 12)[0]
    ask(files / "turned.jpg", tiny.COLOR, model, None)
    assert capsys.readouterr().out == expected + "\n"
    ask(files / "turned.jpg", tiny.COLOR, model / "model", None)
    assert capsys.readouterr().out == expected + "\n"


@pytest.mark.parametrize(
    ("words", "pieces"),
    [("a red  car", ["a", " red", "  car", "\n"]), (" red ", ["red", "\n"]), ("", ["(no answer)", "\n"])],
)
def test_words_are_printed_as_soon_as_they_are_complete(words, pieces, monkeypatch):
    tokenizer, written = tiny.tokenizer(), []
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys.stdout, "write", written.append)
    printer = AnswerPrinter(tokenizer)
    printer.put(torch.tensor([[5, 6, 7]]))  # the prompt
    for token in tokenizer(words)["input_ids"]:
        printer.put(torch.tensor([token]))
        assert "(no answer)" not in "".join(written)
    printer.end()
    assert [piece for piece in written if piece] == pieces


def test_every_question_of_a_pipe_is_asked_alone_about_the_same_photo(files, model, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{tiny.COLOR}\n{tiny.SIDE}\n{tiny.COLOR}\n\nnot asked\n"))
    ask(files / "turned.jpg", None, model, None)
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == third != second
    ask(files / "turned.jpg", tiny.SIDE, model, None)
    assert capsys.readouterr().out == second + "\n"


def test_the_frequent_training_questions_are_listed(files, model, tmp_path, capsys, monkeypatch):
    data = tiny.prepared(tmp_path / "data", count=40)
    settings = ResolvedConfig(data=DataConfig(source="", size=16), prepare=PrepareConfig())
    (data / "config.json").write_text(settings.model_dump_json())
    table = pl.read_parquet(data / "questions.parquet")
    table = pl.concat([table.filter(pl.col("question") != tiny.COLOR), table.filter(question=tiny.COLOR)[:3]])
    in_test = pl.col("row").is_in(Photos(data).rows("test").tolist())
    table = table.with_columns(question=pl.when(in_test).then(pl.lit("Never?")).otherwise("question"))
    table.write_parquet(data / "questions.parquet")
    listed = frequent_questions(data)
    assert set(listed) == {tiny.COLOR, tiny.SIDE, DESCRIBE}
    assert listed[-1] == tiny.COLOR
    assert frequent_questions(data, 1) == [listed[0]]
    assert frequent_questions(None) == frequent_questions(files) == []
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    ask(files / "turned.jpg", None, model, data)
    told = capsys.readouterr()
    assert tiny.COLOR in told.err
    assert told.out == ""


def test_folders_are_those_of_dvc_yaml_unless_given(model, tmp_path, monkeypatch):
    (tmp_path / "dvc.yaml").symlink_to(ROOT / "dvc.yaml")
    (tmp_path / "artifacts").mkdir()
    (tmp_path / "artifacts" / "connect").symlink_to(model)
    monkeypatch.chdir(tmp_path)
    assert folders(None, None) == (Path("artifacts/connect/model"), Path("artifacts/prepare"))
    assert folders(None, model) == (Path("artifacts/connect/model"), model)
    assert folders(model / "model", None) == (model / "model", None)


def test_what_cannot_be_used_gets_a_sentence_and_code_2(files, model, tmp_path, capsys, monkeypatch):
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "cut.png").write_bytes((files / "transparent.png").read_bytes()[:3000])
    (tmp_path / "skipped").mkdir()
    (tmp_path / "skipped" / "metrics.json").write_text(json.dumps({"skipped": "there are no questions"}))
    photo = str(files / "3.png")
    for arguments, words in (
        (["nowhere.jpg", "--model", str(model)], "there is no file nowhere.jpg"),
        ([str(tmp_path), "--model", str(model)], f"there is no file {tmp_path}"),
        ([str(tmp_path / "text.jpg"), "--model", str(model)], "text.jpg: none of JPEG, PNG"),
        ([str(tmp_path / "cut.png"), "--model", str(model)], "cut.png: cannot be decoded"),
        ([photo, "--model", str(tmp_path)], f"{tmp_path} holds no model; this makes one: dvc repro connect"),
        ([photo, "--model", str(tmp_path / "skipped")], "holds no model: there are no questions"),
    ):
        monkeypatch.setattr(sys, "argv", ["ask", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        error = capsys.readouterr().err
        assert end.value.code == 2
        assert error.startswith("selfsight ask: ")
        assert words in error
        assert error.count("\n") == 1


def test_ctrl_c_ends_without_a_traceback(files, model, capsys, monkeypatch):
    class Interrupted(io.StringIO):
        def readline(self):
            raise KeyboardInterrupt

    monkeypatch.setattr(sys, "stdin", Interrupted())
    monkeypatch.setattr(sys, "argv", ["ask", str(files / "3.png"), "--model", str(model)])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0


def test_the_program_has_the_command_and_says_how_it_asks(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert command_line("ask", ["photo.jpg"]) == ["-m", "components.commands.ask", "photo.jpg"]
    monkeypatch.setattr(sys, "argv", ["ask", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "each one is asked alone" in " ".join(capsys.readouterr().out.split())
