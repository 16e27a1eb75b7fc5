"""`sorl serve`: the command, its refusals, real sockets and signals."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from finished_run import Processes
from served import running, small_policy
from sorl import cli, provenance
from sorl.choices import Choice
from sorl.deployment.calibration import Calibration, Measured, write_calibration
from sorl.deployment.policy import Policy
from sorl.deployment.serving import listener
from sorl.deployment.serving.app import create_app
from sorl.deployment.serving.batching import Batcher
from sorl.deployment.serving.counters import ServerMetrics
from sorl.deployment.serving.schemas import Limits
from sorl.errors import InputError
from sorl.interruption import StoppedError
from sorl.types import Budget
from sorl.verifiers import Verifier

ROW = [[0.5, -1, 0.2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policies") / "policy"
    small_policy(path)
    return path


@pytest.fixture(scope="module")
def policy(folder: Path) -> Policy:
    return Policy.load(folder)


# Refusals of the command.


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--host 0.0.0.0", "no token to keep strangers out"),
        ("--host ::", "no token to keep strangers out"),
        ("--host no.such.host.invalid", "no address 'no.such.host.invalid'"),
        ("--host 0.0.0.0 --token-file MISSING", "There is no"),
        ("--token-file SHORT", "no usable token in"),
        ("--port 70000", "Port 70000"),
        ("--port TAKEN", "choose another --port"),
        ("--max-batch 12", "max_batch=12"),
        ("--max-seconds 0", "max_seconds=0"),
        ("--budgets 3x1", "3 sampling steps"),
        ("--budgets 4", "Budget '4' cannot be read"),
        ("--budgets 4x1 64x1", "--budgets 64x1: no request may ask for it, for requests end at 32"),
        ("--budgets 4x8 --max-best-of 4", "--budgets 4x8: no request may ask for it"),
        ("--task 3", "task2-seed0"),
    ],
)
def test_refusals(
    folder: Path,
    options: str,
    expected: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv(listener.TOKEN_VARIABLE, raising=False)
    (tmp_path / "short").write_text("secret\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        places = {
            "MISSING": str(tmp_path / "missing"),
            "SHORT": str(tmp_path / "short"),
            "TAKEN": str(taken.getsockname()[1]),
        }
        words = [places.get(word, word) for word in options.split()]
        assert cli.run(["serve", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sorl serve: ")
    assert error.count("\n") == 1
    assert expected in error
    assert "secret" not in error


@pytest.mark.parametrize("name", ["fastapi", "uvicorn", "prometheus_client"])
def test_what_is_not_installed(name: str, folder: Path) -> None:
    code = (
        f"import sys; sys.modules[{name!r}] = None; from sorl import cli; "
        f"sys.exit(cli.run(['serve', {str(folder)!r}]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        f"sorl serve: Serving needs {name}, which is not installed: install sorl[serve].\n"
    )


def test_help_needs_nothing_of_it() -> None:
    code = (
        "import sys; from sorl import cli; assert cli.run(['serve', '--help']) == 0; "
        "heavy = {'fastapi', 'uvicorn', 'pydantic', 'jax'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(listener.TOKEN_VARIABLE, raising=False)
    assert listener.read_token(None) is None
    monkeypatch.setenv(listener.TOKEN_VARIABLE, "from.the.environment")
    assert listener.read_token(None) == "from.the.environment"
    (tmp_path / "token").write_text("  from_the_file-123==\n")
    assert listener.read_token(tmp_path / "token") == "from_the_file-123=="
    for bad in ("", "too short", "fifteen-letters", "with space in between", "ü" * 20):
        (tmp_path / "token").write_text(bad)
        with pytest.raises(InputError, match="no usable token"):
            listener.read_token(tmp_path / "token")
    with listener.listen("0.0.0.0", 0, token="x" * 16) as ours:
        assert listener.address_of(ours).startswith("http://0.0.0.0:")


@pytest.mark.parametrize(
    ("options", "rows", "expected"),
    [
        ((), 1, {"1x1", "2x4", "4x1"}),
        (("--max-best-of", "2"), 1, {"1x1", "4x1"}),
        (("--max-best-of", "2", "--max-steps", "2"), 1, {"1x1"}),
        ((), 16, set()),
    ],
)
def test_deadlines_are_offered_what_requests_may_ask_for(
    folder: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    rows: int,
    expected: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured = tuple(
        Measured(
            Budget.parse(budget), Choice.parse(choice), (ms,), (ms,), successes=wins, episodes=9
        )
        for budget, choice, ms, wins in (
            ("1x1", "own", 1.0, 2),
            ("4x1", "own", 2.0, 4),
            ("2x4", "best", 3.0, 8),
        )
    )
    machine = provenance.machine()
    calibration = Calibration(measured, (rows,), "independent", Verifier(), machine, "")
    policy = Path(shutil.copytree(folder, tmp_path / "policy"))
    write_calibration(policy, calibration)
    offered: list[set[str]] = []

    def stop(batcher: Batcher, *_: Any) -> None:
        offered.append({str(offer.plan.budget) for offer in batcher.offers})
        raise StoppedError

    monkeypatch.setattr(Batcher, "warm_up", stop)
    assert cli.run(["serve", str(policy), "--port", "0", *options]) == 0
    assert offered == [expected]
    told = "warning: The calibration has nothing to offer to deadlines"
    assert (told in capsys.readouterr().out) == (not expected)


# A process.


@contextlib.contextmanager
def serving(
    processes: Processes, folder: Path, *options: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process and its URL, once it serves."""
    with processes.start("serve", folder, "--port", 0, *options) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("Compiling ")
            line = process.stdout.readline()
            assert line.startswith(f"Serving task2-seed0 of {folder}, update 100, on http://"), line
            yield process, line.split(" on ")[1].split()[0]
        finally:
            process.kill()


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(tmp_path_factory.mktemp("compiled"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_when_everything_is_answered(
    processes: Processes, folder: Path, number: signal.Signals
) -> None:
    options = ("--budgets", "1x1", "--max-batch", "2", "--max-wait-ms", "1000")
    with serving(processes, folder, *options) as (process, url):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as client:
            body = json.dumps({"observations": ROW, "steps": 1}).encode()
            head = f"POST /act HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
            client.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
            time.sleep(0.5)
            process.send_signal(number)
            answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 OK"), answer
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out == "Stopped: everything that was asked has been answered.\n"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/healthz")


def test_a_signal_while_it_compiles(processes: Processes, folder: Path) -> None:
    with processes.start("serve", folder, "--port", 0) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("Compiling ")
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert out == "Stopped before serving.\n"


# Sockets.


def test_a_port_is_taken_before_anybody_serves() -> None:
    with listener.listen("127.0.0.1", 0, token=None) as ours:
        port = ours.getsockname()[1]
        with pytest.raises(InputError, match=f"Cannot listen on port {port} of 127.0.0.1 .*choose"):
            listener.listen("127.0.0.1", port, token=None)
    with listener.listen("127.0.0.1", port, token=None):
        pass  # free again at once


def test_who_connects_before_it_serves_is_answered_then(policy: Policy) -> None:
    app = create_app(Batcher(policy), ServerMetrics())
    server = listener.Server(app, max_seconds=10)
    with (
        listener.listen("127.0.0.1", 0, token=None) as ours,
        socket.create_connection(ours.getsockname(), timeout=20) as early,
    ):
        early.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        thread = threading.Thread(target=server.run, args=(ours,))
        thread.start()
        try:
            assert early.recv(65536).startswith(b"HTTP/1.1 200 OK")
        finally:
            server.stop()
            thread.join(30)


def test_a_socket_that_cannot_serve_ends_in_a_sentence(policy: Policy) -> None:
    app = create_app(Batcher(policy), ServerMetrics())
    server = listener.Server(app, max_seconds=10)
    with socket.socket() as late:
        late.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        late.bind(("127.0.0.1", 0))  # but it does not listen
        with (
            listener.listen(*late.getsockname(), token=None),
            pytest.raises(InputError, match=r"Cannot serve on http://127.0.0.1:.*: start it again"),
        ):
            server.run(late)


def talk(url: str, *parts: bytes, pause: float) -> tuple[bytes, float]:
    """What the server says until it hangs up, and how long that took."""
    host, port = url.removeprefix("http://").split(":")
    began = time.monotonic()
    said = b""
    with socket.create_connection((host, int(port)), timeout=20) as client:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                client.sendall(part)
                time.sleep(pause)
        with contextlib.suppress(ConnectionError):
            while received := client.recv(65536):
                said += received
    return said, time.monotonic() - began


HEAD = (
    b"POST /act HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 60\r\n\r\n"
)


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([], b""),
        ([b"GET /healthz HT"], b""),
        ([b"X: y\r\n"[i % 6 : i % 6 + 1] for i in range(30)], b""),
        ([HEAD, b"{"], b"HTTP/1.1 408 "),
        ([HEAD, *[b" "] * 30], b"HTTP/1.1 408 "),
    ],
)
def test_clients_that_dawdle_are_cut_off(policy: Policy, parts: list[bytes], status: bytes) -> None:
    with running(policy, limits=Limits(max_seconds=0.4)) as url:
        said, seconds = talk(url, *parts, pause=0.1)
        assert said.startswith(status)
        assert seconds < 8
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_client_that_does_not_take_its_answers(policy: Policy) -> None:
    with running(policy, limits=Limits(max_seconds=0.4)) as url:
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=20) as client:
            client.setblocking(False)
            request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
            with pytest.raises(ConnectionError):  # noqa: PT012 - asked until it is cut off
                end = time.monotonic() + 30
                while time.monotonic() < end:
                    try:
                        client.send(request * 50)
                    except BlockingIOError:
                        time.sleep(0.05)
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_connections_are_bounded(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 2)
    with running(policy) as url, contextlib.ExitStack() as stack:
        host, port = url.removeprefix("http://").split(":")
        for _ in range(2):
            stack.enter_context(socket.create_connection((host, int(port)), timeout=20))
        said, seconds = talk(url, pause=0)
        assert said == b""
        assert seconds < 5, "cut off at once, not when its time is over"
        stack.close()
        end = time.monotonic() + 20
        while True:  # until the server has noticed
            try:
                assert httpx.get(f"{url}/healthz").status_code == 200
                break
            except httpx.TransportError:
                assert time.monotonic() < end
                time.sleep(0.05)


