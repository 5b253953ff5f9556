"""What a search may choose, from Hydra's overrides, as Optuna's distributions."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from omegaconf import DictConfig

from loradag.planning.grid import choices, sweep_overrides

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Point = dict[str, Any]  # a value for each key that is searched


@dataclass(frozen=True)
class SearchSpace:
    distributions: dict[str, BaseDistribution]
    fixed: tuple[str, ...]  # overrides of every trial

    def overrides(self, point: Point) -> tuple[str, ...]:
        """What Hydra is given for `point`."""
        return (*self.fixed, *(f"{key}={value}" for key, value in point.items()))

    def points(self) -> list[Point]:
        """All points of a grid, in Hydra's order of jobs."""
        values = (_values(distribution) for distribution in self.distributions.values())
        return [dict(zip(self.distributions, point, strict=True)) for point in product(*values)]

    def samples(self) -> list[tuple[str, ...]]:
        """The overrides of points in which every value, or end of an interval, occurs."""
        first = {key: _values(kind)[0] for key, kind in self.distributions.items()}
        points = [
            first | {key: value}
            for key, kind in self.distributions.items()
            for value in _values(kind)
        ]
        return list(dict.fromkeys(self.overrides(point) for point in points))


def read_space(master: DictConfig, loader: Any, grid: bool) -> SearchSpace:
    """The space of `hydra.sweeper.params` and the command line.

    Raises:
        LoradagError: an interval in a grid.
    """
    from optuna.distributions import CategoricalDistribution

    parsed = OverridesParser.create(config_loader=loader).parse_overrides(sweep_overrides(master))
    by_key = {override.get_key_element(): override for override in parsed}
    searched = {key: o for key, o in by_key.items() if o.is_sweep_override()}
    fixed = tuple(
        f"{key}={override.get_value_element_as_str()}"
        for key, override in by_key.items()
        if key not in searched
    )
    if not grid:
        return SearchSpace({key: _distribution(o) for key, o in searched.items()}, fixed)
    listed = choices(list(searched.values()))
    kinds: dict[str, BaseDistribution] = {
        key: CategoricalDistribution([option.removeprefix(f"{key}=") for option in options])
        for key, options in listed.items()
    }
    return SearchSpace(kinds, fixed)


def _distribution(override: Override) -> BaseDistribution:
    """`choice`: categories, as Hydra writes them; `range` and `interval`: numbers."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if isinstance(sweep, RangeSweep):
        values: list[Any] = list(override.sweep_iterator())
        low, high, step = min(values), max(values), sweep.step
        if all(isinstance(value, int) for value in values):
            return IntDistribution(low, high, step=abs(int(step)))
        return FloatDistribution(low, high, step=abs(float(step)))
    if isinstance(sweep, IntervalSweep):
        kind = IntDistribution if isinstance(sweep.start, int) else FloatDistribution
        return kind(sweep.start, sweep.end, log="log" in sweep.tags)
    options = list(override.sweep_string_iterator())
    if getattr(sweep, "shuffle", False):  # of no use here, and another order each time
        options.sort()
    return CategoricalDistribution(options)


def _values(kind: BaseDistribution) -> list[Any]:
    """Of categories all, of numbers the ends."""
    from optuna.distributions import CategoricalDistribution

    if isinstance(kind, CategoricalDistribution):
        return list(kind.choices)
    return list(dict.fromkeys((kind.low, kind.high)))
