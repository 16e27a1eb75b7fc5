"""`sorl import FILES --out NAME`: bring your own logs into a data set."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Literal

import tyro

from sorl.cli.repeated import Repeatable


def run(arguments: list[str]) -> None:
    """Parse and import."""
    tyro.cli(_import, prog="sorl import", args=arguments)


def _import(
    files: tyro.conf.Positional[tuple[Path, ...]],
    out: Path,
    key: Annotated[Repeatable, tyro.conf.arg(metavar="ROLE=NAME,...")] = (),
    rewards: Literal["logged", "success-at-end", "zeros"] = "logged",
    action_low: tuple[float, ...] = (),
    action_high: tuple[float, ...] = (),
    standardize: bool = False,
    like: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Import logs (npz, HDF5, Parquet, CSV) as a data set for `sorl train --data`.

    Names of D4RL, robomimic, LeRobot and Gymnasium are recognised; --key tells all others. Actions
    are mapped to [-1, 1] by their range, and every policy maps them back.

    Args:
        files: files of one log, or folders of them.
        out: name of the data set; OUT.npz and OUT.report.json are written.
        key: what arrays mean, such as observations=obs/state,obs/goal or terminations=none; roles
            are observations, actions, rewards, terminations, truncations, next_observations,
            episodes and steps. Patterns such as obs_* are possible.
        rewards: logged; or, without any: success-at-end (1 at the last step of every episode that
            terminates, else 0) or zeros (for imitation by bc).
        action_low: least value of every action entry, one number for all or one each; else learnt.
        action_high: largest value likewise.
        standardize: standardise observations; the policy does so by itself from then on.
        like: take ranges and statistics from this data set, so that both can be mixed.
        overwrite: replace a data set that is there.
        json: print the report as JSON.
    """
    import json as json_module

    from sorl.console import show_progress
    from sorl.data.importing import import_files

    with show_progress("reading files") as on_progress:
        made = import_files(
            files,
            out,
            keys=list(itertools.chain(*key)),
            rewards=rewards,
            action_low=action_low or None,
            action_high=action_high or None,
            standardize=standardize,
            like=like,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    if json:
        print(json_module.dumps(made.report.as_json(), indent=2))
        return
    for role, names in made.origin.keys.items():
        print(f"{role}: {', '.join(names)}")
    print(made.report)
    print(f"wrote {made.path} and {made.report_path}; train on it: --data {made.path}")
