"""The command line as a user meets it: help, the fixed forms, presets and what is printed."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_run import ENVIRONMENT, MILESTONE, UPDATES, tree
from sorl import algorithms, cli, jobs
from sorl.algorithm import AbstractAlgorithm
from sorl.inference import servable_budgets
from sorl.runs import Run
from sorl.types import Budget

pytest_plugins = ("run_fixtures",)

Started = list[tuple[Path, Any, jobs.Job, bool]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """What `sorl train` would start."""
    calls: Started = []

    def start(
        out: Path, algorithm: AbstractAlgorithm[Any], job: jobs.Job, *, resume: bool = False
    ) -> None:
        calls.append((out, algorithm, job, resume))

    monkeypatch.setattr(jobs, "start", start)
    return calls


def run(arguments: str | Sequence[object]) -> int:
    words = arguments.split() if isinstance(arguments, str) else arguments
    return cli.run([str(word) for word in words])


# Help.


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    for name in cli.COMMANDS:
        assert f"\n  {name} " in out
        assert run([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: sorl {name}")
    assert max(map(len, out.splitlines())) <= 100
    assert run("") == 2
    assert run("--version") == 0


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("train sorl --data a.npz --updates 5 --data b.npz", "--data"),
        ("evaluate run --budgets 4x1 --budgets=1x1", "--budgets"),
        ("reproduce figure1 --environments a --environments b", "--environments"),
    ],
)
def test_an_option_of_which_the_last_would_count_alone_is_refused(
    words: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(words.split()) == 2
    told = capsys.readouterr().err
    assert told.endswith(f": {option} is given twice: give it once, with all of its values.\n")


def test_every_option_of_several_values_is_known_as_such() -> None:
    """But for vectors, such as layers, of which a later one stands for all of an earlier one."""
    found = set()
    for path in Path(cli.__file__).parent.glob("*.py"):
        text = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"^ +\"?(\w+)\"?: (?:Annotated\[)?tuple\[", text, re.M))
    assert found == {
        *(name.removeprefix("--") for name in cli._ONCE),
        *("hidden", "action_low", "action_high"),
    }


def test_help_of_every_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train --help") == 0
    out = capsys.readouterr().out
    for name in algorithms.names():
        assert f"\n  {name} " in out
        assert run(["train", name, "--help"]) == 0
        assert "--seeds" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", ["--help", "generate --help", "report --help", "info --help"])
def test_help_does_not_start_jax(arguments: str) -> None:
    program = (
        "import sys, sorl.cli; code = sorl.cli.run(sys.argv[1:]); "
        "assert code == 0; assert 'jax' not in sys.modules; assert 'mujoco' not in sys.modules"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments.split()], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "usage: sorl" in result.stdout


def test_the_installed_command() -> None:
    command = Path(sys.executable).with_name("sorl")
    result = subprocess.run([command, "fly"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("sorl: there is no command 'fly'")


# Options.


def test_options_reach_the_job(started: Started) -> None:
    command = (
        "train sorl --env cube-single-play-singletask-v0 --data data/cube-single-play-v0.npz "
        "--updates 2000 --seeds 2 --out runs/a --tasks 1 2 3 --hidden 256 256 --batch-size 64 "
        "--log-every 50 --evaluate-every 500 --budgets 1x1 4x8 --episodes 7 --evaluation-seed 5 "
        "--workers 3 --checkpoint-seconds 9 --resume --tensorboard False --actor-hidden 8"
    )
    assert run(command) == 0
    [(out, algorithm, job, resume)] = started
    assert out == Path("runs/a")
    assert resume
    assert (algorithm.hidden, algorithm.actor_hidden) == ((256, 256), (8,))
    assert job == jobs.Job(
        environment="cube-single-play-singletask-v0",
        data=Path("data/cube-single-play-v0.npz"),
        tasks=(1, 2, 3),
        seeds=(0, 1),
        updates=2000,
        batch_size=64,
        log_every=50,
        evaluate_every=500,
        budgets=(Budget(1, 1), Budget(4, 8)),
        episodes=7,
        evaluation_seed=5,
        workers=3,
        checkpoint_seconds=9.0,
        tensorboard=False,
    )


def test_defaults_are_those_of_the_job(started: Started) -> None:
    assert run("train sorl --env scene-play-singletask-v0 --out runs/a") == 0
    [(_, _, job, resume)] = started
    assert job == jobs.Job(environment="scene-play-singletask-v0")
    assert not resume


def test_budgets_by_default_are_those_that_the_policy_can_serve(
    started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train bc --data x.npz --out x") == 0
    assert run("train sorl --data x.npz --out x --budgets 2x2 1x1 2x2") == 0
    budgets = [job.budgets for _, _, job, _ in started]
    assert budgets == [(Budget(1, 1),), (Budget(2, 2), Budget(1, 1))]
    for name in algorithms.names():
        assert run(["train", name, "--help"]) == 0
        shown = " ".join(map(str, servable_budgets(algorithms.get(name)())))
        out = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert f"(default: {shown})" in out


# Table of the paper: weight of the Q loss, discount, aggregation.
PUBLISHED = {
    "antmaze-large-navigate": (500.0, 0.99, "min"),
    "antmaze-giant-navigate": (500.0, 0.995, "min"),
    "humanoidmaze-medium-navigate": (100.0, 0.995, "mean"),
    "humanoidmaze-large-navigate": (500.0, 0.995, "mean"),
    "antsoccer-arena-navigate": (500.0, 0.995, "mean"),
    "cube-single-play": (10.0, 0.99, "mean"),
    "cube-double-play": (50.0, 0.99, "mean"),
    "scene-play": (100.0, 0.99, "mean"),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("form", ["--env {0}-singletask-v0", "--env={0}-singletask-task3-v0"])
def test_published_values_are_the_defaults(name: str, form: str, started: Started) -> None:
    env = form.format(name)
    assert run(f"train sorl {env} --out x") == 0
    assert run(f"train sorl --q-loss-coef 7 {env} --out x --discount 0.5") == 0
    assert run(f"train sorl --target-aggregation min --out x {env}") == 0
    found = [
        (algorithm.q_loss_coef, algorithm.discount, algorithm.target_aggregation)
        for _, algorithm, _, _ in started
    ]
    assert run(f"train sorl --env scene-play-singletask-v0 {env} --out x") == 0
    last = started.pop()
    assert last[2].environment == env.removeprefix("--env").lstrip(" =")
    coef, discount, aggregation = PUBLISHED[name]
    assert last[1].q_loss_coef == coef
    assert found == [(coef, discount, aggregation), (7, 0.5, aggregation), (coef, discount, "min")]


def test_presets_cover_the_table_and_help_shows_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(algorithms.get("sorl").presets) == set(PUBLISHED)
    assert run("train sorl --env cube-double-play-singletask-v0 --help") == 0
    assert "(default: 50.0)" in capsys.readouterr().out
    assert run("train sorl --help") == 0
    assert "(default: 100.0)" in capsys.readouterr().out


# What stands in a run.


def test_evaluation_gives_the_same_scores_twice(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = []
    command = ["evaluate", copied, "--budgets", "1x1", "2x2", "--episodes", 2, "--json"]
    for workers in (1, 2):
        assert run([*command, "--workers", workers, "--save"]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        answers.append(json.loads(captured.out))
    for answer in answers:
        assert (answer["run"], answer["environment"]) == (str(copied), ENVIRONMENT)
        assert answer["update"] == UPDATES
        for row in answer["results"]:
            assert row.pop("latency_ms") > 0
            assert row.pop("act_ms") > 0
    assert answers[0] == answers[1]
    assert [row["budget"] for row in answers[0]["results"]] == ["1x1", "2x2"]
    for row in answers[0]["results"]:
        assert 0 <= row["success"] <= 1
        assert row["episodes"] == 2
    # Scores that were there, from one episode, stand as they were.
    assert len(Run.open(copied).evaluations()) == 4

    assert run(["evaluate", copied, "--budgets", "1x4", "--episodes", 1, "--save"]) == 0
    out = capsys.readouterr().out
    assert f"{copied}, update {UPDATES}: 1 x 1 episodes a budget:" in out
    assert "│ 1x4 " in out
    assert [row["budget"] for row in Run.open(copied).evaluations()][4:] == ["1x4"]


def test_information(
    finished: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(finished)
    assert run(["info", finished]) == 0
    out = capsys.readouterr().out
    for part in (f"sorl on {ENVIRONMENT}", "hidden=[16, 16]", f"update {UPDATES} of {UPDATES}"):
        assert part in out
    assert "│ 2x2 " in out
    assert run(["info", finished / "policy" / "task1-seed0"]) == 0
    out = capsys.readouterr().out
    assert f"policy of task1-seed0, update {UPDATES}" in out
    assert run(["info", data]) == 0
    out = capsys.readouterr().out
    assert "2,002 rows" in out
    assert "task 5" in out
    assert tree(finished) == before


def test_a_report(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert run(["report", finished, "--out", page, "--no-film"]) == 0
    assert capsys.readouterr().out == f"wrote {page}\n"
    content = page.read_text()
    assert content.lower().startswith("<!doctype html>")
    assert "2x2" in content


@pytest.mark.usefixtures("tiny")
def test_tasks_and_seeds_train_together_and_without_an_environment(
    data: Path, tiny_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--updates 4 --log-every 2 --evaluate-every 4 --budgets 1x1 --episodes 1 --workers 1"
    together = tmp_path / "together"
    command = ["train", "tiny", "--env", ENVIRONMENT, "--data", data, "--tasks", 1, 3, "--seeds", 2]
    assert run([*command, *options.split(), "--out", together]) == 0
    out = capsys.readouterr().out
    assert "Training task1-seed0, task1-seed1, task3-seed0, task3-seed1" in out
    names = ["task1-seed0", "task1-seed1", "task3-seed0", "task3-seed1"]
    assert sorted(path.name for path in (together / "policy").iterdir()) == names
    rows = Run.open(together).evaluations()
    assert [(row["task"], row["seed"]) for row in rows] == [(1, 0), (1, 1), (3, 0), (3, 1)]

    alone = tmp_path / "alone"
    options = f"{options} --fitted-q-updates 2"
    assert run(["train", "tiny", "--data", tiny_data, *options.split(), "--out", alone]) == 0
    assert "Done." in capsys.readouterr().out
    assert Run.open(alone).evaluations() == []
    assert np.isfinite(float(Run.open(alone).off_policy()[-1]["fitted_q/policy"]))
    assert [path.name for path in (alone / "policy").iterdir()] == ["task0-seed0"]
    assert run(["info", alone]) == 0
    assert f"tiny on {tiny_data}" in capsys.readouterr().out


def test_generation_prints_what_it_made(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "generate pointmaze-medium-navigate-v0 --episodes 2 --workers 1 --seed 0 --out"
    assert run([*command.split(), data.parent]) == 2  # the files are there
    assert "overwrite" in capsys.readouterr().err
    with np.load(data) as arrays:
        assert arrays["actions"].shape == (2002, 2)


def test_a_worker_that_dies_is_no_traceback(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sorl.evaluation
    from sorl.errors import WorkerError

    asked: list[object] = []

    def die(*_: object, budgets: object, **__: object) -> None:
        asked.append(budgets)
        raise WorkerError("Environment worker 0 died.")

    monkeypatch.setattr(sorl.evaluation, "evaluate", die)
    assert run(["evaluate", finished]) == 1
    assert capsys.readouterr().err == "sorl evaluate: Environment worker 0 died.\n"
    # Without --budgets, those that its policies can serve.
    assert asked == [(Budget(1, 1), Budget(4, 1), Budget(4, 8))]


def test_scores_of_a_run_that_is_being_trained_are_refused_before_the_rollouts(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sorl.evaluation

    monkeypatch.setattr(sorl.evaluation, "evaluate", lambda *_, **__: pytest.fail("rolled out"))
    with Run.open(finished).locked():
        assert run(["evaluate", finished, "--budgets", "1x1", "--save"]) == 2
    assert "wait for it to end" in capsys.readouterr().err


def test_saved_scores_do_not_stand_in_for_an_evaluation_that_is_missing(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_ = Run.open(copied)
    run_.forget_scores([UPDATES], ["1x1"])
    command = ["evaluate", copied, "--budgets", "1x1", "--save"]
    assert run([*command, "--episodes", 2]) == 2
    assert f"let `sorl resume {copied}` do it first" in capsys.readouterr().err
    # As the run itself evaluates, it may.
    assert run([*command, "--episodes", 1]) == 0
    assert len(run_.evaluations()) == 4


def test_what_the_system_refuses_is_no_traceback(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(jobs, "resume", refuse)
    assert run(["resume", finished]) == 1
    sentence = "sorl resume: the operating system refused: [Errno 12] Cannot allocate memory.\n"
    assert capsys.readouterr().err == sentence


def test_ctrl_c_before_anything_began(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(jobs, "resume", interrupt)
    assert run(["resume", finished]) == 130
    assert capsys.readouterr().err == "sorl resume: interrupted.\n"


def test_the_milestone_is_evaluated(finished: Path) -> None:
    rows = Run.open(finished).evaluations()
    assert [(row["update"], row["budget"]) for row in rows] == [
        (MILESTONE, "1x1"),
        (MILESTONE, "2x2"),
        (UPDATES, "1x1"),
        (UPDATES, "2x2"),
    ]
