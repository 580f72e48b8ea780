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
    rows = re.findall(r"^\| (\w+) \| (.*?) \| .*\|$", card.read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert [name for name, _ in rows] == ordered(schema)
    for name, said in rows:
        assert getattr(parse(schema, {name: yaml.safe_load(said)}, card.name), name) == getattr(schema(), name), name


def ordered(schema):
    """A config's own fields in their order, the optimizer last."""
    return sorted(schema.model_fields, key=lambda name: name == "optimizer")
