"""A launch on this machine: what becomes of works, and that they give what a direct run gives."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from launched import (
    SCORINGS,
    UPDATES,
    check_same_results,
    kill,
    perform_directly,
    trains,
    wait_until,
    work,
)
from sorl import algorithms, checkpoint, files, tables
from sorl.algorithms.bc import BC
from sorl.choices import Choice
from sorl.data.images import ImageSettings
from sorl.errors import InputError
from sorl.jobs import Job, resume
from sorl.jobs.scoring import FILE, Scoring, complete, score, scores
from sorl.launch import local, process
from sorl.launch.progress import Board, Standing
from sorl.launch.settling import check, first_standings, settle
from sorl.launch.work import Work
from sorl.runs import Run
from sorl.types import Budget

pytest_plugins = ("run_fixtures",)

CORE = (min(os.sched_getaffinity(0)),)
SLOTS = [local.Slot("first", cores=CORE), local.Slot("second", cores=CORE)]


@pytest.fixture(scope="module")
def folder(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("a launch")  # a space belongs into every path


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
        yield


@pytest.fixture(scope="module")
def direct(data: Path, folder: Path) -> Work:
    """What a launch's results are compared with."""
    one = work(folder / "direct", data)
    perform_directly([one])
    return one


@pytest.fixture(scope="module")
def killed(data: Path, folder: Path) -> tuple[list[Standing], list[tuple[int, int]]]:
    """A launch whose first work is killed while it trains, beside works that cannot be done."""
    first = work(folder / "killed", data)
    missing = work(folder / "missing", folder / "nowhere.npz")
    losses: list[tuple[int, int]] = []

    def watch() -> None:
        wait_until(lambda: trains(first))
        losses.append(kill(first))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    standings = local.launch([first, missing], slots=SLOTS, quiet=True)
    thread.join()
    return standings, losses


def test_a_work_that_is_killed_begins_again_and_gives_the_same(
    killed: tuple[list[Standing], list[tuple[int, int]]], direct: Work
) -> None:
    standings, losses = killed
    assert (standings[0].state, standings[0].attempts) == ("done", 2)
    assert losses[0][1] < UPDATES, "the kill came too late to prove anything"
    check_same_results(standings[0].work, direct)


def test_bad_input_is_not_tried_again(
    killed: tuple[list[Standing], list[tuple[int, int]]],
) -> None:
    standing = killed[0][1]
    assert (standing.state, standing.attempts) == ("failed", 1)
    assert "nowhere.npz" in standing.message


def test_what_is_done_is_not_done_again(direct: Work) -> None:
    before = (direct.run / "timing.csv").read_bytes()
    (standing,) = local.launch([direct], slots=SLOTS, quiet=True)
    assert (standing.state, standing.attempts) == ("done", 0)
    assert (direct.run / "timing.csv").read_bytes() == before


def test_a_run_brought_without_its_checkpoints_is_done_if_its_tables_are_whole(
    direct: Work, tmp_path: Path
) -> None:
    brought = dataclasses.replace(direct, folder=tmp_path / "brought")
    ignored = shutil.ignore_patterns("checkpoints", "policy")
    shutil.copytree(direct.folder, brought.folder, ignore=ignored)
    assert brought.done()
    brought.perform()  # as a SLURM array does, which asks for every work
    (standing,) = local.launch([brought], slots=SLOTS, quiet=True)
    assert (standing.state, standing.attempts) == ("done", 0)
    other = dataclasses.replace(brought, job=dataclasses.replace(direct.job, batch_size=17))
    with pytest.raises(InputError, match="started with other settings"):
        other.done()
    table = brought.run / "evaluations.csv"
    whole = table.read_text().splitlines(keepends=True)
    table.write_text("".join(whole[:-1]))
    assert not brought.done()
    table.write_text("".join(whole))
    (brought.run / "scores.csv").unlink()
    assert not brought.done()
    before = sorted((path, path.read_bytes()) for path in brought.run.glob("*.csv"))
    for go_on in (brought.perform, lambda: resume(brought.run, quiet=True)):
        with pytest.raises(InputError, match="tables of a run that has ended, without its check"):
            go_on()
    assert sorted((path, path.read_bytes()) for path in brought.run.glob("*.csv")) == before


