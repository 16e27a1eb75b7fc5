"""Members, the tasks and seeds that train together: their states, updates and snapshots.

Members are laid over the devices. A GPU takes all of its share in large kernels, while the cores of
a CPU (as many devices as `jax_num_cpu_devices` says) take some each, one after the other, which
spares them from waiting for each other inside every small product; how many there are changes no
bit of what is trained. Where accelerators cannot have equal shares, some train a copy of the last
member, which nobody sees.

Everything random in a member derives from its own task and seed and from the update's number, so
members do not influence each other and nothing random has to be saved for a resume. Where batches
come from is for others to say: `sorl.training` draws them from data on the device, `sorl.streaming`
from the disk, `sorl.online` from what members do as well.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PRNGKeyArray, PyTree

from sorl.algorithm import AbstractAlgorithm
from sorl.errors import InputError
from sorl.hosts import fetch, place
from sorl.types import MAX_SEED, Member, Spec, Transition

State = TypeVar("State")
Tree = TypeVar("Tree")

Sums = dict[str, Float[Array, "*local"]]
Healthy = Bool[Array, "*local"]

MEMBERS = "members"
ROWS = "rows"
CRITIC_LOSS = "critic/loss"

# TD errors of this many times the largest reward are no value function: with discount γ values
# stay below max|r| / (1 - γ), that is 1,000 times the largest reward at γ = 0.999.
EXPLOSION = 1e4


class TrainingState(NamedTuple):
    """What a checkpoint holds; every leaf has a leading axis of members.

    Attributes:
        algorithm: the algorithm's state.
        alive: whether the member still trains.
        online: what learning in an environment keeps besides, see `sorl.online`; None offline.
    """

    algorithm: PyTree
    alive: Bool[Array, " members"]
    online: PyTree = None


class Layout(NamedTuple):
    """What no update changes, laid over the devices.

    Attributes:
        mesh: the devices: `MEMBERS` of them have a share of the members each, and `ROWS` of them an
            equal share of the rows of their batches.
        task_index: position of each member's task in the data.
        keys: the key of each member's updates.
        limits: the largest loss of each member's critic that is no explosion.
    """

    mesh: Mesh
    task_index: Int[Array, " members"]
    keys: Key[Array, " members"]
    limits: Float[Array, " members"]

    @property
    def over_members(self) -> NamedSharding:
        """How arrays with a leading axis of members are laid out: whole where shares differ."""
        return _over_members(self.mesh, len(self.limits))

    @property
    def everywhere(self) -> NamedSharding:
        """How what all members share is laid out: whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """Training after a chunk of updates.

    Attributes:
        update: number of updates done.
        members: the tasks and seeds, in the order of every leading axis.
        state: what to save; its arrays are given up when the next chunk starts, so take what is
            needed before asking for the next snapshot.
        metrics: mean of each metric over the chunk, one value a member; NaN for a member that
            had been stopped before.
        stopped: one sentence for each member that this chunk stopped, by member.
    """

    update: int
    members: tuple[Member, ...]
    state: TrainingState
    metrics: Mapping[str, npt.NDArray[np.float32]]
    stopped: Mapping[Member, str]


def members_of(tasks: Sequence[int], seeds: Sequence[int]) -> tuple[Member, ...]:
    """All pairs of a task and a seed, ordered by task, then seed.

    Raises:
        InputError: no task or seed, one of them twice, or one below 0 or above `MAX_SEED`.
    """
    for what, values in (("task", tasks), ("seed", seeds)):
        possible = all(0 <= value <= MAX_SEED for value in values)
        if not values or len(set(values)) < len(values) or not possible:
            raise InputError(
                f"{what.capitalize()}s {list(values)} cannot be trained: name at least one {what}, "
                f"each once, from 0 to {MAX_SEED}."
            )
    return tuple(Member(task, seed) for task in tasks for seed in seeds)


def initial_state(
    algorithm: AbstractAlgorithm[State], spec: Spec, members: Sequence[Member]
) -> TrainingState:
    """Fresh states of all members, each from its own key."""
    keys, _ = _split_keys(members)
    states = _initial_states(algorithm, spec, keys)
    return TrainingState(states, jnp.ones(len(members), bool))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _initial_states(
    algorithm: AbstractAlgorithm[Any], spec: Spec, keys: Key[Array, " members"]
) -> PyTree:
    return jax.vmap(lambda key: algorithm.init(spec, key=key))(keys)


