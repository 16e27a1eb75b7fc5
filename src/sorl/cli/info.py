"""`sorl info PATH`: describe a run, a policy or a data file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tyro

from sorl.errors import InputError


def run(arguments: list[str]) -> None:
    """Parse and describe."""
    tyro.cli(_info, prog="sorl info", args=arguments)


def _info(path: tyro.conf.Positional[Path]) -> None:
    """Describe a run, a released policy or a data file.

    Args:
        path: folder of a run, of a policy or of shards, or an .npz file.
    """
    from sorl.console import print_scores
    from sorl.data.shards import describe_shards, is_shards
    from sorl.deployment.storage import is_policy, read_policy
    from sorl.runs import Run

    if path.is_dir() and is_policy(path):
        saved = read_policy(path)
        print(
            f"{path}: policy of {saved.member}, update {saved.update:,}, "
            f"{saved.spec.observation_size} observation entries"
            f"{f' (images: {saved.spec.image})' if saved.spec.image else ''}, "
            f"{saved.spec.action_size} action entries\n{saved.algorithm}"
        )
    elif is_shards(path):
        print(describe_shards(path))
    elif path.is_dir():
        opened = Run.open(path)
        print(_described(path, opened.config))
        timing = opened.timing()
        if timing:
            print(
                f"update {timing[-1]['update']:,.0f} of {opened.config['training']['updates']:,}, "
                f"{timing[-1]['updates_per_second']:.1f} updates/s"
            )
        for event in opened.events():
            print(event["message"])
        rows = opened.evaluations()
        if rows:
            last = max(float(row["update"]) for row in rows)
            newest = [row for row in rows if row["update"] == last]
            print_scores(newest, f"update {last:,.0f}:")
    else:
        from sorl.data.generate import describe

        print(describe(path))


def _described(path: Path, config: dict[str, Any]) -> str:
    try:
        hyperparameters = ", ".join(
            f"{name}={value}" for name, value in config["algorithm"].items() if name != "name"
        )
        data = config["environment"] or config["dataset"]["path"]
        return (
            f"{path}: {config['algorithm']['name']} on {data}, tasks "
            f"{config['tasks']}, seeds {config['seeds']}, {config['training']['updates']:,} updates"
            f"\n{hyperparameters}\n"
            f"created {config['created']}, sorl {config['versions']['sorl']}"
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError(
            f"{path / 'config.json'} lacks or garbles a setting ({error}): restore it from a copy."
        ) from error
