"""A policy exported by sorl, run by NumPy alone: this file needs nothing but NumPy.

    from numpy_policy import Policy

    policy = Policy("folder")                            # the folder that this file came in
    action = policy.act(observation, steps=4, best_of=8)

`weights.safetensors` holds the arrays, `programs.json` the operations between them, as lists that
the table OPERATIONS below gives their meaning; `export.json` tells what they are and their digests.
Nothing in them is ever executed as code.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMATS = (1, 2)  # 2: actions have units of their own
MAX_HEADER_BYTES = 100_000_000
_UNITS = ("middle", "half_width", "low", "high")
_DTYPES = {"F32": np.dtype("<f4"), "BOOL": np.dtype(bool)}


class Decision(NamedTuple):
    """Chosen actions and what they were chosen from.

    Attributes:
        action: the chosen candidate, float32 `[batch, action_size]`.
        candidates: float32 `[batch, best_of, action_size]`.
        scores: the critic's score of each, `[batch, best_of]`; None with one candidate or the
            choice central, which are not scored.
    """

    action: np.ndarray
    candidates: np.ndarray
    scores: np.ndarray | None


class Policy:
    """An exported policy that acts.

    Attributes:
        observation_size: entries of one observation.
        action_size: entries of one action.
        steps: the numbers of sampling steps that were exported, ascending.
        choice: how one of several candidates is chosen: best (the highest score), central (the
            candidate nearest to all others), or such as typical-2 (the higher score of the two most
            central ones).
    """

    def __init__(self, folder: Path | str) -> None:
        """Load the policy in `folder`.

        Raises:
            ValueError: a file is missing, damaged or of another format.
        """
        folder = Path(folder)
        manifest = _json(_read(folder / "export.json"), folder / "export.json")
        if manifest.get("format") not in FORMATS or manifest.get("kind") != "numpy":
            raise ValueError(
                f"{folder / 'export.json'} is of format {manifest.get('kind')!r} "
                f"{manifest.get('format')!r} and this file reads 'numpy' 1 and 2: use the "
                "numpy_policy.py that came with it."
            )
        weights, programs = folder / "weights.safetensors", folder / "programs.json"
        contents = [_read(path) for path in (weights, programs)]
        for path, content in zip((weights, programs), contents, strict=True):
            try:
                digest = manifest["files"][path.name]["sha256"]
            except (KeyError, TypeError):
                digest = None
            if hashlib.sha256(content).hexdigest() != digest:
                raise ValueError(
                    f"{path} is damaged (its content does not match its digest): export the policy "
                    "anew."
                )
        arrays = read_safetensors(contents[0], weights)
        description = _json(contents[1], programs)
        self._generator: np.random.Generator | None = None
        try:
            self.observation_size = int(description["observation_size"])
            self.action_size = int(description["action_size"])
            self._default = int(description["steps"]), int(description["best_of"])
            self.choice = str(description["choice"])
            self._kept = _kept(self.choice)
            self._units = {
                name: np.asarray(description["units"][name], np.float32)
                for name in (_UNITS if manifest["format"] == 2 and "units" in description else ())
            }
            if any(bound.shape != (self.action_size,) for bound in self._units.values()):
                raise ValueError("the units have another size than the actions")
            self._programs: dict[int, _Step] = {}
            for entry in description["programs"]:
                self._programs[int(entry["steps"])] = _Step(
                    tuple(int(size) for size in entry["noise_shape"]),
                    Program(entry["candidates"], ("observation", "noise"), arrays),
                    Program(entry["score"], ("observation", "action"), arrays)
                    if entry["score"]
                    else None,
                )
            self.steps = sorted(self._programs)
            self._try_all()
        except (ArithmeticError, LookupError, TypeError, ValueError, MemoryError) as error:
            raise ValueError(
                f"{programs} describes no policy that can be run "
                f"({type(error).__name__}: {error}): export the policy anew."
            ) from error

    def act(
        self,
        observation: Any,
        *,
        steps: int | None = None,
        best_of: int | None = None,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Choose actions.

        Args:
            observation: finite numbers, `[observation_size]` or `[..., observation_size]`.
            steps: sampling steps of one candidate; when None those that the method uses by itself,
                if they were exported.
            best_of: candidates among which one is chosen; when None as many as the method uses by
                itself, if that was exported, whatever `steps` are.
            rng: where the sampling noise comes from; when None a generator of this policy's own,
                seeded by the operating system.

        Returns:
            float32 actions in the units that the policy was trained in, usually [-1, 1],
            `[action_size]` or `[..., action_size]`.

        Raises:
            ValueError: the observation has another shape or is not finite, the steps were not
                exported, there is no critic and the choice needs one, or an action is not finite.
        """
        steps = self._default[0] if steps is None else steps
        best_of = self._default[1] if best_of is None else best_of
        rows, leading = self._rows(observation)
        shape = self._program(steps, best_of).noise_shape
        if rng is None:
            rng = self._generator = self._generator or np.random.default_rng()
        noise = rng.standard_normal((len(rows), best_of, *shape), dtype=np.float32)
        actions = self._decide(rows, noise, steps).action.reshape(*leading, self.action_size)
        finite = np.isfinite(actions)
        if not finite.all():
            place = [int(i) for i in np.argwhere(~finite)[0][:-1]]
            raise ValueError(
                f"The policy's answer to {f'observation {place}' if place else 'the observation'} "
                "is not finite: it lies too far from what the policy was trained on, or the "
                "training has diverged; check where it comes from, or export an earlier policy."
            )
        return actions

    def from_noise(self, observation: Any, noise: np.ndarray, *, steps: int) -> Decision:
        """The decision for given noise: all that is random in an action.

        Args:
            observation: finite numbers, `[batch, observation_size]`.
            noise: standard normal numbers, `[batch, best_of, *noise_shape]`.
            steps: sampling steps of one candidate.

        Raises:
            ValueError: as for `act`, or the noise has another shape.
        """
        rows, leading = self._rows(observation)
        noise = np.asarray(noise, np.float32)
        best_of = noise.shape[1] if noise.ndim > 1 else 1
        shape = self._program(steps, best_of).noise_shape
        if len(leading) != 1 or noise.shape != (len(rows), best_of, *shape):
            raise ValueError(
                f"The noise has shape {list(noise.shape)}, but {len(rows)} observations in {steps} "
                f"steps take {[len(rows), 'best_of', *shape]}."
            )
        return self._decide(rows, noise, steps)

    def _decide(self, rows: np.ndarray, noise: np.ndarray, steps: int) -> Decision:
        count, best_of = noise.shape[:2]
        shape, candidates, score = self._programs[steps]
        if not count:
            empty = np.zeros((0, best_of, self.action_size), np.float32)
            return Decision(empty[:, 0], empty, None)
        repeated = np.repeat(rows, best_of, axis=0) if best_of > 1 else rows
        with np.errstate(all="ignore"):  # what overflows on the way to an action does so in JAX too
            actions = candidates(repeated, noise.reshape(count * best_of, *shape))
            grouped = actions.reshape(count, best_of, self.action_size)
            if best_of == 1:
                grouped = self._in_units(grouped)
                return Decision(grouped[:, 0], grouped, None)
            scores = None if score is None else score(repeated, actions).reshape(count, best_of)
        chosen = self._chosen(grouped, scores)
        grouped = self._in_units(grouped)
        return Decision(grouped[np.arange(count), chosen], grouped, scores)

    def _in_units(self, actions: np.ndarray) -> np.ndarray:
        """Actions in [-1, 1], among which the choice is made, as the caller wants them."""
        if not self._units:
            return actions
        middle, half_width, low, high = (self._units[name] for name in _UNITS)
        inside = np.clip(middle + half_width * actions, low, high)
        return np.where(actions >= 1, high, np.where(actions <= -1, low, inside))

    def _chosen(self, candidates: np.ndarray, scores: Any) -> np.ndarray:
        """The place of the chosen candidate in every row; ties go to the first."""
        if self.choice == "best":
            return np.argmax(scores, axis=1)
        between = candidates[:, :, None] - candidates[:, None]
        remoteness = np.sqrt((between**2).sum(axis=3)).mean(axis=2)
        if self.choice == "central":
            return np.argmin(remoteness, axis=1)
        nearer = (remoteness[:, None] < remoteness[:, :, None]).sum(axis=2)
        return np.argmax(np.where(nearer < self._kept, scores, -np.inf), axis=1)

    def _rows(self, observation: Any) -> tuple[np.ndarray, tuple[int, ...]]:
        """The observations as `[rows, observation_size]`, and their leading axes."""
        size = self.observation_size
        try:
            with np.errstate(over="ignore"):
                values = np.asarray(observation, np.float32)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The observation is no array of numbers ({error}): give {size} numbers."
            ) from error
        if values.ndim == 0 or values.shape[-1] != size:
            raise ValueError(
                f"The observation has shape {list(values.shape)}, but this policy takes "
                f"[{size}] or a batch [..., {size}]."
            )
        if not np.isfinite(values).all():
            raise ValueError(
                "The observation is not finite: check the sensor or the data it comes from."
            )
        return values.reshape(-1, size), values.shape[:-1]

    def _program(self, steps: int, best_of: int) -> _Step:
        for name, value in (("steps", steps), ("best_of", best_of)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer):
                raise ValueError(f"{name}={value!r} is not possible: give a whole number.")
        if steps not in self._programs:
            raise ValueError(
                f"This policy was not exported for {steps} sampling steps: choose one of "
                f"{', '.join(map(str, self.steps))}, or export it anew."
            )
        found = self._programs[steps]
        if best_of < 1:
            raise ValueError(f"best_of={best_of} is not possible: give 1 or more.")
        if best_of > 1 and not self._chooses(found):
            raise ValueError(
                f"The best of {best_of} candidates cannot be chosen in {steps} steps, for which no "
                "critic was exported: use best_of=1, or export the policy anew."
            )
        return found

    def _chooses(self, step: _Step) -> bool:
        """Whether several candidates are possible."""
        return step.score is not None or self.choice == "central"

    def _try_all(self) -> None:
        """Run every program once, so that one which cannot run is found out now."""
        for steps, step in self._programs.items():
            best_of = 2 if self._chooses(step) else 1
            noise = np.zeros((1, best_of, *step.noise_shape), np.float32)
            decision = self.from_noise(np.zeros((1, self.observation_size)), noise, steps=steps)
            if decision.action.dtype != np.float32:
                raise ValueError(f"actions are {decision.action.dtype}")


