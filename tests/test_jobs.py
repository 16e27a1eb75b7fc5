"""Kills, interrupts and failures of a job, which a resumed one ends as if there had been none."""

from __future__ import annotations

import csv
import dataclasses
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from finished_run import (
    ENVIRONMENT,
    MILESTONE,
    UPDATES,
    Processes,
    evaluations_without_clock,
    tiny_arrays,
    train_arguments,
    tree,
)
from sorl import algorithms, checkpoint, evaluation, jobs
from sorl.data.origin import Origin, encode
from sorl.errors import InputError, WorkerError
from sorl.interruption import Interruption, StoppedError
from sorl.jobs import work
from sorl.jobs.job import settings_in
from sorl.members import Snapshot
from sorl.runs import Run
from sorl.types import Budget
from sorl.units import Units

pytest_plugins = ("run_fixtures",)

BUDGETS = ["1x1", "2x2"]


def last_update(run: Path) -> int:
    try:
        lines = (run / "metrics.csv").read_text().splitlines()
    except FileNotFoundError:
        return 0
    return int(lines[-1].split(",")[0]) if len(lines) > 1 else 0


def evaluated(run: Path) -> bool:
    return (run / "evaluations.csv").exists()


def evaluates(run: Path) -> bool:
    """The policies of the milestone are there and its scores are not."""
    policy = run / "policy" / "task1-seed0" / "policy.json"
    return last_update(run) == MILESTONE and policy.exists() and not evaluated(run)


def saves(run: Path) -> bool:
    return last_update(run) > 0 and any((run / "checkpoints").glob(".saving-*"))


