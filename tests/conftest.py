"""Settings of every test: shapes are enforced, rank promotion raises, nothing is shared."""

from __future__ import annotations

import os
import signal

# Before JAX starts: tests run beside each other, so one thread a test process is fair and faster.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUMPY_RANK_PROMOTION", "raise")
# Most of the time of the tests goes into compiling programs that run once.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=1")

# A shell that starts tests in the background has them ignore interrupts, and what they start
# inherits that; some of it is interrupted on purpose.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import hypothesis
import numpy as np
import pytest

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


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a fixed seed."""
    return np.random.default_rng(0)
