"""How far a work is, read from its folder alone, and a table of all of them that stays current."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.live import Live
from rich.table import Table

from sorl.errors import InputError
from sorl.jobs.outcome import is_run
from sorl.launch.work import Work
from sorl.runs import Run

State = Literal["waiting", "running", "done", "failed", "stopped"]
"""What has become of a work in this launch."""


@dataclasses.dataclass
class Standing:
    """One work in a launch.

    Attributes:
        work: the work.
        state: what has become of it.
        where: who does it: a core, a GPU, a node.
        attempts: how often it was begun in this launch.
        message: why it failed.
    """

    work: Work
    state: State = "waiting"
    where: str = ""
    attempts: int = 0
    message: str = ""


def updates_done(work: Work) -> tuple[int, float]:
    """The last update that the run has recorded, and its latest rate in updates a second."""
    try:
        rows = Run.open(work.run).timing() if is_run(work.run) else []
        last = rows[-1] if rows else {}
        return int(last.get("update", 0)), float(last.get("updates_per_second", 0.0))
    except (InputError, ValueError):
        return 0, 0.0  # it is being written just now


class Board:
    """The face of a launch; a context manager.

    On a terminal one table that stays current; elsewhere a sentence when a work begins or ends.

    Args:
        standings: all works of the launch; whoever launches keeps them current.
        quiet: print nothing at all.
    """

    def __init__(self, standings: Sequence[Standing], *, quiet: bool = False) -> None:
        self._standings = standings
        self._console = Console(quiet=quiet, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._said: dict[str, tuple[State, int]] = {}
        self._begin = time.monotonic()
        self._at_begin = {standing.work.name: 0 for standing in standings}

    def __enter__(self) -> Board:
        self._at_begin = {
            standing.work.name: updates_done(standing.work)[0] for standing in self._standings
        }
        if self._console.is_terminal and not self._console.quiet:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show()
        self._live.stop()

    def say(self, sentence: str) -> None:
        """Print one sentence."""
        self._console.print(sentence, soft_wrap=not self._console.is_terminal, markup=False)

    def show(self) -> None:
        """Show how things are now."""
        for standing in self._standings:
            now = standing.state, standing.attempts
            if self._said.get(standing.work.name, ("waiting", 0)) != now:
                self._said[standing.work.name] = now
                self.say(_sentence(standing))
        if self._live.is_started:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """A line for each work, and how much is left of all."""
        table = Table(box=SIMPLE_HEAD)
        table.add_column("run")
        for head in ("state", "where", "updates", "rate", "left"):
            table.add_column(head, justify="right", no_wrap=True)
        gained = total = 0
        for standing in self._standings:
            work = standing.work
            # Only what runs is read again: a grid has many runs, and their tables are long.
            done, rate = self._at_begin[work.name], 0.0
            if standing.state == "done":
                done = work.job.updates
            elif standing.attempts:
                done, rate = updates_done(work)
            gained += done - self._at_begin[work.name]
            total += work.job.updates - self._at_begin[work.name]
            if standing.state in ("waiting", "running") or len(self._standings) <= 40:
                running = standing.state == "running"
                left = (work.job.updates - done) / rate if running and rate else None
                scoring = running and done >= work.job.updates
                table.add_row(
                    work.name,
                    "scoring" if scoring else standing.state,
                    standing.where if running else "",
                    f"{done:,}/{work.job.updates:,}",
                    f"{rate:,.0f}/s" if running and rate and not scoring else "",
                    "" if left is None or scoring else str(timedelta(seconds=round(left))),
                )
        ended = sum(standing.state in ("done", "failed") for standing in self._standings)
        elapsed = time.monotonic() - self._begin
        left = elapsed * (total - gained) / gained if gained > 0 else None
        table.caption = f"{ended} of {len(self._standings)} runs, {total - gained:,} updates left"
        if left is not None:
            table.caption += f", about {timedelta(seconds=round(left))}"
        return table


def _sentence(standing: Standing) -> str:
    name = standing.work.name
    match standing.state:
        case "running" if standing.attempts > 1:
            return f"{name}: attempt {standing.attempts} on {standing.where}"
        case "running":
            return f"{name}: on {standing.where}"
        case "failed":
            return f"{name}: failed: {standing.message}"
        case state:
            return f"{name}: {state}"
