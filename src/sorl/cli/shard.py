"""`sorl shard FILES --out FOLDER`: data larger than the memory, ready to be streamed."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and write."""
    tyro.cli(_shard, prog="sorl shard", args=arguments)


def _shard(
    files: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    env: str | None = None,
    tasks: tuple[int, ...] | None = None,
) -> None:
    """Make a folder of shards of several data files, for `sorl train --data FOLDER`.

    Rows are then read from the disk as they are drawn, so memory does not bound the data. One file
    is read at a time; after a kill the same command goes on with the next one.

    Args:
        files: .npz files of one kind, or folders of them (their *-val.npz left out).
        out: folder to make or to complete.
        env: OGBench environment whose tasks give the rewards, for files without any.
        tasks: tasks whose rewards are kept; with --env all five.
    """
    from sorl.console import show_progress
    from sorl.data.sharding import make_shards
    from sorl.data.shards import describe_shards

    with show_progress("making shards") as on_progress:
        make_shards(files, out, environment=env, tasks=tasks, on_progress=on_progress)
    print(describe_shards(out))
