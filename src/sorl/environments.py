"""Environments in worker processes: who steps them, and how observations and actions travel.

A `VectorEnvironment` has a number of slots; each slot belongs to one worker process and runs one
episode at a time, of whatever environment it was last reset to. Observations, actions and rewards
live in memory that all processes share; the pipes carry only short messages. Nothing resets by
itself: OGBench's manipulation environments answer a step after an episode's end with a reset pair,
so whoever drives the episodes says when the next one starts, and with which seed.

Success is `info["success"]` at an episode's last step. The single-task environments of
ogbench >= 1.2 compute reward, success and termination from the state before the step
(`success_timing="pre"`, as in their data's labels). So an episode that reaches its goal ends one
step later, with success 1; a goal first reached by the very last allowed step does not count.

Workers are started as plain child interpreters and not through `multiprocessing`'s spawn, which
imports the caller's main module again: a script would need a `__main__` guard, and every worker of
the command line would pay for JAX. They import gymnasium, MuJoCo and OGBench, never JAX.
"""

from __future__ import annotations

import mmap
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from sorl import graphics
from sorl.data.names import VISUAL
from sorl.environment_worker import Sizes, make_environment, slot_type
from sorl.errors import InputError, WorkerError

__all__ = ["Sizes", "VectorEnvironment", "make_environment"]

CLOSING_SECONDS = 3.0
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"), "1"
)


