"""What a job shows while it works: progress with rate and time left, scores, a final table.

Progress needs a terminal, and vanishes when it is over; elsewhere only sentences and scores are
printed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
)
from rich.table import Column, Table
from rich.text import Text

from sorl.evaluation import Evaluation
from sorl.runs import Run
from sorl.types import Member

OnProgress = Callable[[int, int], None]
"""Called with how much is done and how much there is."""


class Display:
    """The face of one job; a context manager.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._progress = _bars(self._console)
        self._training = self._progress.add_task("training", total=None, visible=False, note="")
        self._total = 0
        # Where the time left is reckoned from: the end of the first chunk, since that compiles.
        self._origin: tuple[float, int] | None = None

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def say(self, sentence: str) -> None:
        """Print one sentence."""
        _say(self._console, sentence)

    def begin(self, path: Path, members: Sequence[Member], updates: int, done: int) -> None:
        """Tell what starts, or goes on."""
        self._total, self._origin = updates, None
        if done >= updates:
            self.say(f"The run {path} has all of its {updates:,} updates.")
            return
        names = ", ".join(map(str, members[:4])) + (", ..." if len(members) > 4 else "")
        where = f"going on after update {done:,}" if done else "from the beginning"
        self.say(f"Training {names} into {path}: {updates:,} updates, {where}.")
        self._progress.update(
            self._training, total=updates, completed=done, visible=True, note="compiling"
        )

    def advance(self, update: int, rate: float, metrics: Mapping[str, float]) -> None:
        """Show that training has come to `update`, lately with `rate` updates a second.

        The time left counts evaluations and checkpoints in, as far as there have been any.
        """
        now = time.monotonic()
        left = None
        if self._origin is None:
            self._origin = now, update
        else:
            begin, before = self._origin
            left = (now - begin) / (update - before) * (self._total - update)
        note = "  ".join(
            f"{name} {metrics[name]:.3g}" for name in ("critic/q", "actor/loss") if name in metrics
        )
        shown = None if left is None else rate
        self._progress.update(self._training, completed=update, rate=shown, left=left, note=note)

    def stopping(self) -> None:
        """Show that the job was asked to stop; a signal handler may call it."""
        self._progress.update(self._training, note="stopping soon (Ctrl-C again: at once)")

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[OnProgress]:
        """A second bar for the episodes of one evaluation."""
        with _bar(self._progress, "evaluating") as on_progress:
            yield on_progress

    def scores(self, update: int, results: Sequence[Evaluation]) -> None:
        """Print the mean success of each budget over all members."""
        budgets = list(dict.fromkeys(result.budget for result in results))
        parts = []
        for budget in budgets:
            values = [result.success for result in results if result.budget == budget]
            parts.append(f"{budget} {sum(values) / len(values):.0%}")
        self.say(f"update {update:,}: success {', '.join(parts)}")

    def off_policy(self, update: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Print what the data say of the policies, means over all members."""
        names = ("held_out/action_error", "fitted_q/policy", "fitted_q/data", "return/data")
        means = {
            name: sum(float(row[name]) for row in rows) / len(rows)
            for name in names
            if all(name in row for row in rows)
        }
        told = ", ".join(f"{name} {value:.4g}" for name, value in means.items())
        self.say(f"update {update:,}: {told or 'nothing was held out'} (no environment)")

    def finish(self, run: Run) -> None:
        """Print the scores of the last evaluated update as a table."""
        self._progress.stop()
        rows = run.evaluations()
        if not rows:
            self.say(
                f"Done. The policies are in {run.policies}; `sorl report {run.path}` tells what "
                "the data say of them."
            )
            return
        last = max(float(row["update"]) for row in rows)
        newest = [row for row in rows if row["update"] == last]
        print_scores(newest, f"{run.path}, update {last:,.0f}:", self._console)
        self.say(
            f"Done. `sorl report {run.path}` draws it; `sorl evaluate {run.path}` tries other "
            "budgets."
        )


def print_scores(
    rows: Sequence[Mapping[str, Any]], title: str, console: Console | None = None
) -> None:
    """Print rows of evaluations.csv: one line a budget, means over tasks and seeds."""
    console = Console(highlight=False) if console is None else console
    table = Table()
    for name in ("steps x best-of", "success", "return", "length", "latency"):
        table.add_column(name, justify="left" if name.startswith("steps") else "right")
    for budget in dict.fromkeys(row["budget"] for row in rows):
        chosen = [row for row in rows if row["budget"] == budget]

        def mean(name: str, chosen: Sequence[Mapping[str, Any]] = chosen) -> float:
            return sum(float(row[name]) for row in chosen) / len(chosen)

        table.add_row(
            str(budget),
            f"{mean('success'):.0%}",
            f"{mean('return'):.1f}",
            f"{mean('length'):.0f}",
            f"{mean('latency_ms'):.2f} ms",
        )
    _say(console, title)
    console.print(table)


@contextlib.contextmanager
def show_progress(
    doing: str = "evaluating", console: Console | None = None
) -> Iterator[OnProgress]:
    """Give an `on_progress` that draws a bar; silent without a terminal."""
    with (
        _bars(Console(stderr=True) if console is None else console) as bars,
        _bar(bars, doing) as on_progress,
    ):
        yield on_progress


@contextlib.contextmanager
def _bar(bars: Progress, doing: str) -> Iterator[OnProgress]:
    begin = time.monotonic()
    bar = bars.add_task(doing, total=None, note="")

    def on_progress(done: int, total: int) -> None:
        rate = done / max(time.monotonic() - begin, 1e-9)
        left = (total - done) / rate if done else None
        bars.update(bar, completed=done, total=total, rate=rate, left=left)

    try:
        yield on_progress
    finally:
        bars.remove_task(bar)


def _say(console: Console, sentence: str) -> None:
    # A terminal breaks lines between words; a file or a pipe gets the sentence as it is.
    console.print(sentence, soft_wrap=not console.is_terminal, markup=False)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(Column(no_wrap=True)),
        _TimeLeftColumn(Column(no_wrap=True)),
        TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True)),
        console=console,
        transient=True,
        disable=console.quiet or not console.is_terminal,
    )


# Rich's own columns reckon from the time between two calls. Updates and episodes come in bursts,
# and training pauses for evaluations, so they show rates and times that never were.
class _RateColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        rate = task.fields.get("rate")
        if rate is None:
            return Text("")
        return Text(f"{rate:,.0f}/s" if rate >= 100 else f"{rate:.2g}/s")


class _TimeLeftColumn(ProgressColumn):
    """Hours, minutes and seconds."""

    def render(self, task: Task) -> Text:
        left = task.fields.get("left")
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left")