def test_a_run_that_ended_with_other_settings_is_not_called_done(direct: Work) -> None:
    for other in (
        dataclasses.replace(direct, algorithm=BC(hidden=(16, 16), learning_rate=1)),
        dataclasses.replace(direct, job=dataclasses.replace(direct.job, batch_size=17)),
        dataclasses.replace(direct, job=dataclasses.replace(direct.job, tasks=(1, 2))),
    ):
        with pytest.raises(InputError, match="started with other settings"):
            other.done()
    moved = dataclasses.replace(direct.job, tasks=(1,), data=Path("moved.npz"))
    assert dataclasses.replace(direct, job=moved).done()


def test_a_run_that_read_images_otherwise_is_not_called_done(direct: Work, tmp_path: Path) -> None:
    seeing = dataclasses.replace(direct, folder=tmp_path / "seeing", scorings=())
    shutil.copytree(direct.folder, seeing.folder)
    path = seeing.run / "config.json"
    for settings in (ImageSettings(), ImageSettings(frame_stack=1)):
        images = {"images": dataclasses.asdict(settings)}
        files.write_json(path, {**files.read_json(path), **images})
        own = dataclasses.replace(seeing.job, images=settings)
        assert dataclasses.replace(seeing, job=own).done()
    with pytest.raises(InputError, match=r"images\.frame_stack is 1 in the run and 3 now"):
        seeing.done()


def test_sigterm_stops_with_everything_saved_and_the_launch_goes_on(
    data: Path, folder: Path, direct: Work
) -> None:
    one = work(folder / "stopped", data, checkpoint_seconds=1e9)  # what is saved is the signal's
    later = work(folder / "later", data, updates=200, evaluate_every=200)

    def watch() -> None:
        wait_until(lambda: trains(one))
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = signal.getsignal(signal.SIGTERM)
    standings = local.launch([one, later], slots=SLOTS[:1], quiet=True)
    thread.join()
    assert [standing.state for standing in standings] == ["stopped", "waiting"]
    assert signal.getsignal(signal.SIGTERM) == before
    last = float(Run.open(one.run).timing()[-1]["update"])
    assert checkpoint.latest(one.run / "checkpoints") == last < UPDATES
    standings = local.launch([one, later], slots=SLOTS, quiet=True)
    assert [(standing.state, standing.attempts) for standing in standings] == [("done", 1)] * 2
    check_same_results(one, direct)


@pytest.mark.usefixtures("tiny")
def test_a_work_whose_members_all_diverge_is_done(tiny_data: Path, tmp_path: Path) -> None:
    one = work(tmp_path / "diverging", tiny_data, environment=None, updates=200, evaluate_every=200)
    one = dataclasses.replace(
        one, algorithm=algorithms.build({"name": "tiny", "risk": 1.0}), scorings=SCORINGS
    )
    assert not one.done()
    one.perform()
    assert one.done()
    assert not scores(Run.open(one.run))
    one.perform()  # no error either


