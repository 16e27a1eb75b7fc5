"""What a terminal shows while a job works, and what a file gets instead."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import pytest
from rich.console import Console

from sorl import console
from sorl.console import Display, print_scores, show_progress
from sorl.runs import Run
from sorl.types import Member

MEMBERS = [Member(1, 0), Member(1, 1)]


def terminal(width: int = 80) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=True, width=width, highlight=False, color_system=None
    )


def written(screen: Console) -> str:
    file = screen.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def work(monkeypatch: pytest.MonkeyPatch, screen: Console) -> list[str]:
    """Train a little; returns what the screen showed after each step."""
    monkeypatch.setattr(console, "Console", lambda **_: screen)
    now = 100.0
    monkeypatch.setattr(console.time, "monotonic", lambda: now)
    shown = []
    with Display() as display:

        def look() -> None:
            before = len(written(screen))
            display._progress.refresh()
            shown.append(written(screen)[before:])

        display.begin(Path("runs/a"), MEMBERS, 1000, 0)
        look()
        for update, seconds in ((100, 50.0), (200, 10.0), (300, 10.0)):
            now += seconds
            display.advance(update, 12.5, {"critic/q": -3.0, "actor/loss": 7.0})
            look()
        with display.evaluating() as on_progress:
            now += 4.0
            on_progress(2, 20)
            look()
        display.say("Enough.")
    return shown


def test_progress_shows_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    compiling, first, second, third, evaluating = work(monkeypatch, terminal(100))
    assert "0/1000" in compiling
    assert "compiling" in compiling
    assert "/s" not in first  # the first chunk has compiled: it says nothing of what is to come
    assert "12/s 0:01:20 left" in second  # 800 updates, 10 s a hundred
    assert "0:01:10 left" in third
    assert "critic/q -3  actor/loss 7" in third
    assert re.search(r"evaluating .* 2/20 +0\.5/s 0:00:36 left", evaluating)


def test_bars_vanish(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal()
    work(monkeypatch, screen)
    # A terminal that obeys: cursor up and erase line leave only what was said.
    lines: list[str] = [""]
    for part in re.split(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)", written(screen)):
        if part == "\n":
            lines.append("")
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif part == "\x1b[1A":
            lines.pop()
        elif not part.startswith("\x1b") and part != "\r":
            lines[-1] += part
    said = [line.rstrip() for line in lines if line.strip()]
    assert said == [
        "Training task1-seed0, task1-seed1 into runs/a: 1,000 updates, from the",
        "beginning.",
        "Enough.",
    ]


def test_a_file_gets_sentences_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = Console(file=io.StringIO(), force_terminal=False, width=80, highlight=False)
    assert set(work(monkeypatch, screen)) == {""}
    assert written(screen) == (
        "Training task1-seed0, task1-seed1 into runs/a: 1,000 updates, from the beginning.\n"
        "Enough.\n"
    )


def test_quiet_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Display(quiet=True) as display:
        display.begin(tmp_path, MEMBERS, 10, 0)
        display.advance(5, 1.0, {})
        display.stopping()
        display.finish(Run(tmp_path, {}))
    assert capsys.readouterr() == ("", "")


def test_being_asked_to_stop_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(100)
    monkeypatch.setattr(console, "Console", lambda **_: screen)
    with Display() as display:
        display.begin(Path("runs/a"), MEMBERS, 1000, 0)
        display.stopping()
        display._progress.refresh()
        assert "stopping soon (Ctrl-C again: at once)" in written(screen)


def test_episodes_on_a_terminal_and_elsewhere() -> None:
    screen = terminal()
    with show_progress(console=screen) as on_progress:
        on_progress(3, 4)
        deadline = time.monotonic() + 20
        while "3/4" not in written(screen) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "3/4" in written(screen)
    silent = Console(file=io.StringIO(), force_terminal=False)
    with show_progress(console=silent) as on_progress:
        on_progress(3, 4)
    assert written(silent) == ""


def test_scores_are_means_over_members() -> None:
    rows = [
        {"budget": budget, "success": s, "return": -10 * s, "length": 5, "latency_ms": 0.125}
        for budget, scores in (("1x1", (0.0, 0.5)), ("4x8", (1.0, 0.5)))
        for s in scores
    ]
    screen = Console(file=io.StringIO(), force_terminal=False, width=80)
    title = "a/path/longer/than/the/table/below/it, which is nothing to break a line for, update 7:"
    print_scores(rows, title, screen)
    first, *table = written(screen).splitlines()
    assert first == title
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table if "│" in line]
    assert cells == [
        ["1x1", "25%", "-2.5", "5", "0.12 ms"],
        ["4x8", "75%", "-7.5", "5", "0.12 ms"],
    ]
