"""Acting with a trained policy: load it, give it observations, choose the compute each time.

Loading needs neither the dataset nor the environment nor the training; what lies on disk is told
in `sorl.deployment.storage`.
"""

from __future__ import annotations

import functools
import numbers
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, PRNGKeyArray

from sorl import inference, nn
from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy
from sorl.choices import OWN as OWN_CHOICE
from sorl.choices import Choice
from sorl.deployment.calibration import Calibration, read_calibration
from sorl.deployment.image_observation import flat_observation
from sorl.deployment.storage import (
    SavedPolicy,
    is_policy,
    policy_folder,
    read_policy,
    save_policy,
    saved_members,
)
from sorl.errors import InputError
from sorl.inference import Adaptive, Strategy
from sorl.samplers import Sampler
from sorl.types import MAX_SEED, Budget, Member
from sorl.verifiers import OWN, Verifier

__all__ = ["Decision", "NotFiniteError", "Policy", "load_stacked", "save_policy", "told_of"]

Keys = PRNGKeyArray | Key[Array, "*shape"]
"""One random key, or an array of them."""

# Compiled, because a robot waits for them: eagerly they cost as much as a small policy.
_seeded_key = jax.jit(jax.random.key)
_fold_in = jax.jit(jax.random.fold_in)
_split = jax.jit(jax.random.split, static_argnums=1)
_only = jax.jit(lambda keys: keys.reshape(()))
_KEY_ITSELF = np.int32(-1)

_EXAMPLES = {
    "sampler": "a word such as 'spread'",
    "verifier": "words such as 'mean-0.5std'",
    "choice": "words such as 'typical-2'",
}


class Decision(NamedTuple):
    """Chosen actions and what they were chosen from; arrays begin with the observation's axes.

    Attributes:
        action: the chosen candidate, float32 `[..., action_size]`, in the user's units like all
            candidates.
        chosen: its place among the candidates, `[...]`.
        candidates: float32 `[..., best_of, action_size]`, in the order they were drawn.
        scores: the verifier's score of each, `[..., best_of]`.
        steps: sampling steps of each, `[..., best_of]`.
    """

    action: np.ndarray
    chosen: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray
    steps: np.ndarray


class NotFiniteError(InputError):
    """An action is NaN or infinite.

    Attributes:
        answer: what would have been returned, with all rows: those of others may be sound.
    """

    def __init__(self, told: str, answer: Any) -> None:
        super().__init__(told)
        self.answer = answer


class _Noise(NamedTuple):
    """Where the random numbers of a call come from.

    Attributes:
        keys: a key for each row, or the key of a single row.
        draw: the key of a single row is that of this draw from `keys`, unless it is negative.
        axis: whether a single row has an axis of rows: then its key is split like that of a batch.
    """

    keys: Keys
    draw: np.int32 | Array
    axis: bool | Array


