"""The metrics of several workers as those of one service. What each of them counts is not known here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Sequence


def packed(collectors: Iterable[Collector]) -> bytes:
    """What they collect, for another worker."""
    return json.dumps(
        [
            (family.name, family.documentation, family.type, [sample[:3] for sample in family.samples])
            for collector in collectors
            for family in collector.collect()
        ]
    ).encode()


class WorkersCollector(Collector):
    """What the worker `number` collects, and what the `others` have packed, each with the label `worker`. One that has
    not answered is not among them, and `eventmux_worker_up` says so. `shows`: whether a source may be named.
    """

    def __init__(
        self,
        number: int,
        own: Sequence[Collector],
        others: Iterable[int],
        answers: Mapping[int, bytes],
        shows: Callable[[str], bool],
    ) -> None:
        self._number = number
        self._own = own
        self._others = others
        self._answers = answers
        self._shows = shows

    def collect(self) -> Iterator[Metric]:
        found: dict[str, Metric] = {}
        up = GaugeMetricFamily("eventmux_worker_up", "1 if the worker has told its numbers.", labels=("worker",))
        for number in sorted((self._number, *self._others)):
            families = self._families(number)
            up.add_metric((str(number),), int(families is not None))
            for name, says, kind, samples in families or ():
                family = found.setdefault(name, Metric(name, says, kind))
                for sample, labels, value in samples:
                    if "source" not in labels or self._shows(labels["source"]):
                        family.add_sample(sample, {**labels, "worker": str(number)}, value)
        yield up
        yield from found.values()

    def _families(self, number: int) -> Any:
        """As they are packed; None if there are none."""
        answer = packed(self._own) if number == self._number else self._answers.get(number)
        return None if answer is None else json.loads(answer)
