"""Whether what was exported computes what the policy does: the same noise, the same decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sorl.deployment.export.graphs import Contents, Graph, Outputs, decide
from sorl.errors import InputError

OBSERVATIONS = 1000
TOLERANCE = 1e-4
MAX_CANDIDATES = 64
_ROWS_AT_ONCE = 8192


class Difference(NamedTuple):
    """Largest differences from the policy in JAX over all observations.

    Attributes:
        best_of: how many candidates of every observation were tried.
        actions: of one entry of an action.
        scores: of one score, where it is larger than 1 as a share of it; None where nothing is
            scored.
    """

    best_of: int
    actions: float
    scores: float | None


def compare(
    contents: Contents,
    graph: Graph,
    run: Callable[[Graph, np.ndarray, np.ndarray], Outputs],
    *,
    candidates: int,
) -> Difference:
    """Compare on `OBSERVATIONS` random observations, the same at every call.

    Two nearly equal scores may change places by rounding, and with them the chosen action. So what
    must agree are the candidates and their scores; and the chosen candidate must be one whose score
    in JAX is, within the tolerance, the highest.

    Args:
        contents: what was exported.
        graph: one of its graphs.
        run: what runs the export.
        candidates: how many for each observation; more than `MAX_CANDIDATES` are not tried.

    Raises:
        InputError: a difference is above `TOLERANCE`.
    """
    best_of = min(candidates, MAX_CANDIDATES)
    furthest, scored = 0.0, 0.0
    for observation, noise in _inputs(contents, graph.steps, best_of):
        found, exact = run(graph, observation, noise), _exact(contents, graph, observation, noise)
        furthest = max(furthest, _largest(found.candidates - exact.candidates))
        if graph.scored:
            size = np.maximum(np.abs(exact.scores), 1)
            scored = max(scored, _largest((found.scores - exact.scores) / size))
            chosen = np.argmax(found.scores, axis=1)
            rows = np.arange(len(chosen))
            missed = (exact.scores.max(axis=1) - exact.scores[rows, chosen]) / size.max(axis=1)
            scored = max(scored, _largest(missed))
            expected = found.candidates[rows, chosen]
        else:
            expected = found.candidates[:, 0]
        furthest = max(furthest, _largest(found.action - expected))
    if not max(furthest, scored) <= TOLERANCE:
        raise InputError(
            f"The export of {graph} differs from the policy by up to {furthest:.1e} in actions and "
            f"{scored:.1e} in scores, more than {TOLERANCE:.0e}: nothing was written; use another "
            "format, and report this with the policy."
        )
    return Difference(best_of, furthest, scored if graph.scored else None)


def _inputs(
    contents: Contents, steps: int, best_of: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of observations and noise, not too large for the memory."""
    rng = np.random.default_rng(0)
    shape = contents.policy.noise_shape(steps)
    batch = min(OBSERVATIONS, _ROWS_AT_ONCE // best_of)
    for first in range(0, OBSERVATIONS, batch):
        count = min(batch, OBSERVATIONS - first)
        sizes = (count, contents.spec.observation_size), (count, best_of, *shape)
        observation, noise = (rng.standard_normal(size, np.float32) for size in sizes)
        yield observation, noise


def _exact(contents: Contents, graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
    # GPUs would multiply float32 matrices in less than float32 otherwise.
    with jax.default_matmul_precision("highest"):
        answer = _compiled(
            contents.policy, graph, contents.verifier, *map(jnp.asarray, (observation, noise))
        )
    return Outputs(*(None if value is None else np.asarray(value) for value in answer))


_compiled = eqx.filter_jit(decide)


def _largest(difference: np.ndarray) -> float:
    """Largest size of an entry; NaN counts as infinite."""
    return float(np.max(np.nan_to_num(np.abs(difference), nan=np.inf), initial=0.0))