class Policy:
    """A trained policy that acts; safe to call from several threads.

    Attributes:
        module: the policy itself, for ONE observation.
        algorithm: what trained it.
        spec: sizes of one observation and one action.
        units: what observations and actions are for the user.
        member: the task and the seed it was trained with.
        update: after how many updates it was saved.
        provenance: where it comes from.
        calibration: what its budgets cost on some machine and what they buy; None where `sorl
            calibrate` has not been run.
    """

    def __init__(
        self,
        saved: SavedPolicy,
        calibration: Calibration | None = None,
        *,
        random_seed: int,
    ) -> None:
        self._stream = _seeded("random_seed", random_seed)
        self.module = saved.module
        self.algorithm = saved.algorithm
        self.spec = saved.spec
        self.units = saved.module.units
        self.member = saved.member
        self.update = saved.update
        self.provenance = saved.provenance
        self.calibration = calibration
        # A flat list, because taking a policy apart at every call costs as much as a small one.
        arrays, static = eqx.partition(nn.heads_apart(saved.module), eqx.is_array)
        self._arrays, structure = jax.tree.flatten(arrays)
        self._served: set[tuple[Budget, Strategy]] = set()
        self._drawn = 0
        self._told_elsewhere = False
        self._lock = threading.Lock()

        # For one observation one program leads from the policy's key to the action: handing on from
        # program to program costs as much as a small policy.
        @functools.partial(jax.jit, static_argnames=("decide", "budget", "strategy"))
        def act(
            arrays: list[Array],
            observations: Float[Array, "rows observation_size"],
            noise: _Noise,
            decide: Callable[..., Any],
            budget: Budget,
            strategy: Strategy,
        ) -> Any:
            policy = eqx.combine(jax.tree.unflatten(structure, arrays), static)

            def one(observation: Float[Array, " observation_size"], key: Key[Array, ""]) -> Any:
                return decide(policy, observation, budget=budget, strategy=strategy, key=key)

            if len(observations) > 1:
                return jax.vmap(one)(observations, noise.keys)
            key = jax.random.fold_in(noise.keys, noise.draw)
            key = jnp.where(noise.draw < 0, noise.keys, key)
            key = jnp.where(noise.axis, jax.random.split(key, 1)[0], key)
            # Without a map the branch of adaptive spending is a real one, which saves its work.
            return jax.tree.map(lambda leaf: leaf[None], one(observations[0], key))

        self._act = act

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        task: int | None = None,
        seed: int | None = None,
        random_seed: int = 0,
    ) -> Policy:
        """Load a released policy.

        Args:
            path: the folder of one policy, or the folder of a run.
            task: which task's policy of a run; the lowest one when None.
            seed: which seed's policy of that task; the lowest one when None.
            random_seed: seed of the sampling noise of `act`, 0 to `MAX_SEED`; the same seed and
                the same calls give the same actions.

        Raises:
            InputError: there is no such policy, its files are missing, damaged, of another
                format or of an algorithm that this version does not know, or `random_seed` is out
                of range.
        """
        path = Path(path)
        if is_policy(path):
            saved = read_policy(path)
            if task not in (None, saved.member.task) or seed not in (None, saved.member.seed):
                raise InputError(
                    f"{path} holds the policy of {saved.member}: leave out task and seed, or give "
                    "the folder of the run."
                )
            return cls(saved, read_calibration(path), random_seed=random_seed)
        members = saved_members(path)
        fitting = [m for m in members if task in (None, m.task) and seed in (None, m.seed)]
        if not fitting:
            raise InputError(
                f"The run {path} has no policy with "
                f"{_wishes(task, seed)}: choose one of {', '.join(map(str, members))}."
            )
        return cls.load(policy_folder(path, fitting[0]), random_seed=random_seed)

    def act(
        self,
        observation: Any,
        *,
        steps: int | None = None,
        best_of: int | None = None,
        deadline_ms: float | None = None,
        sampler: Sampler | None = None,
        verifier: Verifier | str | None = None,
        choice: Choice | str | None = None,
        adaptive: Adaptive | float | bool = False,
        key: Keys | int | np.integer[Any] | None = None,
    ) -> np.ndarray:
        """Choose actions. The first call for a budget and a batch shape compiles, later ones run.

        Args:
            observation: finite numbers, `[observation_size]` or `[..., observation_size]`. Where
                the policy reads images, also uint8 images `[..., height, width, channels]` with
                the channels of all frames, or a mapping of such an `image` and a `state`; see
                `sorl.deployment.image_observation`.
            steps: sampling steps of one candidate. When None those that the method uses by
                itself, `algorithm.own_budget.steps`.
            best_of: candidates among which one is chosen. When None as many as the method uses by
                itself, `algorithm.own_budget.best_of`, whatever `steps` are.
            deadline_ms: instead of `steps` and `best_of`, the milliseconds that this call may
                take: the best budget that fits at the 99th percentile, as `sorl calibrate` found,
                spent in the way that was calibrated. Call `prepare` before, since compiling takes
                longer than any deadline.
            sampler: how candidates are drawn, see `sorl.samplers`; independently when None.
            verifier: how the critic's heads become one score, see `sorl.verifiers`; as the method
                does by itself when None.
            choice: how the scores decide, see `sorl.choices`; as the method does by itself when
                None.
            adaptive: draw fewer candidates where their scores hardly differ, never more than
                `best_of`. A number is the threshold of `sorl.inference.Adaptive`; True takes the
                one that `sorl calibrate` found, and the sampler and verifier that it was found
                with. Saves time for one observation, none for a batch.
            key: a random key or an integer seed, 0 to `MAX_SEED`. One observation uses the key
                itself, row i of a batch (its leading axes flattened) uses
                `jax.random.split(key, rows)[i]`. Or one key for each observation: an array of keys
                with the observation's leading axes.
                When None the policy's own stream is drawn from: a new key every call.

        Returns:
            float32 actions, `[action_size]` or `[..., action_size]`, in the units of the data it
            was trained on: [-1, 1] unless `units` tells other ranges, which are never left.

        Raises:
            InputError: the observation or the keys have another shape, the observation is not
                finite, the key is none, an argument is of a kind that it cannot be, the policy
                cannot serve the budget in this way, or what needs a calibration has none that fits.
            NotFiniteError: an action is not finite, because the observation lies too far from what
                the policy was trained on, or because its training has diverged.

        Warns:
            OtherMachineWarning: once, where the calibration is another machine's.
        """
        rows, leading = self._checked(observation)
        budget, strategy = self._asked(
            steps, best_of, deadline_ms, sampler, verifier, choice, adaptive, rows=len(rows)
        )
        if not len(rows):
            return np.zeros((*leading, self.spec.action_size), np.float32)
        actions = self._decided(rows, leading, key, inference.act, budget, strategy)
        # A copy: what JAX hands out may be read-only memory of its own.
        answer = np.array(actions, np.float32).reshape(*leading, self.spec.action_size)
        if told := told_of(answer, axes=len(leading)):
            raise NotFiniteError(told, answer)
        return answer

    def act_info(
        self,
        observation: Any,
        *,
        steps: int | None = None,
        best_of: int | None = None,
        deadline_ms: float | None = None,
        sampler: Sampler | None = None,
        verifier: Verifier | str | None = None,
        choice: Choice | str | None = None,
        key: Keys | int | np.integer[Any] | None = None,
    ) -> Decision:
        """Choose actions as `act` does, and tell what they were chosen from.

        Args:
            observation: as for `act`.
            steps: as for `act`.
            best_of: as for `act`.
            deadline_ms: as for `act`; but to tell takes longer than to decide, and `prepare`
                compiles nothing for it.
            sampler: as for `act`.
            verifier: as for `act`.
            choice: as for `act`.
            key: as for `act`; the same key gives the same actions.

        Raises:
            InputError: as `act`, or the policy has no critic.
            NotFiniteError: as `act`; scores are told as they are.
        """
        if not isinstance(self.module, AbstractScoredPolicy):
            raise InputError(
                f"{type(self.module).__name__} has no critic, so there are no scores to tell: use "
                "act."
            )
        rows, leading = self._checked(observation)
        budget, strategy = self._asked(
            steps, best_of, deadline_ms, sampler, verifier, choice, False, rows=len(rows)
        )
        if not len(rows):
            raise InputError("There is no observation to decide on: give at least one.")
        found = self._decided(rows, leading, key, inference.consider, budget, strategy)
        actions, scores, drawn_in = (np.array(leaf) for leaf in found.candidates)
        chosen = np.array(found.chosen)
        answer = Decision(
            action=_unflattened(actions[np.arange(len(rows)), chosen], leading),
            chosen=_unflattened(chosen, leading),
            candidates=_unflattened(actions, leading),
            scores=_unflattened(scores, leading),
            steps=_unflattened(drawn_in, leading),
        )
        if told := told_of(answer.action, axes=len(leading)):
            raise NotFiniteError(told, answer)
        return answer

    def prepare(self, *, rows: int = 1) -> None:
        """Compile whatever a deadline may buy for `rows` observations, so that `act` can keep it.

        An array of keys with more than one axis still compiles a small program at its first call.

        Raises:
            InputError: the policy has no calibration, or none for so many rows.
        """
        calibration = self._calibrated("To prepare for deadlines")
        shape = (self.spec.observation_size,) if rows == 1 else (rows, self.spec.observation_size)
        # Small programs of their own make some of the noise.
        self._own_noise(np.int32(0), (rows,), rows)
        for key in (0, jax.random.split(jax.random.key(0), rows)):
            self._noise(key, (rows,), rows)
        for measured in calibration.worth_having(rows=rows):
            strategy = calibration.strategy(measured)
            self.act(
                np.zeros(shape),
                steps=measured.budget.steps,
                best_of=measured.budget.best_of,
                sampler=strategy.sampler,
                verifier=strategy.verifier,
                choice=strategy.choice,
                key=0,
            )

    def _asked(
        self,
        steps: int | None,
        best_of: int | None,
        deadline_ms: float | None,
        sampler: Sampler | None,
        verifier: Verifier | str | None,
        choice: Choice | str | None,
        adaptive: Adaptive | float | bool,
        *,
        rows: int,
    ) -> tuple[Budget, Strategy]:
        if isinstance(adaptive, bool | np.bool_) or adaptive is None:
            adaptive = bool(adaptive)
        elif not isinstance(adaptive, Adaptive):
            if not isinstance(adaptive, numbers.Real):
                raise InputError(
                    f"adaptive={adaptive!r} is not possible: give True, False, or a threshold, "
                    "which is a number."
                )
            adaptive = Adaptive(float(adaptive))
        if deadline_ms is not None:
            if isinstance(deadline_ms, bool) or not isinstance(deadline_ms, numbers.Real):
                raise InputError(
                    f"deadline_ms={deadline_ms!r} is not possible: give a number of milliseconds."
                )
            own_way = (steps, best_of, sampler, verifier, choice)
            if adaptive or any(word is not None for word in own_way):
                raise InputError(
                    "A deadline chooses the budget and how it is spent, as they were calibrated: "
                    "leave out steps, best_of, sampler, verifier, choice and adaptive."
                )
            deadline_ms = float(deadline_ms)
            calibration = self._calibrated(f"A deadline of {deadline_ms:g} ms")
            best = calibration.best_within(deadline_ms, rows=max(rows, 1))
            return best.budget, calibration.strategy(best)
        own = self.algorithm.own_budget
        budget = Budget(
            steps=own.steps if steps is None else steps,
            best_of=own.best_of if best_of is None else best_of,
        )
        if isinstance(verifier, str):
            verifier = Verifier.parse(verifier)
        if isinstance(choice, str):
            choice = Choice.parse(choice)
        for name, value, kind in (
            ("sampler", sampler, str),
            ("verifier", verifier, Verifier),
            ("choice", choice, Choice),
        ):
            if value is not None and not isinstance(value, kind):
                raise InputError(
                    f"{name}={value!r} is not possible: give {_EXAMPLES[name]}, or leave it out."
                )
        if adaptive is True:
            calibration = self._calibrated("Adaptive spending")
            adaptive = Adaptive(calibration.threshold(budget))
            way = calibration.sampler, calibration.verifier
            if (sampler or way[0], verifier or way[1]) != way:
                raise InputError(
                    "adaptive=True takes the threshold that was calibrated with the sampler "
                    f"{way[0]} and the verifier {way[1]}: leave both out, or give a threshold for "
                    "yours, adaptive=sorl.inference.Adaptive(...)."
                )
            sampler, verifier = way
        strategy = Strategy(
            sampler="independent" if sampler is None else sampler,
            verifier=OWN if verifier is None else verifier,
            choice=OWN_CHOICE if choice is None else choice,
            adaptive=adaptive or None,
        )
        if (budget, strategy) not in self._served:
            inference.check(self.module, budget, strategy)
            self._served.add((budget, strategy))
        return budget, strategy

    def _calibrated(self, what: str) -> Calibration:
        if self.calibration is None:
            raise InputError(
                f"{what} needs a calibration, and this policy has none: run `sorl calibrate` on "
                "this machine and load the policy again."
            )
        if not self._told_elsewhere:
            self._told_elsewhere = True
            self.calibration.warn_elsewhere()
        return self.calibration

    def _decided(
        self,
        rows: np.ndarray,
        leading: tuple[int, ...],
        key: Keys | int | np.integer[Any] | None,
        decide: Callable[..., Any],
        budget: Budget,
        strategy: Strategy,
    ) -> Any:
        """What `decide` makes of every row; arrays begin with an axis of rows."""
        noise = self._noise(key, leading, len(rows))
        return self._act(self._arrays, rows, noise, decide, budget, strategy)

    def _noise(
        self, key: Keys | int | np.integer[Any] | None, leading: tuple[int, ...], rows: int
    ) -> _Noise:
        if key is None:
            with self._lock:
                drawn = self._drawn
                self._drawn += 1
            return self._own_noise(np.int32(drawn % 2**31), leading, rows)
        if isinstance(key, int | np.integer):
            keys = _seeded("key", key, ", or a random key")
        else:
            # Keys of the older kind are bare integers.
            try:
                typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
                keys = key if typed else jax.random.wrap_key_data(key)
            except (AttributeError, TypeError) as error:
                raise InputError(
                    f"The key is a {type(key).__name__} that is no random key: give one of "
                    f"`jax.random.key`, or a seed, 0 to {MAX_SEED}."
                ) from error
        if keys.ndim and keys.shape != leading:
            raise InputError(
                f"There are keys of shape {list(keys.shape)} for observations of shape "
                f"{list(leading)}: give one key, or one for each observation."
            )
        return _noise_of(keys, leading, rows)

    def _own_noise(self, draw: np.int32, leading: tuple[int, ...], rows: int) -> _Noise:
        """That of one draw from the policy's own stream."""
        if rows == 1:
            return _Noise(self._stream, draw, bool(leading))
        return _noise_of(_fold_in(self._stream, draw), leading, rows)

    def _checked(self, observation: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        """The observations as `[rows, observation_size]`, and their leading axes."""
        size = self.spec.observation_size
        if self.spec.image is not None:
            observation = flat_observation(self.spec, self.spec.image, observation)
        try:
            with np.errstate(over="ignore"):
                values = np.asarray(observation, np.float32)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"The observation is no array of numbers ({error}): give {size} numbers."
            ) from error
        if values.ndim == 0 or values.shape[-1] != size:
            raise InputError(
                f"The observation has shape {list(values.shape)}, but this policy takes "
                f"[{size}] or a batch [..., {size}]."
            )
        if not np.isfinite(values).all():
            where = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
            raise InputError(
                f"The observation is not finite: entry {list(where)} is {values[where]}; check the "
                "sensor or the data it comes from."
            )
        return values.reshape(-1, size), values.shape[:-1]


