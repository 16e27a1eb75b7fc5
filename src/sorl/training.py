"""Training on data that lie on the device: a chunk of updates is one call of a compiled program.

Data that lie on the disk are streamed (`sorl.streaming`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from sorl.algorithm import AbstractAlgorithm
from sorl.arithmetic import Arithmetic
from sorl.data.dataset import Dataset
from sorl.data.shards import Shards
from sorl.errors import InputError
from sorl.hosts import fetch, place
from sorl.members import (
    Layout,
    Snapshot,
    State,
    TrainingState,
    initial_state,
    lay_out,
    members_of,
    on_every_device,
    run_updates,
    settle,
    share_rows,
    snapshot_of,
)
from sorl.mixed_precision import in_arithmetic
from sorl.streaming import stream_chunks
from sorl.types import MAX_UPDATES, Member, Transition


def train(
    algorithm: AbstractAlgorithm[State],
    dataset: Dataset | Shards,
    *,
    seeds: Sequence[int],
    updates: int,
    tasks: Sequence[int] | None = None,
    batch_size: int = 256,
    chunk: int = 1000,
    arithmetic: Arithmetic = "float32",
    batch_devices: int = 1,
    start: tuple[int, TrainingState] | None = None,
) -> Iterator[Snapshot]:
    """Train every pair of a task and a seed; yield a snapshot after each chunk.

    A chunk ends at every multiple of `chunk` and at `updates`. A member whose metrics become
    infinite or NaN, or whose critic explodes, goes back to its state at the start of that chunk
    and stays there; the others go on.

    Args:
        algorithm: the learning rule.
        dataset: the data, on the device or on the disk; its tasks are the default of `tasks`.
        seeds: seeds, each 0 or more.
        updates: number of the last update, counted from the beginning of training.
        tasks: tasks to train, all of them in `dataset`.
        batch_size: rows of one batch.
        chunk: updates between two snapshots.
        arithmetic: in which numbers networks are multiplied, see `sorl.arithmetic`.
        batch_devices: devices that share the rows of every batch, whose gradients are added up; for
            batches so large that one device takes too long. Members are spread over groups of so
            many devices.
        start: where to go on: the number of updates done and the state after them, as a snapshot
            held them. A training that goes on equals one that was never interrupted, bit by bit.
            Its arrays are given up: copy the state to go on from it twice.

    Yields:
        A `sorl.members.Snapshot`: the number of updates done, the members, their state, the means
        of the metrics over the chunk, `[members]` each, and why members were stopped.

    Raises:
        InputError: numbers out of range, tasks that the data do not have, or an arithmetic that the
            devices do not.
    """
    algorithm = in_arithmetic(algorithm, arithmetic, batch_devices=batch_devices)
    for name, value in (
        ("updates", updates),
        ("batch_size", batch_size),
        ("chunk", chunk),
        ("batch_devices", batch_devices),
    ):
        if not 1 <= value <= MAX_UPDATES:
            raise InputError(
                f"Training with {name}={value} is not possible: give 1 to {MAX_UPDATES}."
            )
    if batch_size % batch_devices:
        raise InputError(
            f"Batches of {batch_size} rows cannot be shared by batch_devices={batch_devices} "
            "equally: choose a divisor."
        )
    tasks = dataset.tasks if tasks is None else tuple(tasks)
    members = members_of(tasks, seeds)
    dataset = dataset.select_tasks(tasks)
    done, state = (0, initial_state(algorithm, dataset.spec, members)) if start is None else start
    if isinstance(dataset, Shards):
        return stream_chunks(
            algorithm,
            dataset,
            members,
            batch_size=batch_size,
            chunk=chunk,
            updates=updates,
            batch_devices=batch_devices,
            start=(done, state),
        )
    layout = lay_out(members, dataset.tasks, dataset.largest_rewards, batch_devices=batch_devices)
    return _chunks(algorithm, dataset, members, layout, batch_size, chunk, updates, done, state)


def _chunks(
    algorithm: AbstractAlgorithm[Any],
    dataset: Dataset,
    members: tuple[Member, ...],
    layout: Layout,
    batch_size: int,
    chunk: int,
    updates: int,
    done: int,
    state: TrainingState,
) -> Iterator[Snapshot]:
    dataset = place(dataset, layout.everywhere)
    state = place(state, layout.over_members)
    while done < updates:
        count = min(chunk - done % chunk, updates - done)
        alive_before = fetch(state.alive)
        state, metrics = _run_chunk(
            algorithm,
            batch_size,
            layout.mesh,
            state,
            dataset,
            layout.task_index,
            layout.keys,
            jnp.int32(done),
            jnp.int32(count),
            layout.limits,
        )
        done += count
        host_metrics = {name: fetch(value) for name, value in metrics.items()}
        yield snapshot_of(members, state, done, count, host_metrics, alive_before)


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=3)
def _run_chunk(
    algorithm: AbstractAlgorithm[Any],
    batch_size: int,
    mesh: Mesh,
    state: TrainingState,
    dataset: Dataset,
    task_index: Int[Array, " members"],
    keys: Key[Array, " members"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    limits: Float[Array, " members"],
) -> tuple[TrainingState, dict[str, Float[Array, " members"]]]:
    """`count` updates of every member; the count is not static, so any chunk compiles once."""
    local = functools.partial(_run_local_chunk, algorithm, batch_size, mesh)
    return on_every_device(local, mesh, shared=(1, 4, 5))(
        state, dataset, task_index, keys, start, count, limits
    )


def _run_local_chunk(
    algorithm: AbstractAlgorithm[Any],
    batch_size: int,
    mesh: Mesh,
    state: TrainingState,
    dataset: Dataset,
    task_index: Int[Array, " local"],
    keys: Key[Array, " local"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    limits: Float[Array, " local"],
) -> tuple[TrainingState, dict[str, Float[Array, " local"]]]:
    """The chunk for the members of one device."""

    def draw(key: PRNGKeyArray, index: Int[Array, ""], update: Int[Array, ""]) -> Transition:
        return share_rows(dataset.sample(key, index, batch_size), mesh)

    final, sums = run_updates(algorithm, draw, state, task_index, keys, start, count, limits)
    return settle(state, final), {name: value / count for name, value in sums.items()}
