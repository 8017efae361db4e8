"""The server's metrics for Prometheus."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rm_plugins.batching.batcher import Batch
from rm_plugins.server.replicas import Replica

CONTENT_TYPE = CONTENT_TYPE_LATEST

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
"""Names the folder in which the processes of a server combine their metrics; must be set before this module is imported."""

_SECONDS = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_SHARES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)


class Metrics:
    """The metrics of one app; `waiting` returns the samples that currently wait, and their characters."""

    def __init__(self, waiting: Callable[[], tuple[int, int]]) -> None:
        self._registry = CollectorRegistry()
        self._waiting = waiting
        self._folder = os.environ.get(FOLDER_VARIABLE)

        def metric(kind: type[Any], name: str, text: str, labels: tuple[str, ...] = (), **settings: Any) -> Any:
            return kind(f"rm_plugins_{name}", text, labels, registry=self._registry, **settings)

        self._request_seconds = metric(
            Histogram,
            "request_seconds",
            "Time from the head of a request to the end of its answer.",
            ("dialect",),
            buckets=_SECONDS,
        )
        self._answers = metric(Counter, "answers", "Answered requests.", ("dialect", "status"))
        self._errors = metric(Counter, "errors", "Requests answered with an error.", ("dialect", "cause"))
        self._queue_seconds = metric(Histogram, "queue_seconds", "Time a request waited for its batch.", buckets=_SECONDS)
        self._queue_items = metric(Gauge, "queue_items", "Waiting samples.", multiprocess_mode="livesum")
        self._queue_characters = metric(
            Gauge, "queue_characters", "Characters of waiting samples.", multiprocess_mode="livesum"
        )
        self._batch_items = metric(Histogram, "batch_samples", "Samples of a batch.", buckets=_ITEMS)
        self._batch_fill = metric(Histogram, "batch_fill", "Size of a batch as a share of its budget.", buckets=_SHARES)
        self._batch_seconds = metric(Histogram, "batch_seconds", "Time to score a batch.", buckets=_SECONDS)
        self._samples = metric(Counter, "samples", "Scored samples.")
        self._tokens = metric(Counter, "tokens", "Tokens of scored samples.")
        self._abstentions = metric(Counter, "abstentions", "Samples on which the reward abstained.")
        self._failures = metric(Counter, "failures", "Samples on which the reward failed.")
        self._reloads = metric(Counter, "reloads", "Reloads of the reward.", ("result",))
        self._model = metric(
            Gauge, "model_info", "1 for the current reward.", ("model", "fingerprint"), multiprocess_mode="livemax"
        )

    def answered(self, dialect: str, status: int, cause: str, seconds: float) -> None:
        """Count a request; `cause` is empty if there was no error."""
        self._request_seconds.labels(dialect).observe(seconds)
        self._answers.labels(dialect, str(status)).inc()
        if cause:
            self._errors.labels(dialect, cause).inc()

    def scored(self, *, samples: int, tokens: int, abstained: int, failed: int, waited: float) -> None:
        """Count the outcomes of a request's samples."""
        self._queue_seconds.observe(waited)
        self._samples.inc(samples)
        self._tokens.inc(tokens)
        self._abstentions.inc(abstained)
        self._failures.inc(failed)

    def batch(self, batch: Batch) -> None:
        """Count a batch."""
        self._batch_items.observe(batch.items)
        self._batch_fill.observe(batch.fill)
        self._batch_seconds.observe(batch.seconds)
        self._note_queue()

    def reloaded(self, result: str) -> None:
        """Count a reload of the reward with its result: ``changed``, ``unchanged`` or ``failed``."""
        self._reloads.labels(result).inc()

    def serves(self, model: str, fingerprint: str, *, now: bool) -> None:
        """Record whether this is the current reward."""
        self._model.labels(model, fingerprint).set(1 if now else 0)

    def text(self, replicas: Sequence[Replica]) -> bytes:
        """All metrics in the format of Prometheus, combined over all processes of the server.

        Args:
            replicas: The state of all processes that have the reward.
        """
        self._note_queue()
        of_replicas = CollectorRegistry()
        of_replicas.register(_ReplicaMetrics(replicas))
        if self._folder is None:
            return generate_latest(self._registry) + generate_latest(of_replicas)
        from prometheus_client import multiprocess

        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, path=self._folder)  # type: ignore[no-untyped-call]
        return generate_latest(registry) + generate_latest(of_replicas)

    def _note_queue(self) -> None:
        items, size = self._waiting()
        self._queue_items.set(items)
        self._queue_characters.set(size)


class _ReplicaMetrics:
    """Metrics of each replica; a process that ended could not tell its own."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        labels = ("replica", "device")
        serving = GaugeMetricFamily(
            "rm_plugins_replica_serving", "1 if a replica serves, 0 while it is started.", labels=labels
        )
        restarts = CounterMetricFamily(
            "rm_plugins_replica_restarts", "How often a replica or its reward was replaced.", labels=labels
        )
        for one in self._replicas:
            serving.add_metric([str(one.number), one.device], float(one.state == "serving"))
            restarts.add_metric([str(one.number), one.device], one.restarts)
        yield from (serving, restarts)
