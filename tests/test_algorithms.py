"""What every algorithm promises, tried on each that is found; a new file joins by itself."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from compilations import compilations
from sorl import algorithms, checkpoint, published
from sorl.algorithm import AbstractAlgorithm, AbstractScoredPolicy
from sorl.choices import Choice
from sorl.deployment.policy import Policy, save_policy
from sorl.errors import InputError
from sorl.inference import Strategy, act
from sorl.members import Snapshot, TrainingState, initial_state
from sorl.samplers import draw
from sorl.training import train
from sorl.types import Budget, Spec

NAMES = algorithms.names()
UPDATES = 100
TINY = {"hidden": (16, 16), "actor_hidden": (), "learning_rate": 1e-3}


def tiny(name: str) -> AbstractAlgorithm[Any]:
    """The algorithm with small networks, as far as it has fields for them."""
    known = {field.name for field in dataclasses.fields(algorithms.get(name))}  # pyright: ignore[reportArgumentType]
    return algorithms.get(name)(**{key: TINY[key] for key in TINY if key in known})


class Trained(NamedTuple):
    """Two chunks of training on the two-step problem, two seeds.

    Attributes:
        algorithm: what trained.
        half: the state after the first chunk, on the host.
        snapshot: after the second chunk.
        compiled: what the second chunk compiled.
    """

    algorithm: AbstractAlgorithm[Any]
    half: TrainingState
    snapshot: Snapshot
    compiled: list[str]


SETTINGS = {"seeds": (0, 1), "updates": UPDATES, "batch_size": 32, "chunk": UPDATES // 2}


@pytest.fixture(scope="module", params=NAMES)
def trained(request) -> Trained:
    """Each algorithm after `UPDATES` updates."""
    algorithm = tiny(request.param)
    dataset, _ = probes.two_step(np.random.default_rng(0))
    snapshots = train(algorithm, dataset, **SETTINGS)
    half = jax.tree.map(np.array, next(snapshots).state)
    with compilations() as compiled:
        last = next(snapshots)
    return Trained(algorithm, half, last, compiled)


def member_policy(algorithm: AbstractAlgorithm[Any], snapshot: Snapshot, member: int = 0) -> Any:
    return algorithm.policy(jax.tree.map(lambda leaf: leaf[member], snapshot.state.algorithm))


def test_sorl_is_found():
    assert "sorl" in NAMES
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize("name", NAMES)
class TestHyperparameters:
    def test_frozen_and_hashable(self, name):
        algorithm = algorithms.get(name)()
        field = dataclasses.fields(algorithm)[0].name  # pyright: ignore[reportArgumentType]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(algorithm, field, getattr(algorithm, field))
        assert algorithm == algorithms.get(name)()
        assert hash(algorithm) == hash(algorithms.get(name)())

    def test_name_is_that_of_the_file(self, name):
        algorithm = algorithms.get(name)()
        assert algorithms.name_of(algorithm) == name
        assert Path(inspect.getfile(type(algorithm))).stem == name

    def test_described_and_built_again_through_json(self, name):
        for algorithm in (algorithms.get(name)(), tiny(name)):
            description = json.loads(json.dumps(algorithms.describe(algorithm)))
            assert description["name"] == name
            rebuilt = algorithms.build(description)
            assert rebuilt == algorithm
            assert hash(rebuilt) == hash(algorithm)

    def test_a_hyperparameter_of_another_version_is_refused(self, name):
        description = algorithms.describe(algorithms.get(name)()) | {"warp_factor": 9}
        with pytest.raises(InputError, match="warp_factor"):
            algorithms.build(description)

    def test_presets_name_real_fields_and_make_an_algorithm(self, name):
        found = algorithms.get(name)
        known = {field.name for field in dataclasses.fields(found)}  # pyright: ignore[reportArgumentType]
        for dataset, values in found.presets.items():
            assert set(values) <= known, dataset
            assert algorithms.preset(name, f"{dataset}-v0") == dict(values)
            assert found(**values) == algorithms.build({"name": name, **values})
        assert algorithms.preset(name, "no-such-data-v0") == {}

    def test_a_word_that_is_no_choice_is_refused(self, name):
        hints = typing.get_type_hints(algorithms.get(name))
        for field in dataclasses.fields(algorithms.get(name)):  # pyright: ignore[reportArgumentType]
            choices = typing.get_args(hints[field.name])
            if typing.get_origin(hints[field.name]) is Literal:
                for choice in choices:
                    algorithms.get(name)(**{field.name: choice})
                # Built otherwise, the tests' own type checks would refuse it first.
                algorithm = algorithms.get(name)()
                object.__setattr__(algorithm, field.name, "median")
                with pytest.raises(InputError, match=rf"{field.name}='median' .*{choices[-1]}"):
                    algorithm.__post_init__()  # pyright: ignore[reportAttributeAccessIssue]

    def test_documented(self, name):
        assert sys.modules[algorithms.get(name).__module__].__doc__
        assert algorithms.get(name).__doc__


def test_state_and_metrics_are_finite_after_100_updates(trained):
    snapshot = trained.snapshot
    assert snapshot.update == UPDATES
    assert not snapshot.stopped
    for leaf in jax.tree.leaves(snapshot.state):
        assert np.isfinite(np.asarray(leaf)).all()
    for name, value in snapshot.metrics.items():
        assert value.shape == (2,), name
        assert np.isfinite(value).all(), name


def test_the_second_chunk_compiles_nothing(trained):
    assert not trained.compiled


def test_metrics_are_named_network_by_network(trained):
    """The trainer watches `critic/loss` for explosions; reports put curves of one name together."""
    algorithm, _, snapshot, _ = trained
    networks = {name.partition("/")[0] for name in snapshot.metrics}
    assert networks <= {"actor", "critic", "value", "behaviour"}
    for network in networks:
        assert {f"{network}/loss", f"{network}/gradient_norm"} <= set(snapshot.metrics)
    if isinstance(member_policy(algorithm, snapshot), AbstractScoredPolicy):
        assert {"critic/loss", "critic/q"} <= set(snapshot.metrics)


def test_training_goes_on_from_a_checkpoint_bit_for_bit(trained, tmp_path):
    algorithm, half, snapshot, _ = trained
    dataset, _ = probes.two_step(np.random.default_rng(0))
    checkpoint.save(tmp_path, UPDATES // 2, half, {})
    like = eqx.filter_eval_shape(initial_state, algorithm, dataset.spec, snapshot.members)
    restored, _ = checkpoint.restore(tmp_path, like)
    *_, last = train(algorithm, dataset, **SETTINGS, start=(UPDATES // 2, restored))
    assert last.update == snapshot.update
    for name, value in snapshot.metrics.items():
        np.testing.assert_array_equal(last.metrics[name], value)
    for again, once in zip(
        jax.tree.leaves(last.state), jax.tree.leaves(snapshot.state), strict=True
    ):
        np.testing.assert_array_equal(again, once)


def test_a_released_policy_acts_as_the_trained_one(trained, tmp_path):
    algorithm, _, snapshot, _ = trained
    module = member_policy(algorithm, snapshot, member=1)
    save_policy(
        tmp_path / "policy",
        module,
        algorithm=algorithm,
        spec=Spec(3, 2),
        member=snapshot.members[1],
        update=UPDATES,
        provenance={},
    )
    policy = Policy.load(tmp_path / "policy")
    assert policy.algorithm == algorithm
    budget = algorithm.default_budget
    expected = act(module, jnp.asarray(probes.STATES[0]), budget=budget, key=jax.random.key(4))
    for chosen in ({}, dataclasses.asdict(budget)):
        action = policy.act(probes.STATES[0], **chosen, key=4)
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_training_moves_parameters_and_seeds_differ(trained):
    algorithm, _, snapshot, _ = trained
    dataset, _ = probes.two_step(np.random.default_rng(0))
    fresh = algorithm.init(dataset.spec, key=jax.random.key(0))
    assert jax.tree.structure(fresh) == jax.tree.structure(snapshot.state.algorithm)
    for new, one in zip(
        jax.tree.leaves(snapshot.state.algorithm), jax.tree.leaves(fresh), strict=True
    ):
        assert new.shape == (2, *one.shape)
        assert new.dtype == one.dtype
    before = initial_state(algorithm, dataset.spec, snapshot.members).algorithm
    weights = 0
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(snapshot.state.algorithm), strict=True
    ):
        if jax.tree_util.keystr(path).endswith(".weight"):
            weights += 1
            for member in (0, 1):
                assert not np.array_equal(old[member], new[member]), jax.tree_util.keystr(path)
    assert weights
    policies = [jax.tree.leaves(member_policy(algorithm, snapshot, member)) for member in (0, 1)]
    assert any(not np.array_equal(a, b) for a, b in zip(*policies, strict=True))


def test_an_update_of_mapped_members_equals_each_alone(trained):
    """No member's gradient sees another member."""
    algorithm, _, snapshot, _ = trained
    states = snapshot.state.algorithm
    dataset, _ = probes.two_step(np.random.default_rng(0))
    keys = jax.random.split(jax.random.key(3), 2)
    batches = jax.vmap(lambda key: dataset.sample(key, 0, 16))(keys)
    index = jnp.int32(UPDATES)

    def update(state: Any, batch: Any, key: Any, index: Any) -> Any:
        return algorithm.update(state, batch, index, key=key)

    together, metrics = jax.jit(jax.vmap(update, in_axes=(0, 0, 0, None)))(
        states, batches, keys, index
    )
    alone = jax.jit(update)
    for member in (0, 1):
        one = jax.tree.map(lambda leaf, i=member: leaf[i], (states, batches, keys))
        state, one_metrics = alone(*one, index)
        for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(state), strict=True):
            np.testing.assert_allclose(a[member], b, rtol=2e-3, atol=1e-5)
        assert dict(metrics).keys() == dict(one_metrics).keys()
        for name, value in one_metrics.items():
            np.testing.assert_allclose(metrics[name][member], value, rtol=1e-3, atol=1e-5)


