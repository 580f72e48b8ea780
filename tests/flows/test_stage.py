import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from prefect.cache_policies import NO_CACHE

from components.training import distributed
from flows import exclusive, pipeline, pretrain, process, report, stage
from flows.process import CommandError

STAGES = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]


def test_dvc_need_not_be_on_the_path() -> None:
    assert stage.dvc_command("prepare") == [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "prepare"]
    assert stage.dvc_command("prepare", single=True)[-2:] == ["--single-item", "prepare"]


def test_a_stage_runs_with_this_python() -> None:
    variables = stage.environment(2)
    assert variables["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert variables[distributed.PROCESSES] == "2"


def test_a_task_logs_the_output_of_dvc(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "flows")
    call = {}

    def run(argv, log, cwd, env):
        call.update(argv=argv, cwd=cwd, env=env)
        log("Stage 'prepare' didn't change, skipping")
        log("Running stage 'pretrain@moco':" if argv[-1] == "pretrain@moco" else "Data and pipelines are up to date.")

    monkeypatch.setattr(stage, "run_streaming", run)
    monkeypatch.setattr(stage, "allow_no_git", lambda root: None)
    assert stage.repro.fn("pretrain@moco", 2)
    assert call["argv"] == stage.dvc_command("pretrain@moco")
    assert call["env"][distributed.PROCESSES] == "2"
    assert "up to date, so nothing ran" not in caplog.text
    assert not stage.repro.fn("pretrain@simclr", 2)
    assert "pretrain@simclr is up to date, so nothing ran" in caplog.text


def test_prefect_caches_no_result() -> None:
    assert stage.repro.cache_policy is NO_CACHE
    assert stage.repro.persist_result is False


@pytest.mark.parametrize(
    ("code", "output", "again"),
    [
        (255, "ERROR: failed to reproduce 'x': failed to run: python -m x, exited with 2", False),
        (255, "exited with 1", False),
        (255, "exited with 75", True),
        (255, "exited with -9", True),
        (255, "exited with 137", True),
        (255, "  exitcode  : -9 (pid: 12)\nexited with 1", True),
        (255, "  exitcode  : 1 (pid: 12)\nexited with 1", False),
        (-9, "", True),
    ],
)
def test_only_failures_that_may_not_recur_are_retried(code: int, output: str, again: bool) -> None:
    assert stage.worth_a_retry(CommandError(["dvc"], code, output.split("\n"))) is again
    assert not stage.worth_a_retry(CommandError(["dvc"], code, output.split("\n"), stopped=True))


def test_a_lock_file_that_dvc_was_killed_while_writing_is_removed(tmp_path: Path) -> None:
    lock = tmp_path / "rwlock"
    stage.remove_corrupt_lock(lock)
    lock.write_text('{"some": {"write": []}}', encoding="utf-8")
    stage.remove_corrupt_lock(lock)
    assert lock.exists()
    lock.write_text("", encoding="utf-8")
    stage.remove_corrupt_lock(lock)
    assert not lock.exists()


def test_flows_run_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "ROOT", tmp_path)
    order: list[str] = []
    begun = threading.Event()

    def slow_work() -> None:
        order.append("first begins")
        begun.set()
        time.sleep(1)  # time in which the second would begin if it calls not wait
        order.append("first ends")

    first = threading.Thread(target=exclusive.run_exclusive, args=(slow_work,))
    first.start()
    assert begun.wait(60)
    assert exclusive.run_exclusive(lambda: order.append("second")) is None
    first.join()
    assert order == ["first begins", "first ends", "second"]


def test_a_failure_is_not_a_cancellation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "ROOT", tmp_path)

    def fail() -> None:
        raise CommandError(["dvc"], 255, [])

    with pytest.raises(CommandError):
        exclusive.run_exclusive(fail)
    exclusive.run_exclusive(lambda: None)  # and the lock is free again


