"""Captions as people write them: what can be read is read, and every other row is named with its line."""

import json

import pytest

from components.data.captions import read
from components.data.folders import caption_key, read_folder
from components.stages.prepare import DataConfig, PrepareConfig, ResolvedConfig, prepare
from tests.conftest import draw

KNOWN = {"0.png", "1.png", "2.png"}


def parse(tmp_path, content: str | bytes, name: str = "captions.csv"):
    """Captions by path and the rejected rows as {line: reason}, of a file with this content."""
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    table = read(tmp_path, KNOWN, caption_key)
    captions = {path: [row.get("caption") or row["answer"] for row in rows] for path, rows in table.rows.items()}
    assert table.count >= len(table.rejected)
    assert all(row.file == name for row in table.rejected)
    return captions, {row.line: row.why for row in table.rejected}, table.notes


@pytest.mark.parametrize(
    ("content", "captions"),
    [
        ('path,caption\n0.png,"a door, open"\n1.png,a wall\n', {"0.png": ["a door, open"], "1.png": ["a wall"]}),
        ("path,caption\r\n0.png,a wall\r\n", {"0.png": ["a wall"]}),
        ("\ufeffpath,caption\n0.png,caf\u00e9\n", {"0.png": ["caf\u00e9"]}),
        ("path,caption\n0.png,caf\u00e9\n".encode("utf-16"), {"0.png": ["caf\u00e9"]}),
        ("sep=;\npath;caption\n0.png;a door, open\n", {"0.png": ["a door, open"]}),
        ("path\tcaption\n0.png\ta wall\n", {"0.png": ["a wall"]}),
        ("Path , Caption,,\n0.png , a wall ,,\n\n,,\n", {"0.png": ["a wall"]}),
        ("path,note,caption\n0.png,mine,a wall\n", {"0.png": ["a wall"]}),
        ("path,question,answer\n0.png,What color?,blue\n", {"0.png": ["blue"]}),
        ('path,caption\n0.png,"two\nlines"\n1.png,a wall\n', {"0.png": ["two\nlines"], "1.png": ["a wall"]}),
        ('path,caption\n0.png,a 5" pipe\n1.png,a wall\n', {"0.png": ['a 5" pipe'], "1.png": ["a wall"]}),
        ("path,caption\n.\\0.png,a wall\n./1.png,a door\n", {"0.png": ["a wall"], "1.png": ["a door"]}),
        ("path,caption\n0.png,one\n0.png,two\n", {"0.png": ["one", "two"]}),
    ],
)
def test_every_usual_way_to_write_a_csv_is_read(content, captions, tmp_path):
    assert parse(tmp_path, content)[:2] == (captions, {})


def test_an_unquoted_comma_is_kept_if_the_caption_is_the_last_column(tmp_path):
    captions, rejected, notes = parse(tmp_path, "path,caption\n0.png,a wall, red,\n1.png,a door\n")
    assert captions == {"0.png": ["a wall, red"], "1.png": ["a door"]}
    assert not rejected
    assert notes == [
        "captions.csv, rows that have an unquoted ',' in the last column, which was read as part of the caption: 1"
    ]


@pytest.mark.parametrize("columns", ["path,caption,camera", "path,question,answer"])
def test_an_unquoted_comma_elsewhere_is_reported(columns, tmp_path):
    captions, rejected, _ = parse(tmp_path, f"{columns}\n0.png,a wall, red,phone\n1.png,a door,open\n")
    assert rejected == {
        2: f"4 cells for the columns {columns.replace(',', ', ')}; put quotes around a text that has a ',' in it"
    }
    assert list(captions) == ["1.png"]


def test_each_bad_row_is_named_and_the_others_are_used(tmp_path):
    rows = [
        "path,caption",
        "0.png,good",
        "7.png,missing",
        ",a wall",
        '1.png,"never closed',
        "2.png,good",
        '1.png,"a" b',
    ]
    captions, rejected, _ = parse(tmp_path, "\n".join([*rows, f"1.png,{'x' * 2001}", "1.png,fine", ""]))
    assert captions == {"0.png": ["good"], "2.png": ["good"], "1.png": ["fine"]}
    assert rejected == {
        3: "there is no image '7.png' in the folder",
        4: "has no path; it has: caption",
        5: "a quote is opened and not closed; write a quote inside of a quoted text twice",
        7: "is not CSV: ',' expected after '\"'",
        8: "a caption of 2001 characters; 2000 at most are allowed",
    }


