"""The whole chain with a ResNet ends in a report: what it cannot have is skipped, with the reason."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.stages.adapt import AdaptConfig, adapt
from components.stages.answer import AnswerConfig, answer
from components.stages.connect import ConnectConfig, connect
from components.stages.evaluate import EvaluateConfig, evaluate
from components.stages.pretrain import pretrain
from components.stages.pretrain_config import configure
from components.stages.report import ReportConfig, report


def test_a_resnet_gets_a_report(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SELFSIGHT_SCRATCH", str(tmp_path / "scratch"))
    root = tmp_path / "artifacts"
    root.mkdir()
    (root / "prepare").symlink_to(prepared)
    common = {"backbone": {"kind": "resnet18", "image_size": 16}, "batch_size": 16, "epochs": 1}
    trained = root / "pretrain" / "simclr"
    pretrain(configure("simclr", {"common": common, "simclr": {"hidden": 8, "dim": 4}}), prepared, trained)
    evaluate(EvaluateConfig(neighbors=5), trained, prepared, root / "evaluate" / "simclr")
    adapt(AdaptConfig(method="simclr", epochs=2, onnx=False), trained, prepared, root / "adapt")
    connect(ConnectConfig(method="simclr", steps=2, batch_size=2), trained, prepared, root / "connect")
    answer(AnswerConfig(pictures=2), root / "connect", prepared, root / "answer")
    summary = report(ReportConfig(), ["simclr"], root, root / "report")
    reason = json.loads((root / "answer" / "metrics.json").read_text())["skipped"]
    assert "first layer of a resnet18" in reason
    assert f"answers: {reason}" in summary
    assert reason.partition(":")[0] in (root / "report" / "index.html").read_text(encoding="utf-8")
