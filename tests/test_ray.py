"""A launch on a real Ray cluster of several nodes on this machine, one of which is killed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from launched import (
    UPDATES,
    check_same_results,
    kill,
    perform_directly,
    process_of,
    trains,
    wait_until,
    work,
)
from sorl.errors import InputError
from sorl.launch import ray_cluster, ray_task
from sorl.launch.work import Work

pytest_plugins = ("run_fixtures",)

pytestmark = [
    # Ray leaves the files that its processes write to to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:subprocess .* is still running:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ray = pytest.importorskip("ray")

STORE = 80 * 2**20  # bytes of memory that a node sets aside


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A head without cores and two nodes of one core; tests of this file kill one of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        # What the workers of every node inherit.
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        from ray.cluster_utils import Cluster

        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": False,
                "object_store_memory": STORE,
            },
        )
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=STORE)
            yield cluster
        finally:
            cluster.shutdown()
            for number, handler in handlers.items():
                signal.signal(number, handler)


@pytest.fixture(scope="module")
def direct(data: Path, cluster: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Work]:
    """What the results are compared with; the cluster is there first, for what it has compiled."""
    folder = tmp_path_factory.mktemp("direct")
    works = [work(folder / f"seed {seed}", data, seed=seed) for seed in range(2)]
    perform_directly(works)
    return works


def ray_worker_of(work: Work) -> psutil.Process:
    parent = psutil.Process(process_of(work)).parent()
    assert parent is not None
    return parent


def test_a_node_is_killed_and_every_work_is_done(
    cluster: Any, data: Path, direct: list[Work], tmp_path: Path
) -> None:
    works = [work(tmp_path / f"seed {seed}", data, seed=seed) for seed in range(2)]
    lost: list[int] = []

    def watch() -> None:
        wait_until(lambda: trains(works[0]))
        raylet = ray_worker_of(works[0]).ppid()
        (node,) = (
            node
            for node in cluster.worker_nodes
            if node.all_processes["raylet"][0].process.pid == raylet
        )
        saved, recorded = kill(works[0])  # with a node all of its processes die at once
        lost.append(recorded - saved)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    standings = ray_cluster.launch(works, address=cluster.address, quiet=True)
    thread.join()
    assert [standing.state for standing in standings] == ["done", "done"]
    assert 2 <= standings[0].attempts <= 3
    assert standings[1].attempts == 1
    for one, other in zip(works, direct, strict=True):
        check_same_results(one, other)
    assert 0 <= lost[0] < UPDATES // 2
    print(f"updates done again: {lost[0]} of {2 * UPDATES}")


def test_bad_input_is_not_tried_again(cluster: Any, tmp_path: Path) -> None:
    missing = work(tmp_path / "missing", tmp_path / "nowhere.npz")
    [standing] = ray_cluster.launch([missing], address=cluster.address, quiet=True)
    assert (standing.state, standing.attempts) == ("failed", 1)
    assert "nowhere.npz" in standing.message


def test_a_node_that_does_not_see_the_folder_says_so(cluster: Any, tmp_path: Path) -> None:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
    try:
        task = ray.remote(num_returns="streaming", num_cpus=1)(ray_task.perform)
        _, end = (ray.get(reference) for reference in task.remote(str(tmp_path), "{}"))
    finally:
        ray.shutdown()
    assert end[0] == 2
    assert f"does not see {tmp_path}" in end[1]


def test_what_cannot_be_reached_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = work(tmp_path / "one", tmp_path)
    begin = time.monotonic()
    with pytest.raises(InputError, match=r"127\.0\.0\.1:1 cannot be reached .*refused"):
        ray_cluster.launch([one], address="127.0.0.1:1")
    for address in ("local", "ray://host:10001", "", "host:99999999"):
        with pytest.raises(InputError, match=r"address|cannot be reached"):
            ray_cluster.launch([one], address=address)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match=r"sorl\[ray\]"):
        ray_cluster.launch([one], address="auto")
    assert time.monotonic() - begin < 10
    assert not one.folder.exists()


def test_tasks_of_one_machine_stay_on_cores_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    with ray_task._cores(on_gpu=False) as one:
        with ray_task._cores(on_gpu=False) as two, ray_task._cores(on_gpu=False) as three:
            assert (one, two) == ((3,), (5,))
            assert three in ((3,), (5,))
        with ray_task._cores(on_gpu=False) as four:
            assert four == (5,)
    with ray_task._cores(on_gpu=True) as cores:
        assert cores is None
