"""The doctor: each thing that is missing is reported, and no secret is."""

from pathlib import Path

import pytest

from loradag.config.composition import compose, write_params
from loradag.models import placement
from loradag.planning import machine
from loradag.planning.machine import Finding, examine, print_findings
from stages.doctor import doctor


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_params(compose(["experiment=smoke"]), tmp_path)
    (tmp_path / ".dvc").mkdir()
    return tmp_path


def by_name(project: Path) -> dict[str, Finding]:
    return {finding.name: finding for finding in examine(project)}


def test_a_machine_that_has_everything_passes(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    assert doctor(project) == 0
    output = capsys.readouterr().out
    for name in ("device", "native dtype", "memory", "bitsandbytes", "disk", "MLflow", "HF_TOKEN"):
        assert name in output
    assert "hf_verysecret" not in output
    assert "Nothing here keeps a run from working." in output


def test_too_little_memory_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "available_bytes", lambda: 10**8)
    finding = by_name(project)["memory, train"]
    assert finding.fails
    assert "out of memory" in finding.remark


def test_a_full_disk_fails(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    assert by_name(project)["disk"].fails


def test_a_tracking_server_that_does_not_answer_fails_and_hides_its_password(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:verysecret@127.0.0.1:9")
    assert doctor(project) == 1
    output = capsys.readouterr().out
    assert "does not answer" in output
    assert "verysecret" not in output


def test_a_store_in_a_folder_that_is_not_there_fails(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/no/mlflow.db")
    finding = by_name(project)["MLflow"]
    assert finding.fails
    assert "cannot be written to" in finding.remark


def test_a_folder_without_dvc_fails(project: Path) -> None:
    (project / ".dvc").rmdir()
    assert by_name(project)["DVC"].fails


def test_a_gated_model_without_a_token_is_noted(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    write_params(compose(["experiment=gemma_quotes"]), project)
    finding = by_name(project)["HF_TOKEN"]
    assert finding.value == "not set"
    assert "google/gemma-2b" in finding.remark


def test_params_that_break_a_rule_are_the_only_finding(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("seed: 0", "seed: -1"))
    (finding,) = examine(project)
    assert finding.fails
    assert "seed" in finding.remark


def test_a_failure_is_marked() -> None:
    lines: list[str] = []
    print_findings([Finding("disk", "1 B free", "It will fill.", fails=True)], lines.append)
    assert lines[-1] == "1 will fail."
    assert lines[1].split() == ["FAILS", "It", "will", "fill."]
