"""The trainer: members are independent, chunks are invisible, a bad member stops alone.

Most of it is tried with an algorithm that compiles at once; independence also with SORL.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import probes
from compilations import compilations
from sorl import members as member_training
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy
from sorl.algorithms.sorl import SORL
from sorl.data.dataset import Dataset
from sorl.errors import InputError
from sorl.mixed_precision import in_arithmetic
from sorl.training import Snapshot, TrainingState, members_of, train
from sorl.types import Budget, Member

TINY_SORL = SORL(hidden=(8,), discretization=2, backprop_steps=2, learning_rate=1e-3)


@dataclasses.dataclass(frozen=True)
class Average(AbstractAlgorithm[dict[str, Any]]):
    """Running sums of what it is given; its critic's loss is the largest squared reward."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    default_budget: ClassVar[Budget] = Budget()
    poison: int = -1
    blow_up: float = 1.0

    def init(self, spec, *, key):
        return {"weight": jax.random.normal(key, (spec.action_size,)), "count": jnp.int32(0)}

    def update(self, state, batch, update_index, *, key):
        noise = jax.random.normal(key, state["weight"].shape)
        # Only the state is poisoned, after the metrics have been taken.
        poison = jnp.where(update_index == self.poison, jnp.nan, 0.0)
        weight = state["weight"] + 0.1 * (jnp.mean(batch.action, axis=0) + noise) + poison
        metrics = {
            "critic/loss": jnp.max((self.blow_up * batch.reward) ** 2),
            "other/reward": jnp.mean(batch.reward),
            "other/weight": jnp.sum(jnp.nan_to_num(weight)),
        }
        return {"weight": weight, "count": state["count"] + 1}, metrics

    def policy(self, state) -> AbstractPolicy:
        raise NotImplementedError


def host(tree: Any) -> list[np.ndarray]:
    """Copies of the leaves: the trainer gives the arrays up with the next chunk."""
    return [np.array(leaf) for leaf in jax.tree.leaves(tree)]


def assert_same(left: Any, right: Any) -> None:
    for a, b in zip(host(left), host(right), strict=True):
        assert a.tobytes() == b.tobytes()


def assert_close(left: Any, right: Any) -> None:
    for a, b in zip(host(left), host(right), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5)


def of_member(snapshot: Snapshot, member: Member) -> tuple[Any, dict[str, Any]]:
    i = snapshot.members.index(member)
    return (
        jax.tree.map(lambda leaf: leaf[i], snapshot.state),
        {name: value[i] for name, value in snapshot.metrics.items()},
    )


def make(tasks: tuple[int, ...] = (0, 1, 2), rewards: Any = None) -> Dataset:
    """Random actions and rewards, a bandit with several tasks."""
    rng = np.random.default_rng(0)
    actions = probes.uniform_actions(rng)
    if rewards is None:
        rewards = rng.normal(size=(max(tasks) + 1, len(actions)))
    return probes.bandit(actions, rewards).select_tasks(tasks)


def last_of(algorithm: AbstractAlgorithm[Any], dataset: Dataset, **arguments: Any) -> Snapshot:
    settings = {"seeds": (0,), "updates": 12, "batch_size": 16, "chunk": 5, **arguments}
    *_, last = train(algorithm, dataset, **settings)
    return last


# Members -----------------------------------------------------------------------------------


def test_members_are_ordered_by_task_then_seed():
    assert members_of((3, 1), (5, 0)) == (Member(3, 5), Member(3, 0), Member(1, 5), Member(1, 0))


@pytest.mark.parametrize(
    ("tasks", "seeds", "named"),
    [
        ((), (0,), "Tasks"),
        ((0,), (), "Seeds"),
        ((1, 1), (0,), "Tasks"),
        ((1,), (2, 2), "Seeds"),
        ((-1,), (0,), "Tasks"),
        ((1,), (-2,), "Seeds"),
        ((1,), (0, 2**32), "Seeds"),  # the key of which is that of 0
    ],
)
def test_impossible_members_are_refused(tasks, seeds, named):
    with pytest.raises(InputError, match=named):
        members_of(tasks, seeds)