def lay_out(
    members: Sequence[Member],
    tasks: Sequence[int],
    largest_rewards: Float[Array, " tasks"],
    *,
    batch_devices: int = 1,
    equal: bool = False,
) -> Layout:
    """Lay what belongs to each member over the devices.

    Args:
        members: tasks and seeds.
        tasks: the tasks of the data, in their order there.
        largest_rewards: the largest magnitude of a reward of each.
        batch_devices: devices that share the rows of every batch.
        equal: whether shares must be, since what is laid out is too large to be copied at every
            call; some accelerators may then be idle.

    Raises:
        InputError: there are fewer devices than that, or hosts that would have none.
    """
    mesh = _mesh(len(members), batch_devices, equal=equal)
    _, keys = _split_keys(members)
    task_index = jnp.asarray([list(tasks).index(member.task) for member in members])
    # Of each member's own task: the rewards of one task must not decide about another.
    limits = jnp.square(EXPLOSION * jnp.maximum(largest_rewards[task_index], 1.0))
    layout = Layout(mesh, task_index, keys, limits)
    return Layout(mesh, *place(tuple(layout[1:]), layout.over_members))


def check_layout(members: Sequence[Member], batch_devices: int) -> None:
    """Raise `InputError` unless `lay_out` could lay the members over the devices of this process.

    Args:
        members: tasks and seeds.
        batch_devices: devices that share the rows of every batch.
    """
    _mesh(len(members), batch_devices)


def update_keys(key: PRNGKeyArray, update: Int[Array, ""]) -> tuple[Key[Array, ""], Key[Array, ""]]:
    """The keys of a member's update: for drawing its batch, and for what the algorithm draws."""
    sample_key, update_key = jax.random.split(jax.random.fold_in(key, update))
    return sample_key, update_key


def run_updates(
    algorithm: AbstractAlgorithm[Any],
    draw: Callable[[PRNGKeyArray, Any, Int[Array, ""]], Transition],
    state: TrainingState,
    sources: PyTree,
    keys: Key[Array, " local"],
    start: Int[Array, ""],
    count: Int[Array, ""],
    limits: Float[Array, " local"],
    *,
    few: bool = False,
) -> tuple[TrainingState, dict[str, Float[Array, " local"]]]:
    """Update members `count` times, each from batches of its own; to run inside a compiled program.

    Args:
        algorithm: the learning rule.
        draw: a batch for ONE member, given a key, that member's part of `sources` and the number of
            the update.
        state: the members' states; `online` is not kept.
        sources: any pytree whose leaves have a leading axis of members.
        keys: the key of each member's updates.
        start: number of the first update.
        count: how many, at least 1.
        limits: see `Layout`.
        few: whether updates are too few for members to take turns, which copies each one's state
            and part of `sources` once.

    Returns:
        The states, in which a member with a bad metric is alive no more, and the metrics' sums.
    """

    def one(
        state: PyTree, source: PyTree, key: PRNGKeyArray, update: Int[Array, ""]
    ) -> tuple[PyTree, dict[str, Float[Array, ""]]]:
        sample_key, update_key = update_keys(key, update)
        batch = draw(sample_key, source, update)
        state, metrics = algorithm.update(state, batch, update, key=update_key)
        return state, dict(metrics)

    if len(keys) > 1 and (few or not _share_cores(jax.devices())):
        together = jax.vmap(one, in_axes=(0, 0, 0, None))
        return _repeat(together, state, sources, keys, limits, start, count)

    def alone(
        member: tuple[TrainingState, PyTree, Key[Array, ""], Float[Array, ""]],
    ) -> tuple[TrainingState, dict[str, Float[Array, ""]]]:
        return _repeat(one, *member, start, count)

    members = (state, sources, keys, limits)
    if len(keys) > 1:
        # What an update of one touches fits a core's cache, and no product is faster for being of
        # several matrices.
        return jax.lax.map(alone, members)
    # A single member goes without the axis: XLA does not see through the transposition of an axis
    # of size 1 beside a product, and an update of 4 x 512 units would copy every gradient.
    result = alone(jax.tree.map(lambda leaf: leaf[0], members))
    return jax.tree.map(lambda leaf: leaf[None], result)


