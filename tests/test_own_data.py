"""Own data from import to export: policies act in the user's units wherever they act."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import logs
import sorl
from one_member import same
from run_fixtures import tiny, tiny_data, tiny_folder  # noqa: F401
from sorl import algorithms, checkpoint, cli, inference, jobs
from sorl.algorithm import in_units
from sorl.algorithms.bc import BC
from sorl.data.importing import import_files
from sorl.data.mixtures import mix, split_weight
from sorl.data.sources import load_dataset
from sorl.deployment.card import write_card
from sorl.deployment.export.exporting import Format, export
from sorl.deployment.export.numpy_policy import Policy as NumpyPolicy
from sorl.deployment.storage import SavedPolicy, save_policy
from sorl.errors import InputError
from sorl.fitted_q import Evidence, fitted_q
from sorl.jobs import Job, restore_policies
from sorl.jobs.finetuning import like_of
from sorl.jobs.work import load_data
from sorl.members import initial_state
from sorl.off_policy import evaluate_off_policy
from sorl.runs import Run
from sorl.training import train
from sorl.types import Budget, Member, Spec
from sorl.units import USUAL, Units


def f32(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32)


UNITS = Units(
    action_low=(-2.0, 10.0, 7.5),
    action_high=(6.0, 11.0, 7.5),
    observation_mean=(50.0, 40.0, -3.0),
    observation_scale=(2.0, 0.5, 1.0),
)
LOW, HIGH = f32(UNITS.action_low), f32(UNITS.action_high)

finite = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(
    bounds=st.lists(st.tuples(finite, finite), min_size=1, max_size=4),
    data=st.data(),
)
def test_the_action_map_and_its_inverse(
    bounds: list[tuple[float, float]], data: st.DataObject
) -> None:
    low, high = (tuple(f(pair) for pair in bounds) for f in (min, max))
    units = Units(low, high)
    shares = data.draw(st.lists(st.floats(0, 1), min_size=len(low), max_size=len(low)))
    actions = np.array(
        [min(max(a + s * (b - a), a), b) for s, a, b in zip(shares, low, high, strict=True)],
        np.float32,
    )
    inside = units.network_actions(actions)
    assert (np.abs(inside) <= 1 + 1e-5).all()
    back = units.to_user_arrays(inside)
    np.testing.assert_allclose(
        back, actions, rtol=3e-7, atol=3e-7 * np.abs([low, high]).max() + 1e-37
    )
    np.testing.assert_allclose(
        np.asarray(units.to_user(jnp.asarray(inside))),
        back,
        rtol=1e-6,
        atol=1e-6 * np.abs([low, high]).max() + 1e-37,
    )
    # The ends come back exactly, and nothing ever leaves the range.
    for end, bound in ((-1, low), (1, high)):
        ends = np.full(len(low), end, np.float32)
        np.testing.assert_array_equal(units.to_user_arrays(ends), f32(bound))
        np.testing.assert_array_equal(np.asarray(units.to_user(jnp.asarray(ends))), f32(bound))
    nowhere = units.to_user_arrays(f32([np.nan] * len(low)))
    assert np.isnan(nowhere).all(), "what is no number must not become a bound"
    far = units.to_user_arrays(f32([100] * len(low)))
    np.testing.assert_array_equal(far, f32(high))
    assert Units.parse(units.describe()) == units


@given(
    pairs=st.lists(st.tuples(finite, finite, st.floats(0.01, 100)), min_size=1, max_size=4),
)
def test_the_observation_map_and_its_inverse(pairs: list[tuple[float, float, float]]) -> None:
    user, mean, scale = (f32(column) for column in zip(*pairs, strict=True))
    units = Units(observation_mean=tuple(mean.tolist()), observation_scale=tuple(scale.tolist()))
    back = units.user_observations(units.network_observations(user))
    assert back.dtype == np.float32
    np.testing.assert_allclose(back, user, rtol=1e-6, atol=1e-6 * float(np.abs([user, mean]).max()))
    assert USUAL.user_observations(user) is user


def test_units_refuse_what_makes_no_sense() -> None:
    for wrong in (
        {"action_low": (0.0,), "action_high": ()},
        {"action_low": (1.0,), "action_high": (0.0,)},
        {"action_low": (float("nan"),), "action_high": (0.0,)},
        {"observation_mean": (1.0,), "observation_scale": (0.0,)},
        {"observation_mean": (1e300,), "observation_scale": (1.0,)},
    ):
        with pytest.raises(InputError):
            Units(**wrong)
    for garbled in ({}, {"action_low": [1]}, {**(UNITS.describe() or {}), "action_low": "x"}):
        with pytest.raises(InputError, match="garbled"):
            Units.parse(garbled)
    assert Units.parse(None) == USUAL
    assert USUAL.describe() is None


ALGORITHM = sorl.SORL(hidden=(8, 8), discretization=4, backprop_steps=2)
SPEC = Spec(3, 3)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[sorl.Policy, sorl.Policy]:
    """The same networks without and with units."""
    root = tmp_path_factory.mktemp("pair")
    bare = ALGORITHM.policy(ALGORITHM.init(SPEC, key=jax.random.key(3)))
    for name, policy in (("bare", bare), ("user", in_units(bare, UNITS))):
        save_policy(
            root / name,
            policy,
            algorithm=ALGORITHM,
            spec=SPEC,
            member=Member(0, 0),
            update=1,
            provenance={},
        )
    write_card(root / "user", [])
    assert "[-2, 6], [10, 11], [7.5, 7.5]" in (root / "user" / "README.md").read_text()
    return sorl.Policy.load(root / "bare"), sorl.Policy.load(root / "user")


def test_policies_act_in_the_users_units(
    pair: tuple[sorl.Policy, sorl.Policy], rng: np.random.Generator
) -> None:
    bare, user = pair
    assert user.units == UNITS
    observations = rng.normal(50, 20, (16, 3)).astype(np.float32)
    seen = (observations - f32(UNITS.observation_mean)) * (1 / f32(UNITS.observation_scale))
    for best_of in (1, 6):
        acted = user.act(observations, steps=2, best_of=best_of, key=0)
        within = bare.act(seen, steps=2, best_of=best_of, key=0)
        expected = LOW + (HIGH - LOW) * (within.astype(np.float64) + 1) / 2
        np.testing.assert_allclose(acted, expected, atol=2e-4)
        assert (acted >= LOW).all()
        assert (acted <= HIGH).all()
    told, bare_told = (
        policy.act_info(given, steps=2, best_of=6, key=0)
        for policy, given in ((user, observations), (bare, seen))
    )
    np.testing.assert_array_equal(told.chosen, bare_told.chosen)
    np.testing.assert_array_equal(told.action, user.act(observations, steps=2, best_of=6, key=0))
    np.testing.assert_allclose(told.scores, bare_told.scores, atol=1e-4)
    np.testing.assert_array_equal(told.candidates[..., 2], f32(7.5))


@pytest.mark.parametrize("format", ["numpy", "onnx", "stablehlo"])
def test_exports_end_at_exactly_the_bounds(
    format: Format, pair: tuple[sorl.Policy, sorl.Policy], tmp_path: Path
) -> None:
    low, high = (-2.0, -0.5, -1.1), (2.7, 0.8, 1.0)
    units = Units(low, high)
    assert (units.middle - units.half_width > f32(low)).all(), "arithmetic would do"
    assert (units.middle + units.half_width < f32(high)).all(), "arithmetic would do"
    bare, _ = pair
    saved = SavedPolicy(in_units(bare.module, units), ALGORITHM, SPEC, Member(0, 0), 1, {})
    user = sorl.Policy(saved, random_seed=0)
    export(user, tmp_path / "out", format=format, budgets=[Budget(2, 4)])
    module: Any = __import__(f"sorl.deployment.export.{format}_format", fromlist=["load"])
    from sorl.deployment.export.graphs import Graph

    noise = 1e4 * np.random.default_rng(1).normal(size=(5, 4, 3)).astype(np.float32)
    answer = module.load(tmp_path / "out")(Graph(2, chooses=True), np.zeros((5, 3), "f4"), noise)
    inside = jax.vmap(jax.vmap(lambda z: bare.module.from_noise(jnp.zeros(3), z, steps=2)))(
        jnp.asarray(noise)
    )
    for end, bound in ((-1, low), (1, high)):
        there = np.asarray(inside) == end
        assert there.any(axis=(0, 1)).all()
        np.testing.assert_array_equal(
            answer.candidates[there], np.broadcast_to(f32(bound), there.shape)[there]
        )


@pytest.mark.parametrize("format", ["numpy", "onnx", "stablehlo"])
def test_exports_act_in_the_users_units(
    format: Format, pair: tuple[sorl.Policy, sorl.Policy], tmp_path: Path
) -> None:
    _, user = pair
    manifest = export(user, tmp_path / "out", format=format, budgets=[Budget(2, 1), Budget(2, 4)])
    assert manifest["format"] == 2
    assert manifest["units"]["action_low"] == [-2, 10, 7.5]
    rng = np.random.default_rng(1)
    observations = rng.normal(50, 2, (5, 3)).astype(np.float32)
    noise = rng.normal(size=(5, 4, 3)).astype(np.float32)
    module: Any = __import__(f"sorl.deployment.export.{format}_format", fromlist=["load"])
    from sorl.deployment.export.graphs import Graph

    run = module.load(tmp_path / "out")
    seen = jax.vmap(UNITS.to_network)(jnp.asarray(observations))
    for graph in (Graph(2, chooses=False), Graph(2, chooses=True)):
        given = noise if graph.chooses else noise[:, :1]
        answer = run(graph, observations, given)
        inside = jax.vmap(
            lambda s, zs: jax.vmap(lambda z: user.module.from_noise(s, z, steps=2))(zs)
        )(seen, jnp.asarray(given))
        expected = LOW + (HIGH - LOW) * (np.asarray(inside, np.float64) + 1) / 2
        np.testing.assert_allclose(answer.candidates, expected, atol=2e-4)
        away = np.abs(answer.action[:, None] - answer.candidates).max(axis=2).min(axis=1)
        assert (away < 1e-6).all()
    if format == "numpy":
        acted = NumpyPolicy(tmp_path / "out").act(observations, steps=2, best_of=4)
        assert ((acted >= LOW) & (acted <= HIGH)).all()


def test_files_without_units_are_what_they_were(
    pair: tuple[sorl.Policy, sorl.Policy], tmp_path: Path
) -> None:
    from sorl import files

    bare, _ = pair
    save_policy(
        tmp_path / "p",
        bare.module,
        algorithm=ALGORITHM,
        spec=SPEC,
        member=Member(0, 0),
        update=1,
        provenance={},
    )
    description = files.read_json(tmp_path / "p" / "policy.json")
    assert description["format"] == 1
    assert "units" not in description


# Whole runs without an environment.


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demonstrations written by h5py, imported and trained without an environment."""
    root = tmp_path_factory.mktemp("own")
    path = logs.write_robomimic(root / "demos.hdf5", logs.episodes((6, 5) * 10))
    assert cli.run(f"import {path} --out {root / 'mine'} --standardize".split()) == 0
    command = f"""
        train sorl --data {root / "mine.npz"} --out {root / "run"} --updates 40 --log-every 20
        --evaluate-every 20 --hidden 8 8 --discretization 2 --backprop-steps 2 --batch-size 16
        --seeds 2 --budgets 1x1 --checkpoint-seconds 0 --fitted-q-updates 50 --tensorboard False
    """
    assert cli.run(command.split()) == 0
    return root


