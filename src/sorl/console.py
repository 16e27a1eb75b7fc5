"""What a job shows while it works: progress with rate and time left, scores, a final table.

Progress needs a terminal; elsewhere only sentences and scores are printed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from sorl.evaluation import Evaluation
from sorl.runs import Run
from sorl.types import Member


class Display:
    """The face of one job; a context manager.

    Args:
        quiet: print nothing at all.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._console = Console(quiet=quiet, highlight=False)
        self._progress = _bars(self._console)
        self._training = self._progress.add_task("training", total=None, note="", visible=False)

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
        self._console.print(sentence, soft_wrap=True, markup=False)

    def begin(self, path: Path, members: Sequence[Member], updates: int, done: int) -> None:
        """Tell what starts, or goes on."""
        names = ", ".join(map(str, members[:4])) + (", ..." if len(members) > 4 else "")
        where = f"going on after update {done:,}" if done else "from the beginning"
        self.say(f"Training {names} into {path}: {updates:,} updates, {where}.")
        self._progress.update(self._training, total=updates, completed=done, visible=True)
        self._progress.reset(self._training, completed=done, total=updates)

    def advance(self, update: int, metrics: Mapping[str, float]) -> None:
        """Show that training has come to `update`."""
        note = "  ".join(
            f"{name} {metrics[name]:.3g}" for name in ("critic/q", "actor/loss") if name in metrics
        )
        self._progress.update(self._training, completed=update, note=note)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[Callable[[int, int], None]]:
        """A second bar for the episodes of one evaluation."""
        bar = self._progress.add_task("evaluating", total=None, note="")
        try:
            yield lambda done, total: self._progress.update(bar, completed=done, total=total)
        finally:
            self._progress.remove_task(bar)

    def scores(self, update: int, results: Sequence[Evaluation]) -> None:
        """Print the mean success of each budget over all members."""
        budgets = list(dict.fromkeys(result.budget for result in results))
        parts = []
        for budget in budgets:
            values = [result.success for result in results if result.budget == budget]
            parts.append(f"{budget} {sum(values) / len(values):.0%}")
        self.say(f"update {update:,}: success {', '.join(parts)}")

    def finish(self, run: Run) -> None:
        """Print the scores of the last evaluated update as a table."""
        self._progress.stop()
        rows = run.evaluations()
        if rows:
            last = max(float(row["update"]) for row in rows)
            newest = [row for row in rows if row["update"] == last]
            self._console.print(score_table(newest, f"{run.path}, update {last:,.0f}"))
        self.say(
            f"Done. `sorl report {run.path}` draws it; "
            f"`sorl evaluate {run.path} --budgets 8x1 1x8` tries other budgets."
        )


def score_table(rows: Sequence[Mapping[str, float | str]], title: str) -> Table:
    """Rows of evaluations.csv as a table: one line a budget, means over tasks and seeds."""
    table = Table(title=title, title_justify="left")
    for name in ("steps x best-of", "success", "return", "length", "latency"):
        table.add_column(name, justify="left" if name.startswith("steps") else "right")
    for budget in dict.fromkeys(row["budget"] for row in rows):
        chosen = [row for row in rows if row["budget"] == budget]

        def mean(name: str, chosen: Sequence[Mapping[str, float | str]] = chosen) -> float:
            return sum(float(row[name]) for row in chosen) / len(chosen)

        table.add_row(
            str(budget),
            f"{mean('success'):.0%}",
            f"{mean('return'):.1f}",
            f"{mean('length'):.0f}",
            f"{mean('latency_ms'):.2f} ms",
        )
    return table


@contextlib.contextmanager
def show_episodes() -> Iterator[Callable[[int, int], None]]:
    """Give an `on_progress` for `evaluate` that draws a bar; silent without a terminal."""
    with _bars(Console(stderr=True)) as bars:
        bar = bars.add_task("evaluating", total=None, note="")
        yield lambda done, total: bars.update(bar, completed=done, total=total)


def _bars(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=console.quiet or not console.is_terminal,
    )


class _RateColumn(ProgressColumn):
    """How many a second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.1f}/s" if task.speed else "")
