"""What runs on a node of a Ray cluster: the worker process of one work, and who watches over it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import no_type_check

from sorl.launch import process

_LOOK_SECONDS = 0.2


@no_type_check  # wrapped for a check of types it would be no generator function, which Ray asks for
def perform(folder: str, description: str) -> Iterator[str | tuple[int, str]]:
    """Perform a work: yields where, then how it ended: exit code and reason.

    Cancelled, it stops with everything saved. When the process that runs this dies by a signal, the
    worker sees its input end and does the same.

    Args:
        folder: the folder of the work, an absolute path.
        description: what its work.json holds, by which a node proves that it sees the folder.
    """
    import ray

    node = ray.get_runtime_context().get_node_id()
    name = f"{socket.gethostname()} {node[:6]}"
    yield name
    path = Path(folder)
    try:
        seen = (path / "work.json").read_text(encoding="utf-8") == description
    except OSError:
        seen = False
    if not seen:
        yield 2, f"the node {name} does not see {folder}: launch on storage that all nodes share."
        return
    with _cores(on_gpu=bool(ray.get_gpu_ids())) as cores:
        worker = process.begin(path, cores=cores)
        try:
            while worker.poll() is None:
                time.sleep(_LOOK_SECONDS)
        finally:  # cancelled too, which raises KeyboardInterrupt here
            process.stop(worker)
            code = worker.wait()
    yield code, process.last_words(path, code)


@contextlib.contextmanager
def _cores(*, on_gpu: bool) -> Iterator[tuple[int, ...] | None]:
    """A core that no other task of this machine has; None, which means all, beside a GPU.

    Ray counts cores but binds nobody to one, and JAX would take every core that it sees.
    """
    if on_gpu or not hasattr(os, "sched_getaffinity"):
        yield None
        return
    cores = sorted(os.sched_getaffinity(0))
    folder = Path(tempfile.gettempdir())
    for core in cores:
        with (folder / f"sorl-{os.getuid()}-core-{core}").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield (core,)
            return
    # More tasks than cores: the cluster was told to have more, and they are shared.
    yield (cores[os.getpid() % len(cores)],)