class Program:
    """Operations in a row, from inputs with one axis of rows to one array with that axis.

    Args:
        description: `{"operations": [[output, name, inputs, attributes], ...], "output": name}`.
            An input is a number or a name: of an argument, a weight or an earlier output.
        arguments: the names of what a call is given, in order.
        arrays: the weights.
    """

    def __init__(
        self,
        description: dict[str, Any],
        arguments: tuple[str, ...],
        arrays: dict[str, np.ndarray],
    ) -> None:
        self._memory: list[Any] = [None] * len(arguments)
        self._steps: list[tuple[Callable[..., Any], bool, list[int], int]] = []
        self._last_use: list[list[int]] = []
        places = {name: place for place, name in enumerate(arguments)}
        made: dict[int, int] = dict.fromkeys(range(len(arguments)), -1)
        for output, name, inputs, attributes in description["operations"]:
            sources = []
            for entry in inputs:
                if isinstance(entry, int | float):
                    self._memory.append(np.asarray(entry, np.float32))
                    sources.append(len(self._memory) - 1)
                    continue
                if entry not in places:
                    places[entry] = len(self._memory)
                    self._memory.append(arrays[entry])
                sources.append(places[entry])
            if output in places:
                raise ValueError(f"{output} is computed twice")
            places[output] = len(self._memory)
            made[places[output]] = len(self._steps)
            self._memory.append(None)
            fixed = {key: _fixed(value) for key, value in attributes.items()}
            takes_rows = name in ("reshape", "broadcast")
            function = partial(OPERATIONS[name], **fixed) if fixed else OPERATIONS[name]
            self._steps.append((function, takes_rows, sources, places[output]))
        self._output = places[description["output"]]
        # What is not read any more is let go, so that memory does not grow with the steps.
        last = dict(made)
        for index, (_, _, sources, _) in enumerate(self._steps):
            last.update({place: index for place in sources if place in made})
        self._last_use = [[] for _ in self._steps]
        for place, index in last.items():
            if index >= 0 and place != self._output:
                self._last_use[index].append(place)

    def __call__(self, *arguments: np.ndarray) -> np.ndarray:
        """Run the operations."""
        memory = self._memory.copy()
        memory[: len(arguments)] = arguments
        rows = len(arguments[0])
        for (function, takes_rows, sources, target), over in zip(
            self._steps, self._last_use, strict=True
        ):
            values = [memory[place] for place in sources]
            memory[target] = function(*values, rows=rows) if takes_rows else function(*values)
            for place in over:
                memory[place] = None
        return memory[self._output]


