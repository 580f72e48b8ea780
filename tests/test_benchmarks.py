"""What benchmarks/*.yaml changes of params.yaml is a configuration of every method it names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from benchmarks.methods import claim, overlaid
from components.methods import METHODS
from components.stages.pretrain import configure

ROOT = Path(__file__).parents[1]


def test_what_lies_above_wins_section_by_section():
    below = {"a": {"x": 1, "y": {"kind": "p", "r": 1}}, "b": 2}
    assert overlaid(below, {"a": {"x": 3}}) == {"a": {"x": 3, "y": {"kind": "p", "r": 1}}, "b": 2}
    assert overlaid(below, {"a": {"y": {"r": 2}}, "b": {}})["a"]["y"] == {"kind": "p", "r": 2}
    assert overlaid(below, {"a": {"y": {"kind": "q", "s": 1}}})["a"]["y"] == {"kind": "q", "s": 1}


def test_results_of_other_settings_are_not_taken_for_these(tmp_path):
    claim(tmp_path / "out", {"a": 1})
    claim(tmp_path / "out", {"a": 1})
    with pytest.raises(ValueError, match=r"out holds results of other pictures or settings; remove it"):
        claim(tmp_path / "out", {"a": 2})


@pytest.mark.parametrize("name", ["cifar10.yaml", "cifar10_long.yaml", "clothing.yaml"])
def test_other_data_configures(name):
    other = yaml.safe_load((ROOT / "benchmarks" / name).read_text(encoding="utf-8"))
    both = overlaid(yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8")), other)
    for method in other.get("methods", METHODS):
        config = configure(method, both["pretrain"])
        assert config.backbone.image_size == other["pretrain"]["common"]["backbone"]["image_size"]
        assert config.epochs == both["pretrain"].get(method, {}).get("epochs", both["pretrain"]["common"]["epochs"])
