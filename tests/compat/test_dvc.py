"""What `loradag.compat.dvc` knows of DVC's files, against what DVC itself writes."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from loradag.compat import dvc
from loradag.config.composition import write_params
from loradag.planning.pipeline import Pipeline, StageStatus

CHANGED = "DVC's files are no longer what loradag/compat/dvc.py reads; adapt that module"
STAGES = """
stages:
  read:
    cmd: mkdir made && cp ${inputs.rows} made/rows.txt && cp made/rows.txt . && echo 1 > report.json
    deps: ["${inputs.rows}", "${inputs.model}", here]
    params: [train, seed]
    outs: [made, rows.txt]
    metrics: [{report.json: {cache: false}}]
  use:
    cmd: cat made/rows.txt > used.txt
    deps: [made/rows.txt, made]
    outs: [used.txt]
  report:
    cmd: date > report.html
    deps: [used.txt, report.json]
    outs: [{report.html: {persist: true, cache: false}}]
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A DVC project that reads a file and a folder, both outside of it, and a folder within."""
    outside, root = tmp_path / "outside", tmp_path / "project"
    (outside / "model/deep").mkdir(parents=True)
    (outside / "rows.jsonl").write_text('{"text": "a"}\n')
    (outside / "model/weights").write_text("1")
    (outside / "model/deep/weights").write_text("2")
    (outside / "blob").write_text("3")
    (outside / "model/linked").symlink_to(outside / "blob")  # as hubs' caches have them
    (outside / "model/ignored.tmp").write_text("4")  # .dvcignore is for the project alone
    (root / "here/b").mkdir(parents=True)
    (root / "here/a.txt").write_text("5")
    (root / "here/b/ignored.tmp").write_text("6")
    (root / "here/b/c").write_text("7")
    (root / ".dvc").mkdir()
    (root / ".dvc/config").write_text("[core]\nno_scm = true\nanalytics = false\n")
    (root / ".dvcignore").write_text("*.tmp\n")
    (root / "dvc.yaml").write_text(STAGES)
    values = {"rate": 1e-5, "steps": 3, "text": "1e3", "on": "yes", "none": None, "list": [1, 2.5]}
    params = {
        "inputs": {"rows": str(outside / "rows.jsonl"), "model": str(outside / "model")},
        "train": values,
        "seed": 0,
    }
    write_params(OmegaConf.create(params), root)
    return root


def run(*command: str, project: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *command], cwd=project, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan(project: Path, use_lock: bool = True) -> dict[str, StageStatus]:
    params = dvc.read_yaml(project / "params.yaml")
    pipeline = Pipeline(project, dvc.cache_folder(project), use_lock=use_lock)
    return {stage.name: stage.status for stage in pipeline.plan(params)}


def test_keys_and_hashes_are_those_that_dvc_records(project: Path) -> None:
    run("repro", project=project)
    cache = dvc.cache_folder(project)
    params = dvc.read_yaml(project / "params.yaml")
    pipeline, lock = Pipeline(project, cache), dvc.read_lock(project)
    made: dict[str, str] = {}
    for stage in pipeline.stages(params):
        inputs, entry = pipeline.inputs(stage, params, made), lock[stage.name]
        assert inputs == dvc.recorded_inputs(entry), CHANGED
        if stage.cacheable:
            newest = dvc.read_newest_run(cache, dvc.run_cache_key(inputs))
            assert newest is not None, CHANGED
            assert newest["outs"] == entry["outs"], CHANGED
            assert all(dvc.has_object(cache, out["md5"]) for out in entry["outs"]), CHANGED
        made |= {out["path"]: out["md5"] for out in entry["outs"]}
    assert set(dvc.folder_entries(cache, made["made"])) == {"rows.txt"}
    keys = len(list((cache / "runs").glob("*/*")))
    assert keys == 2, CHANGED  # read and use; the report is never cached


def test_an_edited_input_outside_of_the_project_reruns_what_reads_it(project: Path) -> None:
    run("repro", project=project)
    cached = {"read": "cached", "use": "cached", "report": "always"}
    assert plan(project) == plan(project, use_lock=False) == cached
    outside = project.parent / "outside"
    for edited in ("rows.jsonl", "model/deep/weights", "blob", "model/ignored.tmp"):
        before = (outside / edited).read_text()
        (outside / edited).write_text(before + "!")
        assert plan(project)["read"] is StageStatus.RUNS, edited
        assert run("status", "read", project=project).count("changed deps") == 1, edited
        (outside / edited).write_text(before)
        assert plan(project)["read"] is StageStatus.CACHED, edited
    (project / "here/b/ignored.tmp").write_text("edited")
    assert plan(project)["read"] is StageStatus.CACHED
    (outside / "rows.jsonl").unlink()
    assert plan(project)["read"] is StageStatus.RUNS


def test_runs_that_are_forgotten_run_again(project: Path) -> None:
    run("repro", project=project)
    entry = dvc.read_lock(project)["use"]
    dvc.forget_runs(dvc.cache_folder(project), dvc.run_cache_key(dvc.recorded_inputs(entry)))
    assert plan(project, use_lock=False)["use"] is StageStatus.RUNS
    assert plan(project)["use"] is StageStatus.CACHED  # by dvc.lock


def test_the_cache_is_where_dvc_has_it(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    config = tmp_path / ".dvc/config"
    config.write_text("[core]\nno_scm = true\n")
    assert dvc.cache_folder(tmp_path) == tmp_path / ".dvc/cache"
    config.write_text("[core]\nno_scm = true\n[cache]\ndir = ../../shared\n")
    assert dvc.cache_folder(tmp_path).resolve() == tmp_path.parent / "shared"