def test_actions_are_in_range_and_the_default_budget_can_be_served(trained):
    algorithm, _, snapshot, _ = trained
    policy = member_policy(algorithm, snapshot)
    budget = algorithm.default_budget
    policy.check_steps(budget.steps)
    keys = jax.random.split(jax.random.key(0), 64)
    actions = np.asarray(
        jax.vmap(lambda key: act(policy, jnp.asarray(probes.STATES[0]), budget=budget, key=key))(
            keys
        )
    )
    assert actions.shape == (64, 2)
    assert (np.abs(actions) <= 1).all()


@pytest.mark.parametrize(
    ("name", "own", "budget"),
    [
        ("idql", {"diffusion_steps": 5}, Budget(5, 32)),
        ("cac", {"sampling_steps": 1, "noise_levels": 2}, Budget(1, 1)),
        ("cac", {"sampling_steps": 4}, Budget(4, 1)),
        ("fbrac", {"flow_steps": 3}, Budget(3, 1)),
        ("fawac", {"flow_steps": 3}, Budget(3, 1)),
    ],
)
def test_a_method_acts_by_itself_in_the_steps_that_it_learnt_to_act_in(
    name: str, own: dict[str, int], budget: Budget
) -> None:
    kind: Any = algorithms.get(name)
    assert kind().own_budget == kind.default_budget
    algorithm = kind(hidden=(4,), **own)
    assert algorithm.own_budget == budget
    policy = algorithm.policy(algorithm.init(Spec(3, 2), key=jax.random.key(0)))
    policy.check_steps(budget.steps)