def test_a_run_without_environment_acts_and_exports(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset(data=trained / "mine.npz")
    policy = sorl.Policy.load(trained / "run", seed=1)
    assert policy.units == dataset.units
    observation = logs.episodes()[0].observations[:3]
    acted = policy.act(observation, steps=2, best_of=2, key=0)
    low, high = f32(policy.units.action_low), f32(policy.units.action_high)
    assert ((acted >= low) & (acted <= high)).all()
    assert (acted[:, 2] == 7.5).all()
    command = f"export {trained / 'run'} --format numpy --out {tmp_path / 'out'} --budgets 1x1 2x2"
    assert cli.run(command.split()) == 0
    exported = NumpyPolicy(tmp_path / "out").act(observation, steps=2, best_of=2)
    assert ((exported >= low) & (exported <= high)).all()
    # Checkpoints give the same policies in the same units.
    policies, members = restore_policies(Run.open(trained / "run"), 40)
    assert policies.units == dataset.units
    assert members == (Member(0, 0), Member(0, 1))


def test_what_the_data_say_is_written_and_reported(trained: Path, tmp_path: Path) -> None:
    run = Run.open(trained / "run")
    rows = run.off_policy()
    assert [(row["update"], row["seed"]) for row in rows] == [(20, 0), (20, 1), (40, 0), (40, 1)]
    for row in rows:
        assert row["held_out_episodes"] == 2  # a tenth of twenty
        for name in ("held_out/critic/loss", "held_out/actor/flow_matching_loss", "return/data"):
            assert np.isfinite(float(row[name]))
        for split in ("held_out", "training"):
            assert 0 < float(row[f"{split}/action_error"]) < 2
            assert np.isfinite(float(row[f"{split}/q_policy"]))
    assert cli.run(["report", str(trained / "run"), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Off-policy evaluation" in page
    assert "no policy has acted" in page
    assert "fitted_q/policy" in page


def test_off_policy_figures_equal_plain_computation(trained: Path) -> None:
    run = Run.open(trained / "run")
    row = run.off_policy()[-1]  # seed 1, update 40
    training, held_out = load_dataset(data=trained / "mine.npz").split(0.1, seed=0)
    assert held_out is not None
    rows = np.asarray(held_out.valid_rows)
    policy = in_units(sorl.Policy.load(trained / "run", seed=1).module, USUAL)
    keys = jax.random.split(jax.random.split(jax.random.key(0), 4)[1], len(rows))
    errors, values, of_acted = [], [], []
    for key, place in zip(keys, rows, strict=True):
        observation, logged = held_out.observations[place], held_out.actions[place]
        acted = inference.act(policy, observation, budget=ALGORITHM.default_budget, key=key)
        errors.append(np.abs(np.asarray(acted - logged)))
        values.append(float(policy.score(observation, logged, steps=4)))  # pyright: ignore[reportAttributeAccessIssue]
        of_acted.append(float(policy.score(observation, acted, steps=4)))  # pyright: ignore[reportAttributeAccessIssue]
    assert float(row["held_out/action_error"]) == pytest.approx(np.mean(errors), rel=1e-4)
    assert float(row["held_out/q_policy"]) == pytest.approx(np.mean(of_acted), rel=1e-3, abs=1e-5)
    assert abs(np.mean(of_acted) - np.mean(values)) > 1e-3 * abs(np.mean(values)) + 1e-5
    assert float(row["held_out/q_data"]) == pytest.approx(np.mean(values), rel=1e-3, abs=1e-5)
    starts = held_out.starts
    returns = []
    for start in starts:
        total, factor, place = 0.0, 1.0, int(start)
        while not held_out.ends[place]:
            total += factor * float(held_out.rewards[0, place])
            if not held_out.masks[0, place]:
                break
            factor, place = 0.99 * factor, place + 1
        returns.append(total)
    assert float(row["return/data"]) == pytest.approx(np.mean(returns), rel=1e-5)
    assert not set(rows) & set(np.asarray(training.valid_rows).tolist())


def test_a_run_without_environment_learns_from_the_other_episodes_alone(
    tiny: None,  # noqa: F811
    tiny_data: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    """What it ends with is, bit for bit, what training on them by hand ends with."""
    algorithm = algorithms.get("tiny")()
    job = Job(
        environment=None,
        data=tiny_data,
        seeds=(0, 3),
        updates=5,
        batch_size=6,
        log_every=2,
        evaluate_every=4,
        budgets=(Budget(1, 1),),
        held_out=0.5,
        evaluation_seed=3,  # holds the other one of the two episodes out than 0 does
        fitted_q_updates=0,
        tensorboard=False,
    )
    run = jobs.start(tmp_path / "run", algorithm, job, quiet=True)
    dataset = load_data(job)
    assert isinstance(dataset, sorl.Dataset)
    training, held_out = dataset.split(0.5, seed=3)
    assert held_out is not None
    *_, last = train(algorithm, training, seeds=(0, 3), updates=5, batch_size=6, chunk=2)
    state, metadata = checkpoint.restore(run.checkpoints, like_of(run.config))
    assert metadata["update"] == 5
    assert same(state, last.state)


def test_an_interrupted_run_without_environment_goes_on_alike(
    trained: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(trained / "run", tmp_path / "copy"))
    expected = (copy / "off_policy.csv").read_bytes()
    lines = expected.splitlines(keepends=True)
    (copy / "off_policy.csv").write_bytes(b"".join(lines[:-1]))  # the last row is missing
    assert cli.run(["resume", str(copy)]) == 0
    assert (copy / "off_policy.csv").read_bytes() == expected


def test_fitted_q_on_a_walk_with_known_values() -> None:
    """States 0 to 5 in a row; +1 or -1 by the action's sign; reward 1 at the end of the walk."""
    rng = np.random.default_rng(0)
    state, action = rng.integers(0, 5, 4000), rng.uniform(-1, 1, 4000)
    after = np.clip(state + np.where(action > 0, 1, -1), 0, 5)
    reward, mask = (after == 5).astype(np.float32), (after != 5).astype(np.float32)
    hot = np.eye(6, dtype=np.float32)
    forward = np.full((4000, 1), 0.6, np.float32)
    random = rng.uniform(-1, 1, (4000, 1)).astype(np.float32)
    # Where nothing is known of the next action, what stands there must not matter.
    usable = np.arange(4000) < 3000
    forward[~usable], random[~usable], reward[~usable] = -50, 50, 5
    evidence = Evidence(
        observations=jnp.asarray(hot[state]),
        actions=jnp.asarray(action[:, None], jnp.float32),
        next_observations=jnp.asarray(hot[after]),
        rewards=jnp.asarray([reward, 10 * reward]),
        masks=jnp.asarray([mask, mask]),
        next_actions=jnp.asarray([forward, random]),
        usable=jnp.asarray([usable, usable]),
        scale=jnp.asarray([1.0, 10.0]),
        starts=jnp.asarray(hot[:1]),
        start_actions=jnp.asarray([[[0.6]], [[0.6]]], jnp.float32),
    )
    found = fitted_q(evidence, discount=0.9, updates=1500, key=jax.random.key(0))
    # Always forward: five steps. At random: by the linear equations of the chain.
    moves = np.zeros((5, 5))
    for place in range(5):
        moves[place, max(place - 1, 0)] += 0.5
        if place < 4:
            moves[place, place + 1] += 0.5
    values = np.linalg.solve(np.eye(5) - 0.9 * moves, 10 * np.array([0, 0, 0, 0, 0.5]))
    assert float(found[0]) == pytest.approx(0.9**4, abs=0.08)
    assert float(found[1]) == pytest.approx(0.9 * values[1], abs=0.25)


def test_fitted_q_still_sees_the_rest_where_an_entry_is_new() -> None:
    """The reward is 1 where the first entry is above 0; the second one never changed in the log."""
    rng = np.random.default_rng(0)
    rows = np.append(rng.normal(size=(400, 1)), np.zeros((400, 1)), axis=1)

    def value(first: float) -> float:
        evidence = Evidence(
            observations=jnp.asarray(rows, jnp.float32),
            actions=jnp.asarray(rng.uniform(-1, 1, (400, 1)), jnp.float32),
            next_observations=jnp.asarray(rows, jnp.float32),
            rewards=jnp.asarray(rows[None, :, 0] > 0, jnp.float32),
            masks=jnp.zeros((1, 400)),
            next_actions=jnp.zeros((1, 400, 1)),
            usable=jnp.ones((1, 400), bool),
            scale=jnp.ones(1),
            starts=jnp.asarray([[first, 1.0]]),
            start_actions=jnp.zeros((1, 1, 1)),
        )
        [found] = fitted_q(evidence, discount=0.9, updates=300, key=jax.random.key(0))
        return float(found)

    assert value(2.0) - value(-2.0) > 0.5


def test_nothing_is_said_of_what_the_log_did_next_where_it_does_not_tell() -> None:
    rng = np.random.default_rng(0)

    def columns(ordered: bool) -> set[str]:
        rows = rng.normal(size=(40, 3))
        dataset = sorl.Dataset.from_transitions(
            rows[:-1],
            rng.uniform(-1, 1, (39, 2)),
            rewards=np.ones(39),
            next_observations=rows[1:] if ordered else rng.normal(size=(39, 3)),
        )
        algorithm, members = BC(hidden=(4,)), [Member(0, 0)]
        states = initial_state(algorithm, dataset.spec, members).algorithm
        [row] = evaluate_off_policy(
            algorithm,
            states,
            members,
            dataset,
            None,
            update=1,
            batch_size=4,
            fitted_q_updates=2,
            seed=0,
        )
        assert np.isfinite(float(row["fitted_q/policy"]))
        return set(row)

    assert columns(ordered=True) - columns(ordered=False) == {"fitted_q/data"}


def test_the_estimates_are_of_the_policies_and_of_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each stands in the column of whoever acts in its evidence."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(40, 3))
    dataset = sorl.Dataset.from_transitions(
        rows[:-1], rng.uniform(-1, 1, (39, 2)), rewards=np.ones(39), next_observations=rows[1:]
    )
    algorithm, members = BC(hidden=(4,)), [Member(0, 0), Member(0, 1)]
    states = initial_state(algorithm, dataset.spec, members).algorithm

    def actions_themselves(evidence: Evidence, **_: Any) -> jax.Array:
        return evidence.next_actions.sum(axis=(1, 2)) + evidence.start_actions.sum(axis=(1, 2))

    monkeypatch.setattr("sorl.off_policy.fitted_q", actions_themselves)
    found = evaluate_off_policy(
        algorithm,
        states,
        members,
        dataset,
        None,
        update=1,
        batch_size=4,
        fitted_q_updates=1,
        seed=0,
    )
    asked = np.append(np.asarray(dataset.valid_rows) + 1, dataset.starts)
    policies = eqx.filter_vmap(algorithm.policy)(states)
    for place, row in enumerate(found):
        policy = jax.tree.map(lambda leaf, place=place: leaf[place], policies)
        acted = [
            inference.act(policy, s, budget=Budget(1, 1), key=jax.random.key(0))
            for s in dataset.observations[asked]
        ]
        assert row["fitted_q/policy"] == pytest.approx(float(np.sum(acted)), rel=1e-3)
        logged = float(np.sum(dataset.actions[asked]))
        assert row["fitted_q/data"] == pytest.approx(logged, rel=1e-3)


# Mixtures.


def sources(*lengths: int) -> list[sorl.Dataset]:
    return [
        sorl.Dataset.from_episodes(
            [
                {
                    "observations": np.full((n + 1, 1), 10.0 * place + 1),
                    "actions": np.zeros((n, 1)),
                    "rewards": np.arange(n) + 100.0 * place,
                }
            ],
            action_low=-1,
            action_high=1,
        )
        for place, n in enumerate(lengths)
    ]


def test_mixtures_draw_by_weight_and_uniformly_within() -> None:
    one, two = sources(4, 12)
    mixed = mix([one, two], [0.75, 0.25], ["one", "two"])
    batch = mixed.sample(jax.random.key(0), 0, 40_000)
    rewards = np.asarray(batch.reward)
    counts = np.array([np.count_nonzero(rewards == r) for r in [*range(4), *range(100, 112)]])
    assert counts.sum() == 40_000
    expected = 40_000 * np.array([0.75 / 4] * 4 + [0.25 / 12] * 12)
    # χ² with 15 degrees of freedom: above 44.3 once in ten thousand draws.
    assert ((counts - expected) ** 2 / expected).sum() < 44.3
    source = np.where(rewards < 100, 1.0, 11.0)
    np.testing.assert_array_equal(np.asarray(batch.observation)[:, 0], source)
    np.testing.assert_array_equal(np.asarray(batch.next_observation)[:, 0], source)
    plain = mix([one, two], [None, None], ["one", "two"])
    assert plain.mixture is not None
    np.testing.assert_allclose(plain.mixture.weights, [4 / 16, 12 / 16])


def test_mixtures_are_told_apart_and_split_by_source() -> None:
    one, two = sources(4, 12)
    names = ["one", "two"]
    prints = {
        mix([one, two], [0.75, 0.25], names).fingerprint,
        mix([one, two], [0.5, 0.5], names).fingerprint,
        mix([two, one], [0.5, 0.5], names).fingerprint,
        one.fingerprint,
    }
    assert len(prints) == 4
    episodes = [
        sorl.Dataset.from_episodes(
            [
                {
                    "observations": np.ones((4, 1)),
                    "actions": np.zeros((3, 1)),
                    "rewards": np.full(3, 100.0 * place + number),
                }
                for number in range(10)
            ],
            action_low=-1,
            action_high=1,
        )
        for place in range(2)
    ]
    mixed = mix(episodes, [0.9, 0.1], names)
    kept, held = mixed.split(0.2, seed=1)
    assert held is not None
    drawn = [
        set(np.asarray(part.sample(jax.random.key(1), 0, 3000).reward).tolist())
        for part in (kept, held)
    ]
    assert not drawn[0] & drawn[1]
    assert drawn[0] | drawn[1] == {
        100.0 * place + number for place in (0, 1) for number in range(10)
    }
    assert [sum(r < 100 for r in part) for part in drawn] == [8, 2]


def test_mixtures_refuse_what_cannot_be_mixed() -> None:
    one, two = sources(4, 12)
    with pytest.raises(InputError, match="Only some"):
        mix([one, two], [0.5, None], ["one", "two"])
    with pytest.raises(InputError, match="named twice"):
        mix([one, two], [None, None], ["one", "one"])
    wide = sorl.Dataset.from_transitions(
        np.zeros((3, 2)), np.zeros((3, 1)), rewards="zeros", action_low=-1, action_high=1
    )
    with pytest.raises(InputError, match="sizes"):
        mix([one, wide], [None, None], ["one", "wide"])
    assert split_weight("a/b.npz:0.25") == ("a/b.npz", 0.25)
    assert split_weight("minari:D4RL/pen/human-v2") == ("minari:D4RL/pen/human-v2", None)
    assert split_weight("minari:x-v0:2") == ("minari:x-v0", 2.0)
    for wrong in ("a:0", "a:-1", "a:inf", "a:nan"):
        with pytest.raises(InputError, match="above 0"):
            split_weight(wrong)


def test_a_mixture_trains_by_the_command(tmp_path: Path, tiny: None) -> None:  # noqa: F811
    for name, seed in (("a", 0), ("b", 1)):
        path = logs.write_npz(tmp_path / f"{name}log.npz", logs.episodes(seed=seed))
        import_files([path], tmp_path / name, action_low=[2, 2, 7.5], action_high=[6, 6, 7.5])
    out = tmp_path / "run"
    command = f"""
        train tiny --data {tmp_path}/a.npz:0.7 {tmp_path}/b.npz:0.3 --out {out} --updates 4
        --log-every 2 --fitted-q-updates 0 --tensorboard False
    """
    assert cli.run(command.split()) == 0
    config = Run.open(out).config
    assert config["dataset"]["path"] == [f"{tmp_path}/a.npz:0.7", f"{tmp_path}/b.npz:0.3"]
    mixed = load_dataset(data=[f"{tmp_path}/a.npz:0.7", f"{tmp_path}/b.npz:0.3"])
    assert config["dataset"]["fingerprint"] == mixed.fingerprint
    assert cli.run(["resume", str(out)]) == 0
    arrays = eqx.filter(mixed, eqx.is_array)
    assert all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(arrays))