def test_missing_scores_alone_are_made(direct: Work, tmp_path: Path) -> None:
    one = dataclasses.replace(direct, folder=tmp_path / "copy")
    shutil.copytree(direct.folder, one.folder)
    run = Run.open(one.run)
    rows = scores(run)
    assert [row["update"] for row in rows] == [UPDATES // 2, UPDATES]
    assert complete(run, one.scorings)
    (run.path / FILE).unlink()
    tables.append_rows(run.path / FILE, [{**rows[0], "return": -1.0}])  # not made again
    assert not complete(run, one.scorings)
    assert not one.done()
    score(run, one.scorings, workers=1)
    again = scores(run)
    assert again[0]["return"] == -1.0
    assert {k: again[1][k] for k in rows[1] if k not in ("latency_ms", "act_ms")} == {
        k: v for k, v in rows[1].items() if k not in ("latency_ms", "act_ms")
    }
    assert one.done()
    more = (*one.scorings, Scoring((Budget(1, 1),), episodes=2))
    assert not complete(run, more)


def test_works_in_each_others_way_are_refused(tmp_path: Path) -> None:
    one, two = work(tmp_path / "one", tmp_path), work(tmp_path / "two", tmp_path)
    check([one, two])
    with pytest.raises(InputError, match="have the folder"):
        check([one, dataclasses.replace(two, folder=one.folder)])
    with pytest.raises(InputError, match="have the name"):
        check([one, dataclasses.replace(two, name=one.name)])
    with pytest.raises(InputError, match="attempts=0"):
        first_standings([one], 0)
    with pytest.raises(InputError, match="no slot"):
        local.launch([one], slots=[])
    assert not one.folder.exists()


@pytest.mark.parametrize(
    ("code", "attempts", "stopping", "state"),
    [
        (0, 1, False, "waiting"),  # somebody stopped it
        (1, 2, False, "waiting"),
        (-9, 3, False, "failed"),
        (2, 1, False, "failed"),
        (2, 1, True, "failed"),
        (-15, 3, True, "stopped"),
    ],
)
def test_an_attempt_settles(
    tmp_path: Path, code: int, attempts: int, stopping: bool, state: str
) -> None:
    standing = Standing(work(tmp_path, tmp_path), "running", attempts=attempts)
    settle(standing, code, "A reason.", attempts=3, stopping=stopping)
    assert standing.state == state
    assert standing.message == ("A reason." if state == "failed" else "")


def test_last_words(tmp_path: Path) -> None:
    process.log_of(tmp_path).write_text("First.\nThe sentence.\n")
    assert process.last_words(tmp_path, 2) == "The sentence."
    assert "SIGKILL" in process.last_words(tmp_path, -9)
    assert "exit code 1" in process.last_words(tmp_path / "elsewhere", 1)


def test_a_worker_waits_for_another_to_let_go_of_the_run(direct: Work) -> None:
    with Run.open(direct.run).locked():
        path = direct.folder / "log.txt"
        path.unlink(missing_ok=True)
        worker = process.begin(direct.folder, cores=CORE)
        wait_until(lambda: path.exists())
        threading.Event().wait(6)
        assert worker.poll() is None, path.read_text()
    assert worker.wait(60) == 0
    process.stop(worker)


# Stand-ins for the processes of works: what they do is no matter of theirs here.

SAYS_WHY = "import sys; print('It began.', file=sys.stderr); sys.exit(2)"
SAVES = """if True:
    import os, sys
    from pathlib import Path
    while os.read(0, 1024):
        pass
    (Path(sys.argv[-1]) / "saved").touch()
"""
SLEEPS = "import time; time.sleep(1000)"


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(process, "command", lambda: [sys.executable, "-c", program])


def test_a_work_that_cannot_begin_has_failed_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SAYS_WHY)
    works = [work(tmp_path / name, tmp_path) for name in ("one", "two")]
    process.log_of(works[0].folder).mkdir(parents=True)
    standings = local.launch(works, slots=SLOTS[:1], quiet=True)
    assert [(standing.state, standing.attempts) for standing in standings] == [("failed", 1)] * 2
    assert f"Cannot write {process.log_of(works[0].folder)}" in standings[0].message
    assert standings[1].message == "It began."


def failing_second(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[Any]:
    """The launcher itself breaks when it begins the second work; the processes that it began."""
    begun: list[Any] = []
    begin = process.begin

    def fail(*arguments: Any, **options: Any) -> Any:
        if begun:
            raise error
        begun.append(begin(*arguments, **options))
        return begun[-1]

    monkeypatch.setattr(process, "begin", fail)
    return begun


def test_processes_save_everything_when_their_launcher_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SAVES)
    begun = failing_second(monkeypatch, RuntimeError("the launcher broke"))
    works = [work(tmp_path / name, tmp_path) for name in ("one", "two")]
    with pytest.raises(RuntimeError, match="the launcher broke"):
        local.launch(works, slots=SLOTS, quiet=True)
    assert begun[0].returncode == 0
    assert (works[0].folder / "saved").exists()


@pytest.mark.parametrize(
    ("error", "seconds"), [(KeyboardInterrupt("twice"), 90), (RuntimeError("broke"), 0.5)]
)
def test_processes_are_killed_when_asked_twice_or_when_they_take_too_long(
    error: BaseException, seconds: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, SLEEPS)
    begun = failing_second(monkeypatch, error)
    monkeypatch.setattr(local, "_SAVE_SECONDS", seconds)
    works = [work(tmp_path / name, tmp_path) for name in ("one", "two")]
    start = time.monotonic()
    with pytest.raises(type(error)):
        local.launch(works, slots=SLOTS, quiet=True)
    assert time.monotonic() - start < 60
    assert begun[0].returncode == -signal.SIGKILL


