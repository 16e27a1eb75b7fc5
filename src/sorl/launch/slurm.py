"""The works of a launch as a SLURM job array: a script to submit.

PATH            the script: `sbatch PATH`; submitted again, it goes on and does nothing twice
PATH.logs/      what SLURM and the script say; a work's own log is `log.txt` in its folder

The folders of the tasks stand in the script, of which SLURM keeps a copy: another script written to
the same PATH changes nothing for an array that waits or is begun again.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sorl import files
from sorl.errors import InputError
from sorl.launch.process import command
from sorl.launch.settling import check
from sorl.launch.work import Work

_SECONDS_TO_SAVE = 90

# SLURM's SIGTERM (a preemption, scancel) reaches the worker as well as this script, which must not
# pass it on: a second signal stops a worker at once. SIGUSR1, before the time runs out, reaches the
# script alone; only then does it ask for another turn, since SLURM requeues what it preempts, and
# what was cancelled shall stay so.
_BODY = """
folders=(
{folders}
)
folder=${{folders[$SLURM_ARRAY_TASK_ID]}}
again=
trap : TERM
{worker} -- "$folder" < /dev/null >> "$folder/log.txt" 2>&1 &
worker=$!
trap 'again=yes; kill -TERM "$worker" 2> /dev/null' USR1
wait "$worker"
code=$?
while kill -0 "$worker" 2> /dev/null; do  # it was a signal that ended the wait
    wait "$worker"
    code=$?
done
echo "$folder: exit code $code"
if [ -n "$again" ]; then
    scontrol requeue "$SLURM_JOB_ID" || echo "$folder: not done, submit again"
fi
exit "$code"
"""


def write(
    works: Sequence[Work],
    path: Path | str,
    *,
    at_once: int | None = None,
    gpus: int = 0,
    cores: int = 1,
    time_limit: str = "24:00:00",
    memory: str | None = None,
    options: Sequence[str] = (),
) -> Path:
    """Write every work.json and the script that performs them.

    The nodes need what this machine has, under the same paths: the interpreter that runs this, the
    data and the folders, on storage that all share. When a node fails or a job is preempted, SLURM
    begins the task again; when the time runs out, the task saves and asks for another turn.
    In each case it goes on where it was. What failed in another way is begun again by submitting
    again.

    Args:
        works: the works, at least one, of names and folders that differ; clusters limit how many
            (`MaxArraySize`, by default 1001).
        path: where the script goes; what it needs goes beside it.
        at_once: how many run at a time at most; None means no limit.
        gpus: GPUs of a task.
        cores: cores of a task.
        time_limit: of one turn of a task, as `sbatch --time` takes it.
        memory: of a task, as `sbatch --mem` takes it; None means what the cluster gives.
        options: more options of sbatch, for example `--partition=long`.

    Returns:
        The path of the script.

    Raises:
        InputError: no works, works that get into each other's way, an option of two lines or a
            number that makes no sense, or a file that cannot be written.
    """
    path = Path(path).absolute()
    check(works)
    if not works:
        raise InputError("There is nothing to launch: give at least one run.")
    for name, value, least in (("at_once", at_once, 1), ("gpus", gpus, 0), ("cores", cores, 1)):
        if value is not None and value < least:
            raise InputError(f"{name}={value} is not possible: give at least {least}.")
    folders = [str(work.folder.absolute()) for work in works]
    logs = path.with_name(f"{path.name}.logs")
    wanted = [
        "--job-name=sorl",
        f"--array=0-{len(works) - 1}" + ("" if at_once is None else f"%{at_once}"),
        "--requeue",
        "--open-mode=append",
        f"--signal=B:USR1@{_SECONDS_TO_SAVE}",
        f"--time={time_limit}",
        "--ntasks=1",
        f"--cpus-per-task={cores}",
        *([f"--gres=gpu:{gpus}"] if gpus else []),
        *([] if memory is None else [f"--mem={memory}"]),
        f"--output={str(logs).replace('%', '%%')}/%A_%a.txt",
        *options,
    ]
    for text in (*folders, *wanted, sys.executable):
        if "\n" in text or "\r" in text:
            raise InputError(f"A SLURM script cannot hold {text!r}: use names of one line.")
    for work in works:
        work.write()
    with files.explained("create", logs):
        logs.mkdir(parents=True, exist_ok=True)
    listed = "\n".join(map(shlex.quote, folders))
    body = _BODY.format(folders=listed, worker=shlex.join(command()))
    head = "".join(f"#SBATCH {shlex.quote(option)}\n" for option in wanted)
    files.write_text(path, f"#!/bin/bash\n{head}{body}")
    with files.explained("write", path):
        path.chmod(0o755)
    return path
