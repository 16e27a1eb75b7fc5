"""The script of a SLURM array, run by bash as SLURM would run one of its tasks."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launched import wait_until, work
from sorl.errors import InputError
from sorl.launch import slurm
from sorl.launch.work import Work

# A worker that writes what it was given, and what it was asked, into the folder.
STAND_IN = """#!{python}
import json, pathlib, signal, sys, time
folder = pathlib.Path(sys.argv[-1])
(folder / "seen.json").write_text(json.dumps(sys.argv[1:]))
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append("TERM"))
(folder / "ready").touch()
while not asked and not (folder / "end").exists():
    time.sleep(0.02)
time.sleep(0.3)
(folder / "asked").write_text(" ".join(asked))
sys.exit(0 if asked else 3)
"""


@pytest.fixture
def works(tmp_path: Path) -> list[Work]:
    names = ("a space", "a $HOME 'quote\"", "50% `x`")
    return [work(tmp_path / "runs of all" / name, tmp_path) for name in names]


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a stand-in for the interpreter and for scontrol."""
    folder = tmp_path / "my tools"
    folder.mkdir()
    (folder / "python").write_text(STAND_IN.format(python=sys.executable))
    (folder / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {shlex.quote(str(folder))}/asked\n')
    for name in ("python", "scontrol"):
        (folder / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    return folder


def begin(script: Path, task: int, tools: Path) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "SLURM_ARRAY_TASK_ID": str(task),
        "SLURM_JOB_ID": "77",
        "PATH": f"{tools}:{os.environ['PATH']}",
    }
    return subprocess.Popen(
        ["bash", str(script)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def test_each_task_performs_its_own_work(works: list[Work], tools: Path, tmp_path: Path) -> None:
    script = slurm.write(works, tmp_path / "a script.sh")
    for place, one in enumerate(works):
        assert Work.read(one.folder) == one
        (one.folder / "end").touch()
        assert begin(script, place, tools).wait(20) == 3
        seen = json.loads((one.folder / "seen.json").read_text())
        assert seen[:2] == ["-m", "sorl.launch.worker"]
        assert seen[-2:] == ["--", str(one.folder)]
    assert not (tools / "asked").exists()


def test_another_script_in_the_same_place_changes_nothing_for_an_array_that_waits(
    works: list[Work], tools: Path, tmp_path: Path
) -> None:
    script = slurm.write(works, tmp_path / "script.sh")
    kept = tmp_path / "as slurm keeps it"
    kept.write_bytes(script.read_bytes())
    slurm.write(works[2:], script)
    for one in works:
        (one.folder / "end").touch()
    for place, one in enumerate(works):
        assert begin(kept, place, tools).wait(20) == 3
        assert json.loads((one.folder / "seen.json").read_text())[-1] == str(one.folder)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_signal_is_passed_on_once_and_only_the_time_limit_asks_for_another_turn(
    works: list[Work], tools: Path, tmp_path: Path, number: signal.Signals
) -> None:
    script = slurm.write(works, tmp_path / "script.sh")
    process = begin(script, 1, tools)
    folder = works[1].folder
    wait_until((folder / "ready").exists, 20)
    if number == signal.SIGTERM:  # of a preemption: to every process
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    assert process.wait(20) == 0, "the script ended before its worker"
    assert (folder / "asked").read_text() == "TERM"
    if number == signal.SIGTERM:
        assert not (tools / "asked").exists()
    else:
        assert (tools / "asked").read_text() == "requeue 77\n"


def test_options_stand_in_the_head(works: list[Work], tmp_path: Path) -> None:
    script = slurm.write(
        works,
        tmp_path / "50% of.sh",
        at_once=2,
        gpus=1,
        cores=4,
        time_limit="2:00:00",
        memory="8G",
        options=["--partition=long one"],
    )
    lines = script.read_text().splitlines()
    assert lines[0] == "#!/bin/bash"
    given = [shlex.split(line[8:])[0] for line in lines if line.startswith("#SBATCH ")]
    assert lines[1 : 1 + len(given)] == [line for line in lines if line.startswith("#SBATCH ")]
    expected = {
        "--array=0-2%2",
        "--requeue",
        "--gres=gpu:1",
        "--cpus-per-task=4",
        "--time=2:00:00",
        "--mem=8G",
        "--partition=long one",
        "--signal=B:USR1@90",
        f"--output={tmp_path}/50%% of.sh.logs/%A_%a.txt",
    }
    assert expected <= set(given)
    assert (tmp_path / "50% of.sh.logs").is_dir()
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_what_a_script_cannot_hold_is_refused(works: list[Work], tmp_path: Path) -> None:
    path = tmp_path / "script.sh"
    for changes in ({"at_once": 0}, {"cores": 0}, {"gpus": -1}, {"options": ["--x\n--y"]}):
        with pytest.raises(InputError):
            slurm.write(works, path, **changes)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="nothing to launch"):
        slurm.write([], path)
    with pytest.raises(InputError, match="one line"):
        slurm.write([work(tmp_path / "two\nlines", tmp_path)], path)
    assert not path.exists()
    assert not works[0].folder.exists()