def test_what_is_no_http_at_all(policy: Policy) -> None:
    with running(policy) as url:
        said, _ = talk(url, b"\x16\x03\x01 hello\r\n\r\n", pause=0)
        assert said.startswith(b"HTTP/1.1 400 ")
        assert httpx.get(f"{url}/healthz").status_code == 200


def test_a_large_body_is_refused_before_it_is_sent(policy: Policy) -> None:
    with running(policy) as url:
        response = httpx.post(
            f"{url}/act", content=b" " * 2_000_000, headers={"Content-Type": "application/json"}
        )
        assert response.status_code == 413
        assert "larger than" in response.json()["error"]


def test_many_clients_at_once(policy: Policy) -> None:
    """Answers go to whom they belong, over real sockets."""
    with running(policy, max_batch=8) as url, httpx.Client(base_url=url, timeout=60) as client:

        def ask(seed: int) -> Any:
            body = {"observations": [[seed / 64, 0, 1]], "steps": 1 + seed % 2, "seed": seed}
            return client.post("/act", json=body).json()

        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            together = list(pool.map(ask, range(64)))
        for seed, answer in enumerate(together):
            expected = policy.act([[seed / 64, 0, 1]], steps=1 + seed % 2, key=seed)
            np.testing.assert_allclose(answer["actions"], expected, atol=1e-5)
