from pathlib import Path

import pytest
import yaml

from components.config import methods as listed_methods
from components.methods import METHODS
from flows.method_list import ArgumentTypeError, add_to_methods, listed, method_name
from flows.process import CommandError

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
    messages: list[str] = []
    add_to_methods(NEW, messages.append, path)
    assert path.read_bytes() == around(after.replace("NEW", NEW)).encode()
    assert NEW in messages[0]


def test_the_list_at_the_end_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(f"pretrain: {{{NEW}: }}\nmethods:\n  - a")
    add_to_methods(NEW, path=path)
    assert path.read_text() == f"pretrain: {{{NEW}: }}\nmethods:\n  - a\n  - {NEW}"


def test_a_method_needs_no_section(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("methods: [a]\npretrain: {a: {}}")
    add_to_methods(NEW, path=path)
    assert path.read_text() == f"methods: [a, {NEW}]\npretrain: {{a: {{}}}}"


def test_a_broken_file_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("methods: [")
    with pytest.raises(ValueError, match=r"params.yaml cannot be read: "):
        add_to_methods(NEW, path=tmp_path / "params.yaml")


def test_any_method_can_be_added_to_the_default_file(tmp_path: Path) -> None:
    for method in METHODS:
        path = tmp_path / "params.yaml"
        text = Path("params.yaml").read_text(encoding="utf-8")
        path.write_text(text, encoding="utf-8")
        add_to_methods(method, path=path)
        assert method in listed_methods(path)
        before, after = yaml.safe_load(text), yaml.safe_load(path.read_text(encoding="utf-8"))
        assert {**before, "methods": None} == {**after, "methods": None}


def test_a_method_that_is_there_changes_nothing(tmp_path: Path) -> None:
    path = params(tmp_path, f"methods: [{NEW}]")
    before = path.read_bytes()
    add_to_methods(NEW, pytest.fail, path)
    assert path.read_bytes() == before


def test_an_unknown_method_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no method 'bogus'; known: {', '.join(METHODS)}"):
        add_to_methods("bogus", path=params(tmp_path, "methods: [a]"))


@pytest.mark.parametrize("methods", ["", "methods: moco"])
def test_methods_must_be_a_list(tmp_path: Path, methods: str) -> None:
    with pytest.raises(ValueError, match="a list of names is needed"):
        listed_methods(params(tmp_path, methods))


def fail(line: str, is_listed: bool) -> None:
    assert is_listed
    raise CommandError(["dvc"], 255, [line])


@pytest.mark.parametrize(
    ("tail", "stays"),
    [
        ("failed to run: python -m components.stages.pretrain, exited with 2", False),
        ("failed to run: python -m components.stages.pretrain, exited with 1", True),
        ("failed to run: python -m components.stages.pretrain, exited with -9", True),
    ],
)
def test_a_method_whose_settings_are_refused_is_taken_out_again(tmp_path: Path, tail: str, stays: bool) -> None:
    path = params(tmp_path, "methods: [a]  # rows")
    before = path.read_bytes()
    with pytest.raises(CommandError), listed(NEW, path=path):
        fail(tail, NEW in listed_methods(path))
    assert (NEW in listed_methods(path)) is stays
    assert (path.read_bytes() == before) is not stays


def test_a_method_that_was_there_before_stays_when_it_fails(tmp_path: Path) -> None:
    path = params(tmp_path, f"methods: [{NEW}]")
    with pytest.raises(CommandError), listed(NEW, path=path):
        raise CommandError(["dvc"], 255, ["exited with 2"])
    assert listed_methods(path) == [NEW]


def test_a_mistyped_method_is_refused_with_the_similar_one() -> None:
    assert method_name("simclr") == "simclr"
    with pytest.raises(ArgumentTypeError, match=r"no method 'simlcr'; known: .*; did you mean simclr\?"):
        method_name("simlcr")