def test_all_that_is_random_in_an_action_is_its_noise(trained):
    algorithm, _, snapshot, _ = trained
    policy = member_policy(algorithm, snapshot)
    for steps in {1, algorithm.default_budget.steps}:
        for index in range(4):
            key = jax.random.key(index)
            noise = jax.random.normal(key, policy.noise_shape(steps))
            state = jnp.asarray(probes.STATES[0])
            drawn = policy.sample(state, steps=steps, key=key)
            np.testing.assert_array_equal(policy.from_noise(state, noise, steps=steps), drawn)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_best_of_n_for_a_batch_equals_one_by_one(trained, batch):
    """Every candidate is scored against the observation that it was drawn for."""
    algorithm, _, snapshot, _ = trained
    policy = member_policy(algorithm, snapshot)
    if not isinstance(policy, AbstractScoredPolicy):
        pytest.skip("this algorithm has no verifier")
    budget = Budget(algorithm.default_budget.steps, 5)
    rng = np.random.default_rng(batch)
    observations = jnp.asarray(rng.normal(size=(batch, 3)), jnp.float32)
    keys = jax.random.split(jax.random.key(batch), batch)
    arg_max = Strategy(choice=Choice("best"))
    together = jax.vmap(lambda s, key: act(policy, s, budget=budget, strategy=arg_max, key=key))(
        observations, keys
    )
    for i in range(batch):
        drawn = draw(policy, observations[i], budget=budget, key=keys[i])
        scores = [
            float(policy.score(observations[i], action, steps=budget.steps)) for action in drawn
        ]
        np.testing.assert_allclose(together[i], drawn[int(np.argmax(scores))], atol=1e-5)


# Published values ------------------------------------------------------------------------