def test_a_latin_1_file_says_how_to_save_it(tmp_path):
    captions, rejected, _ = parse(tmp_path, "path,caption\n0.png,caf\u00e9\n1.png,a wall\n".encode("latin-1"))
    assert captions == {"1.png": ["a wall"]}
    assert rejected == {2: r"is not UTF-8 at '0.pngcaf\\udce9'; save the file as UTF-8 (in Excel: CSV UTF-8)"}


def test_a_row_without_text_is_no_error(tmp_path):
    captions, rejected, notes = parse(tmp_path, "path,caption\n0.png,\n1.png,a wall\n")
    assert (captions, rejected) == ({"1.png": ["a wall"]}, {})
    assert notes == ["captions.csv, rows that have a path and no text: 1"]


def test_broken_json_lines_are_named(tmp_path):
    good = json.dumps({"path": "0.png", "question": "What?", "answer": "caf\u00e9", "extra": [1]})
    lines = [good, "{", "", "[1]", '{"path": "1.png", "caption": 5}', '{"path": "1.png", "question": "What?"}']
    lines += ['{"path": "1.png", "caption": "\\ud800"}', "[" * 100_000, '{"path": "2.png", "caption": null}']
    lines += ['{"path": "\\ud800.png", "caption": "a name that no file can have"}']
    captions, rejected, notes = parse(tmp_path, "\r\n".join(lines), "captions.jsonl")
    assert captions == {"0.png": ["caf\u00e9"]}
    assert list(rejected) == [2, 4, 5, 6, 7, 8, 10]
    assert rejected[2].startswith("is not JSON: Expecting property name")
    assert rejected[4] == "an object with path and caption is needed; given: [1]"
    assert rejected[5] == "caption must be text; given: 5"
    assert rejected[6] == "a question needs an answer, and an answer a question"
    assert "UTF-8" in rejected[7]
    assert "UTF-8" in rejected[10]
    assert notes == ["captions.jsonl, rows that have a path and no text: 1"]


@pytest.mark.parametrize("content", ["", "file,text\n0.png,a wall\n", "0.png,a wall\n", "path\n0.png\n"])
def test_a_csv_that_does_not_name_its_columns_is_refused(content, tmp_path):
    with pytest.raises(ValueError, match=r"captions.csv, line 1: the first line has to name the columns: path, and"):
        parse(tmp_path, content)


def test_a_caption_matches_a_name_however_the_disk_spells_it(tmp_path):
    """Composed or decomposed Unicode, as macOS stores it."""
    for name in ("e\u0301t\u00e9.png", "1.png"):
        draw(tmp_path / name, len(name))
    (tmp_path / "captions.csv").write_text("path,caption\n\u00e9te\u0301.png,summer\n", encoding="utf-8")
    source = read_folder(tmp_path)
    assert [entry.caption for entry in source.entries] == [None, "summer"]
    assert not source.bad_rows


@pytest.fixture
def album(tmp_path):
    for index in range(30):
        draw(tmp_path / "album" / f"{index}.png", index)
    return tmp_path / "album"


def run(album, out, **settings):
    config = ResolvedConfig(data=DataConfig(source=str(album), size=32, **settings), prepare=PrepareConfig())
    return prepare(config, out, out)


def test_bad_rows_are_counted_like_photos(album, tmp_path):
    rows = [f"{index}.png,photo {index}" for index in range(19)]
    (album / "captions.csv").write_text("\n".join(["path,caption", *rows, "missing.png,a wall"]))
    report = run(album, tmp_path / "out")
    assert report["captions"] == {"rows": 20, "rejected": 1}
    assert report["captioned"] == 19
    assert report["warnings"] == [
        "rows of captions left out: 1 of 20; the first:",
        "  captions.csv, line 21: there is no image 'missing.png' in the folder",
    ]
    assert json.loads((tmp_path / "out" / "captions_rejected.jsonl").read_text()) == {
        "file": "captions.csv",
        "line": 21,
        "why": "there is no image 'missing.png' in the folder",
    }


def test_too_many_bad_rows_stop_the_stage(album, tmp_path):
    (album / "captions.csv").write_text("path,caption\n0.png,one\n99.png,two\n")
    with pytest.raises(
        ValueError, match=r"more than data.max_rejected 0.1 of the rows of captions[^$]*line 3: there is"
    ):
        run(album, tmp_path / "out")
    assert not (tmp_path / "out" / "index.npz").exists()
    assert run(album, tmp_path / "out", max_rejected=0.5)["captioned"] == 1