def _seeded(name: str, seed: int | np.integer[Any], more: str = "") -> PRNGKeyArray:
    """The random key of a seed; `more` is what else the argument `name` may be."""
    if not isinstance(seed, int | np.integer) or not 0 <= seed <= MAX_SEED:
        raise InputError(f"{name}={seed!r} is no seed: give 0 to {MAX_SEED}{more}.")
    return _seeded_key(np.uint32(seed))


def told_of(answer: np.ndarray, *, axes: int) -> str:
    """What is wrong with an answer, in one sentence; empty where all of it is finite.

    Args:
        answer: actions or scores, `[..., entries]`.
        axes: how many of its axes are the observation's.
    """
    finite = np.isfinite(answer)
    if finite.all():
        return ""
    place = [int(i) for i in np.argwhere(~finite)[0][:axes]]
    return (
        f"The policy's answer to {f'observation {place}' if place else 'the observation'} is not "
        "finite: it lies too far from what the policy was trained on, or the training has "
        "diverged; check where it comes from, or load a policy of an earlier update."
    )


def _noise_of(keys: Keys, leading: tuple[int, ...], rows: int) -> _Noise:
    # One row is one program, with an axis of rows or without: it is prepared only once.
    if rows == 1 and keys.ndim:
        return _Noise(_only(keys), _KEY_ITSELF, False)
    if rows == 1:
        return _Noise(keys, _KEY_ITSELF, bool(leading))
    keys = keys if keys.ndim else _split(keys, rows)
    return _Noise(keys if keys.ndim < 2 else keys.reshape(-1), _KEY_ITSELF, False)


