"""What runs inside one worker process of a `VectorEnvironment`: environments, and a main loop.

Never imports JAX, so that a worker starts quickly and stays small.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import signal
import traceback
import warnings
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sorl.errors import InputError
from sorl.own_environments import make_own, registered
from sorl.own_names import is_own
from sorl.spaces import Apart, take_apart

if TYPE_CHECKING:
    import gymnasium

_global_random: Any = np.random  # NumPy's stubs lack set_bit_generator


class Sizes(NamedTuple):
    """What every environment of one `VectorEnvironment` has in common.

    Attributes:
        observation_size: entries of an observation.
        action_size: entries of an action.
        max_episode_steps: steps after which an episode is cut off.
        action_low: least value of each entry of an action; empty where it is -1.
        action_high: largest value; empty where it is 1.
        image: height, width and channels of all frames together; empty where there is no image.
            Observations then are its pixels and, behind them, a state.
    """

    observation_size: int
    action_size: int
    max_episode_steps: int
    action_low: tuple[float, ...] = ()
    action_high: tuple[float, ...] = ()
    image: tuple[int, ...] = ()

    @property
    def state_size(self) -> int:
        """Entries of an observation that are no pixels."""
        return self.observation_size - (math.prod(self.image) if self.image else 0)


def _registered_id(environment_id: str) -> str:
    """The gymnasium id of an OGBench environment or of any other registered one.

    OGBench's names of data sets and tasks hold the kind of data, which its gymnasium ids do not:
    `cube-single-play-singletask-task2-v0` is registered as `cube-single-singletask-task2-v0`.
    """
    import gymnasium

    if ":" in environment_id:
        return registered(environment_id)
    if environment_id in gymnasium.registry:
        return environment_id
    import ogbench  # noqa: F401  (registers its environments)

    words = environment_id.split("-")
    if "singletask" in words[1:] and environment_id not in gymnasium.registry:
        place = words.index("singletask")
        return "-".join(words[: place - 1] + words[place:])
    return environment_id


def make_environment(
    environment_id: str, *, max_episode_steps: int | None = None, render_size: int | None = None
) -> gymnasium.Env:
    """One environment, checked to be of the kind that policies here can act in.

    Args:
        environment_id: an OGBench name such as `cube-single-play-singletask-task2-v0`, or any
            gymnasium id, `module:Name-v0` included; or `minari:NAME` or `gym:ID`, which act in
            units of their own, see `sorl.own_environments`.
        max_episode_steps: cut episodes off after so many steps instead of the registered number.
        render_size: width and height in pixels; makes `render()` return RGB frames. Environments
            outside OGBench choose their own size.

    Raises:
        InputError: unknown environment; observations that are no flat vector; actions that are no
            flat vector in [-1, 1]; no limit on the steps of an episode.
    """
    import gymnasium

    options: dict[str, Any] = {"disable_env_checker": True}
    if max_episode_steps is not None:
        options["max_episode_steps"] = max_episode_steps
    if render_size is not None:
        options["render_mode"] = "rgb_array"
    if is_own(environment_id):
        own: Any = make_own(environment_id, options)
        _sizes_or_close(own, environment_id)
        return own
    try:
        name = _registered_id(environment_id)
        specification = gymnasium.spec(name)
        # Those that are seen in pictures keep the size that a policy has learnt from.
        sizable = specification.kwargs.get("ob_type") != "pixels"
        ours = str(specification.entry_point).startswith("ogbench.")
        if render_size is not None and sizable and ours:
            options.update(width=render_size, height=render_size)
        environment = gymnasium.make(name, **options)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(".")
        raise InputError(
            f"There is no environment {environment_id!r}: give an OGBench name such as "
            f"cube-single-play-singletask-task2-v0, or a registered gymnasium id ({reason})."
        ) from error
    _sizes_or_close(environment, environment_id)
    return environment


def _sizes_or_close(environment: gymnasium.Env, environment_id: str) -> None:
    try:
        _sizes(environment, environment_id)
    except InputError:
        environment.close()
        raise


def _sizes(environment: gymnasium.Env, environment_id: str, frames: int = 1) -> Sizes:
    """Read and check the sizes of an environment."""
    import gymnasium

    observations, actions = environment.observation_space, environment.action_space
    flat = isinstance(observations, gymnasium.spaces.Box) and len(observations.shape) == 1
    seen = Apart(None, np.zeros(0))
    if not flat:
        with contextlib.suppress(InputError):
            seen = take_apart(observations, observations.sample())
        if seen.image is None:
            raise InputError(
                f"Environment {environment_id} has observations {observations}, but a policy here "
                "takes one flat vector of numbers: wrap it in gymnasium's FlattenObservation; or "
                "a uint8 image [height, width, channels], alone or beside vectors in a dictionary."
            )
    if not isinstance(actions, gymnasium.spaces.Box) or len(actions.shape) != 1:
        raise InputError(
            f"Environment {environment_id} has actions {actions}, but a policy here gives one flat "
            "vector of numbers in [-1, 1]: choose an environment with continuous actions."
        )
    usual = bool(np.all(actions.low == -1) and np.all(actions.high == 1))
    if not usual and not is_own(environment_id):
        raise InputError(
            f"Environment {environment_id} has actions {actions}, but a policy's actions lie in "
            "[-1, 1]: wrap it in gymnasium's RescaleAction, or write gym:ID for data in its units."
        )
    limit = None if environment.spec is None else environment.spec.max_episode_steps
    if limit is None:
        raise InputError(
            f"Environment {environment_id} sets no limit on the steps of an episode: register it "
            "with max_episode_steps."
        )
    low, high = (() if usual else tuple(map(float, it)) for it in (actions.low, actions.high))
    if seen.image is None:
        return Sizes(observations.shape[0], actions.shape[0], limit, low, high)  # pyright: ignore[reportOptionalSubscript]
    height, width, channels = seen.image.shape
    image = (height, width, channels * frames)
    size = math.prod(image) + seen.state.size
    return Sizes(size, actions.shape[0], limit, low, high, image)


def slot_type(sizes: Sizes) -> np.dtype:
    """One slot's record in the shared memory."""
    return np.dtype(
        [
            ("observation", np.float64, (sizes.state_size,)),
            *([("image", np.uint8, sizes.image)] if sizes.image else []),
            ("action", np.float32, (sizes.action_size,)),
            ("episode_return", np.float64),
            ("reward", np.float64),
            ("success", np.float64),
            ("success_told", np.bool_),
            ("length", np.int64),
            ("terminated", np.bool_),
            ("done", np.bool_),
        ],
        align=True,
    )


