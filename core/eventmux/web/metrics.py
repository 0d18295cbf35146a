"""`GET /metrics`: what the meter has counted, as Prometheus reads it. Nothing is counted here."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, get_args

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.concurrency import run_in_threadpool

from ..register import Census
from ..run import State
from .gathering import WorkersCollector, packed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from prometheus_client.metrics_core import Metric

    from ..hub import Hub
    from ..meter import Histogram, Tally
    from .auth import Guard
    from .siblings import Siblings

NANOSECONDS = 1e9
STATES = get_args(State)


def router(hub: Hub, guard: Guard, siblings: Siblings) -> APIRouter:
    """With a registry of its own: prometheus_client's is the process's, and another app's numbers would be in it."""
    routes = APIRouter(tags=["service"])
    process, system = ProcessCollector(registry=None), PlatformCollector(registry=None)

    async def own(shows: Callable[[str], bool]) -> list[Collector]:
        return [HubCollector(hub, await hub.census(), shows), process, system]

    async def told() -> bytes:
        return await run_in_threadpool(packed, await own(_everything))

    siblings.answer("metrics", told)

    @routes.get("/metrics", operation_id="metrics", response_class=Response)
    async def read(request: Request) -> Response:
        """Every metric, in the text format of Prometheus, or as OpenMetrics where `Accept` asks for it. Of a service
        with several workers, those of all of them, each with the label `worker`.
        """
        principal = await guard.require_principal(request)
        encode, media_type = choose_encoder(request.headers.get("accept", ""))
        shows = principal.may_read if guard.hides else _everything
        collectors = await own(shows)
        if siblings.others:
            answers = await siblings.ask("metrics")
            collectors = [WorkersCollector(siblings.number, collectors, siblings.others, answers, shows)]
        registry = CollectorRegistry()
        for collector in collectors:
            registry.register(collector)
        # In a thread: some hundred sources are thousands of lines, and /proc lists every connection.
        return Response(await run_in_threadpool(encode, registry), headers={"content-type": media_type})

    return routes


def _everything(_: str) -> bool:
    return True


