"""Ctrl-C and SIGTERM: the first asks a job to stop at its next pause, the second stops it now."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Iterator


class StoppedError(Exception):
    """The user asked the job to stop while it did what may be left undone."""


class Interruption:
    """Whether the user asked to stop.

    Only a process's main thread can handle signals: in another one nothing is ever asked.

    Args:
        on_request: called once, at the first signal, inside the signal handler.
        advice: what the second signal's `KeyboardInterrupt` says.
    """

    def __init__(self, on_request: Callable[[], object], advice: str) -> None:
        self.requested = False
        self._on_request = on_request
        self._advice = advice
        self._skippable = False
        self._unbroken = False
        self._late = False

    @contextlib.contextmanager
    def handled(self) -> Iterator[Interruption]:
        """Handle SIGINT and SIGTERM until the block ends."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._handle) for number in numbers}
        try:
            with _no_echo():
                yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def skippable(self) -> Iterator[None]:
        """A block that a signal ends at once, with a `StoppedError`."""
        if self.requested:
            raise StoppedError
        self._skippable = True
        try:
            yield
        finally:
            self._skippable = False

    @contextlib.contextmanager
    def unbroken(self) -> Iterator[None]:
        """A short block, such as a save, after which alone a second signal ends the job.

        Libraries with threads and event loops of their own answer an interrupt with tracebacks.
        """
        self._unbroken = True
        try:
            yield
        finally:
            self._unbroken = False
        if self._late:
            raise KeyboardInterrupt(self._advice)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested and self._unbroken:
            self._late = True
            return
        if self.requested:
            raise KeyboardInterrupt(self._advice)
        self.requested = True
        self._on_request()
        if self._skippable:
            self._skippable = False
            raise StoppedError


@contextlib.contextmanager
def _no_echo() -> Iterator[None]:
    """Keep the terminal from writing ^C, which would shift the lines that progress bars erase."""
    terminal = _own_terminal()
    if terminal is None:
        yield
        return
    before = termios.tcgetattr(terminal)
    changed = list(before)
    changed[3] &= ~termios.ECHOCTL
    termios.tcsetattr(terminal, termios.TCSANOW, changed)
    try:
        yield
    finally:
        if _own_terminal() == terminal:
            termios.tcsetattr(terminal, termios.TCSANOW, before)


def _own_terminal() -> int | None:
    """Descriptor of the terminal that is ours to change: a background job would be suspended."""
    try:
        descriptor = sys.stdin.fileno()
        return descriptor if os.tcgetpgrp(descriptor) == os.getpgrp() else None
    except (OSError, ValueError, AttributeError):  # no terminal, or no standard input at all
        return None
