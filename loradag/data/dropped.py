"""Rows that a preparation does not keep, counted by reason."""

from collections import Counter
from dataclasses import dataclass, field

PLACES = 5  # of dropped rows that a report names, a reason


@dataclass
class Dropped:
    """Rows that were not kept: how many by reason, and where the first of them are."""

    counts: Counter[str] = field(default_factory=Counter)
    places: dict[str, list[tuple[int, str]]] = field(default_factory=dict)

    def add(self, reason: str, position: int, place: str) -> None:
        self.counts[reason] += 1
        self._keep_first(reason, [(position, place)])

    def merge(self, other: "Dropped") -> None:
        self.counts += other.counts
        for reason, places in other.places.items():
            self._keep_first(reason, places)

    def _keep_first(self, reason: str, places: list[tuple[int, str]]) -> None:
        self.places[reason] = sorted([*self.places.get(reason, []), *places])[:PLACES]