def test_a_failed_command_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    error = CommandError(["dvc"], 255, ["why"])
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "failed: %r", (error,), (CommandError, error, None))
    log = logging.getLogger("prefect.flow_runs")
    assert log.filter(record)
    assert record.exc_info is None


def test_the_pipeline_has_every_stage_after_what_it_needs() -> None:
    order = pipeline.targets(["a", "b"])
    assert {re.sub("@.*", "", target) for target in order} == set(STAGES)
    assert len(order) == len(set(order))
    for target in order:
        word, _, method = target.partition("@")
        needs = {match for dep in STAGES[word]["deps"] for match in re.findall(r"^artifacts/(\w+)", dep)}
        for need in needs:
            before = f"{need}@{method}" if method and "matrix" in STAGES[need] else need
            places = [i for i, t in enumerate(order) if t == before or t.startswith(f"{before}@")]
            assert places, before
            assert max(places) < order.index(target)


def test_pretrain_adds_the_method_and_runs_its_two_stages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[object] = []
    monkeypatch.setattr(exclusive, "ROOT", tmp_path)
    monkeypatch.setattr(pretrain.method_list, "add_to_methods", lambda method, *_: calls.append(method))
    monkeypatch.setattr(pretrain, "outcome", lambda method, artifacts: [])
    monkeypatch.setattr(stage, "repro", lambda *args: calls.append(args))
    assert pretrain.pretrain.fn("moco", 2) is None
    assert calls == ["moco", ("pretrain@moco", 2), ("evaluate@moco", 2)]


def test_pretrain_ends_with_the_backbone_and_the_next_command(tmp_path: Path) -> None:
    (tmp_path / "pretrain" / "moco" / "backbone").mkdir(parents=True)
    lines = pretrain.outcome("moco", tmp_path)
    assert lines[0] == f"backbone: {tmp_path}/pretrain/moco/backbone"
    assert "selfsight report" in lines[-1]


def test_without_git_dvc_is_configured_to_run(tmp_path: Path) -> None:
    """In a copy of the project without git, as unpacked from a zip file."""
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(Path(name), tmp_path)
    (tmp_path / ".dvc").mkdir()
    shutil.copy(".dvc/config", tmp_path / ".dvc")
    if any((folder / ".git").exists() for folder in tmp_path.parents):
        pytest.skip("the folder for temporary files is inside a git repository")
    command = [sys.executable, "-m", "dvc", "repro", "--dry", "prepare"]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "not a git repository" in refused.stderr
    stage.allow_no_git(tmp_path)
    stage.allow_no_git(tmp_path)  # a second time changes nothing
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "not a git repository" not in done.stderr
    assert "no_scm = true" in (tmp_path / ".dvc" / "config.local").read_text()
    make = Path("Makefile").read_text(encoding="utf-8").split("\nrun: setup\n")[1].split("\n\n")[0]
    assert "git rev-parse --git-dir >/dev/null 2>&1 || dvc config --local core.no_scm true" in make


def test_with_git_dvc_keeps_using_it(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    stage.allow_no_git(tmp_path)
    assert not (tmp_path / ".dvc").exists()


def test_the_report_in_the_ui(tmp_path: Path) -> None:
    assert report.markdown(tmp_path) is None
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "learned-1.svg").write_text("<svg/>", encoding="utf-8")
    written = "| a |\n|---|\n| 1 |\n\n![learned-1](figures/learned-1.svg)\n"
    (tmp_path / "report.md").write_text(written, encoding="utf-8")
    text = report.markdown(tmp_path)
    assert text is not None
    figure = "![learned-1](data:image/svg+xml;base64,PHN2Zy8+)"
    assert text.startswith(f"| a |\n|---|\n| 1 |\n\n{figure}\n\nIn full: [index.html](file://")
    assert f"`{tmp_path / 'index.html'}`" in text


def test_there_is_time_to_save_before_prefect_kills_a_canceled_flow() -> None:
    assert process.STOP_SECONDS + process.EXIT_SECONDS < 30
