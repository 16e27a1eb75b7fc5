"""ReBRAC: both losses against NumPy, the delay, the mask of the penalty, and known answers."""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import numpy_networks as slow
import one_member
import probes
from sorl import off_policy
from sorl.algorithms.rebrac import ReBRAC
from sorl.data.dataset import Dataset
from sorl.errors import InputError
from sorl.losses import critic_loss

pytestmark = pytest.mark.optimised

ROWS = 12


def tiny(**fields) -> tuple:
    """A small ReBRAC whose targets differ from the online networks, and a batch."""
    rebrac = ReBRAC(
        **{
            "hidden": (16,),
            "learning_rate": 1e-3,
            "discount": 0.9,
            "actor_penalty": 0.7,
            "critic_penalty": 0.3,
            **fields,
        }
    )
    state = rebrac.init(one_member.SPEC, key=jax.random.key(0))
    other = rebrac.init(one_member.SPEC, key=jax.random.key(1))
    state = eqx.tree_at(
        lambda s: (s.target_actor, s.target_critic), state, (other.actor, other.critic)
    )
    return rebrac, state, one_member.batch_of(np.random.default_rng(0), ROWS)


# Losses --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "clip", "penalty"),
    [(0.2, 0.5, 0.3), (2.0, 0.5, 0.3), (1.0, 1.5, 0.3), (0.0, 0.5, 2.0)],
)
def test_critic_target_equals_numpy(noise, clip, penalty):
    rebrac, state, batch = tiny(target_noise=noise, target_noise_clip=clip, critic_penalty=penalty)
    key = jax.random.key(5)
    found = jax.jit(rebrac.critic_target)(state, batch, key=key)
    epsilon = np.asarray(jax.random.normal(key, (ROWS, 3)), np.float64)
    _, _, r, m, s2, a2, m2 = one_member.float64(batch)
    assert {(0.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 1.0)} == set(zip(m, m2, strict=True))
    for i in range(ROWS):
        action = np.tanh(slow.mlp(state.target_actor.mlp, s2[i]))
        action = np.clip(action + np.clip(noise * epsilon[i], -clip, clip), -1, 1)
        distance = sum((action[j] - a2[i, j]) ** 2 for j in range(3))
        q = slow.q_values(state.target_critic, s2[i], action).min()
        exact = r[i] + 0.9 * m[i] * (q - penalty * m2[i] * distance)
        assert found[i] == pytest.approx(exact, rel=1e-3, abs=1e-3)


def test_actor_loss_equals_numpy():
    rebrac, state, batch = tiny()
    loss, metrics = jax.jit(rebrac.actor_loss)(state.actor, state.critic, batch)
    s, a = one_member.float64(batch)[:2]
    q, distance = [], []
    for i in range(ROWS):
        action = np.tanh(slow.mlp(state.actor.mlp, s[i]))
        q.append(slow.q_values(state.critic, s[i], action).min())
        distance.append(sum((action[j] - a[i, j]) ** 2 for j in range(3)))
    q_loss = -np.mean(q) / np.mean(np.abs(q))
    assert loss == pytest.approx(q_loss + 0.7 * np.mean(distance), rel=1e-3)
    assert metrics["q"] == pytest.approx(np.mean(q), rel=1e-3)
    assert metrics["squared_distance"] == pytest.approx(np.mean(distance), rel=1e-3)


def test_critic_loss_moves_the_critic_alone():
    rebrac, state, batch = tiny()

    def loss(state):
        target = rebrac.critic_target(state, batch, key=jax.random.key(0))
        return critic_loss(state.critic, batch.observation, batch.action, target)[0]

    gradient = one_member.gradient_of(loss, state)
    assert one_member.all_move(gradient.critic.mlps.layers[0])
    for part in (gradient.actor, gradient.target_actor, gradient.target_critic):
        assert one_member.none_moves(part)


# The delay -----------------------------------------------------------------------------------