class _Slot:
    """One environment inside a worker and the random numbers that belong to it alone."""

    def __init__(self, environment_id: str, options: dict[str, Any], frames: int):
        self.environment_id = environment_id
        self.environment = make_environment(environment_id, **options)
        self.sizes = _sizes(self.environment, environment_id, frames)
        self.frames = frames
        self.generator: np.random.BitGenerator = np.random.PCG64(0)

    def become(self, environment_id: str) -> bool:
        """Turn into another task of the same OGBench environment; False if it is none.

        A manipulation environment takes over a second to build and some 140 MB, and its tasks
        differ in one number that is read at every reset.
        """
        import gymnasium

        if environment_id == self.environment_id:
            return True
        if is_own(environment_id) or is_own(self.environment_id):
            return False
        have, want = (
            gymnasium.spec(_registered_id(name)) for name in (self.environment_id, environment_id)
        )
        task = want.kwargs.get("reward_task_id", 0)
        if have.entry_point != want.entry_point or not task:  # 0 is resolved when it is built
            return False
        if {**have.kwargs, "reward_task_id": task} != want.kwargs:
            return False
        if have.max_episode_steps != want.max_episode_steps:
            return False
        environment: Any = self.environment.unwrapped
        environment._reward_task_id = task
        self.environment_id = environment_id
        return True

    def reset(self, seed: int, record: np.void) -> None:
        # OGBench's mazes draw from NumPy's global generator and from the action space, so both
        # are this slot's own: an episode must not depend on its neighbours in the worker.
        self.generator = np.random.PCG64(seed)
        _global_random.set_bit_generator(self.generator)
        self.environment.action_space.seed(seed)
        observation, _ = self.environment.reset(seed=seed)
        self._observe(record, observation, first=True)
        for field in ("episode_return", "reward", "success", "length"):
            record[field] = 0
        for field in ("success_told", "terminated", "done"):
            record[field] = False

    def step(self, record: np.void) -> None:
        if record["done"]:
            raise RuntimeError("a step was asked of an episode that has ended: reset the slot")
        _global_random.set_bit_generator(self.generator)
        observation, reward, terminated, truncated, info = self.environment.step(
            record["action"].copy()
        )
        self._observe(record, observation, first=False)
        record["reward"] = float(reward)
        record["episode_return"] += float(reward)
        record["success"] = float(info.get("success", 0.0))
        record["success_told"] |= "success" in info
        record["length"] += 1
        record["terminated"] = terminated
        record["done"] = terminated or truncated

    def _observe(self, record: np.void, observation: Any, *, first: bool) -> None:
        """Write an observation down; its frame behind those before it, or as all of them."""
        if not self.sizes.image:
            record["observation"] = observation
            return
        frame, record["observation"] = take_apart(self.environment.observation_space, observation)
        assert frame is not None
        earlier = record["image"][..., frame.shape[-1] :]
        kept = np.tile(frame, self.frames - 1) if first else earlier
        record["image"] = np.concatenate([kept, frame], axis=-1)