def _repeat(
    update: Callable[..., tuple[PyTree, dict[str, Float[Array, "*local"]]]],
    state: TrainingState,
    sources: PyTree,
    keys: Key[Array, "*local"],
    limits: Float[Array, "*local"],
    start: Int[Array, ""],
    count: Int[Array, ""],
) -> tuple[TrainingState, dict[str, Float[Array, "*local"]]]:
    """`run_updates`, given one update of all members, or of one whose arrays have no such axis."""
    # Traced once, although its metrics have to be known before the loop.
    update = jax.jit(update, inline=True)

    def body(
        i: Int[Array, ""], carry: tuple[PyTree, Sums, Healthy]
    ) -> tuple[PyTree, Sums, Healthy]:
        states, sums, healthy = carry
        states, metrics = update(states, sources, keys, start + i)
        for name, value in metrics.items():
            healthy &= jnp.isfinite(value)
            if name == CRITIC_LOSS:
                healthy &= value <= limits
        return states, {name: sums[name] + value for name, value in metrics.items()}, healthy

    _, shapes = jax.eval_shape(update, state.algorithm, sources, keys, start)
    zeros = {name: jnp.zeros(shape.shape, shape.dtype) for name, shape in shapes.items()}
    final, sums, healthy = jax.lax.fori_loop(0, count, body, (state.algorithm, zeros, state.alive))
    return TrainingState(final, healthy), sums


def on_every_device(
    function: Callable[..., Any], mesh: Mesh, *, shared: Sequence[int] = ()
) -> Callable[..., Any]:
    """A function of all members, made of one of the members of a single device.

    To run inside a compiled program.

    Args:
        function: its arguments and results have leading axes of members, but for those arguments
            that all members share.
        mesh: the devices, see `Layout`.
        shared: positions of those.
    """
    split, same = PartitionSpec(MEMBERS), PartitionSpec()

    def on_all(*arguments: Any) -> Any:
        specs = tuple(same if i in shared else split for i in range(len(arguments)))
        first = next(argument for i, argument in enumerate(arguments) if i not in shared)
        members = len(jax.tree.leaves(first)[0])
        copies = -members % mesh.shape[MEMBERS]
        if copies:
            arguments = tuple(
                argument if i in shared else _with_copies(argument, copies)
                for i, argument in enumerate(arguments)
            )
        # Nothing is exchanged between members, so there is nothing to check.
        mapped = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=specs,
            out_specs=split,
            axis_names={MEMBERS},
            check_vma=False,
        )
        result = mapped(*arguments)
        if copies:
            result = jax.tree.map(lambda leaf: leaf[:members], result)
        # Where the next call wants them, so that it is the same program.
        return jax.lax.with_sharding_constraint(result, _over_members(mesh, members))

    return on_all


def _over_members(mesh: Mesh, members: int) -> NamedSharding:
    groups = mesh.shape[MEMBERS]
    split = groups > 1 and members % groups == 0
    return NamedSharding(mesh, PartitionSpec(MEMBERS) if split else PartitionSpec())


def _with_copies(tree: Tree, copies: int) -> Tree:
    """Arrays of members with so many copies of the last member behind."""
    members = len(jax.tree.leaves(tree)[0])
    places = np.minimum(np.arange(members + copies), members - 1)
    return jax.tree.map(lambda leaf: leaf[places], tree)


def share_rows(batch: Transition, mesh: Mesh) -> Transition:
    """Spread the rows of a member's batch over the devices that share it.

    XLA divides what is computed of them, and adds up gradients and means of all devices.

    To run inside a compiled program, see `on_every_device`.
    """
    if mesh.shape[ROWS] == 1:
        return batch
    return jax.lax.with_sharding_constraint(batch, PartitionSpec(ROWS))