def test_an_update_that_moves_all_is_two_adam_steps_and_two_averages():
    """Done again by hand from the losses: the critic, then the actor, then the averages."""
    rebrac, state, batch = tiny()
    key = jax.random.key(9)
    new, metrics = jax.jit(rebrac.update)(state, batch, jnp.int32(0), key=key)

    def loss_of_critic(critic):
        target = rebrac.critic_target(state, batch, key=key)
        return critic_loss(critic, batch.observation, batch.action, target)[0]

    critic, loss, norm = one_member.first_adam_step(
        loss_of_critic, state.critic, learning_rate=1e-3
    )
    one_member.assert_same(new.critic, critic, atol=1e-5)
    assert metrics["critic/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["critic/gradient_norm"] == pytest.approx(norm, rel=1e-3)

    actor, loss, norm = one_member.first_adam_step(
        lambda actor: rebrac.actor_loss(actor, critic, batch)[0], state.actor, learning_rate=1e-3
    )
    one_member.assert_same(new.actor, actor, atol=3e-5)
    assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-3)
    assert metrics["actor/gradient_norm"] == pytest.approx(norm, rel=1e-3)
    for name in ("actor", "critic"):
        averaged = jax.tree.map(
            lambda old, online: 0.995 * old + 0.005 * online,
            getattr(state, f"target_{name}"),
            getattr(new, name),
        )
        one_member.assert_same(getattr(new, f"target_{name}"), averaged, atol=1e-6)


def test_in_between_only_the_critic_moves_and_the_actors_metrics_stay():
    """So the mean of an actor's metric over a chunk is the mean over the actor's steps."""
    rebrac, state, batch = tiny(policy_delay=3)
    update = jax.jit(lambda state, index: rebrac.update(state, batch, index, key=jax.random.key(1)))
    metrics = dict.fromkeys(state.actor_metrics, math.nan)
    for index in range(8):
        new, new_metrics = update(state, index)
        moved = {
            name: not one_member.same(getattr(new, name), getattr(state, name))
            for name in ("actor", "target_actor", "target_critic", "actor_optimizer")
        }
        assert set(moved.values()) == {index % 3 == 0}
        assert not one_member.same(new.critic, state.critic)
        assert metrics.keys() <= new_metrics.keys()
        for name in state.actor_metrics:
            assert (new_metrics[name] == metrics[name]) == (index % 3 > 0)
        assert new_metrics["critic/loss"] != metrics.get("critic/loss")
        state, metrics = new, new_metrics


@pytest.mark.parametrize("update", [6, 7, 8])
def test_losses_on_held_out_batches_are_of_these_batches_alone(update):
    """The state carries the actor's metrics of a training batch, which may not be among them."""
    rebrac, state, _ = tiny(policy_delay=3)
    carried = eqx.tree_at(
        lambda s: s.actor_metrics, state, {name: jnp.float32(1e6) for name in state.actor_metrics}
    )
    rng = np.random.default_rng(0)
    dataset = Dataset.from_arrays(
        rng.normal(size=(20, 4)).astype(np.float32),
        rng.uniform(-1, 1, (20, 3)).astype(np.float32),
        np.arange(20) % 10 == 9,
        np.ones((1, 20), np.float32),
        np.ones((1, 20), np.float32),
    )
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), state, carried)
    found = off_policy._losses(
        rebrac, 8, states, dataset, jnp.zeros(2, jnp.int32), jnp.int32(update), jax.random.key(0)
    )
    assert {"actor/loss", "actor/q", "actor/squared_distance", "critic/loss"} <= set(found)
    for name in ("actor/loss", "actor/q", "actor/squared_distance"):
        assert found[name][1] == pytest.approx(float(found[name][0]), rel=1e-5)
        assert 0 < abs(found[name][1]) < 100


