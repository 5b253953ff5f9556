"""What a sweep takes from the cache, against runs from nothing."""

import json

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
    assert [sorted(page) for page in pages] == [["evaluate", "prepare", "quantize", "train"]] * 2
    ended = toy.runs()[0]

    code, output = toy.run("stages.plan", "-m", "adapter.r=4,8", "sweep.until=export")
    assert "6 stage runs of 14: merge 2, export 2, report 2." in output
    code, output = toy.sweep("adapter.r=4,8", "sweep.until=export")
    assert code == 0, output
    assert toy.ran() == {"merge": 2, "export": 2, "report": 2}
    assert len(toy.runs()[0]) == len(ended) + 1  # another sweep, for its jobs are others

    code, output = toy.sweep("adapter.r=4,8", "sweep.until=merge")
    assert code == 1
    assert "sweep.until = 'merge'" in output
    assert "So none runs." in output
    assert not toy.ran()
