"""Whether what was exported computes what the policy does: the same noise, the same decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from sorl.choices import Choice
from sorl.deployment.export.graphs import Contents, Graph, Outputs, candidates_of, scores_of
from sorl.errors import InputError
from sorl.units import Units

OBSERVATIONS = 1000
TOLERANCE = 1e-4
MAX_CANDIDATES = 64
_ROWS_AT_ONCE = 8192
_PIXELS_AT_ONCE = 2_000_000


class Difference(NamedTuple):
    """Largest differences from the policy in JAX over all observations.

    Attributes:
        best_of: how many candidates of every observation were tried.
        actions: of one entry of an action; where actions have units, as a share of half of the
            entry's range, or of a thousandth of its middle if that is more (float32 has no more
            digits).
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

    They are standard normal, in the units of the data where the policy standardises observations.

    Two nearly equal scores or distances may change places by rounding, and the chosen action with
    them. So it is the candidates that must agree, and the scores of the same candidates; and the
    action must be one of the candidates that `may_be_chosen` by their scores in JAX.

    Args:
        contents: what was exported.
        graph: one of its graphs.
        run: what runs the export.
        candidates: how many for each observation; more than `MAX_CANDIDATES` are not tried.

    Raises:
        InputError: a difference is above `TOLERANCE`.
    """
    best_of = min(candidates, MAX_CANDIDATES)
    actions, scores = 0.0, 0.0
    for observation, noise in _inputs(contents, graph.steps, best_of):
        answer = run(graph, observation, noise)
        exact = _in_jax(_candidates, contents.policy, graph, observation, noise)
        found, wrong, away = _in_network_units(contents.policy.units, answer, exact)
        exact_scores = None
        if contents.scores(graph):
            verifier = contents.verifier
            exact_scores = _in_jax(
                _scores, contents.policy, graph, verifier, observation, found.candidates
            )
            difference = (found.scores - exact_scores) / np.maximum(np.abs(exact_scores), 1)
            scores = max(scores, _largest(difference))
        if graph.chooses:
            possible = may_be_chosen(contents.choice, found.candidates, exact_scores)
            away = np.where(possible, away, np.inf)
        actions = max(actions, _largest(wrong), _largest(away.min(axis=1)))
    if max(actions, scores) > TOLERANCE:
        raise InputError(
            f"The export of {graph} differs from the policy by up to {actions:.1e} in actions and "
            f"{scores:.1e} in scores, more than {TOLERANCE:.0e}: nothing was written; use another "
            "format, and report this with the policy."
        )
    return Difference(best_of, actions, scores if contents.scores(graph) else None)


def _in_network_units(
    units: Units, answer: Outputs, exact: np.ndarray
) -> tuple[Outputs, np.ndarray, np.ndarray]:
    """The answer with candidates in [-1, 1], and two differences of what it was before.

    Returns:
        The answer; how far its candidates are from the exact ones, `[batch, candidates, size]`;
        how far its action is from each of its candidates, `[batch, candidates]`.
    """
    between = answer.action[:, None] - answer.candidates
    if not units.maps_actions:
        return answer, answer.candidates - exact, np.abs(between).max(axis=2)
    digits = np.maximum(units.half_width, 1e-3 * np.abs(units.middle))
    digits = np.where(digits > 0, digits, 1)
    wrong = (answer.candidates - units.to_user_arrays(exact)) / digits
    # A constant entry says nothing of what the network gave there, which the critic reads.
    back = np.where(units.half_width > 0, units.network_actions(answer.candidates), exact)
    found = answer._replace(candidates=back.astype(np.float32))
    return found, wrong, np.abs(between / digits).max(axis=2)


def may_be_chosen(choice: Choice, candidates: np.ndarray, scores: np.ndarray | None) -> np.ndarray:
    """Which candidates a choice may take if all that it compares is wrong by the tolerance.

    Args:
        choice: best, central or typical.
        candidates: `[batch, candidates, action_size]`.
        scores: `[batch, candidates]`; None where the choice reads none.

    Returns:
        Truth values, `[batch, candidates]`.
    """
    surely = perhaps = np.ones(candidates.shape[:2], bool)
    if choice.rule != "best":
        between = candidates[:, :, None] - candidates[:, None].astype(np.float64)
        far = np.sqrt((between**2).sum(axis=3)).mean(axis=2)
        ahead = far[:, :, None] - far[:, None]  # by how much each of the others is nearer
        kept = 1 if choice.rule == "central" else choice.parameter
        surely = (ahead > -TOLERANCE).sum(axis=2) <= kept  # it counts itself
        perhaps = (ahead > TOLERANCE).sum(axis=2) < kept
    if scores is None:
        return perhaps
    best = np.where(surely, scores, -np.inf).max(axis=1, keepdims=True)
    margin = TOLERANCE * np.maximum(np.abs(scores), 1)
    return perhaps & (scores >= best - margin)


def _inputs(
    contents: Contents, steps: int, best_of: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Batches of observations and noise, not too large for the memory."""
    rng = np.random.default_rng(0)
    shape = contents.policy.noise_shape(steps)
    spec, units = contents.spec, contents.policy.units
    pixels = 0 if spec.image is None else spec.image.size
    # Where convolutions are products, an image takes many times its size.
    at_once = _ROWS_AT_ONCE if not pixels else max(best_of, _PIXELS_AT_ONCE // pixels)
    batch = min(OBSERVATIONS, at_once // best_of)
    for first in range(0, OBSERVATIONS, batch):
        count = min(batch, OBSERVATIONS - first)
        sizes = (count, spec.observation_size), (count, best_of, *shape)
        observation, noise = (rng.standard_normal(size, np.float32) for size in sizes)
        if units.standardises:
            # Where the policy was trained: far from it networks saturate, and hide a difference.
            mean = np.asarray(units.observation_mean, np.float32)
            observation = mean + np.asarray(units.observation_scale, np.float32) * observation
        if pixels:
            observation[:, :pixels] = rng.integers(0, 256, (count, pixels))
        yield observation, noise


_candidates = eqx.filter_jit(candidates_of)
_scores = eqx.filter_jit(scores_of)


def _in_jax(compiled: Callable[..., jax.Array], *arguments: Any) -> np.ndarray:
    arrays = (jnp.asarray(a) if isinstance(a, np.ndarray) else a for a in arguments)
    # GPUs would multiply float32 matrices in less than float32 otherwise.
    with jax.default_matmul_precision("highest"):
        return np.asarray(compiled(*arrays))


def _largest(difference: np.ndarray) -> float:
    """Largest size of an entry; NaN counts as infinite."""
    return float(np.max(np.nan_to_num(np.abs(difference), nan=np.inf), initial=0.0))