# What the papers tell, of the baselines FQL's (arXiv 2502.02538); values of ours are left out.
COMMON = {
    "hidden": (512,) * 4, "learning_rate": 3e-4, "discount": 0.99, "target_rate": 0.005,
}  # fmt: skip
PUBLISHED: dict[str, dict[str, Any]] = {
    "bc": {},
    "iql": {"expectile": 0.9, "inverse_temperature": 10.0},
    "rebrac": {
        "actor_penalty": 0.01, "critic_penalty": 0.01, "target_noise": 0.2,
        "target_noise_clip": 0.5, "policy_delay": 2,
    },
    "idql": {"expectile": 0.9, "diffusion_steps": 10},
    "srpo": {"expectile": 0.9},
    "cac": {},
    "fawac": {"flow_steps": 10},
    "fbrac": {"flow_steps": 10},
    "ifql": {"expectile": 0.9},
    "fql": {"flow_steps": 10, "normalise_q": False},
    "sorl": {
        "discretization": 8, "backprop_steps": 8, "learning_rate": 1e-4, "max_gradient_norm": 1.0,
        "flow_matching_coef": 10.0, "self_consistency_coef": 10.0, "critic_sees_steps": True,
    },
}  # fmt: skip
OF_ENVIRONMENTS: dict[str, dict[str, dict[str, float]]] = {
    "iql": {"humanoidmaze-medium-navigate": {"inverse_temperature": 10.0}},
    "rebrac": {
        "humanoidmaze-medium-navigate": {"actor_penalty": 0.01, "critic_penalty": 0.01},
        "antmaze-giant-navigate": {"actor_penalty": 0.003, "critic_penalty": 0.01},
    },
    "sorl": {
        "antmaze-large-navigate": {"q_loss_coef": 500.0},
        "antmaze-giant-navigate": {"q_loss_coef": 500.0},
        "humanoidmaze-medium-navigate": {"q_loss_coef": 100.0},
        "humanoidmaze-large-navigate": {"q_loss_coef": 500.0},
        "antsoccer-arena-navigate": {"q_loss_coef": 500.0},
        "cube-single-play": {"q_loss_coef": 10.0},
        "cube-double-play": {"q_loss_coef": 50.0},
        "scene-play": {"q_loss_coef": 100.0},
    },
}
# Of every method that has the field: smaller discounts nowhere, the minimum in two ant mazes.
DISCOUNT_0995 = {
    "antmaze-giant-navigate", "humanoidmaze-medium-navigate", "humanoidmaze-large-navigate",
    "antsoccer-arena-navigate",
}  # fmt: skip
MINIMUM = {"antmaze-large-navigate", "antmaze-giant-navigate"}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_values_are_the_defaults_and_those_of_the_environments(name):
    used = algorithms.describe(algorithms.get(name)())
    for field, value in {**COMMON, **PUBLISHED[name]}.items():
        assert used.get(field, value) == value, field
    assert set(PUBLISHED[name]) <= set(used)
    best_of = {"idql": 32, "ifql": 32}.get(name, 1)
    assert algorithms.get(name).default_budget.best_of == best_of
    for environment in published.ENVIRONMENTS:
        values = algorithms.preset(name, f"{environment}-v0")
        for field, value in OF_ENVIRONMENTS.get(name, {}).get(environment, {}).items():
            assert {**used, **values}[field] == value, environment
        if "discount" in used:
            discount = 0.995 if environment in DISCOUNT_0995 else 0.99
            assert {**used, **values}["discount"] == discount, environment
        if "target_aggregation" in used:
            combined = "min" if environment in MINIMUM else "mean"
            assert {**used, **values}["target_aggregation"] == combined, environment


def made_of(kind: type[AbstractAlgorithm[Any]], **values: Any) -> AbstractAlgorithm[Any]:
    """As users make it, without the types that these tests have checked at every call."""
    made = object.__new__(kind)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        object.__setattr__(made, field.name, values.get(field.name, field.default))
    made.__post_init__()  # pyright: ignore[reportAttributeAccessIssue]
    return made


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_hyperparameters_become_plain_values(name):
    kind = algorithms.get(name)
    usual = kind()
    given = {
        field: list(map(np.int64, value))
        if isinstance(value, tuple)
        else np.asarray(value)[()]
        if isinstance(value, bool | int | float)
        else value
        for field, value in algorithms.describe(usual).items()
        if field != "name"
    }
    made = made_of(kind, **given)
    assert made == usual
    assert hash(made) == hash(usual)
    assert json.dumps(algorithms.describe(made)) == json.dumps(algorithms.describe(usual))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_values_of_another_type_are_refused(name):
    kind = algorithms.get(name)
    for field, value in algorithms.describe(kind()).items():
        if isinstance(value, tuple | list):
            wrong = [8, "88", (8.5,), ("8",), None]
        elif isinstance(value, bool):
            wrong = [1, "True", None]
        elif isinstance(value, int):
            wrong = [float(value), value + 0.5, str(value), True, None, (value,)]
        elif isinstance(value, float):
            wrong = [str(value), None, True, (value,)]
        else:
            continue
        for one in wrong:
            with pytest.raises(InputError, match=f"{field}=.* must be"):
                made_of(kind, **{field: one})
    if "target_rate" in algorithms.describe(kind()):
        made_of(kind, target_rate=1.0)
        for rate in (0.0, 1.5, math.nan):
            with pytest.raises(InputError, match="at most 1"):
                made_of(kind, target_rate=rate)


