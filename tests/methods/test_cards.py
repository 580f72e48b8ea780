"""The table of defaults on a method's card agrees with the code."""

import re
from pathlib import Path

import pytest
import yaml

from components.config import parse
from components.methods import METHODS

CARDS = sorted((Path(__file__).parents[2] / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_defaults_on_the_card_agree_with_the_code(card):
    schema = METHODS[card.stem].config
    text = card.read_text(encoding="utf-8").partition("\n## Measured")[0]
    rows = re.findall(r"^\| (\w+) \| (.*?) \| .*\|$", text, re.MULTILINE)[1:]
    assert [name for name, _ in rows] == ordered(schema)
    for name, default in rows:
        actual = parse(schema, {name: yaml.safe_load(default)}, card.name).model_dump()[name]
        assert flat(actual) == flat(schema().model_dump()[name]), name


def flat(value, where=""):
    """Returns {path: value} of a nested value, with floats to two digits, because a card may say 0.0033 for 1/300."""
    if isinstance(value, dict | list | tuple):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, x in inner for key, leaf in flat(x, f"{where}.{name}").items()}
    return {where: float(f"{value:.2g}") if isinstance(value, float) else value}


def test_every_method_has_a_card():
    lacking = set(METHODS) - {"mocoscriptstyle"} - {card.stem for card in CARDS}  # its settings are on the card of moco
    assert not lacking, f"write a card docs/methods/{min(lacking)}.md as docs/adding_a_method.md describes"


def ordered(schema):
    """Returns the names of a config's fields in their order, the optimizer last."""
    return sorted(schema.model_fields, key=lambda name: name == "optimizer")
