"""The progress bar of a generation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.text import Text

from sorl.data.generate.engine import OnProgress, Progress


@contextmanager
def show_progress(console: Console | None = None) -> Iterator[OnProgress]:
    """Give an `on_progress` that draws a bar with rate and time left; silent without a terminal."""
    console = Console(stderr=True) if console is None else console
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(),
        TimeRemainingColumn(),
    )
    tasks = {}
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:

        def on_progress(progress: Progress) -> None:
            if progress.stage == "stopping":
                bar.update(tasks["training"], description="stopping after this episode")
                return
            # The first report of a stage holds what was there before, which says nothing of speed.
            if progress.stage not in tasks:
                what = "the expert, steps" if progress.stage == "training" else "rows"
                tasks[progress.stage] = bar.add_task(
                    f"{progress.stage} {what}", total=progress.total, completed=progress.done
                )
            bar.update(tasks[progress.stage], completed=progress.done)

        yield on_progress


class _RateColumn(ProgressColumn):
    """Rows or steps per second."""

    def render(self, task: Task) -> Text:
        """The current rate, empty while there is none."""
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")