def wait_until(what: Callable[[Path], bool], run: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 500
    while not what(run):
        if process.poll() is not None:
            pytest.fail(f"the process ended too soon: {process.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.001)


def check_same_outcome(run: Path, reference: Path) -> None:
    assert (run / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    assert evaluations_without_clock(run) == evaluations_without_clock(reference)
    assert tree(run / "policy").keys() == tree(reference / "policy").keys()
    for name in ("policy/task1-seed0/policy.safetensors",):
        assert (run / name).read_bytes() == (reference / name).read_bytes()
    assert checkpoint.updates(run / "checkpoints") == checkpoint.updates(reference / "checkpoints")
    assert not list(run.rglob(".saving-*"))
    timing = [row["update"] for row in Run.open(run).timing()]
    assert timing == [row["update"] for row in Run.open(reference).timing()]


def test_kill_9_anywhere_and_resume_gives_the_same_run(
    finished: Path, data: Path, processes: Processes, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    chance = random.Random(0)
    moments: list[tuple[Callable[[Path], bool], float]] = [
        (lambda run: (run / "config.json").exists(), 0.1),  # before the first checkpoint
        (saves, 0.0),
        (lambda run: last_update(run) >= 60, 0.3),
        (evaluates, 0.5),
        (lambda run: evaluated(run) and last_update(run) > MILESTONE, 0.3),
    ]
    command = train_arguments(data, run)
    for moment, delay in moments:
        with processes.start(*command) as process:
            wait_until(moment, run, process)
            time.sleep(delay * chance.random())
            process.kill()
            assert process.wait() == -signal.SIGKILL
        command = ["resume", str(run)]
    assert last_update(run) < UPDATES, "the kills came too late to prove anything"
    code, out, err = processes.run("resume", run)
    assert (code, err) == (0, "")
    assert "going on after update" in out
    check_same_outcome(run, finished)


def test_interrupts_save_everything_and_lose_nothing(
    finished: Path, data: Path, processes: Processes, tmp_path: Path
) -> None:
    run = tmp_path / "interrupted"
    command = train_arguments(data, run)
    command[command.index("--checkpoint-seconds") + 1] = "1e9"  # what is saved is the signal's
    for number, moment, stopped in (
        (signal.SIGINT, lambda run: last_update(run) >= 20, None),
        (signal.SIGTERM, evaluates, MILESTONE),
    ):
        with processes.start(*command) as process:
            wait_until(moment, run, process)
            process.send_signal(number)
            out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        assert stopped in (None, last_update(run))
        assert checkpoint.latest(run / "checkpoints") == last_update(run) < UPDATES
        assert f"Stopped after update {last_update(run)} with everything saved" in out
        assert f"`sorl resume {run}`" in out
        assert not evaluated(run)
        command = ["resume", str(run)]
    # Impatience: whatever the moment, no traceback, and nothing that a resume cannot make up for.
    with processes.start(*command) as process:
        wait_until(lambda run: last_update(run) > MILESTONE, run, process)
        for _ in range(2):
            process.send_signal(signal.SIGINT)
            time.sleep(0.02)
        _, err = process.communicate()
    assert process.returncode in (0, 130)
    assert "Traceback" not in err
    assert processes.run("resume", run)[0] == 0
    assert (run / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()
    assert evaluations_without_clock(run) == evaluations_without_clock(finished)


def test_resuming_a_finished_run_changes_nothing(copied: Path) -> None:
    (copied / "policy" / "task1-seed0" / "calibration.json").write_text("{}")
    before = tree(copied)
    jobs.resume(copied, quiet=True)
    after = tree(copied)
    assert {k: v for k, v in after.items() if not k.startswith("tensorboard/")} == before


def test_a_missing_last_evaluation_is_made_up_for(copied: Path, finished: Path) -> None:
    Run.open(copied).forget_scores([UPDATES], BUDGETS)
    shutil.rmtree(copied / "policy")
    jobs.resume(copied, quiet=True)
    assert evaluations_without_clock(copied) == evaluations_without_clock(finished)
    assert (copied / "policy" / "task1-seed0" / "policy.json").exists()


def test_every_missing_evaluation_is_made_up_for(copied: Path, finished: Path) -> None:
    """A kill may find training far beyond the milestone that is rolled out beside it."""
    Run.open(copied).forget_scores([MILESTONE, UPDATES], BUDGETS)
    jobs.resume(copied, quiet=True)
    assert evaluations_without_clock(copied) == evaluations_without_clock(finished)


def test_evaluation_beside_training_changes_no_score(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first milestone's evaluation waits until training is past it; the result is the same."""
    job, algorithm, _ = settings_in(Run.open(copied))
    one_after_the_other = jobs.start(tmp_path / "sequential", algorithm, job, quiet=True)
    passed, threads = threading.Event(), []
    append, roll_out = Run.append_metrics, evaluation.Evaluator.evaluate

    def note(run: Run, rows: list[dict[str, float]]) -> None:
        append(run, rows)
        if rows[0]["update"] > MILESTONE:
            passed.set()

    def wait(*arguments: Any, **options: Any) -> Any:
        threads.append(threading.current_thread())
        assert passed.wait(60)
        return roll_out(*arguments, **options)

    monkeypatch.setattr(Run, "append_metrics", note)
    monkeypatch.setattr(evaluation.Evaluator, "evaluate", wait)
    beside = dataclasses.replace(job, evaluate_beside=True)
    run = jobs.start(tmp_path / "beside", algorithm, beside, quiet=True)
    assert threading.main_thread() not in threads
    assert len(threads) == 2
    check_same_outcome(run.path, one_after_the_other.path)


def test_the_evaluation_beside_training_is_kept_when_every_seed_fails(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, algorithm, _ = settings_in(Run.open(copied))
    failed, train, roll_out = threading.Event(), work.train, evaluation.Evaluator.evaluate

    def failing(*arguments: Any, **options: Any) -> Iterator[Snapshot]:
        for snapshot in train(*arguments, **options):
            if snapshot.update > MILESTONE:
                none = jnp.zeros_like(snapshot.state.alive)
                snapshot = dataclasses.replace(snapshot, state=snapshot.state._replace(alive=none))
                failed.set()
            yield snapshot

    def wait(*arguments: Any, **options: Any) -> Any:
        assert failed.wait(60)
        time.sleep(0.5)  # the job has ended by now, unless it waits
        return roll_out(*arguments, **options)

    monkeypatch.setattr(work, "train", failing)
    monkeypatch.setattr(evaluation.Evaluator, "evaluate", wait)
    beside = dataclasses.replace(job, evaluate_beside=True)
    with pytest.raises(InputError, match="Every task and seed"):
        jobs.start(tmp_path / "failed", algorithm, beside, quiet=True)
    found = evaluations_without_clock(tmp_path / "failed")
    known = evaluations_without_clock(copied)
    assert found == [row for row in known if row["update"] == str(MILESTONE)]


def test_an_evaluation_beside_training_that_fails_ends_the_job(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, algorithm, _ = settings_in(Run.open(copied))

    def fail(*_: object, **__: object) -> None:
        raise WorkerError("a worker died")

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "evaluate", fail)
        beside = dataclasses.replace(job, evaluate_beside=True)
        with pytest.raises(WorkerError, match="a worker died"):
            jobs.start(tmp_path / "failed", algorithm, beside, quiet=True)
    jobs.resume(tmp_path / "failed", quiet=True)
    assert evaluations_without_clock(tmp_path / "failed") == evaluations_without_clock(copied)


def test_what_was_trained_is_saved_before_an_evaluation_s_death_is_known(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, algorithm, _ = settings_in(Run.open(copied))
    died = threading.Event()

    def fail(*_: object, **__: object) -> None:
        died.set()
        raise WorkerError("a worker died")

    append = Run.append_metrics

    def note(run: Run, rows: list[dict[str, float]]) -> None:
        append(run, rows)
        if rows[0]["update"] > MILESTONE:
            assert died.wait(60)
            time.sleep(0.2)  # for its thread to end

    monkeypatch.setattr(evaluation.Evaluator, "evaluate", fail)
    monkeypatch.setattr(Run, "append_metrics", note)
    beside = dataclasses.replace(job, evaluate_beside=True, checkpoint_seconds=0.0)
    with pytest.raises(WorkerError, match="a worker died"):
        jobs.start(tmp_path / "failed", algorithm, beside, quiet=True)
    run = Run.open(tmp_path / "failed")
    assert checkpoint.latest(run.checkpoints) == max(row["update"] for row in run.metrics())


def test_a_damaged_milestone_costs_its_evaluation_alone(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(copied)
    run.forget_scores([MILESTONE], [str(budget) for budget in settings_in(run)[0].budgets])
    known = evaluations_without_clock(copied)
    damaged = copied / "checkpoints" / f"{MILESTONE:09d}" / "metadata.json"
    damaged.write_text(damaged.read_text() + " ")
    jobs.resume(copied, quiet=True)
    assert evaluations_without_clock(copied) == known
    [event] = [e for e in run.events() if "is left out" in e["message"]]
    assert event["update"] == MILESTONE


def test_an_evaluation_beside_training_is_given_up_when_asked_to_stop(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, algorithm, _ = settings_in(Run.open(copied))

    def interrupt(*_: object, on_progress: Any, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            time.sleep(0.1)
            on_progress(0, 1)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "evaluate", interrupt)
        beside = dataclasses.replace(job, evaluate_beside=True)
        run = jobs.start(tmp_path / "stopped", algorithm, beside, quiet=True)
    assert not run.evaluations()
    jobs.resume(run.path, quiet=True)
    assert evaluations_without_clock(run.path) == evaluations_without_clock(copied)


def test_saved_scores_of_other_budgets_hide_nothing_and_stay(copied: Path, finished: Path) -> None:
    run = Run.open(copied)
    others = [
        {**row, "budget": "2x1"} for row in run.evaluations() for _ in BUDGETS
    ]  # at least as many as are missing
    run.forget_scores([UPDATES], BUDGETS)
    run.append_evaluations(others)
    jobs.resume(copied, quiet=True)
    rows = evaluations_without_clock(copied)
    own = [row for row in rows if row["budget"] in BUDGETS]
    assert own == evaluations_without_clock(finished)
    assert len(rows) == len(own) + len(others)


def test_half_an_evaluation_is_made_again(copied: Path, finished: Path) -> None:
    lines = (copied / "evaluations.csv").read_text().splitlines(keepends=True)
    (copied / "evaluations.csv").write_text("".join(lines[:-1]))
    jobs.resume(copied, quiet=True)
    assert evaluations_without_clock(copied) == evaluations_without_clock(finished)


def test_an_evaluation_that_is_interrupted_in_a_resume_is_not_called_done(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Run.open(copied).forget_scores([UPDATES], BUDGETS)

    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)

    with monkeypatch.context() as patch:
        patch.setattr(evaluation.Evaluator, "evaluate", interrupt)
        jobs.resume(copied)
    out = capsys.readouterr().out
    assert f"Stopped after update {UPDATES} with everything saved" in out
    assert "Done." not in out
    jobs.resume(copied)
    assert "Done." in capsys.readouterr().out
    assert {row["update"] for row in Run.open(copied).evaluations()} == {MILESTONE, UPDATES}


def tiny_job(data: Path, **changes: object) -> jobs.Job:
    settings = {
        "environment": None,
        "data": data,
        "seeds": (0, 1, 2, 3),
        "updates": 12,
        "batch_size": 8,
        "log_every": 2,
        "evaluate_every": 6,
        "budgets": (Budget(1, 1),),
        "checkpoint_seconds": 0.0,
        "fitted_q_updates": 0,
        "tensorboard": False,
        **changes,
    }
    return jobs.Job(**settings)  # pyright: ignore[reportArgumentType]


class Killed(BaseException):
    """Nothing in the library may catch it but to clean up."""


@pytest.mark.usefixtures("tiny")
def test_failing_at_any_write_and_resuming_gives_the_same_run(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The system calls that make files final fail one after the other, one in each attempt."""
    algorithm = algorithms.get("tiny")()
    calls, fatal = 0, -1

    def counted(function: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: object, **options: object) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise Killed
            function(*arguments, **options)

        return call

    for name in ("replace", "rename", "fsync"):
        monkeypatch.setattr(os, name, counted(getattr(os, name)))
    jobs.start(tmp_path / "whole", algorithm, tiny_job(tiny_data), quiet=True)
    expected = (tmp_path / "whole" / "metrics.csv").read_bytes()
    policies = {k: v for k, v in tree(tmp_path / "whole" / "policy").items() if "safe" in k}
    total = calls
    assert total > 50
    kills = 0
    for fatal_call in random.Random(1).sample(range(1, total + 1), 12):
        if kills == 6:
            break
        run = tmp_path / f"fails at {fatal_call}"
        calls, fatal = 0, fatal_call
        # Orbax writes from threads of its own, so that the calls are not as many in every attempt
        # and the last ones may not come: then this attempt ends whole, which is checked alike.
        try:
            jobs.start(run, algorithm, tiny_job(tiny_data), quiet=True)
        except Killed:
            kills += 1
        fatal = -1
        jobs.start(run, algorithm, tiny_job(tiny_data), quiet=True, resume=True)
        assert (run / "metrics.csv").read_bytes() == expected, fatal_call
        assert {k: v for k, v in tree(run / "policy").items() if "safe" in k} == policies
    assert kills == 6


@pytest.mark.usefixtures("tiny")
def test_a_seed_that_fails_is_told_and_the_others_go_on(tiny_data: Path, tmp_path: Path) -> None:
    algorithm = algorithms.build({"name": "tiny", "risk": 0.5})
    jobs.start(tmp_path / "run", algorithm, tiny_job(tiny_data), quiet=True)
    run = Run.open(tmp_path / "run")
    stopped = {int(event["seed"]) for event in run.events()}
    assert stopped
    assert stopped < {0, 1, 2, 3}
    assert all("loss became NaN" in event["message"] for event in run.events())
    for seed in range(4):
        finite = {
            row["update"]
            for row in run.metrics()
            if row["seed"] == seed and row.get("loss", float("nan")) == row.get("loss")
        }
        assert (finite == {2, 4, 6, 8, 10, 12}) == (seed not in stopped)
        assert (run.policies / f"task0-seed{seed}" / "policy.safetensors").exists()


@pytest.mark.usefixtures("tiny")
def test_a_job_ends_when_every_seed_has_failed(tiny_data: Path, tmp_path: Path) -> None:
    algorithm = algorithms.build({"name": "tiny", "risk": 1.0})
    with pytest.raises(InputError, match=r"Every task and seed of .* was stopped"):
        jobs.start(tmp_path / "run", algorithm, tiny_job(tiny_data), quiet=True)
    assert last_update(tmp_path / "run") == 4
    assert len(Run.open(tmp_path / "run").events()) == 4


def test_the_first_signal_asks_and_the_second_one_ends() -> None:
    asked: list[str] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with Interruption(lambda: asked.append("stop"), "use resume").handled() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.requested
        assert asked == ["stop"]
        with pytest.raises(StoppedError), interruption.skippable():
            pytest.fail("what may be skipped is not begun any more")
        with pytest.raises(KeyboardInterrupt, match="use resume"):
            os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_ends_what_may_be_skipped_at_once() -> None:
    with Interruption(lambda: None, "").handled() as interruption:
        begin = time.monotonic()
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(StoppedError), interruption.skippable():
            time.sleep(30)
        assert time.monotonic() - begin < 20
        assert interruption.requested


def test_another_thread_trains_without_signals() -> None:
    results: list[bool] = []

    def work() -> None:
        with Interruption(lambda: None, "").handled() as interruption, interruption.skippable():
            results.append(interruption.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert results == [False]


def test_what_a_run_consists_of(finished: Path) -> None:
    config = Run.open(finished).config
    assert config["environment"] == ENVIRONMENT
    assert (config["tasks"], config["seeds"]) == ([1], [0])
    assert config["training"]["budgets"] == ["1x1", "2x2"]
    with (finished / "metrics.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:3] == ["update", "task", "seed"]
    assert not {"seconds", "time", "updates_per_second"} & set(header)
    assert [int(row[0]) for row in rows] == list(range(20, UPDATES + 1, 20))
    kept = [MILESTONE, UPDATES - 40, UPDATES - 20, UPDATES]
    assert checkpoint.updates(finished / "checkpoints") == kept


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"updates": 0}, "updates=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"log_every": 0}, "log_every=0"),
        ({"episodes": 0}, "episodes=0"),
        ({"evaluate_every": 3}, "multiple of log_every"),
        ({"evaluation_seed": -1}, "evaluation_seed=-1"),
        ({"evaluation_seed": 2**32}, "evaluation_seed=4294967296"),
        ({"checkpoint_seconds": float("nan")}, "checkpoint_seconds=nan"),
        ({"environment": "x", "budgets": ()}, "at least one budget"),
        ({"batch_devices": 3}, "8 rows cannot be shared by batch_devices=3 equally"),
    ],
)
def test_impossible_jobs(changes: dict[str, object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        tiny_job(tmp_path / "none.npz", **changes)


@pytest.mark.usefixtures("tiny")
def test_more_devices_than_there_are_write_nothing(tiny_data: Path, tmp_path: Path) -> None:
    job = tiny_job(tiny_data, batch_size=10**6, batch_devices=10**6)
    with pytest.raises(InputError, match="batch_devices=1000000 is not possible: there are"):
        jobs.start(tmp_path / "run", algorithms.get("tiny")(), job, quiet=True)
    assert not (tmp_path / "run").exists()


def test_seeds_and_tasks_may_be_numpy_s(tiny_data: Path, tmp_path: Path) -> None:
    """In a process of its own, where no checker of types refuses them first."""
    program = """if True:
        import sys
        import numpy as np
        from sorl import jobs
        from sorl.algorithms.bc import BC
        from sorl.errors import InputError
        data, out = sys.argv[1:]
        settings = dict(environment=None, data=data, updates=2, batch_size=8, log_every=2)
        settings |= dict(evaluate_every=2, fitted_q_updates=0, budgets=(), tensorboard=False)
        job = jobs.Job(seeds=tuple(np.arange(2)), tasks=np.zeros(1, np.int32), **settings)
        jobs.start(out, BC(hidden=(8,)), job, quiet=True)
        for seeds in ((0.5,), 3):
            try:
                jobs.Job(seeds=seeds, **settings)
            except InputError as error:
                print(error)
    """
    command = [sys.executable, "-c", program, str(tiny_data), str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"seeds={seeds} is not possible: give whole numbers, such as (0, 1)."
        for seeds in ("(0.5,)", "3")
    ]
    run = Run.open(tmp_path / "run")
    assert (run.config["tasks"], run.config["seeds"]) == ([0], [0, 1])
    assert last_update(run.path) == 2


def in_units(path: Path, size: int) -> Path:
    """Data whose actions the user gives between -3 and 3."""
    arrays = tiny_arrays()
    arrays["observations"] = arrays["observations"][:, :size]
    origin = Origin(units=Units(action_low=(-3.0,) * 2, action_high=(3.0,) * 2))
    np.savez(path, allow_pickle=False, **arrays, sorl=encode(origin))
    return path


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ("gym:tiny_environments:Reach-v9", "The environment of gym:.* cannot be made"),
        ("gym:nowhere:Reach-v0", "The environment of gym:.* cannot be made .*No module"),
        (
            "gym:tiny_environments:ReachWide-v0",
            "has observations of 4 numbers and actions of 2, but the data have 3 and 2: name",
        ),
        ("gym:tiny_environments:Side-v0", "shows images of 4x4x2, but the data have states"),
        ("gym:tiny_environments:Reach-v0", "The policy acts between .* the data are in other"),
        (ENVIRONMENT, "The policy acts between .* the data are in other"),
    ],
)
def test_an_environment_that_is_not_that_of_the_data_writes_nothing(
    environment: str, sentence: str, tiny_data: Path, tmp_path: Path
) -> None:
    data = tiny_data
    if "other" in sentence:
        data = in_units(tmp_path / "other.npz", 2 if environment == ENVIRONMENT else 3)
    job = tiny_job(data, environment=environment, workers=1)
    with pytest.raises(InputError, match=sentence):
        jobs.start(tmp_path / "run", algorithms.get("tiny")(), job, quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("tiny")
def test_an_environment_that_is_gone_is_told_before_training_goes_on(
    tiny_data: Path, tmp_path: Path
) -> None:
    job = tiny_job(tiny_data, environment="gym:tiny_environments:Reach-v0", workers=1, episodes=1)
    run = jobs.start(tmp_path / "run", algorithms.get("tiny")(), job, quiet=True).path
    text = (run / "config.json").read_text().replace("Reach-v0", "Reach-v9")
    (run / "config.json").write_text(text)
    jobs.resume(run, quiet=True)  # it has ended, and needs no environment
    (run / "config.json").write_text(text.replace('"updates": 12', '"updates": 24'))
    begun = dataclasses.replace(job, environment="gym:tiny_environments:Reach-v9", updates=24)
    before = tree(run)
    for again in (
        lambda: jobs.resume(run, quiet=True),
        lambda: jobs.start(run, algorithms.get("tiny")(), begun, resume=True, quiet=True),
    ):
        with pytest.raises(InputError, match=r"The environment of gym:.*Reach-v9 cannot be made"):
            again()
    assert tree(run) == before