def load_stacked(run: Path | str) -> tuple[AbstractPolicy, list[Member]]:
    """Load the policies of all members of a run as one, for evaluating them together.

    Returns:
        The policy, its arrays with a leading axis `[members]` (use `eqx.filter_vmap` over it),
        and the members, ordered by task, then by seed.

    Raises:
        InputError: as in `Policy.load`, or the members' policies are not of one kind or of one
            update.
    """
    run = Path(run)
    members = saved_members(run)
    saved = [read_policy(policy_folder(run, member)) for member in members]
    for other in saved[1:]:
        kinds = [(entry.algorithm, entry.spec, entry.module.units) for entry in (saved[0], other)]
        if kinds[0] != kinds[1]:
            raise InputError(
                f"The policies of {saved[0].member} and {other.member} in {run} come from "
                "different algorithms, settings, sizes or units: they cannot be evaluated as one "
                "run."
            )
    updates = sorted({entry.update for entry in saved})
    if len(updates) > 1:
        raise InputError(
            f"The policies in {run} were saved after different updates "
            f"({', '.join(map(str, updates))}), as a killed training leaves them: continue it with "
            f"`sorl resume {run}`, or it is being trained right now: try again a little later."
        )
    arrays = [eqx.filter(entry.module, eqx.is_array) for entry in saved]
    static = eqx.filter(saved[0].module, eqx.is_array, inverse=True)
    stacked = jax.tree.map(lambda *values: jnp.stack(values), *arrays)
    return eqx.combine(stacked, static), members


def _unflattened(array: np.ndarray, leading: tuple[int, ...]) -> np.ndarray:
    return array.reshape((*leading, *array.shape[1:]))


def _wishes(task: int | None, seed: int | None) -> str:
    wishes = (("task", task), ("seed", seed))
    return " and ".join(f"{name} {value}" for name, value in wishes if value is not None)