# Discovery ---------------------------------------------------------------------------------

NEWCOMER = '''
"""A policy that does nothing."""
import dataclasses
from typing import ClassVar
import jax.numpy as jnp
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
from sorl.types import Budget

class Still(AbstractPolicy):
    """Stands still."""
    def noise_shape(self, steps):
        return (2,)
    def from_noise(self, observation, noise, *, steps):
        return jnp.zeros(2)
    def check_steps(self, steps):
        pass

@dataclasses.dataclass(frozen=True)
class DoNothing(AbstractAlgorithm):
    """Nothing."""
    presets: ClassVar = {}
    default_budget: ClassVar = Budget(1, 1)
    patience: float = 1.0
    def init(self, spec, *, key):
        return {"step": jnp.zeros(())}
    def update(self, state, batch, update_index, *, key):
        return {"step": state["step"] + 1}, {"actor/loss": jnp.mean(batch.action)}
    def policy(self, state):
        return Still()
'''


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A second folder of algorithms beside the library's."""
    monkeypatch.setattr(algorithms, "__path__", [*algorithms.__path__, str(tmp_path)])
    algorithms.get.cache_clear()
    yield tmp_path
    algorithms.get.cache_clear()
    for name in ("newcomer", "_private", "two", "none"):
        sys.modules.pop(f"{algorithms.__name__}.{name}", None)


def test_a_new_file_joins_by_itself(folder):
    (folder / "newcomer.py").write_text(NEWCOMER)
    (folder / "_private.py").write_text(NEWCOMER)
    assert algorithms.names() == sorted([*NAMES, "newcomer"])
    algorithm = algorithms.build({"name": "newcomer", "patience": 2.0})
    assert type(algorithm) is algorithms.get("newcomer")
    assert algorithms.describe(algorithm) == {"name": "newcomer", "patience": 2.0}
    dataset, _ = probes.two_step(np.random.default_rng(0))
    *_, last = train(algorithm, dataset, seeds=(0,), updates=3, batch_size=4, chunk=2)
    assert last.state.algorithm["step"].tolist() == [3.0]


@pytest.mark.parametrize(
    ("name", "text"),
    [("none", '"""Nothing here."""'), ("two", NEWCOMER + "\nclass B(DoNothing):\n    pass\n")],
)
def test_a_file_must_hold_exactly_one_algorithm(folder, name, text):
    (folder / f"{name}.py").write_text(text)
    with pytest.raises(TypeError, match="exactly one"):
        algorithms.get(name)


def test_private_helpers_beside_it_do_not_count(folder):
    (folder / "newcomer.py").write_text(NEWCOMER + "\nclass _Half(DoNothing):\n    pass\n")
    assert algorithms.get("newcomer").__name__ == "DoNothing"
    assert algorithms.description_of("newcomer") == "A policy that does nothing."


def test_what_is_no_hyperparameter_must_not_be_a_field(folder):
    text = NEWCOMER.replace("default_budget: ClassVar", "default_budget: object")
    (folder / "newcomer.py").write_text(text)
    with pytest.raises(TypeError, match="must declare default_budget as ClassVar"):
        algorithms.get("newcomer")


@pytest.mark.parametrize(
    ("wrong", "meant"), [("sorll", "sorl"), ("rebrack", "rebrac"), ("SORL", None)]
)
def test_unknown_names_bring_suggestions(wrong, meant):
    with pytest.raises(InputError, match="choose one of") as caught:
        algorithms.get(wrong)
    assert "sorl" in str(caught.value)
    if meant:
        assert f"Did you mean {meant!r}?" in str(caught.value)
    with pytest.raises(InputError):
        algorithms.build({"name": wrong})


def test_a_description_without_a_name_is_refused():
    with pytest.raises(InputError):
        algorithms.build({"hidden": [4]})


def test_spec_of_init_decides_the_sizes():
    """Initial states of every algorithm exist for the smallest problem there is."""
    for name in NAMES:
        shapes = jax.eval_shape(
            lambda key, name=name: tiny(name).init(Spec(1, 1), key=key), jax.random.key(0)
        )
        assert jax.tree.leaves(shapes)
