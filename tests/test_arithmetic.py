"""Arithmetic of training: products and slopes against NumPy, every layer, training, runs."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import one_member
import probes
from flow_baselines import draw
from one_member import SPEC, batch_of
from sorl import algorithms, jobs
from sorl.algorithms.sorl import SORL
from sorl.arithmetic import Arithmetic, Compute, check_arithmetic, computing
from sorl.errors import InputError
from sorl.flows import euler_path
from sorl.inference import act
from sorl.jobs.job import job_of
from sorl.layers import Linear, shortened
from sorl.mixed_precision import in_arithmetic
from sorl.nn import ActionNetwork
from sorl.path_gradient import path_value_and_gradient
from sorl.training import train
from sorl.types import Image, Spec, Transition

pytest_plugins = ("run_fixtures",)

SHORT = Compute("bfloat16")
SHORT_ON_CPU = Compute("bfloat16", on_cpu=True)
ON_CPU = Compute("float32", on_cpu=True)
# bfloat16 has 8 significant bits: rounding moves a number by at most this share of it.
ROUNDING = 2.0**-8


def rounded(x: np.ndarray) -> np.ndarray:
    """To bfloat16 and back, by another library."""
    return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def computes(tree: Any) -> list[Compute]:
    leaves = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Compute))
    return [leaf for leaf in leaves if isinstance(leaf, Compute)]


def test_bfloat16_rounds_factors_and_result_and_sums_in_more(rng):
    x, weight = rng.normal(size=(64, 300)), rng.normal(size=(300, 40))
    found = SHORT.product(jnp.asarray(x, jnp.float32), jnp.asarray(weight, jnp.float32))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, rounded(np.asarray(found)))
    exact = rounded(x) @ rounded(weight)
    # Sums of 300 terms in bfloat16 would be wrong by far more.
    np.testing.assert_allclose(found, exact, rtol=ROUNDING, atol=1e-4)
    assert np.abs(found - x @ weight).max() > 1e-3


def test_on_a_cpu_products_in_bfloat16_round_factors_alone(rng):
    x, weight = rng.normal(size=(64, 300)), rng.normal(size=(300, 40))
    single = [jnp.asarray(factor, jnp.float32) for factor in (x, weight)]
    exact = rounded(x) @ rounded(weight)
    for product in (SHORT_ON_CPU.product, SHORT_ON_CPU.batch_product):
        found = product(*single)
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-4)
        assert np.any(np.asarray(found) != rounded(np.asarray(found)))


@pytest.mark.parametrize("compute", [SHORT_ON_CPU, ON_CPU], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("rows", [1, 6, 64])
@pytest.mark.parametrize(("inputs", "outputs"), [(30, 20), (7, 40), (16, 16), (20, 1)])
def test_on_a_cpu_gradients_of_products_are_products_of_the_factors(
    compute: Compute, rows: int, inputs: int, outputs: int, rng: np.random.Generator
) -> None:
    sizes = ((rows, inputs), (inputs, outputs), (rows, outputs))
    x, weight, gradient = (rng.normal(size=size).astype(np.float32) for size in sizes)
    found, back = jax.vjp(compute.batch_product, jnp.asarray(x), jnp.asarray(weight))
    of_x, of_weight = back(jnp.asarray(gradient))
    short = compute.arithmetic == "bfloat16"
    factor = rounded if short else lambda a: np.asarray(a, np.float64)
    expected_weight = factor(x).T @ factor(gradient)
    # Of float32's rounding: factors rounded to bfloat16 would be off by 1,000 times as much.
    near: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-5}
    np.testing.assert_allclose(found, factor(x) @ factor(weight), **near)
    np.testing.assert_allclose(of_x, factor(gradient) @ factor(weight).T, **near)
    np.testing.assert_allclose(of_weight, expected_weight, **near)
    alone = compute.weight_gradient(jnp.asarray(x), jnp.asarray(gradient))
    np.testing.assert_allclose(alone, expected_weight, **near)
    assert of_x.dtype == of_weight.dtype == alone.dtype == jnp.float32
    assert np.any(np.asarray(of_weight) != rounded(np.asarray(of_weight)))


def test_on_a_cpu_a_shortened_weight_gives_the_same_products_and_their_gradient(rng):
    network = computing(Linear(30, 20, key=jax.random.key(0)), SHORT_ON_CPU)
    x = jnp.asarray(rng.normal(size=(8, 30)), jnp.float32)
    short = shortened(network)
    assert short.weight.dtype == jnp.bfloat16
    found, back = jax.vjp(short.batch, x)
    expected, expected_back = jax.vjp(network.batch, x)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(back(jnp.ones((8, 20))), expected_back(jnp.ones((8, 20))))


def products(program: Any) -> Iterator[Any]:
    """Every product of a program and of the programs in it."""
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            yield equation
        for value in equation.params.values():
            for one in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from products(inner)


def update_program(algorithm: Any) -> Any:
    """The program of an update from 8 rows."""
    arrays, rest = eqx.partition(algorithm.init(Spec(3, 2), key=jax.random.key(0)), eqx.is_array)
    s, a, one = jnp.zeros((8, 3)), jnp.zeros((8, 2)), jnp.zeros(8)
    batch = Transition(s, a, one, one, s, a, one)

    def update(arrays, batch, index, key):
        new, metrics = algorithm.update(eqx.combine(arrays, rest), batch, index, key=key)
        return eqx.filter(new, eqx.is_array), dict(metrics)

    return jax.make_jaxpr(update)(arrays, batch, jnp.int32(0), jax.random.key(0))


def decision_program(algorithm: Any) -> Any:
    """The program of a decision."""
    policy = algorithm.policy(algorithm.init(Spec(3, 2), key=jax.random.key(0)))
    arrays, rest = eqx.partition(policy, eqx.is_array)

    def acting(arrays, observation, key):
        own = eqx.combine(arrays, rest)
        return act(own, observation, budget=algorithm.own_budget, key=key)

    return jax.make_jaxpr(acting)(arrays, jnp.zeros(3), jax.random.key(0))


@pytest.mark.parametrize("name", algorithms.names())
def test_float32_is_asked_for_exactly_in_every_product(name):
    """A GPU would round factors otherwise, which no test on a CPU sees in the results."""
    algorithm = algorithms.build({"name": name, "hidden": (8, 10)})
    here = in_arithmetic(algorithm, "float32")
    for program in (update_program(algorithm), update_program(here), decision_program(algorithm)):
        found = list(products(program.jaxpr))
        assert found
        for equation in found:
            asked = equation.params["precision"]
            assert asked in (jax.lax.Precision.HIGHEST, (jax.lax.Precision.HIGHEST,) * 2), equation


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", algorithms.names())
def test_on_a_cpu_every_product_of_networks_is_one_that_its_library_is_fast_at(
    name: str, arithmetic: Arithmetic
) -> None:
    """x never read column by column, and gradients of weights not of fewer columns than rows.

    Only what is slow would tell it otherwise, and in bfloat16 on processors without it not even
    that. Sums and means by products with vectors are in float32.
    """
    algorithm: Any = in_arithmetic(algorithms.build({"name": name, "hidden": (10, 8)}), arithmetic)
    factors = jnp.bfloat16 if arithmetic == "bfloat16" else jnp.float32
    of_networks = of_weights = 0
    for equation in products(update_program(algorithm).jaxpr):
        x, y = (variable.aval for variable in equation.invars)
        (x_contracted, _), (x_batched, y_batched) = equation.params["dimension_numbers"]
        if y.ndim - len(y_batched) < 2:
            continue
        of_networks += 1
        assert x.dtype == y.dtype == factors, equation
        assert equation.params["preferred_element_type"] == jnp.float32, equation
        columns = x.ndim - len(x_batched) == 2 and x_contracted == (len(x_batched),)
        assert not columns, equation
        if len(x_contracted) == 2:
            of_weights += 1
            rows, columns = equation.outvars[0].aval.shape[-2:]
            assert rows <= columns, equation
    assert of_networks >= 9
    assert of_weights >= 3


@pytest.mark.parametrize("compute", [SHORT_ON_CPU, ON_CPU], ids=["bfloat16", "float32"])
def test_on_a_cpu_gradients_of_weights_with_few_outputs_are_compiled_transposed(
    compute: Compute,
) -> None:
    """Which XLA would undo by itself, see `sorl.arithmetic`."""
    program = jax.jit(compute.weight_gradient).lower(jnp.zeros((64, 48)), jnp.zeros((64, 5)))
    text = program.compile().as_text()
    assert text is not None
    found = re.findall(r"= \w+\[([\d,]+)\]\S* dot\(", text)
    assert found == ["5,48"]


def test_float32_is_the_plain_product(rng):
    x = jnp.asarray(rng.normal(size=(64, 300)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=(300, 40)), jnp.float32)
    exact = np.asarray(x, np.float64) @ np.asarray(weight, np.float64)
    np.testing.assert_allclose(Compute().product(x, weight), exact, rtol=1e-5, atol=1e-4)


def test_gelu_in_bfloat16_is_gelu_and_its_slope_the_derivative(rng):
    x = np.concatenate([rng.normal(size=500) * 3, [0.0, -40.0, 40.0]])
    inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
    expected = x * (1 + np.tanh(inner)) / 2
    single = jnp.asarray(x, jnp.float32)
    np.testing.assert_allclose(SHORT.gelu(single), expected, rtol=1e-5, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda value: SHORT.gelu(value)))(single)
    derivative = (1 + np.tanh(inner)) / 2 + x / 2 * (1 - np.tanh(inner) ** 2) * np.sqrt(
        2 / np.pi
    ) * (1 + 3 * 0.044715 * x**2)
    np.testing.assert_allclose(slope, derivative, rtol=1.01 * ROUNDING, atol=1e-6)


def test_shortened_weights_give_the_same_products(rng):
    network = computing(Linear(30, 20, key=jax.random.key(0)), SHORT)
    x = jnp.asarray(rng.normal(size=30), jnp.float32)
    short = shortened(network)
    assert short.weight.dtype == jnp.bfloat16
    np.testing.assert_array_equal(short(x), network(x))


@pytest.mark.parametrize(
    ("name", "on_gpu"),
    [*((name, False) for name in algorithms.names()), ("sorl", True), ("iql", True)],
)
def test_every_layer_of_every_algorithm_computes_so_and_states_stay_float32(
    name: str, on_gpu: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    algorithm = algorithms.build({"name": name, "hidden": (32, 32)})
    state = jax.jit(lambda key: algorithm.init(SPEC, key=key))(jax.random.key(0))
    assert computes(state)
    assert all(compute == SHORT for compute in computes(computing(state, SHORT)))
    batch, key = batch_of(rng, 32), jax.random.key(1)
    exact, metrics = jax.jit(algorithm.update)(state, batch, jnp.int32(0), key=key)
    with monkeypatch.context() as patch:
        if on_gpu:  # whose kernels are plain functions here
            patch.setattr("sorl.mixed_precision.jax.default_backend", lambda: "gpu")
            patch.setattr("sorl.mixed_precision.kernels.usable", lambda devices: True)
        training = in_arithmetic(algorithm, "bfloat16")
    short, short_metrics = jax.jit(training.update)(state, batch, jnp.int32(0), key=key)
    assert jax.tree.structure(short) == jax.tree.structure(exact)
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(exact), strict=True):
        assert a.dtype == b.dtype
    differs = False
    for metric, value in metrics.items():
        scale = max(abs(float(value)), 0.1)
        assert abs(float(short_metrics[metric] - value)) < 0.1 * scale, metric
        differs |= float(short_metrics[metric]) != float(value)
    assert differs


@pytest.mark.parametrize("image", [None, Image(5, 6, 2)], ids=["state", "pixels"])
@pytest.mark.parametrize("steps", [1, 4])
def test_gradient_through_a_path_is_that_of_plain_differentiation(image, steps, rng):
    size = 3 if image is None else image.size + 3
    spec = Spec(size, 2, image)
    network = ActionNetwork(spec, (16, 8), scalars=2, key=jax.random.key(0))
    observation = jnp.asarray(rng.uniform(0, 255, size=(6, size)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(6, 2)), jnp.float32)

    def loss(ends):
        return jnp.sum(jnp.sin(3 * ends))

    def plain(network):
        return loss(
            jax.vmap(lambda s, x: euler_path(network.bind(s), x, steps=steps))(observation, noise)
        )

    value, gradient = path_value_and_gradient(loss, network, observation, noise, steps=steps)
    expected_value, expected = eqx.filter_value_and_grad(plain)(network)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert jax.tree.structure(gradient) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * float(np.abs(b).max()))


def test_gradient_through_a_path_in_bfloat16_is_near_that_in_float32(rng):
    network = ActionNetwork(SPEC, (32, 32), scalars=2, key=jax.random.key(0))
    observation = jnp.asarray(rng.normal(size=(64, 4)), jnp.float32)
    noise = jnp.asarray(rng.normal(size=(64, 3)), jnp.float32)

    def flat(network):
        _, gradient = path_value_and_gradient(
            lambda ends: jnp.sum(ends**2), network, observation, noise, steps=4
        )
        leaves = jax.tree.leaves(gradient)
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
        return np.concatenate([np.ravel(leaf) for leaf in leaves])

    exact = flat(network)
    for compute in (SHORT, SHORT_ON_CPU):
        short = computing(network, compute)
        short = flat(eqx.tree_at(lambda n: n.mlp, short, shortened(short.mlp)))
        difference = np.linalg.norm(short - exact) / np.linalg.norm(exact)
        print(difference)
        assert 1e-4 < difference < 0.03


def test_training_in_bfloat16_goes_on_bit_for_bit_and_members_stay_apart():
    from test_training import TINY_SORL, assert_same, host, make

    dataset = make((0, 1))
    settings: dict[str, Any] = {"batch_size": 16, "chunk": 5, "arithmetic": "bfloat16"}
    whole = {
        s.update: host(s.state)
        for s in train(TINY_SORL, dataset, seeds=(0, 1), updates=12, **settings)
    }
    *_, half = train(TINY_SORL, dataset, seeds=(0, 1), updates=5, **settings)
    *_, last = train(
        TINY_SORL, dataset, seeds=(0, 1), updates=12, start=(5, half.state), **settings
    )
    assert_same(last.state, whole[12])
    *_, alone = train(TINY_SORL, dataset, seeds=(1,), tasks=(1,), updates=12, **settings)
    one, of_all = (jax.tree.leaves(state.algorithm) for state in (alone.state, last.state))
    for a, b in zip(one, of_all, strict=True):
        np.testing.assert_allclose(a[0], b[3], rtol=1e-2, atol=1e-3)
    *_, exact = train(TINY_SORL, dataset, seeds=(0, 1), updates=12, batch_size=16, chunk=5)
    assert any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(exact.state), jax.tree.leaves(last.state), strict=True)
    )


def test_a_policy_trained_in_bfloat16_finds_the_optimum_and_acts_in_float32():
    """The bar that SORL has to take in float32, see `test_learning`."""
    from test_learning import IMPROVING

    short = in_arithmetic(IMPROVING, "bfloat16")
    actions = probes.uniform_actions(np.random.default_rng(0))
    dataset = probes.bandit(actions, probes.bandit_reward(actions))
    policy = short.policy(one_member.learn(short, dataset, updates=1500))
    assert {c.arithmetic for c in computes(policy)} == {"float32"}
    found = draw(policy, 4)
    distance = np.linalg.norm(found - probes.BANDIT_OPTIMUM, axis=1).mean()
    print(distance, probes.bandit_reward(found).mean())
    assert distance < 0.3
    assert probes.bandit_reward(found).mean() > -0.1


def test_tf32_needs_a_gpu_and_says_so():
    with pytest.raises(InputError, match="tf32 is one of NVIDIA's GPUs"):
        in_arithmetic(SORL(), "tf32")


def test_runs_tell_their_arithmetic_and_are_resumed_with_it(tiny_data: Path, tmp_path: Path):
    job = jobs.Job(
        environment=None,
        data=tiny_data,
        updates=4,
        log_every=2,
        evaluate_every=4,
        batch_size=16,
        fitted_q_updates=0,
        tensorboard=False,
        arithmetic="bfloat16",
    )
    sorl = SORL(hidden=(8, 8), discretization=2, backprop_steps=2)
    run = jobs.start(tmp_path / "short", sorl, job, quiet=True)
    config = json.loads((run.path / "config.json").read_text())
    assert config["training"]["arithmetic"] == "bfloat16"
    assert job_of(config)[0].arithmetic == "bfloat16"
    jobs.resume(run.path, quiet=True)
    plain = dataclasses.replace(job, arithmetic="float32")
    exact = jobs.start(tmp_path / "exact", sorl, plain, quiet=True)
    assert "arithmetic" not in exact.config["training"]
    assert exact.metrics()[-1] != run.metrics()[-1]
    with pytest.raises(InputError, match="tf32"):
        jobs.start(tmp_path / "none", sorl, dataclasses.replace(job, arithmetic="tf32"), quiet=True)
    assert not (tmp_path / "none").exists()


def test_a_word_that_names_no_arithmetic_is_refused():
    with pytest.raises(InputError, match="no arithmetic 'int8': use float32, tf32, bfloat16"):
        check_arithmetic("int8")
