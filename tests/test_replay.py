"""Rows that members make: what is stored, what is drawn, and that no member sees another's."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from sorl.data.dataset import Dataset
from sorl.data.mixtures import mix
from sorl.data.replay import Replay, Rows, sample_both
from sorl.types import Spec, Transition

SPEC = Spec(3, 2)
DRAWS = 60_000


def logged(rewards: Sequence[float]) -> Dataset:
    """One episode; row i has reward `rewards[i]`, which tells it from all others."""
    rows = len(rewards) + 1
    rng = np.random.default_rng(5)
    return Dataset.from_arrays(
        rng.normal(size=(rows, 3)).astype(np.float32),
        rng.uniform(-0.9, 0.9, (rows, 2)).astype(np.float32),
        np.append(np.zeros(rows - 1), 1),
        np.append(rewards, 0)[None].astype(np.float32),
        np.ones((1, rows)),
        (0,),
    )


def rounds(members: int, environments: int, count: int) -> list[Rows]:
    """Random rows; the reward of a member's row is 1000 * (member + 1) + its place."""
    rng = np.random.default_rng(7)
    found = []
    for number in range(count):
        shape = (members, environments)
        place = number * environments + np.arange(environments)
        found.append(
            Rows(
                rng.normal(size=(*shape, 3)).astype(np.float32),
                rng.uniform(-0.9, 0.9, (*shape, 2)).astype(np.float32),
                (1000 * (1 + np.arange(members))[:, None] + place).astype(np.float32),
                rng.random(shape) < 0.5,
                rng.normal(size=(*shape, 3)).astype(np.float32),
                rng.random(shape) < 0.3,
            )
        )
    return found


def filled(made: Sequence[Rows], capacity: int) -> Replay:
    members, environments = made[0].reward.shape
    replay = Replay.empty(SPEC, members=members, capacity=capacity, environments=environments)
    insert = jax.jit(Replay.insert)
    for number, rows in enumerate(made):
        replay = insert(replay, rows, jnp.int32(number * environments))
    return replay


def drawn(
    dataset: Dataset, replay: Replay, size: int, share: float | None, draws: int = DRAWS
) -> Transition:
    """Batches of all members, each from the same key, as NumPy `[members, draws, ...]`."""

    def one(own: Replay) -> Transition:
        return sample_both(
            dataset,
            own,
            jax.random.key(3),
            task_index=0,
            size=jnp.int32(size),
            batch_size=draws,
            offline_share=share,
        )

    return jax.tree.map(np.asarray, jax.jit(jax.vmap(one))(replay))


@pytest.mark.parametrize(
    ("share", "weights"),
    [(None, None), (0.25, None), (0.0, None), (1.0, None), (None, (0.9, 0.1)), (0.5, (0.9, 0.1))],
)
def test_every_row_is_drawn_as_often_as_it_should_be(
    share: float | None, weights: tuple[float, float] | None
) -> None:
    """7 logged and 6 own rows; room for 4 more of which none may come."""
    parts = [logged(range(3)), logged(range(3, 7))]
    dataset = logged(range(7)) if weights is None else mix(parts, weights, ("a", "b"))
    within = np.full(7, 1 / 7) if weights is None else np.repeat([0.9 / 3, 0.1 / 4], [3, 4])
    logged_share = 7 / 13 if share is None else share
    expected = np.append(logged_share * within, np.full(6, (1 - logged_share) / 6))
    batch = drawn(dataset, filled(rounds(1, 2, 3), 10), 6, share)
    rewards = np.append(np.arange(7), 1000 + np.arange(6))
    counts = (batch.reward[0][:, None] == rewards).sum(axis=0)
    assert counts.sum() == DRAWS
    possible = expected > 0
    assert not counts[~possible].any()
    assert chisquare(counts[possible], DRAWS * expected[possible]).pvalue > 1e-3


def test_members_draw_their_own_rows_whole(rng: np.random.Generator) -> None:
    """Each drawn transition is one of the member's own, in all of its columns."""
    made, environments, count = rounds(3, 2, 4), 2, 4
    size = environments * count
    batch = drawn(logged([0.0]), filled(made, 12), size, 0.0, draws=400)
    for member in range(3):
        seen = set()
        for draw in range(400):
            place = int(batch.reward[member, draw]) - 1000 * (member + 1)
            assert 0 <= place < size
            number, environment = divmod(place, environments)
            rows = made[number]
            for name in ("observation", "action", "mask", "next_observation"):
                np.testing.assert_array_equal(
                    getattr(batch, name)[member, draw], getattr(rows, name)[member, environment]
                )
            # The next action is that of the same environment a round later, if there is one and
            # the episode went on.
            known = number + 1 < count and not rows.end[member, environment]
            assert batch.next_action_mask[member, draw] == known
            if known:
                np.testing.assert_array_equal(
                    batch.next_action[member, draw], made[number + 1].action[member, environment]
                )
            seen.add(place)
        assert seen == set(range(size))


def test_cut_ends_the_newest_row_of_one_environment_alone() -> None:
    made = [rows._replace(end=np.zeros((2, 2), bool)) for rows in rounds(2, 2, 3)]
    ends = np.asarray(filled(made, 8).cut(1, 0, 6).ends)
    assert ends[1, 4]
    assert ends.sum() == 1
