from pathlib import Path

import pytest

from loradag.config.composition import compose, plain
from loradag.config.problems import LoradagError
from loradag.config.validation import load_config
from loradag.sweeps.workspaces import make_workspace, take_snapshot

ROOT = Path(__file__).parents[2]


def test_a_workspace_holds_what_the_pipeline_declares(tmp_path: Path) -> None:
    digest = take_snapshot(ROOT, tmp_path / "source")
    params = plain(compose(["experiment=smoke", "adapter.r=4"]))
    workspace = tmp_path / "workspace"
    make_workspace(workspace, tmp_path / "source", tmp_path, tmp_path / "cache", params)
    assert load_config(workspace / "params.yaml").adapter.r == 4
    for there in ("dvc.yaml", ".dvcignore", "conf/config.yaml", "stages/__init__.py",
                  "stages/train.py", "loradag/runtime/stage.py"):  # fmt: skip
        assert (workspace / there).exists(), there
    for absent in (".git", "artifacts", "data", "reports", "tests", "README.md"):
        assert not (workspace / absent).exists(), absent
    files = [path for path in workspace.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 2_000_000
    assert digest == take_snapshot(ROOT, tmp_path / "again")


def test_an_edit_makes_another_sweep(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("1")
    (tmp_path / "dvc.yaml").write_text("stages: {a: {cmd: x, deps: [code.py], outs: [made]}}")
    before = take_snapshot(tmp_path, tmp_path / "1")
    (tmp_path / "code.py").write_text("2")
    assert take_snapshot(tmp_path, tmp_path / "2") != before
    (tmp_path / "code.py").unlink()
    with pytest.raises(LoradagError, match=r"depends on code\.py"):
        take_snapshot(tmp_path, tmp_path / "3")


def test_paths_of_users_rows_mean_the_same_in_a_workspace(tmp_path: Path) -> None:
    (tmp_path / "source").mkdir()
    (tmp_path / "source/dvc.yaml").write_text("stages: {evaluate: {cmd: x}}")
    (tmp_path / "rows.jsonl").write_text("{}")
    sweep = {"sweep": {"until": "evaluate"}}
    params = {"inputs": {"rows": "rows.jsonl"}} | sweep
    make_workspace(tmp_path / "w", tmp_path / "source", tmp_path, tmp_path / "cache", params)
    assert (tmp_path / "w/rows.jsonl").resolve() == tmp_path / "rows.jsonl"
    # The default of an input that a stage does not read is an out of an earlier stage.
    (tmp_path / "source/dvc.yaml").write_text("stages: {evaluate: {cmd: x, outs: [data/made]}}")
    (tmp_path / "data/made").mkdir(parents=True)
    params["inputs"]["general"] = "data/made"
    make_workspace(tmp_path / "w", tmp_path / "source", tmp_path, tmp_path / "cache", params)
    assert (tmp_path / "w/rows.jsonl").exists()
    assert not (tmp_path / "w/data").exists()
    outside = {"inputs": {"rows": "../rows.jsonl"}} | sweep
    with pytest.raises(LoradagError, match="absolute path"):
        make_workspace(tmp_path / "w", tmp_path / "source", tmp_path, tmp_path / "cache", outside)