# Settings, not objects: checking the types of an object draws random numbers, which a strategy may
# not.
budgets = st.lists(
    st.sampled_from([Budget(1, 1), Budget(4, 8), Budget(8, 64)]), min_size=1, max_size=3
).map(tuple)
scorings = st.fixed_dictionaries(
    {
        "budgets": budgets,
        "choice": st.sampled_from([Choice("own"), Choice("central"), Choice("typical", 2)]),
        "milestones": st.integers(1, 5),
        "episodes": st.integers(1, 100),
        "seed": st.integers(0, 2**31),
    }
)
jobs = st.fixed_dictionaries(
    {
        "environment": st.sampled_from([None, "cube-single-play-singletask-v0"]),
        "data": st.sampled_from([None, Path("/data/set with spaces.npz")]),
        "tasks": st.none() | st.lists(st.integers(1, 5), min_size=1, unique=True).map(tuple),
        "seeds": st.lists(st.integers(0, 9), min_size=1, unique=True).map(tuple),
        "updates": st.integers(1, 10**7),
        "log_every": st.just(50),
        "evaluate_every": st.integers(1, 100).map(lambda number: 50 * number),
        "budgets": budgets,
        "workers": st.none() | st.integers(1, 8),
        "checkpoint_seconds": st.floats(0, 1e6),
        "tensorboard": st.none() | st.booleans(),
    }
)


@given(
    name=st.sampled_from(algorithms.names()),
    rate=st.floats(1e-6, 1.0, exclude_min=True),
    hidden=st.lists(st.integers(1, 512), min_size=1, max_size=3).map(tuple),
    job=jobs,
    scorings=st.lists(scorings, max_size=3),
)
def test_a_work_is_read_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory,
    name: str,
    rate: float,
    hidden: tuple[int, ...],
    job: dict[str, Any],
    scorings: list[dict[str, Any]],
) -> None:
    kind = algorithms.get(name)
    fields = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    given_values = {"learning_rate": rate, "hidden": hidden}
    algorithm = kind(**{key: given_values[key] for key in fields & given_values.keys()})
    folder = tmp_path_factory.getbasetemp() / "written"
    one = Work("a name", folder, algorithm, Job(**job), tuple(Scoring(**one) for one in scorings))
    one.write()
    assert Work.read(folder) == one


def test_a_damaged_description_is_one_sentence(tmp_path: Path) -> None:
    one = work(tmp_path / "one", tmp_path)
    one.write()
    text = (one.folder / "work.json").read_text()
    for damage in ('"scorings"', '"updates"', '"bc"'):
        assert damage in text
        (one.folder / "work.json").write_text(text.replace(damage, '"other"', 1))
        with pytest.raises(InputError, match=r"work\.json cannot be used"):
            Work.read(one.folder)


def test_the_board_reads_only_what_runs(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("waits", "runs", "ended")
    standings = [Standing(work(folder / name, data)) for name in names]
    read: list[str] = []

    def updates_done(one: Work) -> tuple[int, float]:
        read.append(one.name)
        return 1_000, 50.0

    monkeypatch.setattr("sorl.launch.progress.updates_done", updates_done)
    shown_as = io.StringIO()
    console = Console(file=shown_as, width=200)
    with Board(standings, quiet=True) as board:
        assert read == list(names), "once, for what was there before"
        standings[1].state, standings[1].where, standings[1].attempts = "running", "core 0", 1
        standings[2].state = "done"
        read.clear()
        console.print(board.table())
    assert read == ["runs"]
    shown = {
        line.split()[0]: line.split()[1:]
        for line in shown_as.getvalue().splitlines()
        if line.split() and line.split()[0] in names
    }
    left = str(timedelta(seconds=round((UPDATES - 1_000) / 50)))
    assert shown["waits"] == ["waiting", f"1,000/{UPDATES:,}"]
    assert shown["runs"] == ["running", "core", "0", f"1,000/{UPDATES:,}", "50/s", left]
    assert shown["ended"] == ["done", f"{UPDATES:,}/{UPDATES:,}"]
