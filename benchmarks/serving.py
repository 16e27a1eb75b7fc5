"""Requests per second and latency of `sorl serve` under many clients at once, over loopback.

    python -m benchmarks.serving runs/cube
    python -m benchmarks.serving runs/cube --deadline-ms 20

The server is a process of its own; the clients share this one. Each sends its next request, one
observation, when it has the answer to the last one.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tyro

from sorl.types import Budget


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Settings of the measurement."""

    run: tyro.conf.Positional[Path]
    budget: str = "4x1"
    deadline_ms: float | None = None
    """Ask for a deadline instead of a budget; needs a calibrated policy."""
    clients: int = 64
    seconds: float = 60.0
    options: str = ""
    """Options of the server, for example --options="--max-batch 32"."""


class Client:
    """One connection that stays open."""

    def __init__(self, host: str, port: int) -> None:
        self._address = host, port

    async def __aenter__(self) -> Client:
        self._reader, self._writer = await asyncio.open_connection(*self._address)
        return self

    async def __aexit__(self, *error: object) -> None:
        self._writer.close()

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Status and body of the answer."""
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        self._writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        answer = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", answer)
        assert length is not None
        return int(answer.split(b" ", 2)[1]), await self._reader.readexactly(int(length[1]))


@contextlib.contextmanager
def server(arguments: Arguments) -> Iterator[tuple[str, int]]:
    """Host and port of a server of the run."""
    command = [sys.executable, "-c", "import sorl.cli; sorl.cli.main()", "serve"]
    command += [str(arguments.run), "--port", "0", *shlex.split(arguments.options)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = None
            for line in process.stdout:
                if found := re.search(r"http://([0-9.]+):([0-9]+)", line):
                    break
            if found is None:
                sys.exit("The server did not start.")
            print(f"start-up             {time.perf_counter() - began:10.1f} s")
            yield found[1], int(found[2])
        finally:
            process.terminate()


async def measure(arguments: Arguments, host: str, port: int) -> None:
    async with Client(host, port) as client:
        size = json.loads((await client.ask("GET", "/policy"))[1])["observation_size"]
    statuses: Counter[int] = Counter()
    budgets: Counter[str] = Counter()
    times: list[float] = []
    if arguments.deadline_ms is None:
        budget = Budget.parse(arguments.budget)
        asked: dict[str, float] = {"steps": budget.steps, "best_of": budget.best_of}
    else:
        asked = {"deadline_ms": arguments.deadline_ms}
    end = time.perf_counter() + arguments.seconds

    async def work(seed: int) -> None:
        observation = np.random.default_rng(seed).normal(size=(1, size)).tolist()
        body = json.dumps({"observations": observation, **asked}).encode()
        async with Client(host, port) as client:
            while (began := time.perf_counter()) < end:
                status, answer = await client.ask("POST", "/act", body)
                times.append(1e3 * (time.perf_counter() - began))
                statuses[status] += 1
                if status == 200:
                    spent = json.loads(answer)["budget"]
                    budgets[f"{spent['steps']}x{spent['best_of']}"] += 1

    began = time.perf_counter()
    await asyncio.gather(*map(work, range(arguments.clients)))
    seconds = time.perf_counter() - began
    async with Client(host, port) as client:
        page = (await client.ask("GET", "/metrics"))[1].decode()

    def counter(name: str) -> float:
        found = re.search(rf"^{name} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else float("nan")

    errors = {status: count for status, count in statuses.items() if status != 200}
    print(f"requests             {len(times) / seconds:10.1f} /s")
    print(f"latency p50          {np.percentile(times, 50):10.2f} ms")
    print(f"latency p99          {np.percentile(times, 99):10.2f} ms")
    print(f"errors               {sum(errors.values()):10d} of {len(times)} {errors or ''}")
    rows = counter("sorl_batch_rows_sum") / counter("sorl_batch_rows_count")
    print(f"mean batch           {rows:10.2f} observations")
    print(f"budgets              {dict(budgets)}")
    if arguments.deadline_ms is not None:
        print(f"answered late        {counter('sorl_deadlines_missed_total'):10.0f}")


def main() -> None:
    arguments = tyro.cli(Arguments, description=__doc__)
    asked = f"deadline {arguments.deadline_ms} ms" if arguments.deadline_ms else arguments.budget
    print(f"{arguments.clients} clients, {arguments.seconds:g} s, {asked}")
    print(f"{os.cpu_count()} CPU cores, load before {os.getloadavg()[0]:.1f}")
    with server(arguments) as (host, port):
        asyncio.run(measure(arguments, host, port))


if __name__ == "__main__":
    main()
