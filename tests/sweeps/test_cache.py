"""What a sweep takes from the cache, against runs from nothing."""

import json
import re

from tests.sweeps.conftest import Toy


def test_a_sweep_after_a_run_computes_its_own_numbers(toy: Toy) -> None:
    assert toy.run("conf")[0] == 0
    code, output = toy.run("dvc", "repro")
    assert code == 0, output
    assert (toy.root / "dvc.lock").exists()
    toy.ran()

    code, output = toy.sweep("adapter.r=4,16", "quantize=nf4,int8")
    assert code == 0, output
    assert toy.ran() == {"quantize": 1, "train": 4, "evaluate": 4, "report": 4}
    perplexities = {
        tuple(job["swept"].values()): job["reports"]["evaluate"]["adapter"]["perplexity"]
        for job in map(json.loads, (p.read_text() for p in toy.root.glob("multirun/*/*/job.json")))
    }
    assert len(set(perplexities.values())) == 4, perplexities


def test_a_sweep_ends_at_evaluate_unless_it_is_asked_for_more(toy: Toy) -> None:
    code, output = toy.sweep("adapter.r=4,8", "sweep.keep=all")
    assert code == 0, output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 2, "evaluate": 2, "report": 2}
    pages = [json.loads(p.read_text()) for p in toy.root.glob("multirun/*/*/workspace/report.html")]
    assert "merge, export and report run" in output
    assert [sorted(page) for page in pages] == [["evaluate", "prepare", "quantize", "train"]] * 2
    ended = toy.runs()[0]

    code, output = toy.run("stages.plan", "-m", "adapter.r=4,8", "sweep.until=export")
    assert "6 stage runs of 14: merge 2, export 2, report 2." in output
    code, output = toy.sweep("adapter.r=4,8", "sweep.until=export")
    assert code == 0, output
    assert toy.ran() == {"merge": 2, "export": 2, "report": 2}
    assert "only the report runs" in output
    assert len(toy.runs()[0]) == len(ended) + 1  # another sweep, for its jobs are others

    code, output = toy.sweep("adapter.r=4,8", "sweep.until=merge")
    assert code == 1
    assert "sweep.until = 'merge'" in output
    assert "So none runs." in output
    assert not toy.ran()


def test_an_input_that_changes_while_its_stage_runs_ends_the_job(toy: Toy) -> None:
    code, output = toy.sweep("adapter.r=4", "sweep.keep=all", TOY_EDIT="9")
    assert code == 1
    assert "prepare: the stage ran for other inputs than it was locked for." in output
    keys = re.findall(r"key (?:computed before it|recorded by DVC): +([0-9a-f]{64})", output)
    assert len(set(keys)) == 2
    assert "dependency rows.txt: " in output
    assert toy.ran() == {"prepare": 1}
    # What was made of the old rows must not be served for the new ones.
    (toy.root / "rows.txt").write_text("9")
    code, output = toy.sweep("adapter.r=4")
    assert code == 0, output
    assert toy.ran()["prepare"] == 1


def test_a_small_learning_rate_has_the_key_that_dvc_computes(toy: Toy) -> None:
    """YAML 1.1 reads the `1e-05` that DVC writes as a text."""
    code, output = toy.sweep("train.learning_rate=1e-5")
    assert code == 0, output
    assert toy.run("conf", "train.learning_rate=1e-5")[0] == 0
    assert toy.run("dvc", "repro")[0] == 0
    _, output = toy.run("stages.plan", "train.learning_rate=1e-5")
    assert "1 stage runs of 7: report 1." in output


def test_a_waiting_job_prints_what_it_waits_for(toy: Toy) -> None:
    arguments = ("evaluate.window=256,512", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    code, output = toy.sweep(*arguments, TOY_SECONDS="5")
    assert code == 0, output
    assert toy.ran() == {"prepare": 1, "quantize": 1, "train": 1, "evaluate": 2, "report": 2}
    waits = re.findall(r"#(\d) waits for train: process \d+ on \S+ in (\S+) runs it", output)
    assert len(waits) == 1, output
    ((waiting, place),) = waits
    assert place.endswith(f"/{1 - int(waiting)}/workspace")
    assert not list((toy.root / ".dvc/cache/locks").glob("*.json"))
