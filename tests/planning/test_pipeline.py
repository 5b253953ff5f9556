"""The keys and the hashes against DVC's own."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from loradag.compat.dvc import run_cache_key
from loradag.config.composition import compose, plain, write_params
from loradag.planning.pipeline import Pipeline, StageStatus

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("overrides", [[], ["quantize=static_w8a8", "adapter.alpha=7.5"]], ids=str)
def test_keys_and_hashes_are_dvcs(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dvc.repo import Repo
    from dvc.stage.cache import _get_stage_hash

    for name in ("dvc.yaml", ".dvcignore", "conf", "loradag", "stages"):
        source, target = ROOT / name, tmp_path / name
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    composed = compose(overrides)
    write_params(composed, tmp_path)
    params = plain(composed)
    monkeypatch.chdir(tmp_path)
    Repo.init(no_scm=True)
    pipeline = Pipeline(tmp_path, tmp_path / ".dvc/cache")

    compared = 0
    repo = Repo()
    by_name = {stage.name: stage for stage in repo.index.stages}
    for stage in pipeline.stages(params):
        made = {dep for dep in stage.deps if not Path(dep).exists()}
        for dep in made:  # stands in for another stage's out, a folder with a folder in it
            is_file = "." in Path(dep).name
            path = Path(dep) if is_file else Path(dep) / "b/weights"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dep)
        theirs: Any = by_name[stage.name]
        theirs.save_deps()
        hashes = {
            dep.def_path: dep.hash_info.value for dep in theirs.deps if dep.hash_info.name == "md5"
        }
        assert {dep: pipeline._hash(dep, {}) for dep in stage.deps} == hashes
        if stage.cacheable:
            ours = run_cache_key(pipeline.inputs(stage, params, {}))
            assert ours == _get_stage_hash(theirs), stage.name
            compared += 1
    assert compared >= 7


def test_the_default_project_plans_every_stage_in_order() -> None:
    params = plain(compose([]))
    planned = Pipeline(ROOT, ROOT / "no-such-cache").plan(params)
    names = [stage.name for stage in planned]
    for before, after in [("fetch", "prepare"), ("prepare", "train"), ("quantize", "train"),
                          ("train", "evaluate"), ("train", "merge"), ("merge", "export"),
                          ("export", "report")]:  # fmt: skip
        assert names.index(before) < names.index(after)
    assert planned[-1].status is StageStatus.ALWAYS
    assert {stage.status for stage in planned[:-1]} == {StageStatus.RUNS}


def test_equal_inputs_have_equal_keys_before_they_are_made() -> None:
    pipeline = Pipeline(ROOT, ROOT / "no-such-cache")

    def keys(*overrides: str) -> dict[str, str]:
        return {s.name: s.key for s in pipeline.plan(plain(compose(list(overrides))))}

    default, rank, seed = keys(), keys("adapter.r=4"), keys("prepare.max_rows=10")
    differ = {name for name in default if default[name] != rank[name]}
    assert differ == {"train", "evaluate", "merge", "export", "report"}
    same = {name for name in default if default[name] == seed[name]}
    assert same == {"fetch", "source", "quantize"}
