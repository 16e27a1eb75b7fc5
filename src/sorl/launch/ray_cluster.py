"""The works of a launch on a Ray cluster: one task each, on whichever node has a core or GPU free.

A task starts the same worker process as the queue of one machine does. Retries are ours, not Ray's:
they count as attempts, and bad input is never tried again.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from sorl.errors import InputError
from sorl.interruption import Interruption
from sorl.launch import ray_task
from sorl.launch.progress import Board, Standing
from sorl.launch.settling import ATTEMPTS, first_standings, settle
from sorl.launch.work import FILE, Work

_LOOK_SECONDS = 0.2
_SHOW_SECONDS = 2.0
_CONNECT_SECONDS = 5.0


def launch(
    works: Sequence[Work], *, address: str, attempts: int = ATTEMPTS, quiet: bool = False
) -> list[Standing]:
    """Do all works on a cluster that is there; called again, go on.

    Every work takes a GPU where the cluster has any, else one core. Each node needs sorl and the
    data, and must see the folders under the same paths: they lie on storage that all share, whose
    locks (`fcntl`) hold between nodes, as those of NFS 4 do.

    A work whose node or process dies begins again on another node, from its last checkpoint; when
    it was asked to stop and still saves, the new process waits for it. Ctrl-C and SIGTERM stop all
    of them with everything saved; when the launcher dies in any other way, Ray ends the tasks, and
    what came after the last checkpoints is done again by the next launch.

    Args:
        works: the works, of names and folders that differ.
        address: of the cluster's head, `host:port`, or `auto` for the one that this machine
            belongs to; this machine must be one of its nodes.
        attempts: how often a work is begun before it counts as failed, at least 1.
        quiet: print nothing.

    Returns:
        How each stands, in the same order: done, failed, or, asked to stop, stopped or waiting.

    Raises:
        InputError: Ray is missing, the cluster cannot be reached, two works share a name or a
            folder, `attempts` is below 1, or a folder cannot be written or holds another run.
    """
    with _connected(address) as ray:
        standings = first_standings(works, attempts)
        waiting = [standing for standing in standings if standing.state == "waiting"]
        resources = {"num_gpus" if ray.cluster_resources().get("GPU") else "num_cpus": 1}
        task = ray.remote(num_returns="streaming", max_retries=0, **resources)(ray_task.perform)
        tasks: dict[Any, Standing] = {}
        board = Board(standings, quiet=quiet)
        stop = Interruption(lambda: None, "stopped at once; the same command goes on.")
        cancelled = False
        shown = 0.0
        with board, stop.handled():
            while tasks or (waiting and not stop.requested):
                while waiting and not stop.requested:
                    standing = waiting.pop(0)
                    folder = standing.work.folder.absolute()
                    description = (folder / FILE).read_text(encoding="utf-8")
                    tasks[task.remote(str(folder), description)] = standing
                if stop.requested and not cancelled:
                    for generator in tasks:
                        ray.cancel(generator)
                    cancelled = True
                ready: list[Any] = []
                if tasks:
                    ready, _ = ray.wait(list(tasks), num_returns=len(tasks), timeout=_LOOK_SECONDS)
                for generator in ready:
                    standing = tasks[generator]
                    news = _next(ray, generator)
                    if isinstance(news, str):
                        standing.state, standing.where = "running", news
                        standing.attempts += 1
                        continue
                    del tasks[generator]
                    if standing.state != "running":  # it never began
                        if stop.requested:
                            continue
                        standing.attempts += 1
                    settle(standing, *news, attempts=attempts, stopping=stop.requested)
                    if standing.state == "waiting":
                        waiting.append(standing)
                if time.monotonic() - shown >= _SHOW_SECONDS:
                    board.show()
                    shown = time.monotonic()
        return standings


def _next(ray: Any, generator: Any) -> str | tuple[int, str]:
    """What a task has to tell: where it runs, or its exit code and a reason."""
    try:
        return ray.get(next(generator))
    except (ray.exceptions.RayError, StopIteration) as error:
        lines = str(error).strip().splitlines()
        return 1, lines[-1] if lines else f"its node is gone ({type(error).__name__})."


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, connected to the cluster until the block ends."""
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise InputError(
            "A launch on a cluster needs Ray: install it with `pip install 'sorl[ray]'`."
        ) from error
    _check_reachable(address)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        # An address that is there is connected to; no cluster is ever started here.
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise _unreachable(address, reason) from error
    try:
        # Ray's own handler of SIGTERM would end this process with nothing said.
        _handle_sigterm(handler)
        yield ray
    finally:
        ray.shutdown()
        _handle_sigterm(handler)


def _handle_sigterm(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _check_reachable(address: str) -> None:
    """Ray itself takes minutes to notice that nobody answers."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        raise InputError(
            f"{address!r} is no address of a Ray cluster: give host:port of its head, or auto on "
            "one of its nodes."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address, str(error)) from error


def _unreachable(address: str, reason: str) -> InputError:
    return InputError(
        f"The Ray cluster at {address} cannot be reached ({reason}): check the address, and that "
        "this machine is one of its nodes (`ray status`)."
    )
