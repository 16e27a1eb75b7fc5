"""How works stand when a launch begins, and after each attempt at one of them."""

from __future__ import annotations

from collections.abc import Sequence

from sorl.errors import InputError
from sorl.launch.progress import Standing
from sorl.launch.work import Work

ATTEMPTS = 3
"""How often a work is begun before it counts as failed."""


def first_standings(works: Sequence[Work], attempts: int) -> list[Standing]:
    """How each stands, done or waiting, with the work.json of those that wait written.

    Raises:
        InputError: works would get into each other's way, `attempts` is below 1, a folder cannot
            be written, or holds another run.
    """
    check(works)
    if attempts < 1:
        raise InputError(f"attempts={attempts} is not possible: give at least 1.")
    standings = [Standing(work, "done" if work.done() else "waiting") for work in works]
    for standing in standings:
        if standing.state == "waiting":
            standing.work.write()
    return standings


def check(works: Sequence[Work]) -> None:
    """Raise `InputError` for works that would get into each other's way."""
    for what in ("name", "folder"):
        values = [work.name if what == "name" else str(work.folder.absolute()) for work in works]
        if repeated := [value for place, value in enumerate(values) if value in values[:place]]:
            raise InputError(f"Two runs of the launch have the {what} {repeated[0]}: give another.")


def settle(
    standing: Standing, code: int, reason: str, *, attempts: int, stopping: bool = False
) -> None:
    """What has become of a work whose attempt ended.

    Args:
        standing: is brought up to date; "waiting" means that it is to be begun again.
        code: exit code of its process; 2 is bad input, which another attempt would meet again.
        reason: a sentence for the case that it failed.
        attempts: how often a work is begun.
        stopping: the user asked to stop.
    """
    try:
        done = code == 0 and standing.work.done()
    except InputError as error:  # what the process left cannot be read
        code, reason, done = 2, str(error), False
    if done:
        standing.state = "done"
    elif code == 2:
        standing.state, standing.message = "failed", reason
    elif stopping:
        standing.state = "stopped"
    elif standing.attempts >= attempts:
        standing.state, standing.message = "failed", reason
    else:
        standing.state = "waiting"