@pytest.mark.parametrize("name", ["updates", "batch_size", "chunk"])
@pytest.mark.parametrize("value", [0, -3])
def test_numbers_out_of_range_are_refused_before_anything_runs(name, value):
    settings = {"updates": 2, "batch_size": 2, "chunk": 2, name: value}
    with pytest.raises(InputError, match=f"{name}={value}"):
        train(Average(), make(), seeds=(0,), **settings)


def test_a_task_that_the_data_do_not_have_is_refused():
    with pytest.raises(InputError, match="no rewards of task 7"):
        train(Average(), make(), seeds=(0,), tasks=(0, 7), updates=1)


@pytest.mark.parametrize("algorithm", [Average(), TINY_SORL], ids=["average", "sorl"])
@pytest.mark.parametrize("cores", [True, False], ids=["cpu", "accelerator"])
def test_members_together_equal_each_alone(
    algorithm: AbstractAlgorithm[Any], cores: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So adding a seed or a task changes no other member: one by one on a core, or all at once."""
    monkeypatch.setattr(member_training, "_share_cores", lambda devices: cores)
    # Of another size, or the program of the other way would be taken again.
    settings: dict[str, Any] = {"batch_size": 16 if cores else 17}
    dataset = make()
    together = last_of(algorithm, dataset, tasks=(0, 2), seeds=(4, 1), **settings)
    assert together.members == members_of((0, 2), (4, 1))
    for member in (Member(0, 4), Member(2, 1)):
        alone = last_of(algorithm, dataset, tasks=(member.task,), seeds=(member.seed,), **settings)
        for a, b in zip(of_member(together, member), of_member(alone, member), strict=True):
            assert_close(a, b)
    states = [host(of_member(together, member)[0]) for member in together.members]
    for i in range(4):
        for j in range(i):
            assert any(not np.allclose(a, b) for a, b in zip(states[i], states[j], strict=True))


def test_order_and_defaults_of_tasks():
    dataset = make()
    every = last_of(Average(), dataset, seeds=(0, 1))
    assert every.members == members_of((0, 1, 2), (0, 1))
    turned = last_of(Average(), dataset, tasks=(2, 0), seeds=(1,))
    for task in (0, 2):
        member = Member(task, 1)
        assert_close(of_member(every, member), of_member(turned, member))


def test_each_task_gets_its_own_rewards():
    rewards = np.stack([np.full(2 * probes.EPISODES, value) for value in (1.0, -2.0, 3.0)])
    snapshot = last_of(Average(), make(rewards=rewards), tasks=(2, 0, 1), seeds=(0, 1))
    np.testing.assert_allclose(snapshot.metrics["other/reward"], [3, 3, 1, 1, -2, -2])


# Chunks ------------------------------------------------------------------------------------


def test_a_chunk_ends_at_its_multiples_and_at_the_end():
    snapshots = train(Average(), make(), seeds=(0,), updates=12, batch_size=4, chunk=5)
    assert [(s.update, int(s.state.algorithm["count"][0])) for s in snapshots] == [
        (5, 5),
        (10, 10),
        (12, 12),
    ]


@pytest.mark.parametrize("algorithm", [Average(), TINY_SORL], ids=["average", "sorl"])
def test_length_of_a_chunk_changes_no_state_and_compiles_nothing(algorithm):
    dataset = make((0, 1))
    settings = {"seeds": (3, 5)}
    one = last_of(algorithm, dataset, **settings, chunk=12)
    with compilations() as compiled:
        for chunk in (1, 5, 7, 100):
            assert_same(last_of(algorithm, dataset, **settings, chunk=chunk).state, one.state)
        last_of(algorithm, dataset, seeds=(8, 9), chunk=4)
    assert not compiled
    with compilations() as compiled:
        last_of(algorithm, dataset, seeds=(3, 4, 5))  # another shape: the list would notice
    assert compiled


def test_metrics_are_means_over_the_chunk():
    ones = [s.metrics for s in train(Average(), make(), seeds=(0,), updates=4, chunk=1)]
    *_, four = train(Average(), make(), seeds=(0,), updates=4, chunk=4)
    for name, value in four.metrics.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, np.mean([m[name] for m in ones], axis=0), rtol=1e-5)


@pytest.mark.parametrize("algorithm", [Average(), TINY_SORL], ids=["average", "sorl"])
@pytest.mark.parametrize("stop", [5, 10])
def test_going_on_from_a_snapshot_equals_never_stopping_bit_for_bit(algorithm, stop):
    dataset = make((0, 1))
    settings = {"seeds": (0, 1), "batch_size": 16, "chunk": 5}
    whole = {
        s.update: (host(s.state), host(dict(s.metrics)))
        for s in train(algorithm, dataset, updates=12, **settings)
    }
    *_, last = train(algorithm, dataset, updates=stop, **settings)
    assert_same(last.state, whole[stop][0])
    # Through the host, as a checkpoint brings it back.
    saved: TrainingState = jax.tree.map(jnp.asarray, jax.tree.map(np.array, last.state))
    again = {
        s.update: (host(s.state), host(dict(s.metrics)))
        for s in train(algorithm, dataset, updates=12, start=(stop, saved), **settings)
    }
    assert list(again) == [update for update in whole if update > stop]
    for update, found in again.items():
        assert_same(found, whole[update])


def test_a_training_that_is_done_yields_nothing():
    last = last_of(Average(), make((0,)))
    assert list(train(Average(), make((0,)), seeds=(0,), updates=12, start=(12, last.state))) == []


# Members that stop -------------------------------------------------------------------------


def rare_reward(value: float) -> np.ndarray:
    """Rewards of task 0 are 1; task 1 has also, in one row of a hundred, `value`."""
    rewards = np.ones((2, 2 * probes.EPISODES))
    rewards[1, ::100] = value
    return rewards


def snapshots_of(algorithm: AbstractAlgorithm[Any], dataset: Dataset, **arguments: Any) -> list:
    return [
        (s.update, host(s.state.algorithm), np.array(s.state.alive), dict(s.metrics), s.stopped)
        for s in train(algorithm, dataset, **{"updates": 60, "chunk": 4, **arguments})
    ]


@pytest.mark.parametrize("algorithm", [Average(), TINY_SORL], ids=["average", "sorl"])
def test_a_member_whose_rewards_overflow_stops_alone_and_keeps_its_last_good_state(algorithm):
    dataset = make((0, 1), rare_reward(1e30))  # its square is beyond float32
    seeds = (0, 1)
    found = snapshots_of(algorithm, dataset, seeds=seeds, batch_size=4)
    alone = snapshots_of(algorithm, dataset, seeds=seeds, tasks=(0,), batch_size=4)
    for (_, state, alive, metrics, _), (_, other, _, other_metrics, _) in zip(
        found, alone, strict=True
    ):
        assert alive[:2].all()
        assert_close([leaf[:2] for leaf in state], other)
        for name, value in other_metrics.items():
            np.testing.assert_allclose(metrics[name][:2], value, rtol=2e-3, atol=2e-5)

    members = members_of((0, 1), seeds)
    stops = {member: i for i, (*_, stopped) in enumerate(found) for member in stopped}
    assert set(stops) == {Member(1, 0), Member(1, 1)}
    assert max(stops.values()) > 0  # else the kept state would only ever be the first one
    for member, i in stops.items():
        m = members.index(member)
        update, *_, sentence = found[i][0], found[i][4][member]
        assert sentence.startswith(f"Task 1, seed {member.seed} was stopped between updates ")
        assert f"{update - 4:,} and {update:,}: " in sentence
        assert "critic/loss" in sentence
        assert f"after update {update - 4:,}, is kept" in sentence
        if i == 0:
            start = member_training.initial_state(algorithm, dataset.spec, members)
            good = host(start.algorithm)
        else:
            good = found[i - 1][1]
            assert found[i - 1][2][m]
        for later in found[i:]:
            assert_same([leaf[m] for leaf in later[1]], [leaf[m] for leaf in good])
            assert not later[2][m]
        for later in found[i + 1 :]:
            assert member not in later[4]
            assert all(np.isnan(value[m]) for value in later[3].values())


def test_a_finite_explosion_is_measured_by_the_rewards_of_the_members_own_task():
    """TD errors of 2e4 times the rewards: task 0 explodes, however large task 1's rewards are."""
    rewards = np.ones((2, 2 * probes.EPISODES))
    for other in (1.0, 1e6):
        rewards[1] = other
        last = last_of(Average(blow_up=2e4), make((0, 1), rewards), chunk=12)
        assert set(last.stopped) == {Member(0, 0), Member(1, 0)}
        assert "exploded" in last.stopped[Member(0, 0)]
    # Large rewards as such are no explosion.
    rewards[1] = 1e9
    assert not last_of(Average(blow_up=1e3), make((0, 1), rewards)).stopped


def test_a_state_spoiled_by_the_last_update_of_a_chunk_is_not_kept():
    """Its metrics are still finite; the next chunk would go back to it."""
    found = snapshots_of(Average(poison=7), make((0,)), seeds=(0,), updates=12)
    assert [bool(stopped) for *_, stopped in found] == [False, True, False]
    assert_same(found[2][1], found[0][1])


def test_an_absurd_learning_rate_stops_every_seed():
    wild = dataclasses.replace(TINY_SORL, learning_rate=1e20)
    last = last_of(wild, make((0, 1)), seeds=(0,), chunk=12)
    assert set(last.stopped) == set(last.members)
    assert all(np.isfinite(leaf).all() for leaf in host(last.state))
    assert_same(
        last.state.algorithm,
        member_training.initial_state(wild, make((0, 1)).spec, last.members).algorithm,
    )


# Devices -----------------------------------------------------------------------------------

ON_DEVICES = """
import sys
sys.path.insert(0, sys.argv[2])
import jax, numpy as np
import test_training as t
from sorl import training
out = {}
for (tasks, seeds, batch_devices, cores), shape in t.LAYOUTS.items():
    members = len(tasks) * len(seeds)
    t.member_training._share_cores = lambda devices: cores
    assert t.member_training._mesh(members, batch_devices).devices.shape == shape
    before = training._run_chunk._cache_size()
    last = t.last_of(
        t.algorithm_for(cores),
        t.make(),
        tasks=tasks,
        seeds=seeds,
        batch_devices=batch_devices,
        chunk=4,
    )
    assert training._run_chunk._cache_size() == before + 1
    assert len(jax.tree.leaves(last.state)[0].sharding.device_set) == shape[0] * shape[1]
    for i, leaf in enumerate(t.host((last.state, dict(last.metrics)))):
        out[f"{tasks}{seeds}{batch_devices}{cores}{i}"] = leaf
t.member_training._share_cores = lambda devices: False
assert t.member_training._mesh(9, 1, equal=True).devices.shape == (3, 1)
np.savez(sys.argv[1], **out)
one, four = (t.flops_of_chunk(batch_devices) for batch_devices in (1, 4))
print(one, four)
assert four < 0.4 * one
"""
# Tasks, seeds, devices that share a batch, and whether the 8 devices are a CPU's cores; groups of
# devices that have shares of the members, and devices in each.
LAYOUTS = {
    ((1,), (0, 1, 2), 1, True): (3, 1),
    ((0, 2), (0, 1, 2, 3), 1, True): (8, 1),
    ((1, 2), (0,), 4, True): (2, 4),
    ((1,), (0, 1, 2), 8, True): (1, 8),
    # Else devices with less to do train copies.
    ((0, 1, 2), (0, 1, 2), 1, False): (5, 1),
    ((1,), (0, 1, 2), 4, False): (2, 4),
}


def algorithm_for(cores: bool) -> AbstractAlgorithm[Any]:
    """Copies of members are seen of what compiles at once."""
    return TINY_SORL if cores else Average()


def flops_of_chunk(batch_devices: int) -> float:
    """Of one device, as XLA counts them; its count of loops and branches is the same for all."""
    from sorl import training

    dataset, members = make((1,)), member_training.members_of((1,), (0, 1))
    layout = member_training.lay_out(
        members, (1,), dataset.largest_rewards, batch_devices=batch_devices
    )
    algorithm = in_arithmetic(TINY_SORL, "float32")  # as `train` has it
    state = member_training.initial_state(algorithm, dataset.spec, members)
    program = training._run_chunk.lower(
        algorithm,
        1024,
        layout.mesh,
        jax.device_put(state, layout.over_members),
        jax.device_put(dataset, layout.everywhere),
        layout.task_index,
        layout.keys,
        jnp.int32(0),
        jnp.int32(1),
        layout.limits,
    )
    analysis = program.compile().cost_analysis()
    assert analysis is not None
    return analysis["flops"]


def test_several_devices_equal_one(tmp_path):
    out = tmp_path / "out.npz"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8", "JAX_PLATFORMS": "cpu"}
    here = str(Path(__file__).parent)
    subprocess.run(
        [sys.executable, "-c", ON_DEVICES, str(out), here], env=environment, check=True, timeout=300
    )
    assert len(jax.devices()) == 1
    with np.load(out, allow_pickle=False) as found:
        for tasks, seeds, devices, cores in LAYOUTS:
            algorithm = algorithm_for(cores)
            one = last_of(algorithm, make(), tasks=tasks, seeds=seeds, chunk=4)
            for i, leaf in enumerate(host((one.state, dict(one.metrics)))):
                many = found[f"{tasks}{seeds}{devices}{cores}{i}"]
                np.testing.assert_allclose(many, leaf, rtol=2e-3, atol=2e-5)


ON_CORES = """
import hashlib, os, sys
os.sched_setaffinity(0, map(int, sys.argv[1].split(",")))
from sorl import platform
platform.prepare()
import jax, numpy as np
from sorl.algorithms.sorl import SORL
from sorl.data.synthetic import synthetic
from sorl.training import train
for last in train(
    SORL(hidden=(256, 256)), synthetic(28, 5, rows=999), seeds=range(3), updates=12, batch_size=128
):
    pass
told = hashlib.sha256()
for leaf in jax.tree.leaves(last.state):
    told.update(np.asarray(leaf).tobytes())
print(told.hexdigest())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds to cores")
def test_training_is_the_same_on_one_core_and_on_all():
    """Bit by bit: networks large enough for threads to share their products."""
    environment = {
        k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")
    }
    every = sorted(os.sched_getaffinity(0))
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", ON_CORES, ",".join(map(str, cores))],
            env=environment,
            stdout=subprocess.PIPE,
        )
        for cores in (every[:1], every)
    ]
    one, many = (process.communicate(timeout=300)[0] for process in begun)
    assert one
    assert one == many


def test_batches_that_devices_cannot_share_are_refused():
    with pytest.raises(InputError, match="16 rows cannot be shared by batch_devices=3"):
        last_of(TINY_SORL, make(), batch_devices=3)
    with pytest.raises(InputError, match="batch_devices=2 is not possible: there are 1 devices"):
        last_of(TINY_SORL, make(), batch_devices=2)
