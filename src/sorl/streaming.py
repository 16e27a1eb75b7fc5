"""Training on data that lie on the disk: batches are read ahead while earlier ones are learnt from.

    numbers of transitions -> rows of shards, read by threads -> blocks of batches -> the device

Every batch holds the very transitions that `sorl.training` would draw from the same data on the
device: their numbers come from the same keys. So they are drawn uniformly with replacement, a
member's batches depend on its task, its seed and the number of the update alone, and a training
that goes on needs nothing of the reader that was.

A block is the batches of some updates of all members. Blocks are read by Grain's threads, a few of
them ahead; what lies in memory is bounded by their size, whatever the size of the data.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from sorl import platform
from sorl.algorithm import AbstractAlgorithm
from sorl.data.dataset import uniform_places
from sorl.data.shards import Shards
from sorl.errors import InputError
from sorl.members import (
    Layout,
    Snapshot,
    TrainingState,
    copied,
    lay_out,
    on_every_device,
    run_updates,
    settled,
    share_rows,
    snapshot_of,
    update_keys,
)
from sorl.types import Member, Transition

BLOCK_BYTES = 16 * 2**20
"""A block has as many updates as fit into this, at least one."""

THREADS = 2
BLOCKS_AHEAD = 4


def stream_chunks(
    algorithm: AbstractAlgorithm[Any],
    shards: Shards,
    members: tuple[Member, ...],
    *,
    batch_size: int,
    chunk: int,
    updates: int,
    batch_devices: int = 1,
    start: tuple[int, TrainingState],
) -> Iterator[Snapshot]:
    """The snapshots of `sorl.training.train`, which checks the numbers; batches come from disk.

    Args:
        algorithm: the learning rule.
        shards: the data, with the tasks of all members.
        members: tasks and seeds, in the order of every leading axis.
        batch_size: rows of one batch.
        chunk: updates between two snapshots.
        updates: number of the last update.
        batch_devices: devices that share every batch.
        start: updates done, and the state after them.

    Raises:
        InputError: Grain is not installed, or several hosts train together.
    """
    if jax.process_count() > 1:
        raise InputError(
            "Data on the disk are streamed to the devices of one host: load them, or train without "
            "jax.distributed."
        )
    layout = lay_out(
        members,
        shards.tasks,
        jnp.asarray(shards.largest_rewards),
        batch_devices=batch_devices,
    )
    done, state = start
    state = jax.device_put(state, layout.over_members)
    length = block_length(shards, len(members), batch_size, chunk)
    blocks = _Blocks(shards, layout, batch_size, length, chunk, done, updates)
    alive_before, before = np.asarray(state.alive), copied(state)
    sums: list[dict[str, Array]] = []
    running: collections.deque[Array] = collections.deque()
    for (first, count), batches in zip(blocks.parts, _read_ahead(blocks), strict=True):
        state, summed = _run_block(
            algorithm,
            layout.mesh,
            state,
            jax.device_put(batches, layout.over_members),
            layout.keys,
            jnp.int32(first),
            jnp.int32(count),
            layout.limits,
        )
        sums.append(summed)
        # Two blocks on the device are enough to keep it busy, and more would fill its memory.
        running.append(next(iter(summed.values())))
        if len(running) > 1:
            running.popleft().block_until_ready()
        done = first + count
        if done % chunk and done < updates:
            continue
        state = settled(before, state)
        learnt = done - blocks.chunk_start(first)
        means = {
            name: np.sum([np.asarray(part[name]) for part in sums], axis=0) / np.float32(learnt)
            for name in summed
        }
        yield snapshot_of(members, state, done, learnt, means, alive_before)
        alive_before, before, sums = np.asarray(state.alive), copied(state), []
        running.clear()


def block_length(shards: Shards, members: int, batch_size: int, chunk: int) -> int:
    """Updates of a block: so many that the blocks of a chunk are of one length, or nearly so."""
    numbers = 2 * (shards.spec.observation_size + shards.spec.action_size) + 3
    most = max(1, min(chunk, BLOCK_BYTES // (4 * numbers * members * batch_size)))
    return -(-chunk // -(-chunk // most))


class _Blocks:
    """The blocks of a training, as a source that Grain reads from: by number, in any thread."""

    def __init__(
        self,
        shards: Shards,
        layout: Layout,
        batch_size: int,
        length: int,
        chunk: int,
        done: int,
        updates: int,
    ) -> None:
        self._shards, self._chunk, self._done = shards, chunk, done
        index = np.asarray(layout.task_index)
        self._task_places = shards.task_places[index][:, None, None]
        # Keys are the same numbers on any device, and the host needs what is drawn.
        self._keys = jax.device_put(layout.keys, platform.cpu())
        draw = functools.partial(_draw, shards.transitions, batch_size)
        over_updates = jax.vmap(draw, in_axes=(None, 0))
        over_members = jax.vmap(over_updates, in_axes=(0, None))
        self._draw = jax.jit(
            lambda keys, first: over_members(keys, first + jnp.arange(length, dtype=jnp.int32))
        )
        self.parts: list[tuple[int, int]] = []
        while done < updates:
            end = min(done - done % chunk + chunk, updates)
            for first in range(done, end, length):
                self.parts.append((first, min(length, end - first)))
            done = end

    def chunk_start(self, update: int) -> int:
        """The update after which the chunk began that this one is in."""
        return max(update - update % self._chunk, self._done)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, index: int) -> Transition:
        first, _ = self.parts[index]
        return self._shards.read(self.numbers(first), self._task_places)

    def numbers(self, first: int) -> Int[np.ndarray, "members updates batch"]:
        """The transitions of every batch of a block that begins after update `first`."""
        return np.asarray(self._draw(self._keys, np.int32(first)))


def _draw(
    transitions: int, batch_size: int, key: PRNGKeyArray, update: Int[Array, ""]
) -> Int[Array, " batch"]:
    sample_key, _ = update_keys(key, update)
    return uniform_places(sample_key, transitions, batch_size)


def _read_ahead(blocks: _Blocks) -> Iterator[Transition]:
    """The blocks in their order, some of them read before they are asked for."""
    try:
        import grain
    except ModuleNotFoundError as error:
        raise InputError(
            f"Streaming needs {error.name}, which is not installed: install sorl[stream]."
        ) from error
    reading = grain.ReadOptions(num_threads=THREADS, prefetch_buffer_size=BLOCKS_AHEAD)
    yield from grain.MapDataset.source(blocks).to_iter_dataset(reading)


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=2)
def _run_block(
    algorithm: AbstractAlgorithm[Any],
    mesh: Mesh,
    state: TrainingState,
    batches: Transition,
    keys: Key[Array, " members"],
    first: Int[Array, ""],
    count: Int[Array, ""],
    limits: Float[Array, " members"],
) -> tuple[TrainingState, dict[str, Float[Array, " members"]]]:
    """The updates of a block, and the sums of their metrics."""

    def draw(key: PRNGKeyArray, own: Transition, update: Int[Array, ""]) -> Transition:
        return share_rows(jax.tree.map(lambda leaf: leaf[update - first], own), mesh)

    def local(
        state: TrainingState,
        batches: Transition,
        keys: Array,
        first: Array,
        count: Array,
        limits: Array,
    ) -> tuple[TrainingState, dict[str, Array]]:
        return run_updates(algorithm, draw, state, batches, keys, first, count, limits)

    return on_every_device(local, mesh, shared=(3, 4))(state, batches, keys, first, count, limits)
