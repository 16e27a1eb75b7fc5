"""Small policies for the tests of serving, and a server of one in a thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax

from sorl import algorithms
from sorl.deployment.policy import Policy, save_policy
from sorl.deployment.serving import listener
from sorl.deployment.serving.app import create_app
from sorl.deployment.serving.batching import Batcher
from sorl.deployment.serving.counters import ServerMetrics
from sorl.deployment.serving.schemas import Limits
from sorl.types import Member, Spec

OBSERVATION, ACTION = 3, 2


def small_policy(folder: Path, name: str = "sorl", **settings: Any) -> Policy:
    """An untrained policy, saved in `folder`."""
    if name == "sorl":
        settings = {"discretization": 4, "backprop_steps": 4, **settings}
    algorithm: Any = algorithms.get(name)
    algorithm = algorithm(hidden=(8, 8), **settings)
    spec = Spec(OBSERVATION, ACTION)
    start = eqx.filter_jit(lambda key: algorithm.policy(algorithm.init(spec, key=key)))
    save_policy(
        folder,
        start(jax.random.key(3)),
        algorithm=algorithm,
        spec=spec,
        member=Member(2, 0),
        update=100,
        provenance={
            "environment": "none",
            "dataset": {"path": "/home/somebody/data.npz", "fingerprint": "ab", "rows": 7},
            "machine": {"processor": "secret"},
        },
    )
    return Policy.load(folder)


@contextlib.contextmanager
def running(
    policy: Policy, *, limits: Limits | None = None, token: str | None = None, **options: Any
) -> Iterator[str]:
    """A real server in a thread; gives its URL."""
    limits = limits or Limits()
    metrics = ServerMetrics()
    batcher = Batcher(policy, on_batch=metrics.count_batch, **options)
    app = create_app(batcher, metrics, limits=limits, token=token)
    server = listener.Server(app, max_seconds=limits.max_seconds)
    started = threading.Event()
    with listener.listen("127.0.0.1", 0, token=token) as ours:
        thread = threading.Thread(target=server.run, args=(ours, started.set))
        thread.start()
        try:
            assert started.wait(20)
            yield listener.address_of(ours)
        finally:
            server.stop()
            thread.join(30)
            assert not thread.is_alive()
