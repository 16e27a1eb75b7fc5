"""SORL: every loss against plain NumPy, gradients in their network, the draws of k."""

from __future__ import annotations

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numpy_networks as slow
from sorl.algorithms.sorl import SORL, SORLPolicy
from sorl.errors import InputError
from sorl.types import Spec, Transition

SPEC = Spec(observation_size=4, action_size=3)
ROWS = 10
E = 1e-5


def algorithm(**fields) -> SORL:
    return SORL(**{"hidden": (16, 16), "q_loss_coef": 7.0, **fields})


def trained_state(sorl, seed=0):
    """A state whose targets differ from the online networks."""
    state = sorl.init(SPEC, key=jax.random.key(seed))
    other = sorl.init(SPEC, key=jax.random.key(seed + 100))
    return eqx.tree_at(
        lambda s: (s.target_actor, s.target_critic), state, (other.actor, other.critic)
    )


def batch_of(rng, rows=ROWS) -> Transition:
    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return Transition(
        observation=normal(rows, 4),
        action=jnp.clip(normal(rows, 3), -1, 1),
        reward=normal(rows),
        mask=jnp.asarray(rng.integers(0, 2, rows), jnp.float32),
        next_observation=normal(rows, 4),
        next_action=jnp.clip(normal(rows, 3), -1, 1),
        next_action_mask=jnp.ones(rows),
    )


@pytest.mark.parametrize("aggregation", ["mean", "min"])
@pytest.mark.parametrize("sees_steps", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_critic_loss_equals_numpy(rng, steps, aggregation, sees_steps):
    sorl = algorithm(target_aggregation=aggregation, critic_sees_steps=sees_steps, discount=0.9)
    state, batch, key = trained_state(sorl), batch_of(rng), jax.random.key(5)
    target = sorl.critic_target(state, batch, jnp.asarray(steps), key=key)
    loss, _ = sorl.critic_loss(state.critic, batch, target, jnp.asarray(steps))

    noise = np.asarray(jax.random.normal(key, (ROWS, 3)), np.float64)
    s, a, r, m, s2 = (np.asarray(value, np.float64) for value in batch[:5])
    extra = (float(steps),) if sees_steps else ()
    combine = np.mean if aggregation == "mean" else np.min
    total = 0.0
    for i in range(ROWS):
        a2 = slow.sample(state.actor, s2[i], noise[i], steps)
        y = r[i] + 0.9 * m[i] * combine(slow.q_values(state.target_critic, s2[i], a2, *extra))
        np.testing.assert_allclose(target[i], y, rtol=1e-3, atol=1e-4)
        total += np.mean((slow.q_values(state.critic, s[i], a[i], *extra) - y) ** 2)
    np.testing.assert_allclose(loss, total / ROWS, rtol=1e-3)


@pytest.mark.parametrize("sees_steps", [True, False])
@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_q_loss_equals_numpy(rng, steps, sees_steps):
    # The actor's Q loss takes the mean over heads even where targets take the minimum.
    sorl = algorithm(target_aggregation="min", critic_sees_steps=sees_steps)
    state, batch = trained_state(sorl), batch_of(rng)
    noise = rng.normal(size=(ROWS, 3))
    loss = sorl.q_loss(
        state.actor, state.critic, batch.observation, jnp.asarray(noise, jnp.float32), steps=steps
    )
    extra = (float(steps),) if sees_steps else ()
    q = []
    for i in range(ROWS):
        s = np.asarray(batch.observation[i], np.float64)
        q.append(
            slow.q_values(state.critic, s, slow.sample(state.actor, s, noise[i], steps), *extra)
        )
    q = np.mean(q, axis=1)
    np.testing.assert_allclose(loss, -q.mean() / np.abs(q).mean(), rtol=1e-3)


@pytest.mark.parametrize("discretization", [1, 2, 8])
def test_behaviour_losses_equal_numpy(rng, discretization):
    """The noise and the times are drawn again from the same keys; all else is written anew."""
    sorl = algorithm(discretization=discretization, backprop_steps=1)
    state, batch, key = trained_state(sorl), batch_of(rng), jax.random.key(3)
    loss, (flow_matching, self_consistency) = sorl.behaviour_loss(
        state.actor, state.target_actor, batch, key=key
    )
    finest = int(math.log2(discretization))
    rows = ROWS * (2 if finest else 1)
    noise_key, time_key = jax.random.split(key)
    noise = np.asarray(jax.random.normal(noise_key, (rows, 3)), np.float64)
    kappas = [finest] * ROWS + ([i * finest // ROWS for i in range(ROWS)] if finest else [])
    slots = np.array([2**kappa for kappa in kappas])
    j = np.asarray(jax.random.randint(time_key, (rows,), 0, jnp.asarray(slots)))
    s, a = np.asarray(batch.observation, np.float64), np.asarray(batch.action, np.float64)
    flow, consistency = [], []
    for i in range(rows):
        si, x1, x0, kappa = s[i % ROWS], a[i % ROWS], noise[i], kappas[i]
        t = j[i] / slots[i]
        assert 0 <= t < 1
        assert (t * 2**kappa).is_integer()
        x = (1 - (1 - E) * t) * x0 + t * x1
        v = slow.velocity(state.actor, si, x, t, kappa)
        if i < ROWS:
            flow.append(np.mean((v - (x1 - (1 - E) * x0)) ** 2))
        else:
            d = 2.0**-kappa
            v1 = slow.velocity(state.target_actor, si, x, t, kappa + 1)
            v2 = slow.velocity(state.target_actor, si, x + d / 2 * v1, t + d / 2, kappa + 1)
            consistency.append(np.mean((v - (v1 + v2) / 2) ** 2))
    np.testing.assert_allclose(flow_matching, np.mean(flow), rtol=1e-3)
    expected = np.mean(consistency) if finest else 0.0
    np.testing.assert_allclose(self_consistency, expected, rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(loss, 10 * np.mean(flow) + 10 * expected, rtol=1e-3)


def test_critic_loss_moves_no_actor_parameter_and_the_reverse(rng):
    sorl = algorithm()
    state, batch, key = trained_state(sorl), batch_of(rng), jax.random.key(0)
    steps = jnp.asarray(4)

    def critic_loss(state):
        target = sorl.critic_target(state, batch, steps, key=key)
        return sorl.critic_loss(state.critic, batch, target, steps)[0]

    networks, rest = eqx.partition(state, eqx.is_inexact_array)
    gradient = jax.grad(lambda networks: critic_loss(eqx.combine(networks, rest)))(networks)
    for part in (gradient.actor, gradient.target_actor, gradient.target_critic):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(part))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient.critic.mlps.layers[0]))

    def actor_loss(state):
        behaviour, _ = sorl.behaviour_loss(state.actor, state.target_actor, batch, key=key)
        noise = jnp.ones((ROWS, 3)) / 10
        q = sorl.q_loss(state.actor, state.critic, batch.observation, noise, steps=4)
        return behaviour + sorl.q_loss_coef * q

    gradient = jax.grad(lambda networks: actor_loss(eqx.combine(networks, rest)))(networks)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.target_actor))
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient.target_critic))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient.actor))