class HubCollector(Collector):
    """Makes metrics of a hub and its meter. The census is taken in the loop, whose the runs are; the rest is plain.
    `shows`: whether a source may be named.
    """

    def __init__(self, hub: Hub, census: Mapping[str, Census], shows: Callable[[str], bool]) -> None:
        self._hub = hub
        self._census = census
        self._shows = shows
        self._build = {"version": version("eventmux"), "python": platform.python_version()}

    def collect(self) -> Iterator[Metric]:
        yield from self._streams()
        yield from self._events()
        yield from self._runs()
        yield from self._service()

    def _streams(self) -> Iterator[Metric]:
        meter = self._hub.meter
        yield _gauge("streams_open", "Streams that are open now.", meter.open)
        yield _counter("streams_opened", "Streams that were opened.", meter.opened)
        yield self._by_source(
            GaugeMetricFamily,
            "source_streams_open",
            "Streams that are open now, by source; a merged stream counts for each of its sources.",
            lambda tally: tally.open,
        )
        yield self._by_source(
            CounterMetricFamily,
            "source_streams_opened",
            "Streams that were opened, by source; a merged stream counts for each of its sources.",
            lambda tally: tally.opened,
        )
        yield _by(
            CounterMetricFamily, "refused", "Requests for a stream that got none, by reason.", "reason", meter.refusals
        )
        yield _by(
            CounterMetricFamily,
            "slow_disconnects",
            "Streams that were cut off because the client was too slow, by reason.",
            "reason",
            meter.slow,
        )
        yield _histogram("resume_replay_events", "Events that a client which came back was behind.", meter.replay)

    def _events(self) -> Iterator[Metric]:
        yield self._by_source(
            CounterMetricFamily, "events_appended", "Events that a source has made.", lambda tally: tally.appended
        )
        yield self._by_source(
            CounterMetricFamily,
            "events_delivered",
            "Events handed to clients, by source; one event for ten clients counts ten times.",
            lambda tally: tally.delivered,
        )
        yield _counter(
            "delivered_bytes",
            "Bytes of events and gaps handed to clients, without heartbeats and what HTTP adds.",
            self._hub.meter.bytes,
        )
        yield _histogram(
            "delivery_lag_seconds",
            "From the append of an event to its write, for each client; what is replayed does not count.",
            self._hub.meter.lag,
            NANOSECONDS,
        )
        gaps = CounterMetricFamily(
            "eventmux_gaps", "Gaps that clients were told of, by source and reason.", labels=("source", "reason")
        )
        for source, tally in self._tallies:
            for reason, count in tally.gaps.items():
                gaps.add_metric((source, reason), count)
        yield gaps

    def _runs(self) -> Iterator[Metric]:
        runs = GaugeMetricFamily("eventmux_runs", "Runs with a log, by source and state.", labels=("source", "state"))
        census = {source: self._census.get(source) or Census() for source, _ in self._tallies}
        for source, found in census.items():
            for state in STATES:
                runs.add_metric((source, state), found.states[state])
        yield runs
        yield self._by_source(
            CounterMetricFamily,
            "run_failures",
            "Failures of runs, which their clients were told of.",
            lambda tally: tally.failures,
        )
        yield self._by_source(
            CounterMetricFamily, "run_restarts", "Starts of a run after it has failed.", lambda tally: tally.restarts
        )
        yield _counter(
            "runs_abandoned", "Generators that did not close in time and were left behind.", self._hub.abandoned
        )
        sizes = Counter({source: found.bytes for source, found in census.items()})
        yield _by(GaugeMetricFamily, "history_bytes", "Bytes that logs keep, by source.", "source", sizes)
        events = Counter({source: found.events for source, found in census.items()})
        yield _by(GaugeMetricFamily, "history_events", "Events that logs keep, by source.", "source", events)

    def _service(self) -> Iterator[Metric]:
        hub, meter = self._hub, self._hub.meter
        yield _gauge("draining", "1 while the service takes no new streams because it goes down.", int(hub.is_draining))
        yield _gauge("store_up", "0 while the store cannot be asked, or takes nothing, else 1.", int(hub.fault is None))
        yield _gauge("streams_limit", "Streams that may be open: limits.streams.", hub.limits.streams)
        yield _gauge("runs_limit", "Runs that may be going on: limits.runs.", hub.limits.runs)
        yield _gauge("history_limit_bytes", "Bytes that all logs may keep: limits.history.", hub.limits.history)
        yield _histogram(
            "loop_lag_seconds",
            "How late the event loop was, sampled four times per server.stall.",
            meter.loop_lag,
            NANOSECONDS,
        )
        yield _by(
            CounterMetricFamily,
            "loop_stalls",
            "Times that the event loop stood still for server.stall, by the plugin that blocked it.",
            "plugin",
            meter.stalls,
        )
        build = GaugeMetricFamily("eventmux_build_info", "1, and what is running.", labels=tuple(self._build))
        build.add_metric(tuple(self._build.values()), 1)
        yield build

    @property
    def _tallies(self) -> list[tuple[str, Tally]]:
        return [(name, tally) for name, tally in list(self._hub.meter.tallies.items()) if self._shows(name)]

    def _by_source(
        self,
        kind: type[GaugeMetricFamily | CounterMetricFamily],
        name: str,
        says: str,
        value: Callable[[Tally], int],
    ) -> Metric:
        return _by(kind, name, says, "source", {source: value(tally) for source, tally in self._tallies})


def _gauge(name: str, says: str, value: float) -> Metric:
    return GaugeMetricFamily(f"eventmux_{name}", says, value=value)


def _counter(name: str, says: str, value: float) -> Metric:
    return CounterMetricFamily(f"eventmux_{name}", says, value=value)


def _by(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    says: str,
    label: str,
    values: Mapping[Any, int],
) -> Metric:
    family = kind(f"eventmux_{name}", says, labels=(label,))
    for of, value in list(values.items()):
        family.add_metric((of,), value)
    return family


def _histogram(name: str, says: str, histogram: Histogram, unit: float = 1) -> Metric:
    """Values are whole numbers of which `unit` are one of the metric's."""
    counts = list(histogram.counts)
    bounds = [repr(bound / unit) for bound in histogram.bounds] + ["+Inf"]
    buckets = [(bound, float(sum(counts[: index + 1]))) for index, bound in enumerate(bounds)]
    return HistogramMetricFamily(f"eventmux_{name}", says, buckets=buckets, sum_value=histogram.sum / unit)
