"""Settings of every test: shapes are enforced, rank promotion raises, nothing is shared."""

from __future__ import annotations

import gc
import importlib.metadata
import os
import signal
from pathlib import Path

# Before JAX starts: tests run beside each other, so one thread a test process is fair and faster.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the time of the tests goes into compiling programs that run once.
if "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=1"
    # XLA aborts on flags it does not know; the emitters that this turns off compile longer.
    if importlib.metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

# A shell that starts tests in the background has them ignore interrupts, and what they start
# inherits that; some of it is interrupted on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import jax
import numpy as np
import pytest

# Tracing makes objects by the million; looking through them for garbage took 5% of the tests' time.
gc.set_threshold(100_000, 20, 20)

hypothesis.settings.register_profile(
    "sorl",
    # The same commit passes or fails the same way everywhere; `make explore` looks further.
    derandomize="SORL_EXPLORE" not in os.environ,
    deadline=None,  # the first example compiles
    max_examples=25,
    print_blob=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("sorl")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose programs are optimised come first, so that the mode changes once."""
    items.sort(key=lambda item: item.get_closest_marker("optimised") is None)


MOST_MAPS = 30_000
"""A compiled program keeps several memory maps; Linux grants 65,530, and one file needs 14,000."""


@pytest.fixture(scope="module", autouse=True)
def _programs(request: pytest.FixtureRequest) -> None:
    """Optimise a file's programs only if it is marked so; drop those of earlier files in time."""
    quickly = str(request.node.get_closest_marker("optimised") is None)
    if quickly != os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS") or _maps() > MOST_MAPS:
        jax.clear_caches()
        gc.collect()
    # Processes that a test starts compile in the same way, so they compute the same.
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = quickly
    jax.config.update("jax_disable_most_optimizations", quickly == "True")


def _maps() -> int:
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0  # a system without such a limit, or such a list of them


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)