def settle(before: TrainingState, after: TrainingState) -> TrainingState:
    """The state after a chunk, but that before it of every member that is alive no more.

    To run inside a compiled program.
    """
    healthy, final = after.alive, after.algorithm
    # The chunk's last update may spoil a state after its metrics were taken; such a state would
    # be the one that the next chunk goes back to.
    for leaf in jax.tree.leaves(final):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            healthy &= jnp.all(jnp.isfinite(leaf), axis=tuple(range(1, leaf.ndim)))

    def keep(new: Array, old: Array) -> Array:
        return jnp.where(healthy.reshape(-1, *(1,) * (new.ndim - 1)), new, old)

    return TrainingState(jax.tree.map(keep, final, before.algorithm), healthy)


# For chunks of several calls: a copy to go back to, since the calls overwrite the state itself, and
# the way back.
copied = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
settled = jax.jit(settle, donate_argnums=1)


def snapshot_of(
    members: Sequence[Member],
    state: TrainingState,
    update: int,
    count: int,
    metrics: Mapping[str, npt.NDArray[np.float32]],
    alive_before: npt.NDArray[np.bool_],
) -> Snapshot:
    """The snapshot after a chunk.

    Args:
        members: tasks and seeds, in the order of every leading axis.
        state: the state after it.
        update: number of the update at which it ended.
        count: how many updates it was.
        metrics: its means; those of members that were dead before are left out.
        alive_before: who was alive before it.
    """
    alive = fetch(state.alive)
    return Snapshot(
        update=update,
        members=tuple(members),
        state=state,
        metrics={
            name: np.where(alive_before, value, np.float32(np.nan))
            for name, value in metrics.items()
        },
        stopped={
            member: _why_stopped(member, i, update, count, metrics)
            for i, member in enumerate(members)
            if alive_before[i] and not alive[i]
        },
    )


def _mesh(members: int, batch_devices: int, *, equal: bool = False) -> Mesh:
    """The groups of devices that the members are shared among.

    Devices of a CPU are its cores, which are not idle while one of them works on a program: there
    shares are equal, of as many groups as that allows. Other devices are idle without a share: of
    them as many groups as make the largest share the smallest.
    """
    devices = jax.devices()
    groups = len(devices) // batch_devices
    if groups < 1:
        raise InputError(
            f"batch_devices={batch_devices} is not possible: there are {len(devices)} devices, so "
            "give at most as many."
        )
    if equal or _share_cores(devices):
        count = max(n for n in range(1, min(members, groups) + 1) if members % n == 0)
    else:
        largest_share = -(-members // groups)
        count = -(-members // largest_share)
    chosen = devices[: count * batch_devices]
    busy = len({device.process_index for device in chosen})
    if busy < jax.process_count():
        raise InputError(
            f"{members} members and batch_devices={batch_devices} occupy devices of {busy} of the "
            f"{jax.process_count()} hosts: train more members, raise batch_devices, or start "
            "fewer hosts."
        )
    return Mesh(np.asarray(chosen).reshape(count, batch_devices), (MEMBERS, ROWS))


def _share_cores(devices: Sequence[Any]) -> bool:
    return devices[0].platform == "cpu"


def _split_keys(members: Sequence[Member]) -> tuple[Key[Array, " members"], Key[Array, " members"]]:
    """Keys for the members' initial states and for their updates."""
    keys = jnp.stack(
        [jax.random.fold_in(jax.random.key(member.seed), member.task) for member in members]
    )
    pairs = jax.vmap(jax.random.split)(keys)
    return pairs[:, 0], pairs[:, 1]


def _why_stopped(
    member: Member,
    index: int,
    done: int,
    count: int,
    metrics: Mapping[str, npt.NDArray[np.float32]],
) -> str:
    """One sentence about the member at place `index`, which the chunk of `count` updates stopped.

    `metrics` are the chunk's, one value a member; `done` is the update at which it ended.
    """
    bad = [name for name, value in metrics.items() if not np.isfinite(value[index])]
    what = (
        f"{', '.join(bad)} became NaN or infinite"
        if bad
        else "its critic's loss exploded or its parameters became NaN or infinite"
    )
    return (
        f"Task {member.task}, seed {member.seed} was stopped between updates {done - count:,} and "
        f"{done:,}: {what}. Its last good state, after update {done - count:,}, is kept and the "
        "others go on; a smaller learning rate or weight of the Q loss often helps."
    )