@pytest.mark.parametrize("drawn", [(2, 4), (4, 1)])
def test_update_equals_two_separate_adams(drawn, rng):
    """One update, done again by hand from the losses: critic first, then actor, then averages.

    The critic's number of steps is another one than the actor's.
    """
    sorl = algorithm(backprop_steps=4, learning_rate=1e-3)
    state, batch, key = trained_state(sorl), batch_of(rng), jax.random.key(9)
    choices = jax.vmap(sorl.choose_steps)(jnp.arange(100))
    powers = 2 ** np.stack(choices, axis=1)
    number = int(np.flatnonzero((powers == drawn).all(axis=1))[0])
    found, metrics = jax.jit(sorl.update)(state, batch, jnp.asarray(number), key=key)

    critic_key, behaviour_key, q_key = jax.random.split(key, 3)
    critic_steps, actor_steps = jnp.asarray(drawn[0]), drawn[1]
    target = sorl.critic_target(state, batch, critic_steps, key=critic_key)
    noise = jax.random.normal(q_key, (ROWS, 3))

    def step(model, gradient):
        norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(gradient)))
        scale = min(1.0, 1.0 / norm)
        # Adam's first step: m / (sqrt(v) + ε) with both moments bias-corrected to g and g².
        return jax.tree.map(
            lambda p, g: p - 1e-3 * (g * scale) / (np.abs(g * scale) + 1e-8), model, gradient
        ), norm

    def critic_loss(critic):
        return sorl.critic_loss(critic, batch, target, critic_steps)[0]

    critic, critic_norm = step(state.critic, eqx.filter_grad(critic_loss)(state.critic))
    behaviour, (flow, consistency) = sorl.behaviour_loss(
        state.actor, state.target_actor, batch, key=behaviour_key
    )

    def q_loss(actor):
        return sorl.q_loss(actor, critic, batch.observation, noise, steps=actor_steps)

    def actor_loss(actor):
        behaviour = sorl.behaviour_loss(actor, state.target_actor, batch, key=behaviour_key)[0]
        return behaviour + 7.0 * q_loss(actor)

    actor, actor_norm = step(state.actor, eqx.filter_grad(actor_loss)(state.actor))
    for mine, theirs in ((actor, found.actor), (critic, found.critic)):
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, atol=3e-5)
    for name in ("actor", "critic"):
        old = getattr(state, f"target_{name}")
        new, online = getattr(found, f"target_{name}"), getattr(found, name)
        for a, b, c in zip(*map(jax.tree.leaves, (old, online, new)), strict=True):
            np.testing.assert_allclose(0.995 * a + 0.005 * b, c, atol=1e-6)
    by_hand = {
        "critic/loss": critic_loss(state.critic),
        "critic/gradient_norm": critic_norm,
        "critic/q": sorl.critic_loss(state.critic, batch, target, critic_steps)[1]["q"],
        "actor/loss": behaviour + 7.0 * q_loss(state.actor),
        "actor/flow_matching_loss": flow,
        "actor/self_consistency_loss": consistency,
        "actor/q_loss": q_loss(state.actor),
        "actor/gradient_norm": actor_norm,
    }
    assert set(metrics) == set(by_hand)
    for name, value in by_hand.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-3, err_msg=name)


