"""Kill a node of a Ray cluster while it trains, and compare with a launch that nothing disturbed.

    python examples/ray_node_killed.py --data data/pointmaze-medium-navigate-v0.npz --out runs/ray

Starts a cluster of a head without cores and two nodes of one core each on this machine, launches
works of three algorithms, kills the node of the first one once its second checkpoint is written,
and prints a table: attempts, updates done again, and whether every score is that of the same works
launched on this machine alone.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from sorl import algorithms, checkpoint
from sorl.jobs import Job
from sorl.jobs.scoring import Scoring, scores
from sorl.launch import local, ray_cluster
from sorl.launch.progress import Standing, updates_done
from sorl.launch.work import Work
from sorl.runs import Run
from sorl.types import Budget

WORKS = (("sorl", 0), ("bc", 0), ("iql", 0), ("bc", 1))
CLOCK = ("latency_ms", "act_ms")


def main() -> None:
    """Launch both ways and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--updates", type=int, default=20_000)
    options = parser.parse_args()
    disturbed = works_in(options.out / "ray", options.data, options.updates)
    alone = works_in(options.out / "local", options.data, options.updates)

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    lost: list[int] = []
    threading.Thread(target=kill_node, args=(cluster, disturbed[0], lost), daemon=True).start()
    begin = time.monotonic()
    standings = ray_cluster.launch(disturbed, address=cluster.address)
    on_ray = time.monotonic() - begin
    cluster.shutdown()
    if left := [one.work.name for one in standings if one.state != "done"]:
        raise SystemExit(f"Not done: {', '.join(left)}. Remove {options.out} and begin again.")
    begin = time.monotonic()
    local.launch(alone)
    show(standings, alone, lost, on_ray, time.monotonic() - begin)


def works_in(folder: Path, data: Path, updates: int) -> list[Work]:
    """The works: small networks, with scores of more episodes than training has."""
    job = Job(
        environment="pointmaze-medium-navigate-singletask-task5-v0",
        data=data,
        updates=updates,
        evaluate_every=updates // 2,
        budgets=(Budget(1, 1),),
        episodes=5,
        workers=1,
        checkpoint_seconds=5.0,
        tensorboard=False,
    )
    scoring = Scoring((Budget(1, 1),), milestones=2, episodes=10, seed=1)
    return [
        Work(
            name=f"{name} {seed}",
            folder=folder / f"{name}-{seed}",
            algorithm=algorithms.get(name)(hidden=(64, 64)),
            job=Job(**{**vars(job), "seeds": (seed,)}),
            scorings=(scoring,),
        )
        for name, seed in WORKS
    ]


def kill_node(cluster: Cluster, work: Work, lost: list[int]) -> None:
    """Kill every process of the node that trains a work, some updates after a checkpoint."""
    folder = work.run / "checkpoints"
    while len(checkpoint.updates(folder)) < 2:
        time.sleep(0.1)
    time.sleep(3)
    trainer = psutil.Process(int((work.run / "lock").read_text().split()[1]))
    ray_worker = trainer.parent()
    assert ray_worker is not None
    (node,) = (
        node
        for node in cluster.worker_nodes
        if node.all_processes["raylet"][0].process.pid == ray_worker.ppid()
    )
    trainer.kill()
    lost.append(updates_done(work)[0] - (checkpoint.latest(folder) or 0))
    cluster.remove_node(node, allow_graceful=False)


def show(
    standings: list[Standing], alone: list[Work], lost: list[int], on_ray: float, here: float
) -> None:
    """Print the table."""
    print(f"{'work':10}{'state':>8}{'attempts':>10}{'same scores':>13}{'same metrics':>14}")
    for standing, other in zip(standings, alone, strict=True):
        work = standing.work
        metrics = [(one.run / "metrics.csv").read_bytes() for one in (work, other)]
        print(
            f"{work.name:10}{standing.state:>8}{standing.attempts:>10}"
            f"{'yes' if numbers(work) == numbers(other) else 'NO':>13}"
            f"{'yes' if metrics[0] == metrics[1] else 'NO':>14}"
        )
    total = sum(standing.work.job.updates for standing in standings)
    print(f"Updates done again: {sum(lost):,} of {total:,} (a checkpoint every 5 seconds).")
    print(f"{on_ray:.0f} s on the cluster, {here:.0f} s on this machine's {os.cpu_count()} cores.")


def numbers(work: Work) -> list[dict[str, float | str]]:
    """All scores and evaluations of a run, but what a clock decides."""
    run = Run.open(work.run)
    rows = [*run.evaluations(), *scores(run)]
    return [{name: row[name] for name in row if name not in CLOCK} for row in rows]


if __name__ == "__main__":
    main()
