import pytest
from hypothesis import settings
from hypothesis.stateful import run_state_machine_as_test

from tests.sweeps.differential import SETTINGS, Differential, RealDifferential


@pytest.fixture(autouse=True)
def _one_store(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)


def test_what_the_cache_returns_equals_a_cold_run() -> None:
    profile = settings(SETTINGS, derandomize=True, max_examples=3, stateful_step_count=7)
    run_state_machine_as_test(Differential, settings=profile)


@pytest.mark.slow
def test_what_the_cache_returns_equals_a_cold_run_of_the_real_stages() -> None:
    profile = settings(SETTINGS, derandomize=True, max_examples=3, stateful_step_count=6)
    run_state_machine_as_test(RealDifferential, settings=profile)