class Worker:
    """The slots of one worker process.

    Args:
        memory: file descriptor of the memory shared with the other processes.
    """

    def __init__(self, memory: int):
        self._memory = memory
        self._slots: dict[int, _Slot] = {}
        self._spare: list[_Slot] = []
        self._options: dict[str, Any] = {}
        self._frames = 1
        self._sizes: Sizes | None = None
        self._records = np.empty(0)

    def describe(
        self,
        environment_id: str,
        max_episode_steps: int | None,
        render_size: int | None,
        frames: int,
    ) -> Sizes:
        """Build the first environment and say how large its vectors are."""
        self._options = {"max_episode_steps": max_episode_steps, "render_size": render_size}
        self._frames = frames
        self._spare.append(_Slot(environment_id, self._options, frames))
        self._sizes = self._spare[0].sizes
        return self._sizes

    def attach(self, sizes: Sizes) -> None:
        """Map the shared memory, whose size is known now."""
        self._records = np.frombuffer(mmap.mmap(self._memory, 0), dtype=slot_type(sizes))

    def run(self, ticket: int, resets: dict[int, tuple[str, int]], steps: list[int]) -> int:
        """Reset some slots, step others, and return the ticket."""
        for slot, (environment_id, seed) in resets.items():
            self._prepare(slot, environment_id)
            self._slots[slot].reset(seed, self._records[slot])
        for slot in steps:
            self._slots[slot].step(self._records[slot])
        return ticket

    def frame(self, slot: int) -> np.ndarray:
        """A picture of one slot."""
        return np.asarray(self._slots[slot].environment.render(), dtype=np.uint8)

    def _prepare(self, slot: int, environment_id: str) -> None:
        if slot not in self._slots and self._spare:
            self._slots[slot] = self._spare.pop()
        if slot in self._slots:
            if self._slots[slot].become(environment_id):
                return
            self._slots.pop(slot).environment.close()
        new = _Slot(environment_id, self._options, self._frames)
        if new.sizes != self._sizes:
            raise InputError(
                f"Environment {environment_id} has {new.sizes}, but the others have "
                f"{self._sizes}: evaluate them apart."
            )
        self._slots[slot] = new


def serve(connection_number: int, memory_number: int) -> None:
    """Main function of a worker process: obey messages until the pipe closes.

    Args:
        connection_number: file descriptor of this end of the pipe.
        memory_number: file descriptor of the shared memory.
    """
    warnings.simplefilter("ignore")  # gymnasium's and glfw's, once for each worker and slot
    # Some batch systems send it to every process: whoever owns the pipe stops in its own time, and
    # closes it.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The process that feeds the workers must never wait for one of them to yield its core.
    os.nice(5)
    worker = Worker(memory_number)
    commands = {
        "describe": worker.describe,
        "attach": worker.attach,
        "run": worker.run,
        "frame": worker.frame,
    }
    with Connection(connection_number) as connection:
        while True:
            try:
                command, *arguments = connection.recv()
            except (EOFError, OSError):
                return
            try:
                answer = ("done", commands[command](*arguments))
            except InputError as error:
                answer = ("input error", str(error))
            except Exception:
                answer = ("failure", traceback.format_exc())
            try:
                connection.send(answer)
            except OSError:
                return
