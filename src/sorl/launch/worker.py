"""What one worker process does: `python -m sorl.launch.worker [options] FOLDER`.

It exits as the command line does: 0 done or stopped with everything saved, 1 something broke, 2 bad
input, whose one sentence is the last line of its standard error.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from pathlib import Path

from sorl import platform
from sorl.errors import InputError, WorkerError


def main(arguments: list[str]) -> int:
    """Perform the work of a folder."""
    parser = argparse.ArgumentParser(prog="python -m sorl.launch.worker")
    parser.add_argument("folder", type=Path, help="folder of the work")
    parser.add_argument("--cores", help="numbers of the cores to stay on, such as 0,1")
    parser.add_argument(
        "--watch", action="store_true", help="stop, saving everything, when standard input ends"
    )
    parser.add_argument(
        "--patience", type=float, default=0.0, help="seconds to wait for another process's run"
    )
    options = parser.parse_args(arguments)
    if options.cores is not None:
        cores = {int(core) for core in options.cores.split(",")}
        os.sched_setaffinity(0, cores)
        # What the launcher's environment says is how many cores the launcher has.
        os.environ["JAX_NUM_CPU_DEVICES"] = str(len(cores))
    platform.prepare()
    if options.watch:
        threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    from sorl.launch.work import Work  # JAX starts here, with the cores and settings made above

    try:
        work = Work.read(options.folder)
        work.await_turn(options.patience)
        work.perform()
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _stop_at_end_of_input() -> None:
    """Whoever launched us holds the other end: it ends with them, however that happens."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