def test_the_branch_stays_a_branch_under_vmap():
    """Under vmap over members it may not turn into a select, which would run both sides."""
    rebrac, state, batch = tiny()
    states, batches = jax.tree.map(lambda x: jnp.stack([x, x]), (state, batch))
    keys = jax.random.split(jax.random.key(1), 2)

    def update(states, index):
        return jax.vmap(lambda s, b, k: rebrac.update(s, b, index, key=k))(states, batches, keys)

    jaxpr = jax.make_jaxpr(update)(states, jnp.int32(0))
    assert [str(equation.primitive) for equation in jaxpr.eqns].count("cond") == 1


# The mask ------------------------------------------------------------------------------------


def numbered_rows() -> Dataset:
    """Episodes of 1 to 4 transitions; every observation says which row it is."""
    rng = np.random.default_rng(3)
    ends = np.concatenate([[*[0] * length, 1] for length in (1, 2, 3, 4, 2)])
    rows = len(ends)
    return Dataset.from_arrays(
        observations=np.stack([np.arange(rows), *np.zeros((3, rows))], axis=1).astype(np.float32),
        actions=rng.uniform(-0.9, 0.9, (rows, 3)).astype(np.float32),
        terminals=ends,
        rewards=rng.normal(size=(1, rows)).astype(np.float32),
        masks=np.ones((1, rows)),  # episodes end by the clock, so the end is bootstrapped
    )


def test_sampled_last_steps_of_episodes_are_not_penalised():
    dataset = numbered_rows()
    rebrac, state, _ = tiny(target_noise=0.0)
    free = dataclasses.replace(rebrac, critic_penalty=0.0)
    key = jax.random.key(0)
    batch = dataset.sample(key, 0, 64)
    penalties = jax.jit(
        lambda state: (
            free.critic_target(state, batch, key=key) - rebrac.critic_target(state, batch, key=key)
        )
    )(state)
    ends, actions = np.asarray(dataset.ends), np.asarray(dataset.actions, np.float64)
    seen = set()
    for i, row in enumerate(np.asarray(batch.observation[:, 0], int)):
        last = bool(ends[row + 1])
        seen.add(last)
        s2 = np.array([row + 1.0, 0, 0, 0])
        action = np.tanh(slow.mlp(state.target_actor.mlp, s2))
        exact = 0.0 if last else 0.9 * 0.3 * np.sum((action - actions[row + 1]) ** 2)
        assert penalties[i] == pytest.approx(exact, rel=1e-3, abs=1e-5)
        assert last or exact > 0.01
    assert seen == {True, False}


CHAIN_LIMIT = 0.6
BEYOND_THE_END = 0.9


def chain() -> Dataset:
    """State 0, then state 1, then the clock ends the episode in state 1; as large as the probes.

    Reward 0 in state 0 and 1 in state 1, whatever is done. Entries of logged actions are uniform
    up to `CHAIN_LIMIT` in magnitude; what stands on the last row is no action that was taken.
    """
    rng = np.random.default_rng(0)
    actions = rng.uniform(-CHAIN_LIMIT, CHAIN_LIMIT, (probes.EPISODES, 3, 2))
    actions[:, 2] = BEYOND_THE_END
    return Dataset.from_arrays(
        observations=probes.STATES[np.tile([0, 1, 1], probes.EPISODES)],
        actions=actions.reshape(probes.ROWS, 2).astype(np.float32),
        terminals=np.tile([0, 0, 1], probes.EPISODES),
        rewards=np.tile([0.0, 1.0, 0.0], probes.EPISODES)[None].astype(np.float32),
        masks=np.ones((1, probes.ROWS)),
    )


# Two algorithms for all problems below, since each takes seconds to compile. Without target noise
# the one finds Q*; noise would blur Q across the gap between left and right in `probes.two_step`.
GREEDY = ReBRAC(
    actor_penalty=0.003,
    critic_penalty=0.0,
    target_noise=0.0,
    discount=probes.TWO_STEP_DISCOUNT,
    hidden=(32, 32),
    learning_rate=2e-3,
    target_rate=0.05,
)
CAREFUL = dataclasses.replace(
    GREEDY, actor_penalty=1.0, critic_penalty=1.0, target_noise=0.2, discount=0.5
)