class _Step(NamedTuple):
    """What was exported for one number of sampling steps.

    Attributes:
        noise_shape: shape of the noise of one candidate.
        candidates: from observations and noise, row by row, to actions.
        score: from observations and actions, row by row, to scores; None without a critic or where
            it has no say.
    """

    noise_shape: tuple[int, ...]
    candidates: Program
    score: Program | None


def _kept(choice: str) -> int:
    """Among how many of the candidates, the most central ones, a choice takes the best; 0: all.

    Raises:
        ValueError: it is none of best, central, typical-1, typical-2, ...
    """
    if choice in ("best", "central"):
        return 0
    number = choice.removeprefix("typical-")
    if number == choice or not number.isdecimal() or int(number) < 1:
        raise ValueError(f"there is no choice {choice!r}")
    return int(number)


def _sized(shape: tuple[Any, ...], rows: int) -> tuple[int, ...]:
    return tuple(rows if size == "rows" else size for size in shape)


def _reshape(x: np.ndarray, *, shape: tuple[Any, ...], rows: int) -> np.ndarray:
    return x.reshape(_sized(shape, rows))


def _broadcast(x: np.ndarray, *, shape: tuple[Any, ...], rows: int) -> np.ndarray:
    whole = np.empty(_sized(shape, rows), x.dtype)  # np.broadcast_to takes many times longer
    whole[...] = x
    return whole


