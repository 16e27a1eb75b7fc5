"""The short film of a run that its report shows."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sorl import cli, files, films, rendering
from sorl.runs import Run
from sorl.types import Budget, Member

pytest_plugins = ("run_fixtures",)

Requests = list[tuple[Member, str, Budget]]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Requests:
    """What is asked of the renderer, which gives as many pictures as it may."""
    asked: Requests = []

    def frames(
        policy: object, member: Member, environment: str, budget: Budget, **options: int
    ) -> list[np.ndarray]:
        asked.append((member, environment, budget))
        size, most = options["size"], options["most"]
        return [np.full((size, size, 3), i % 250, np.uint8) for i in range(most)]

    monkeypatch.setattr(rendering, "rollout_frames", frames)
    return asked


def test_a_film_is_made_once_for_a_policy(copied: Path, requests: Requests) -> None:
    run = Run.open(copied)
    row = {**run.evaluations()[-1], "update": 240, "budget": "2x2", "success": 1.0}
    run.append_evaluations([row])  # now 2x2 is the best
    path = copied / "media" / "rollout-2x2-240.gif"
    assert films.film_run(run) == path
    assert requests == [(Member(1, 0), run.config["environment"], Budget(2, 2))]
    with Image.open(path) as film:
        assert film.size == (films.SIZE, films.SIZE)
        assert getattr(film, "n_frames", 1) == films.MAX_FRAMES
    assert films.film_run(run) == path
    assert len(requests) == 1

    older = path.rename(path.with_name("rollout-2x2-120.gif"))
    assert films.film_run(run) == path
    assert len(requests) == 2
    assert not older.exists()


def test_a_run_whose_environment_cannot_be_made_has_a_report_without_a_film(
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = files.read_json(copied / "config.json")
    files.write_json(copied / "config.json", config | {"environment": "gym:nowhere:None-v0"})
    page = tmp_path / "report.html"
    assert cli.run(["report", str(copied), "--out", str(page)]) == 0
    assert capsys.readouterr().out.strip() == f"wrote {page}"
    [told] = caplog.messages
    assert told.startswith(f"No film of {copied}: ")
    assert "nowhere" in told
    assert "\n" not in told
    assert page.stat().st_size > 0
    assert not (copied / "media").exists()


def test_a_run_that_cannot_be_written_to_has_a_report_without_a_film(
    copied: Path,
    tmp_path: Path,
    requests: Requests,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    command = ["report", str(copied), "--out", str(tmp_path / "report.html")]
    (copied / "media").touch()  # no folder
    assert cli.run(command) == 0
    assert caplog.messages.pop().startswith(f"No film of {copied}: Cannot write")
    asked = len(requests)
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != copied / "media")
    assert cli.run(command) == 0
    assert "permission is missing" in caplog.messages.pop()
    assert len(requests) == asked, "nothing is drawn in vain"
    assert (tmp_path / "report.html").stat().st_size > 0


def test_runs_without_a_film(
    copied: Path, requests: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(copied)
    assert films.film_run(Run(copied, {**run.config, "environment": None})) is None
    monkeypatch.setattr(rendering, "rollout_frames", lambda *_, **__: None)
    assert films.film_run(run) is None
    shutil.rmtree(copied / "policy")
    assert films.film_run(run) is None
    assert not (copied / "media").exists()
    assert requests == []
