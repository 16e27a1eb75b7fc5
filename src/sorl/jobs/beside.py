"""Evaluation beside training: in a thread of its own, one at a time, acting on the CPU.

While an accelerator trains, the host's cores are idle; and it would serve a call of the policy only
between two chunks of updates. So the next chunk is begun before the last milestone is rolled out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import jax

from sorl.evaluation import Evaluation, Progress
from sorl.interruption import Interruption, StoppedError

RollOut = Callable[[Progress], Sequence[Evaluation]]


def pays() -> bool:
    """Whether training leaves the CPU to others."""
    return jax.default_backend() != "cpu"


class BesideTraining:
    """A context manager; when its block ends, a running evaluation is given up.

    Args:
        stop: a request to stop gives a running evaluation up too, at the end of its next episode.
    """

    def __init__(self, stop: Interruption) -> None:
        self._stop = stop
        self._left = threading.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="evaluation")
        self._running: tuple[int, Future[Sequence[Evaluation]]] | None = None

    def start(self, update: int, roll_out: RollOut) -> None:
        """Begin the evaluation of an update; the one before must have been taken."""
        assert self._running is None

        def on_progress(done: int, total: int) -> None:
            if self._stop.requested or self._left.is_set():
                raise StoppedError

        self._running = update, self._thread.submit(roll_out, on_progress)

    def take(self, *, wait: bool) -> tuple[int, Sequence[Evaluation]] | None:
        """The update and scores of the evaluation that has ended, once.

        Args:
            wait: whether to wait for one that runs.

        Returns:
            None where none has ended, or where it was given up.

        Raises:
            Exception: whatever ended the evaluation.
        """
        if self._running is None or not (wait or self._running[1].done()):
            return None
        update, future = self._running
        self._running = None
        try:
            return update, future.result()
        except StoppedError:
            return None

    def __enter__(self) -> BesideTraining:
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.set()
        self._thread.shutdown()