def test_gradient_through_the_switch_equals_the_gradient_of_the_chosen_branch(rng):
    sorl = algorithm()
    state, batch = trained_state(sorl), batch_of(rng)
    noise = jnp.asarray(rng.normal(size=(ROWS, 3)), jnp.float32)
    for power in range(4):
        loss, gradient = sorl._q_loss_and_gradient(
            state.actor, state.critic, batch.observation, noise, jnp.asarray(power)
        )
        expected_loss, expected = eqx.filter_value_and_grad(sorl.q_loss)(
            state.actor, state.critic, batch.observation, noise, steps=2**power
        )
        np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
        for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_draws_of_k_are_uniform_and_independent():
    sorl = algorithm()
    critic, actor = jax.vmap(sorl.choose_steps)(jnp.arange(4000))
    counts = np.zeros((4, 4))
    np.add.at(counts, (np.asarray(critic), np.asarray(actor)), 1)
    # 15 degrees of freedom: a chi-square above 38 has probability below 0.001.
    assert ((counts - 250) ** 2 / 250).sum() < 38


def test_switch_stays_a_switch_under_vmap():
    """Under vmap over members no branch may turn into a select, which would run all of them."""
    sorl = algorithm()
    states = eqx.filter_vmap(lambda key: sorl.init(SPEC, key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    batch = jax.tree.map(lambda x: jnp.stack([x, x]), batch_of(np.random.default_rng(0)))
    keys = jax.random.split(jax.random.key(1), 2)

    def update(states, index):
        return eqx.filter_vmap(lambda s, b, k: sorl.update(s, b, index, key=k))(states, batch, keys)

    jaxpr, _, _ = eqx.filter_make_jaxpr(update)(states, jnp.asarray(0))
    primitives = [str(equation.primitive) for equation in jaxpr.eqns]
    assert primitives.count("cond") == 1
    assert primitives.count("while") == 1


def test_clipped_actions_pass_no_gradient(rng):
    sorl = algorithm(backprop_steps=1)
    state, batch = trained_state(sorl), batch_of(rng)
    noise = jnp.full((ROWS, 3), 50.0)  # far outside: every entry is clipped
    gradient = eqx.filter_grad(sorl.q_loss)(
        state.actor, state.critic, batch.observation, noise, steps=1
    )
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_policy_samples_and_scores_as_numpy_does(rng):
    sorl = algorithm(target_aggregation="min")
    state = trained_state(sorl)
    policy = sorl.policy(state)
    assert isinstance(policy, SORLPolicy)
    s = rng.normal(size=4)
    for steps in (1, 2, 4, 8):
        key = jax.random.key(steps)
        action = policy.sample(jnp.asarray(s, jnp.float32), steps=steps, key=key)
        noise = np.asarray(jax.random.normal(key, (3,)), np.float64)
        np.testing.assert_allclose(action, slow.sample(state.actor, s, noise, steps), atol=1e-4)
        score = policy.score(jnp.asarray(s, jnp.float32), action, steps=steps)
        expected = slow.q_values(
            state.critic, s, np.asarray(action, np.float64), float(steps)
        ).min()
        np.testing.assert_allclose(score, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("steps", [16, 32])
def test_above_what_was_trained_the_finest_velocity_and_the_last_critic_are_asked(rng, steps):
    sorl = algorithm(discretization=4, backprop_steps=2)
    state = trained_state(sorl)
    policy = sorl.policy(state)
    s, key = rng.normal(size=4), jax.random.key(steps)
    x = np.asarray(jax.random.normal(key, (3,)), np.float64)
    for i in range(steps):
        x = x + slow.velocity(state.actor, s, x, i / steps, 2.0) / steps
    action = policy.sample(jnp.asarray(s, jnp.float32), steps=steps, key=key)
    np.testing.assert_allclose(action, np.clip(x, -1, 1), atol=1e-4)
    # The critic reads 1 or 2 steps, and 2 for every policy of more.
    for asked, read in ((1, 1.0), (2, 2.0), (4, 2.0), (steps, 2.0)):
        values = policy.values(jnp.asarray(s, jnp.float32), action, steps=asked)
        expected = slow.q_values(state.critic, s, np.asarray(action, np.float64), read)
        np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("start", "steps"), [(0, 4), (1, 2), (2, 4), (4, 8), (6, 8)])
def test_renoising_enters_the_path_in_the_middle(rng, start, steps):
    sorl = algorithm()
    state = trained_state(sorl)
    s, a, key = rng.normal(size=4), rng.uniform(-1, 1, 3), jax.random.key(steps)
    noise, t = np.asarray(jax.random.normal(key, (3,)), np.float64), start / steps
    x = (1 - (1 - E) * t) * noise + t * a
    for i in range(start, steps):
        x = x + slow.velocity(state.actor, s, x, i / steps, math.log2(steps)) / steps
    found = sorl.policy(state).renoise(
        jnp.asarray(s, jnp.float32), jnp.asarray(a, jnp.float32), start=start, steps=steps, key=key
    )
    np.testing.assert_allclose(found, np.clip(x, -1, 1), atol=1e-4)


@pytest.mark.parametrize("steps", [0, 3, 6, 256])
def test_steps_that_no_step_size_fits_are_refused(steps):
    sorl = algorithm()
    with pytest.raises(InputError, match="power of two up to 128"):
        sorl.policy(trained_state(sorl)).check_steps(steps)


@pytest.mark.parametrize(
    "fields",
    [
        {"discretization": 3},
        {"backprop_steps": 6},
        {"discretization": 4, "backprop_steps": 8},
        {"discount": 1.0},
        {"hidden": ()},
        {"hidden": (16, 0)},
        {"learning_rate": 0.0},
        {"q_loss_coef": -1.0},
        {"q_loss_coef": math.nan},
    ],
)
def test_impossible_hyperparameters_are_refused(fields):
    with pytest.raises(InputError):
        algorithm(**fields)


def test_hyperparameters_are_hashable_and_presets_name_real_fields():
    assert hash(SORL()) == hash(SORL())
    names = {field.name for field in dataclasses.fields(SORL)}
    assert len(SORL.presets) == 8
    for preset in SORL.presets.values():
        assert set(preset) <= names
        SORL(**preset)


def test_optimizer_is_adam_behind_a_clipped_global_norm():
    """Against Adam's equations, with a gradient inside the limit and one far outside."""
    optimizer = SORL(max_gradient_norm=1.0, learning_rate=0.1)._optimizer()
    parameters = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    state = optimizer.init(parameters)
    m, v, expected = np.zeros(2), np.zeros(2), np.zeros(2)
    for t, gradient in enumerate([np.array([0.3, -0.1]), np.array([30.0, 40.0])], start=1):
        updates, state = optimizer.update(
            {"a": jnp.float32(gradient[:1]), "b": jnp.float32(gradient[1:])}, state
        )
        parameters = optax.apply_updates(parameters, updates)
        clipped = gradient / max(1.0, np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * clipped, 0.999 * v + 0.001 * clipped**2
        expected -= 0.1 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    found = np.concatenate([np.asarray(leaf) for leaf in jax.tree.leaves(parameters)])
    np.testing.assert_allclose(found, expected, rtol=1e-4)
