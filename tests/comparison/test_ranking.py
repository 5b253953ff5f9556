import random

import pytest

from loradag.comparison.job_records import JobRecord
from loradag.comparison.ranking import (
    by_rank,
    pareto,
    pareto_front,
    settings,
    short,
    verdict_of,
    winner,
    within_noise,
)


def job(number: int, perplexity: float | None, **swept: str) -> JobRecord:
    reports = {
        "evaluate": {"adapter": {"perplexity": perplexity}},
        "quantize": {"bytes": 1000 - number},
        "train": {"trainable_parameters": 10, "tokens_per_second": 100.0 + number},
    }
    keys = {key.replace("_", "."): value for key, value in swept.items()}
    return JobRecord(
        number=number,
        overrides=[f"{key}={value}" for key, value in keys.items()],
        swept=keys,
        failure=None if perplexity is not None else "train: out of memory.",
        reports=reports if perplexity is not None else {},
        curve=[(1, 3.0), (2, 2.0)],
    )


def test_the_front_is_what_no_point_beats_in_both() -> None:
    draw = random.Random(0)
    points = [(draw.random(), draw.random()) for _ in range(200)]

    def beaten(point: tuple[float, float]) -> bool:
        return any(o != point and o[0] <= point[0] and o[1] <= point[1] for o in points)

    assert pareto(points) == sorted(p for p in points if not beaten(p))


def test_the_pareto_front_of_jobs_heeds_the_directions() -> None:
    jobs = [job(0, 10.0), job(1, 11.0), job(2, 12.0), job(3, None)]
    faster = {"perplexity": "minimize", "tokens_per_second": "maximize"}  # 100 + number
    assert [one.number for one in pareto_front(jobs, faster)] == [0, 1, 2]
    slower = {"perplexity": "minimize", "tokens_per_second": "minimize"}
    assert [one.number for one in pareto_front(jobs, slower)] == [0]
    jobs[0].pruned, jobs[0].reports = "pruned at step 5", {}
    assert [one.number for one in pareto_front(jobs, slower)] == [1]
    assert [one.number for one in by_rank(jobs)] == [1, 2, 0, 3]
    best = winner(jobs)
    assert best is not None
    assert best.number == 1


def test_seeds_are_one_setting_with_a_spread() -> None:
    jobs = [job(i, 10.0 + i, adapter_r="4", seed=str(i)) for i in range(3)]
    (setting,) = settings(jobs)
    assert setting.swept == {"adapter.r": "4"}
    assert setting.mean == pytest.approx(11.0)
    assert setting.spread == pytest.approx(1.0)  # sample, not population


def test_what_seeds_explain_is_noise() -> None:
    near = [job(i, 10.0 + 0.1 * i, adapter_r="4", seed=str(i)) for i in range(3)]
    alike = [job(i, 10.05 + 0.1 * i, adapter_r="8", seed=str(i)) for i in range(3)]
    far = [job(i, 20.0 + 0.1 * i, adapter_r="16", seed=str(i)) for i in range(3)]
    single = [job(9, 30.0, adapter_r="32", seed="0")]
    a, b, c, d = settings(near + alike + far + single)
    assert within_noise(a, b) is True
    assert within_noise(a, c) is False
    verdicts = [verdict_of(a, setting) for setting in (a, b, c, d)]
    assert verdicts == ["best", "within the noise", "worse", "too few seeds"]


def test_the_winner_is_of_the_best_setting_not_the_luckiest_seed() -> None:
    lucky = [job(0, 9.0, adapter_r="4", seed="0"), job(1, 15.0, adapter_r="4", seed="1")]
    steady = [job(2, 10.0, adapter_r="8", seed="0"), job(3, 10.2, adapter_r="8", seed="1")]
    best = winner(lucky + steady)
    assert best is not None
    assert best.number == 2
    assert winner([job(0, None)]) is None


def test_short_names_stay_distinct() -> None:
    assert short(["adapter.r", "quantize.bits", "adapter.bits"]) == [
        "r", "quantize.bits", "adapter.bits",
    ]  # fmt: skip
