"""What the server counts, in the text format of Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

from sorl.deployment.serving.batching import Batch

__all__ = ["CONTENT_TYPE_LATEST", "ServerMetrics"]

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = tuple(2**power for power in range(11))


class ServerMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "sorl_requests", "Requests answered.", ["path", "status"], registry=self._registry
        )
        self._latency = Histogram(
            "sorl_request_seconds",
            "From a request's head to the end of its answer.",
            ["path"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._rows = Histogram(
            "sorl_batch_rows",
            "Observations of one call of the policy, padding left out.",
            buckets=_ROWS,
            registry=self._registry,
        )
        self._queue = Gauge(
            "sorl_queue_requests", "Requests that wait for the policy.", registry=self._registry
        )
        self._compute = Counter(
            "sorl_compute_seconds", "Time in the policy.", ["budget"], registry=self._registry
        )
        self._actions = Counter(
            "sorl_actions", "Actions chosen.", ["budget"], registry=self._registry
        )
        self._compilations = Counter(
            "sorl_compilations", "Programs compiled in service.", registry=self._registry
        )
        self._late = Counter(
            "sorl_deadlines_missed", "Actions ready after their deadline.", registry=self._registry
        )

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Let `depth` tell the queue's length whenever the metrics are read."""
        self._queue.set_function(depth)

    def count_request(self, path: str, status: int, seconds: float) -> None:
        """Count an answer; `path` is one of few."""
        self._requests.labels(path, str(status)).inc()
        self._latency.labels(path).observe(seconds)

    def count_batch(self, batch: Batch) -> None:
        """Count a call of the policy."""
        budget = str(batch.plan.budget)
        self._rows.observe(batch.rows)
        self._compute.labels(budget).inc(batch.seconds)
        self._actions.labels(budget).inc(batch.rows)
        self._compilations.inc(batch.cold)
        self._late.inc(batch.late)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
