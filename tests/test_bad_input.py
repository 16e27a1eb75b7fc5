"""Bad input of any kind: one clear sentence, exit code 2, nothing lost or half-written."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finished_run import ENVIRONMENT, UPDATES, Processes, tiny_arrays, train_arguments, tree
from sorl import cli

pytest_plugins = ("run_fixtures",)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must be refused; returns the sentence."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.err.startswith("sorl"), captured.err
        assert captured.err.count("\n") == 1, captured.err
        assert "Traceback" not in captured.err
        return captured.err

    return run


# Data files. Their reader and checks have their own tests; these are about the whole command.


def changed(**arrays: Any) -> Callable[[Path], None]:
    """A file with these arrays in place of the good ones; None leaves one out."""

    def write(path: Path) -> None:
        merged = {**tiny_arrays(), **arrays}
        np.savez(path, allow_pickle=True, **{k: v for k, v in merged.items() if v is not None})

    return write


def cell(name: str, value: float) -> Callable[[Path], None]:
    """A file with one bad entry."""
    array = tiny_arrays()[name].copy()
    array.reshape(-1)[17] = value
    return changed(**{name: array})


def truncated(path: Path) -> None:
    changed()(path)
    path.write_bytes(path.read_bytes()[:-700])


def flipped(path: Path) -> None:
    changed()(path)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("actions.npy").header_offset + 250
    content = bytearray(path.read_bytes())
    content[place] ^= 0x10
    path.write_bytes(content)


def text(path: Path) -> None:
    path.write_text("observations, actions\n")


def folder(path: Path) -> None:
    path.mkdir()


def nothing(path: Path) -> None:
    pass


GOOD = tiny_arrays()
BAD_DATA: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncated, "truncated"),
    "flipped byte": (flipped, "actions is damaged"),
    "no archive": (text, "not a readable .npz"),
    "a folder": (folder, "folder"),
    "missing": (nothing, "no such file"),
    "pickled objects": (changed(actions=np.array([{}] * 40, dtype=object)), "pickled Python"),
    "no actions": (changed(actions=None), "lacks actions"),
    "no rewards": (changed(rewards=None), "holds no rewards"),
    "flat actions": (changed(actions=GOOD["actions"][:, 0]), "actions"),
    "too few actions": (changed(actions=GOOD["actions"][1:]), "39"),
    "whole numbers": (changed(observations=np.ones((40, 3), np.int64)), "observations"),
    "text": (changed(rewards=np.array(["a"] * 40)), "rewards"),
    "nan": (cell("observations", np.nan), "observations, row 5, column 2: nan"),
    "infinite": (cell("rewards", np.inf), "inf"),
    "action too large": (cell("actions", 1.5), "actions, row 8, column 1: 1.5"),
    "no episode ends": (changed(terminals=np.zeros(40)), "no episode ends"),
    "cut off": (changed(terminals=GOOD["terminals"] * (np.arange(40) < 30)), "cut off"),
    "empty": (changed(**{k: v[:0] for k, v in GOOD.items()}), "no rows"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    write, expected = BAD_DATA[case]
    path = tmp_path / "bad.npz"
    write(path)
    sentence = refused("train", "sorl", "--data", path, "--out", tmp_path / "run")
    assert str(path) in sentence
    assert expected in sentence
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("case", ["truncated", "no archive", "missing"])
def test_information_about_bad_data(case: str, refused: Callable[..., str], tmp_path: Path) -> None:
    BAD_DATA[case][0](tmp_path / "bad.npz")
    assert str(tmp_path / "bad.npz") in refused("info", tmp_path / "bad.npz")


def test_data_of_another_environment(
    data: Path, refused: Callable[..., str], tmp_path: Path
) -> None:
    sentence = refused(
        *("train", "sorl", "--env", "cube-single-play-singletask-v0"),
        *("--data", data, "--out", tmp_path / "run"),
    )
    assert "does not belong to cube-single-play-singletask" in sentence
    assert not (tmp_path / "run").exists()


# Names, numbers and settings.


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("fly", "no command 'fly'"),
        ("train", "Name an algorithm"),
        ("train sorrl --data DATA --out OUT", "no algorithm 'sorrl'"),
        ("train sorrl --data DATA --out OUT", "Did you mean 'sorl'?"),
        ("train sorl --out OUT", "--env, --data, or both"),
        ("train sorl --env cube-singel-play-singletask-v0 --out OUT", "cube-single-play"),
        ("train sorl --env cube-single-play-singletask-task9-v0 --out OUT", "task"),
        (f"train sorl --env {ENVIRONMENT} --tasks 1 7 --data DATA --out OUT", "7"),
        (f"train sorl --env {ENVIRONMENT} --tasks 1 1 --data DATA --out OUT", "once"),
        ("train sorl --data DATA --out OUT --tasks 3", "task"),
        ("train sorl --data DATA --out OUT --budgets 4x", "Budget '4x' cannot be read"),
        ("train sorl --data DATA --out OUT --budgets 4x0", "best_of=0"),
        ("train sorl --data DATA --out OUT --budgets 3x1", "3 sampling steps"),
        ("train sorl --data DATA --out OUT --budgets 256x1", "a power of two up to 128"),
        ("train sorl --data DATA --out OUT --updates 0", "updates=0"),
        ("train sorl --data DATA --out OUT --updates -5", "updates=-5"),
        ("train sorl --data DATA --out OUT --seeds 0", "--seeds 0"),
        ("train sorl --data DATA --out OUT --seeds -1", "--seeds -1"),
        ("train sorl --data DATA --out OUT --episodes 0", "episodes=0"),
        ("train sorl --data DATA --out OUT --batch-size -1", "batch_size=-1"),
        (f"train sorl --env {ENVIRONMENT} --data DATA --out OUT --workers 0", "workers=0"),
        ("train sorl --data DATA --out OUT --learning-rate nan", "learning_rate=nan"),
        ("train sorl --data DATA --out OUT --q-loss-coef nan", "q_loss_coef=nan"),
        ("train sorl --data DATA --out OUT --discount nan", "discount=nan"),
        ("train sorl --data DATA --out OUT --discretization 6", "power of two"),
        ("train sorl --data DATA --out OUT --discretization 4", "backprop_steps=8 is more"),
        ("train sorl --data DATA --out OUT --hidden 0", "hidden"),
        ("train sorl --data DATA --out OUT --wandb", "wandb is not installed"),
        ("evaluate OUT", "no run in"),
        ("evaluate OUT --verifier max", "Verifier 'max' cannot be read"),
        ("evaluate OUT --verifier min --save", "--save keeps scores of budgets spent"),
        ("evaluate OUT --sampler spread --save", "--save keeps scores of budgets spent"),
        ("evaluate OUT --choice worst", "Choice 'worst' cannot be read"),
        ("evaluate OUT --choice best --save", "--save keeps scores of budgets spent"),
        ("evaluate OUT --adaptive -1", "Adaptive threshold=-1.0"),
        ("resume OUT", "no run in"),
        ("report OUT", "no run in"),
        ("info OUT", "no such file"),
        ("generate cube-quintuple-play-v0 --out OUT", "cube-quintuple-play-v0"),
        ("generate cube-single-play-v0 --out OUT --episodes 0", "episodes"),
        ("generate cube-single-play-v0 --out OUT --workers 0", "workers"),
        ("generate cube-single-play-v0 --out OUT --seed -1", "seed"),
    ],
)
def test_bad_arguments(
    arguments: str,
    expected: str,
    refused: Callable[..., str],
    tiny_data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    out = tmp_path / "out"
    places = {"DATA": str(tiny_data), "OUT": str(out)}
    before = tree(tmp_path)
    assert expected in refused(*(places.get(word, word) for word in arguments.split()))
    assert tree(tmp_path) == before
    assert not out.exists()


@pytest.mark.parametrize(
    "arguments",
    [
        "train sorl --updates many --out x",
        "train sorl",
        "evaluate",
        "info a b",
        "generate x -y",
    ],
)
def test_what_cannot_be_parsed(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "--help" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("tiny")
def test_best_of_needs_a_critic(
    refused: Callable[..., str], tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command = ("train", "tiny", "--data", tiny_data, "--fitted-q-updates", 0, "--out", out)
    sentence = refused(*command, "--budgets", "1x1", "1x8")
    assert "best of 8 candidates" in sentence
    assert "no critic" in sentence
    assert not out.exists()
    options = ("--budgets", "1x1", "--updates", 2, "--log-every", 1, "--evaluate-every", 1)
    assert cli.run([str(word) for word in (*command, *options)]) == 0
    assert "without an environment" in refused("evaluate", out)


# Runs.


@pytest.mark.usefixtures("tiny")
def test_settings_and_data_of_a_run_stay_what_they_are(
    refused: Callable[..., str], tiny_data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = [
        *("train", "tiny", "--data", tiny_data, "--out", run, "--updates", 4, "--log-every", 1),
        *("--evaluate-every", 2, "--budgets", "1x1", "--seeds", 2, "--tensorboard", "False"),
        *("--fitted-q-updates", 0),
    ]
    assert cli.run([str(word) for word in command]) == 0
    before = tree(run)

    assert f"sorl resume {run}" in refused(*command)
    sentence = refused(*command, "--resume", "--rate", 0.2)
    assert "algorithm.rate is 0.1 in the run and 0.2 now" in sentence
    sentence = refused(*command, "--resume", "--updates", 5, "--seeds", 3)
    assert "training.updates is 4 in the run and 5 now" in sentence
    assert "seeds is [0, 1] in the run and [0, 1, 2] now" in sentence
    assert tree(run) == before
    assert cli.run([*map(str, command), "--resume", "--checkpoint-seconds", "5"]) == 0

    arrays = tiny_arrays()
    arrays["rewards"][3] = 0
    np.savez(tiny_data, allow_pickle=False, **arrays)
    assert "data of" in (sentence := refused("resume", run))
    assert "have changed" in sentence
    assert "dataset.fingerprint" in refused(*command, "--resume")
    tiny_data.unlink()
    assert "no such file" in refused("resume", run)
    assert tree(run) == before


@pytest.mark.usefixtures("tiny")
def test_a_folder_with_something_else_in_it(
    refused: Callable[..., str], tiny_data: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "diary.txt").write_text("dear diary")
    command = ("train", "tiny", "--data", tiny_data, "--budgets", "1x1", "--out")
    assert "is not empty and holds no run" in refused(*command, tmp_path / "mine")
    assert tree(tmp_path / "mine") == {"diary.txt": b"dear diary"}
    assert "mine/diary.txt" in refused(*command, tmp_path / "mine" / "diary.txt" / "run")
    for command in ("evaluate", "resume", "report", "info"):
        assert "no run in" in refused(command, tmp_path / "mine")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def checkpoint_file(run: Path, update: int) -> Path:
    state = run / "checkpoints" / f"{update:09d}" / "state"
    return max((p for p in state.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def test_a_damaged_checkpoint_costs_only_what_came_after_the_one_before(
    copied: Path, finished: Path, processes: Processes
) -> None:
    damage(checkpoint_file(copied, UPDATES))
    code, out, err = processes.run("resume", copied)
    assert code == 0
    path = copied / "checkpoints" / f"{UPDATES:09d}"
    assert err == (
        f"sorl resume: warning: The checkpoint {path} is damaged (the content does not match its "
        f"digests); went back to the intact checkpoint of update {UPDATES - 20}.\n"
    )
    assert f"going on after update {UPDATES - 20}" in out
    assert (copied / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


def test_all_checkpoints_damaged(copied: Path, refused: Callable[..., str]) -> None:
    for path in (copied / "checkpoints").iterdir():
        damage(checkpoint_file(copied, int(path.name)))
    before = tree(copied)
    sentence = refused("resume", copied)
    assert "are damaged" in sentence
    assert "start the training anew" in sentence
    assert tree(copied) == before


def test_a_damaged_policy(copied: Path, refused: Callable[..., str]) -> None:
    policy = copied / "policy" / "task1-seed0"
    damage(policy / "policy.safetensors")
    assert "policy.safetensors" in refused("evaluate", copied)
    assert "policy.safetensors" in refused("info", policy)


def test_a_run_without_policies(copied: Path, refused: Callable[..., str]) -> None:
    shutil.rmtree(copied / "policy")
    assert "polic" in refused("evaluate", copied)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--budgets", "3x1"), "3 sampling steps"),
        (("--budgets", "256x1"), "training saw those up to 2"),
        (("--budgets", "1x2", "--sampler", "renoise"), "1 has no half"),
        (("--budgets", "fast"), "'fast'"),
        (("--episodes", "0"), "0 episodes"),
        (("--episodes", "-2"), "-2 episodes"),
        (("--workers", "0"), "workers=0"),
        (("--seed", "-1"), "seed"),
    ],
)
def test_an_evaluation_that_cannot_be(
    options: tuple[str, ...], expected: str, finished: Path, refused: Callable[..., str]
) -> None:
    before = tree(finished)
    assert expected in refused("evaluate", finished, *options)
    assert tree(finished) == before


@pytest.mark.parametrize(
    ("change", "commands"),
    [
        (lambda config: "{", ("info", "resume", "evaluate", "report")),
        (lambda config: json.dumps({**config, "format": 99}), ("info", "resume", "evaluate")),
        (lambda config: json.dumps({"format": 1}), ("info", "resume", "evaluate")),
        (lambda config: json.dumps({**config, "training": 3}), ("info", "resume")),
        (lambda config: json.dumps({**config, "tasks": "all"}), ("resume",)),
        (lambda config: json.dumps({**config, "algorithm": {"name": "sorl", "x": 1}}), ("resume",)),
        (lambda config: json.dumps({**config, "algorithm": {"name": "lost"}}), ("resume",)),
    ],
)
def test_a_damaged_config(
    change: Callable[[dict[str, Any]], str],
    commands: tuple[str, ...],
    copied: Path,
    refused: Callable[..., str],
) -> None:
    path = copied / "config.json"
    path.write_text(change(json.loads(path.read_text())))
    for command in commands:
        sentence = refused(command, copied)
        assert str(copied) in sentence or "algorithm" in sentence


# The machine.


def test_two_processes_in_one_run(copied: Path, refused: Callable[..., str]) -> None:
    program = (
        "import sys; from sorl.runs import Run\n"
        "with Run.open(sys.argv[1]).locked(): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(copied)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        before = tree(copied)
        assert f"Another process (pid {process.pid}) trains into {copied}" in refused(
            "resume", copied
        )
        assert tree(copied) == before
        process.communicate()
    assert process.returncode == 0


def test_a_full_disk_in_training(
    data: Path, finished: Path, processes: Processes, tmp_path: Path
) -> None:
    """No file may grow beyond a limit, which is how the system answers when a disk is full."""
    run = tmp_path / "run"
    size = max(path.stat().st_size for path in finished.rglob("*") if path.is_file())
    limited = ("bash", "-c", f'ulimit -f {size // 1024 - 4}; exec "$@"', "limited")
    code, _, err = processes.run(*train_arguments(data, run), prefix=limited)
    assert code == 2, err
    assert re.fullmatch(r"sorl train: Cannot (save|write) .*: the disk is full; .*\n", err)
    assert not list(run.rglob(".saving-*"))
    # With room again it goes on as if nothing had happened.
    assert processes.run("resume", run)[0] == 0
    assert (run / "metrics.csv").read_bytes() == (finished / "metrics.csv").read_bytes()


@pytest.fixture
def forbidden() -> Iterator[Path]:
    """A folder that anybody may read and only its owner, if not root, may change."""
    path = Path(tempfile.mkdtemp())
    try:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR | stat.S_IROTH | stat.S_IXOTH)
        yield path
    finally:
        path.chmod(stat.S_IRWXU)
        shutil.rmtree(path)


def test_no_permission(forbidden: Path, finished: Path, tiny_data: Path) -> None:
    """Root may write anywhere, so the child becomes nobody after it has imported all it needs."""
    program = (
        "import os, sys, sorl.cli\n"
        "def run(out): return [sorl.cli.run([out if w == 'OUT' else w for w in line.split('|')])\n"
        "                      for line in sys.argv[3:]]\n"
        "assert run(sys.argv[1]) == [2] * len(sys.argv[3:])\n"
        "print('---', file=sys.stderr)\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "assert run(sys.argv[2]) == [2] * len(sys.argv[3:])\n"
    )
    place = Path("/dev/null/out")  # refused too, on the same way
    commands = [
        ("train", "sorl", "--data", "/dev/fd/0", "--out", "OUT"),
        ("generate", "pointmaze-medium-navigate-v0", "--episodes", "2", "--out", "OUT"),
    ]
    shared = forbidden.parent / f"{forbidden.name}.npz"
    shutil.copy(tiny_data, shared)
    shared.chmod(0o644)
    try:
        lines = ["|".join(command).replace("/dev/fd/0", str(shared)) for command in commands]
        result = subprocess.run(
            [sys.executable, "-c", program, str(place), str(forbidden / "out"), *lines],
            capture_output=True,
            text=True,
            env=dict(os.environ),
        )
    finally:
        shared.unlink()
    assert result.returncode == 0, result.stderr
    sentences = result.stderr.split("---\n")[1].splitlines()
    assert len(sentences) == len(commands), result.stderr
    for sentence in sentences:
        assert str(forbidden / "out") in sentence
        assert "permission" in sentence.lower()
    assert list(forbidden.iterdir()) == []
