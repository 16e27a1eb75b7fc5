"""`sorl info PATH`: describe a run, a policy or a data file."""

from __future__ import annotations

from pathlib import Path

import tyro


def run(arguments: list[str]) -> None:
    """Parse and describe."""
    tyro.cli(_info, prog="sorl info", args=arguments)


def _info(path: tyro.conf.Positional[Path]) -> None:
    """Describe a run, a released policy or a data file.

    Args:
        path: folder of a run or of a policy, or an .npz file.
    """
    from rich.console import Console

    from sorl.console import score_table
    from sorl.deployment.storage import is_policy, read_policy
    from sorl.runs import Run

    if path.is_dir() and is_policy(path):
        saved = read_policy(path)
        print(
            f"{path}: policy of {saved.member}, update {saved.update:,}, "
            f"{saved.spec.observation_size} observation entries, "
            f"{saved.spec.action_size} action entries\n{saved.algorithm}"
        )
    elif path.is_dir():
        opened = Run.open(path)
        config = opened.config
        hyperparameters = ", ".join(
            f"{name}={value}" for name, value in config["algorithm"].items() if name != "name"
        )
        print(
            f"{path}: {config['algorithm']['name']} on {config['environment']}, tasks "
            f"{config['tasks']}, seeds {config['seeds']}\n{hyperparameters}\n"
            f"created {config['created']}, sorl {config['versions']['sorl']}"
        )
        timing = opened.timing()
        if timing:
            print(
                f"update {timing[-1]['update']:,.0f} of {config['training']['updates']:,}, "
                f"{timing[-1]['updates_per_second']:.1f} updates/s"
            )
        for event in opened.events():
            print(event["message"])
        rows = opened.evaluations()
        if rows:
            last = max(float(row["update"]) for row in rows)
            newest = [row for row in rows if row["update"] == last]
            Console(highlight=False).print(score_table(newest, f"update {last:,.0f}"))
    else:
        from sorl.data.generate import describe

        print(describe(path))