class VectorEnvironment:
    """Many episodes at once, in worker processes; a context manager.

    Args:
        environment_id: an environment that the slots will run, see `make_environment`. A slot may
            be reset to another one, if its sizes are the same.
        slots: number of episodes that can run at once, at least 1. Slot i belongs to worker
            `i % workers`.
        workers: number of processes, 1 to `slots`.
        max_episode_steps: see `make_environment`.
        render_size: see `make_environment`; only then `frame` may be called.
        variables: environment variables of the workers besides the inherited ones, for example
            `{"MUJOCO_GL": "egl"}`; OGBench's visual environments find that out by themselves.
        frames: frames of an image, where observations hold one, that are stacked in its channels;
            at an episode's start its first frame is repeated.

    Raises:
        InputError: the environment is unknown or of a kind that cannot be used.
        WorkerError: a worker died; any method may raise it. Nothing hangs.
    """

    def __init__(
        self,
        environment_id: str,
        *,
        slots: int,
        workers: int,
        max_episode_steps: int | None = None,
        render_size: int | None = None,
        variables: Mapping[str, str] | None = None,
        frames: int = 1,
    ):
        if not 1 <= workers <= slots:
            raise InputError(
                f"{workers} workers cannot share {slots} slots: give at least one worker and at "
                "least one slot for each."
            )
        if variables is None and environment_id.startswith(VISUAL):
            variables = graphics.working()
        self.frames = frames
        self.slots = slots
        self.workers = workers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._connections: list[multiprocessing.connection.Connection] = []
        # A file without a name: nothing to clean up, however this process or a worker ends.
        shared = "/dev/shm" if os.path.isdir("/dev/shm") else None
        try:
            with tempfile.TemporaryFile(dir=shared) as memory:
                for _ in range(workers):
                    self._start_worker(memory.fileno(), variables or {})
                description = ("describe", environment_id, max_episode_steps, render_size, frames)
                for worker in range(workers):
                    self._send(worker, description)
                answers = [self._receive(worker) for worker in range(workers)]
                self.sizes: Sizes = answers[0]
                slot = slot_type(self.sizes)
                memory.truncate(slots * slot.itemsize)
                for worker in range(workers):
                    self._send(worker, ("attach", self.sizes))
                    self._receive(worker)
                self._records = np.frombuffer(mmap.mmap(memory.fileno(), 0), dtype=slot)
        except BaseException:
            self.close()
            raise

    def _start_worker(self, memory: int, variables: Mapping[str, str]) -> None:
        ours, theirs = multiprocessing.Pipe()
        search_path = os.pathsep.join(os.path.abspath(path) for path in sys.path)
        program = (
            "import sys; from sorl.environment_worker import serve; serve(*map(int, sys.argv[1:]))"
        )
        with theirs:
            self._connections.append(ours)
            self._processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", program, str(theirs.fileno()), str(memory)],
                    pass_fds=(theirs.fileno(), memory),
                    env={**os.environ, **_ONE_THREAD, **variables, "PYTHONPATH": search_path},
                    stdin=subprocess.DEVNULL,
                    stdout=2,  # what an environment prints must not mix with our own output
                    start_new_session=True,  # Ctrl-C is for this process, which then closes them
                )
            )

    def _send(self, worker: int, message: tuple) -> None:
        try:
            self._connections[worker].send(message)
        except OSError as error:
            raise self._death(worker) from error

    def _receive(self, worker: int) -> Any:
        try:
            kind, value = self._connections[worker].recv()
        except (EOFError, OSError) as error:
            raise self._death(worker) from error
        if kind == "input error":
            raise InputError(value)
        if kind == "failure":
            raise WorkerError(f"An environment failed in worker {worker}:\n{value}")
        return value

    def _death(self, worker: int) -> WorkerError:
        try:
            code: int | None = self._processes[worker].wait(timeout=CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        reason = "its pipe broke" if code is None else f"exit code {code}"
        if code is not None and code < 0:
            reason = f"killed by {signal.Signals(-code).name}"
        return WorkerError(
            f"Environment worker {worker} died ({reason}): its message, if any, stands above; "
            "too little memory is the usual cause, so try fewer slots."
        )

    def send(
        self,
        worker: int,
        ticket: int,
        *,
        resets: Mapping[int, tuple[str, int]],
        actions: Mapping[int, np.ndarray],
    ) -> None:
        """Let one worker reset some of its slots and step others; returns at once.

        Args:
            worker: whose slots they are.
            ticket: a number of the caller's that `receive` will return.
            resets: environment id and seed of each slot that starts an episode.
            actions: action of each slot that makes a step, shape `[action_size]`.
        """
        for slot, action in actions.items():
            self._records["action"][slot] = action
        self._send(worker, ("run", ticket, dict(resets), list(actions)))

    def receive(self) -> list[int]:
        """Wait until one or more messages are done and return their tickets."""
        ready = multiprocessing.connection.wait(self._connections)
        return [
            self._receive(worker)
            for worker, connection in enumerate(self._connections)
            if connection in ready
        ]

    def records(self, slots: Sequence[int]) -> np.ndarray:
        """A copy of what the slots hold now; only of slots that no worker is busy with.

        Returns:
            Structured array `[slots]` with the fields observation `[state_size]`, image (uint8
            `[height, width, channels]`, where there is one), action `[action_size]`, reward (of
            the last step), episode_return (sum of rewards so far), length (steps so far), success
            (at the last step, 0 or 1), success_told (whether the environment told any in this
            episode), terminated (the task is over, so that nothing is
            bootstrapped) and done (that, or the episode was cut off).
        """
        return self._records[list(slots)]

    def observations(self, slots: Sequence[int]) -> np.ndarray:
        """The flat observations of some slots, `[slots, observation_size]`, pixels first."""
        records = self.records(slots)
        if not self.sizes.image:
            return records["observation"]
        pixels = records["image"].reshape(len(records), -1)
        parts = [pixels.astype(np.float32), records["observation"].astype(np.float32)]
        return np.concatenate(parts, axis=1)

    def reset(self, slot: int, environment_id: str, seed: int) -> np.void:
        """Start an episode in one slot and wait; returns its record, see `records`."""
        worker = slot % self.workers
        self.send(worker, 0, resets={slot: (environment_id, seed)}, actions={})
        self._receive(worker)
        return self.records([slot])[0]

    def step(self, slot: int, action: np.ndarray) -> np.void:
        """Make one step in one slot and wait; returns its record, see `records`."""
        worker = slot % self.workers
        self.send(worker, 0, resets={}, actions={slot: action})
        self._receive(worker)
        return self.records([slot])[0]

    def frame(self, slot: int) -> np.ndarray:
        """A picture of one slot, uint8 `[height, width, 3]`."""
        self._send(slot % self.workers, ("frame", slot))
        return self._receive(slot % self.workers)

    def close(self) -> None:
        """End the workers, which have `CLOSING_SECONDS` together; may be called twice."""
        for connection in self._connections:
            connection.close()
        end = time.monotonic() + CLOSING_SECONDS
        for process in self._processes:
            try:
                process.wait(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
        for process in self._processes:
            process.wait()

    def __enter__(self) -> VectorEnvironment:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