def test_a_chain_has_the_values_that_masked_penalties_define():
    """Q(1) = 1 + γ Q(1); Q(0) = γ (Q(1) - α2 E‖ã' - a'‖²)."""
    policy = CAREFUL.policy(one_member.learn(CAREFUL, chain(), updates=1500))
    action = one_member.action_in(policy, 1)
    np.testing.assert_allclose(action, 0, atol=0.15)
    logged = np.random.default_rng(1).uniform(-CHAIN_LIMIT, CHAIN_LIMIT, (200, 2))
    smoothing = scipy.stats.norm.expect(lambda e: np.clip(0.2 * e, -0.5, 0.5) ** 2)
    penalty = np.sum(action**2) + 2 * (CHAIN_LIMIT**2 / 3 + smoothing)
    penalty_beyond = np.sum((action - BEYOND_THE_END) ** 2) + 2 * smoothing
    exact = {0: 0.5 * (2.0 - penalty), 1: 2.0}
    # The mistakes that the check must see: a mask that is not applied, one that is 0 everywhere.
    assert 2.0 - (1 - 0.5 * penalty_beyond) / (1 - 0.5) > 1
    assert 0.5 * 2.0 - exact[0] > 0.15
    for i, value in exact.items():
        observation = jnp.asarray(probes.STATES[i])
        found = jax.vmap(lambda a, s=observation: policy.score(s, a, steps=1))(
            jnp.asarray(logged, jnp.float32)
        )
        print(i, found.mean(), found.std(), value, action)
        assert found.mean() == pytest.approx(value, abs=0.05)


# Known answers -------------------------------------------------------------------------------


@pytest.mark.parametrize("rebrac", [GREEDY, CAREFUL], ids=["greedy", "careful"])
def test_a_bandit_has_the_optimum_of_reward_and_penalty(rebrac):
    """For reward 2 - ‖a - a*‖², uniform actions: π = a* / (1 + α1 q), q the reward at π."""
    actions = probes.uniform_actions(np.random.default_rng(0))
    dataset = probes.bandit(actions, 2 + probes.bandit_reward(actions))
    state = one_member.learn(rebrac, dataset, updates=1500)
    action = one_member.action_in(rebrac.policy(state), 0)
    exact = probes.BANDIT_OPTIMUM
    for _ in range(100):
        exact = probes.BANDIT_OPTIMUM / (
            1 + rebrac.actor_penalty * (2 + probes.bandit_reward(exact))
        )
    print(action, exact)
    np.testing.assert_allclose(action, exact, atol=0.07)
    assert (np.linalg.norm(exact - probes.BANDIT_OPTIMUM) > 0.3) == (rebrac is CAREFUL)


def test_two_steps_have_their_optimal_values_and_the_first_is_taken_for_the_second():
    dataset, values = probes.two_step(np.random.default_rng(0))
    policy = GREEDY.policy(one_member.learn(GREEDY, dataset, updates=1500))
    rng = np.random.default_rng(1)
    for (state, side), exact in values.items():
        observation = jnp.asarray(probes.STATES[state])
        actions = jnp.asarray(probes.sided_actions(rng, 200, side), jnp.float32)
        found = jax.vmap(lambda a, s=observation: policy.score(s, a, steps=1))(actions)
        print(state, side, exact, found.mean(), found.std())
        assert found.mean() == pytest.approx(exact, abs=0.1)
    for state in (0, 1):
        assert one_member.action_in(policy, state)[0] > 0.2  # clearly right


@pytest.mark.parametrize(
    "fields",
    [
        {"actor_penalty": -0.1},
        {"critic_penalty": math.nan},
        {"target_noise": -1.0},
        {"target_noise_clip": -1.0},
        {"policy_delay": 0},
        {"discount": 1.0},
        {"hidden": ()},
        {"learning_rate": 0.0},
        {"target_rate": -1.0},
        {"sampling_std": -0.1},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        ReBRAC(**fields)
