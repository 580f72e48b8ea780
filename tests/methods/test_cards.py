"""The table of defaults on a method's card is the code's."""

import re
from pathlib import Path

import pytest
import yaml

from components.config import parse
from components.methods import METHODS

CARDS = sorted((Path(__file__).parents[2] / "docs" / "methods").glob("*.md"))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.stem)
def test_defaults_on_the_card_are_the_codes(card):
    schema = METHODS[card.stem].config
    said = card.read_text(encoding="utf-8").partition("\n## Measured")[0]
    rows = re.findall(r"^\| (\w+) \| (.*?) \| .*\|$", said, re.MULTILINE)[1:]
    assert [name for name, _ in rows] == ordered(schema)
    for name, said in rows:
        found = parse(schema, {name: yaml.safe_load(said)}, card.name).model_dump()[name]
        assert flat(found) == flat(schema().model_dump()[name]), name


def flat(value, where=""):
    """{path: value} of anything nested, numbers to two digits: a card may say 0.0033 for 1/300."""
    if isinstance(value, dict | list | tuple):
        inner = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, x in inner for key, leaf in flat(x, f"{where}.{name}").items()}
    return {where: float(f"{value:.2g}") if isinstance(value, float) else value}


def test_every_method_has_a_card():
    lacking = set(METHODS) - {"mocoscriptstyle"} - {card.stem for card in CARDS}  # which is on moco's
    assert not lacking, f"write a card docs/methods/{min(lacking)}.md as docs/adding_a_method.md describes"


def ordered(schema):
    """A config's own fields in their order, the optimizer last."""
    return sorted(schema.model_fields, key=lambda name: name == "optimizer")