def _slice(
    x: np.ndarray, *, axes: tuple[int, ...], starts: tuple[int, ...], stops: tuple[int, ...]
) -> np.ndarray:
    index = [slice(None)] * x.ndim
    for axis, start, stop in zip(axes, starts, stops, strict=True):
        index[axis] = slice(start, stop)
    return x[tuple(index)]


def _concatenate(*parts: np.ndarray, axis: int) -> np.ndarray:
    return np.concatenate(parts, axis=axis)


def _sum(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    return np.add.reduce(x, axis=axes)


def _max(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    return np.maximum.reduce(x, axis=axes)


def _min(x: np.ndarray, *, axes: tuple[int, ...]) -> np.ndarray:
    return np.minimum.reduce(x, axis=axes)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "power": np.power,
    "negative": np.negative,
    "absolute": np.absolute,
    "sign": np.sign,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sin": np.sin,
    "cos": np.cos,
    "less": np.less,
    "less_equal": np.less_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "equal": np.equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_not": np.logical_not,
    "where": np.where,
    "matmul": np.matmul,
    "transpose": np.transpose,
    "reshape": _reshape,
    "broadcast": _broadcast,
    "concatenate": _concatenate,
    "slice": _slice,
    "sum": _sum,
    "max": _max,
    "min": _min,
}


def read_safetensors(content: bytes, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file: 8 bytes with the length of a JSON header, it, then data.

    Raises:
        ValueError: the file is damaged, or holds other types than float32 and truth values.
    """
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise ValueError(f"{path} is damaged (its header is cut off): export the policy anew.")
    header, data = _json(content[8 : 8 + length], path), memoryview(content)[8 + length :]
    arrays = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape = _DTYPES[entry["dtype"]], tuple(map(_size, entry["shape"]))
            start, stop = map(_size, entry["data_offsets"])
            if stop > len(data) or stop - start != math.prod(shape) * dtype.itemsize:
                raise ValueError("its place is not in the file")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged (the entry {name!r}: {error}): export the policy anew."
            ) from error
        arrays[name] = np.frombuffer(data[start:stop], dtype).reshape(shape)
    return arrays


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _fixed(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}): check the path.") from error


def _json(content: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged (no valid JSON: {error}): export it anew.") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged (no JSON object): export it anew.")
    return value
