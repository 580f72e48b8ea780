from pathlib import Path

import pytest
import yaml

from components.methods import METHODS
from flows.tracked import track, tracked

NEW = list(METHODS)[-1]
AROUND = """# a comment
first:   {{kind: vit,a:  1}}     # odd   spacing stays
{methods}

pretrain:
  common: {{long: [{long}]}}
  methods: [not, these]
  {new}: {{}}
last: "quoted"   """


def around(methods: str) -> str:
    return AROUND.format(methods=methods, long=", ".join("123456789" * 30), new=NEW)


def params(tmp_path: Path, methods: str) -> Path:
    path = tmp_path / "params.yaml"
    path.write_text(around(methods), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("methods: [a, b]  # rows", "methods: [a, b, NEW]  # rows"),
        ("methods: [ a , b ]", "methods: [ a , b, NEW ]"),
        ("methods: ['a', \"b\"]", "methods: ['a', \"b\", NEW]"),
        ("methods: []", "methods: [NEW]"),
        ("methods: [\n  a,  # one\n  b,  # two\n]", "methods: [\n  a,  # one\n  b, NEW,  # two\n]"),
        ("methods:\n- a\n- b  # two", "methods:\n- a\n- b  # two\n- NEW"),
        ("methods:\n  -  a\n  -  b", "methods:\n  -  a\n  -  b\n  -  NEW"),
    ],
)
def test_every_other_byte_stays(tmp_path: Path, before: str, after: str) -> None:
    path = params(tmp_path, before)
    said: list[str] = []
    track(NEW, said.append, path)
    assert path.read_bytes() == around(after.replace("NEW", NEW)).encode()
    assert NEW in said[0]


def test_the_list_at_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"pretrain: {{{NEW}: }}\nmethods:\n  - a")
    track(NEW, path=path)
    assert path.read_text() == f"pretrain: {{{NEW}: }}\nmethods:\n  - a\n  - {NEW}"


def test_a_method_needs_no_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("methods: [a]\npretrain: {a: {}}")
    track(NEW, path=path)
    assert path.read_text() == f"methods: [a, {NEW}]\npretrain: {{a: {{}}}}"


def test_a_broken_file_is_said_in_words(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("methods: [")
    with pytest.raises(ValueError, match=r"params.yaml cannot be read: "):
        track(NEW, path=tmp_path / "params.yaml")


def test_our_own_file_takes_any_method(tmp_path: Path) -> None:
    for method in METHODS:
        path = tmp_path / "params.yaml"
        ours = Path("params.yaml").read_text(encoding="utf-8")
        path.write_text(ours, encoding="utf-8")
        track(method, path=path)
        assert method in tracked(path)
        before, after = yaml.safe_load(ours), yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {**before, "methods": None} == {**after, "methods": None}


def test_a_method_that_is_there_changes_nothing(tmp_path: Path) -> None:
    path = params(tmp_path, f"methods: [{NEW}]")
    before = path.read_bytes()
    track(NEW, pytest.fail, path)
    assert path.read_bytes() == before


def test_an_unknown_method_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no method 'bogus'; known: {', '.join(METHODS)}"):
        track("bogus", path=params(tmp_path, "methods: [a]"))


@pytest.mark.parametrize("methods", ["", "methods: moco"])
def test_methods_must_be_a_list(tmp_path: Path, methods: str) -> None:
    with pytest.raises(ValueError, match="a list of names is needed"):
        tracked(params(tmp_path, methods))
