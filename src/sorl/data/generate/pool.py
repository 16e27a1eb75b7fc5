"""Worker processes that share a list of jobs."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess

from sorl.data.generate.expert.actor import Actor
from sorl.data.generate.protocols import Protocol, renders
from sorl.data.generate.worker import Job, serve_jobs, worker_variables
from sorl.errors import WorkerError


def roll_jobs(
    jobs: Sequence[Job],
    protocol: Protocol,
    *,
    seed: int,
    workers: int,
    actor: Actor | None = None,
) -> Generator[Job, None, None]:
    """Roll `jobs` on `workers` processes; yield each when its part is on the disk, in any order.

    `actor` is who walks, where the protocol wants an expert.

    When the caller stops (an interrupt, an exception, the generator closed), the episodes under
    way are finished and kept, and the processes end.

    Raises:
        OSError: a worker could not write its part.
        WorkerError: a worker died.
    """
    waiting = iter(jobs)
    under_way: dict[Connection, Job] = {}
    processes: list[SpawnProcess] = []

    def hand_out(connection: Connection) -> None:
        job = next(waiting, None)
        if job is None:
            connection.close()
            return
        under_way[connection] = job
        with _explained(job):
            connection.send(job)

    try:
        for _ in range(min(workers, len(jobs))):
            process, connection = _start_worker(protocol, seed, actor)
            processes.append(process)
            hand_out(connection)
        while under_way:
            for connection in wait(list(under_way)):
                assert isinstance(connection, Connection)
                job = under_way[connection]
                with _explained(job):
                    error: OSError | None = connection.recv()
                del under_way[connection]
                if error is not None:
                    connection.close()
                    raise error
                hand_out(connection)
                yield job
    finally:
        for connection in under_way:
            connection.close()
        for process in processes:
            process.join()


def _start_worker(
    protocol: Protocol, seed: int, actor: Actor | None
) -> tuple[SpawnProcess, Connection]:
    context = multiprocessing.get_context("spawn")
    # Starting a process starts this one first, and lets interrupts through: have it behind us.
    resource_tracker.ensure_running()
    ours, theirs = context.Pipe()
    process = context.Process(target=serve_jobs, args=(theirs, protocol, seed, actor), daemon=True)
    # An interrupt from the keyboard reaches all processes of the terminal. Workers never see it:
    # they finish what they have begun, and the parent decides. The mask is inherited.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with worker_variables(renders=renders(protocol)):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    # The worker must hold the only copy of its end, or its death would go unnoticed.
    theirs.close()
    return process, ours


@contextmanager
def _explained(job: Job) -> Iterator[None]:
    try:
        yield
    except (EOFError, ConnectionError) as error:
        raise WorkerError(
            f"A worker process died at {job.split} episode {job.episode}; the finished episodes "
            "are kept, and the same call goes on from there."
        ) from error
