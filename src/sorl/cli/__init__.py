"""The command line: one file for each of its commands.

Each command is a thin file of its own and imports what it needs only when it runs, so that
`sorl --help` answers at once.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sorl
from sorl import platform
from sorl.errors import InputError, WorkerError

COMMANDS = {
    "generate": "make an OGBench data set from scripted experts, without a download",
    "import": "make a data set of your own logs: npz, HDF5, Parquet, CSV",
    "shard": "make shards of data larger than the memory, to be streamed from disk",
    "train": "train an algorithm on logged data, all tasks and seeds together",
    "tune": "train at every point of a small grid of hyperparameters and compare them",
    "compare": "train several algorithms on the same data and compare them",
    "reproduce": "make the paper's figures and tables, at a scale of your choice",
    "finetune": "learn on from a run by acting in its environment",
    "resume": "go on with a run that was stopped or killed",
    "evaluate": "roll a run's policies out at any budgets",
    "calibrate": "measure what each budget costs here and buys, so that deadlines can be kept",
    "report": "draw one or more runs as a single HTML page",
    "export": "write a policy as ONNX, StableHLO or plain NumPy",
    "serve": "answer requests for actions over HTTP",
    "info": "describe a run, a policy or a data file",
}

_MODULES = {"import": "import_data"}  # import is a keyword

# Of an option with one value the last counts, as everywhere. These take several at once, of which
# those given first would be lost in silence; what adds up instead has the type `Repeatable`.
_ONCE = ("--budgets", "--choices", "--data", "--environments", "--rows", "--tasks")

_EXAMPLE = """\
  sorl generate cube-single-play-v0 --out data
  sorl train sorl --env cube-single-play-singletask-v0 --data data/cube-single-play-v0.npz \\
      --updates 150000 --seeds 2 --hidden 256 256 256 --out runs/cube
  sorl evaluate runs/cube --budgets 1x1 4x1 4x8
  sorl report runs/cube --out report.html"""


def main() -> None:
    """Run the command line and exit.

    0: done, or stopped with everything saved. 1: something broke. 2: bad input. 130: interrupted.
    """
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command; errors are one sentence on stderr.

    Returns:
        The exit code, see `main`.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        print(f"sorl {sorl.__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        print(f"sorl: there is no command {name!r}: use {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if name in ("train", "tune", "compare", "reproduce", "finetune", "resume"):
        platform.prepare()
    try:
        _check_repeated(arguments[1:])
        with _plain_warnings(name):
            importlib.import_module(f"sorl.cli.{_MODULES.get(name, name)}").run(list(arguments[1:]))
    except SystemExit as exit:  # tyro has printed its help or what it cannot parse
        return int(exit.code or 0)
    except InputError as error:
        print(f"sorl {name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print(f"sorl {name}: {str(interrupt) or 'interrupted.'}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`sorl info ... | head`): nothing to say, nor to whom.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except WorkerError as error:
        print(f"sorl {name}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"sorl {name}: the operating system refused: {error}.", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _plain_warnings(name: str) -> Iterator[None]:
    """Print our own warnings as the sentences they are, without a line of source code."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
            if category.__module__.startswith("sorl."):
                print(f"sorl {name}: warning: {message}", file=sys.stderr)
            else:
                others(message, category, *where)

        warnings.showwarning = show
        yield


def _check_repeated(arguments: Sequence[str]) -> None:
    """Raise `InputError` where an option of several values is given twice."""
    names = [word.partition("=")[0] for word in arguments]
    for name in _ONCE:
        if names.count(name) > 1:
            raise InputError(f"{name} is given twice: give it once, with all of its values.")


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(
        [
            f"sorl {sorl.__version__}: offline reinforcement learning whose compute is dialled at "
            "run time.",
            "",
            "usage: sorl COMMAND ...   (`sorl COMMAND --help` tells all of its options)",
            "",
            *lines,
            "",
            "A budget is written steps x best-of: 4x8 draws 8 candidates in 4 sampling steps each",
            "and acts with one of them, chosen as the method does it or as `--choice` says.",
            "",
            "for example:",
            _EXAMPLE,
        ]
    )
