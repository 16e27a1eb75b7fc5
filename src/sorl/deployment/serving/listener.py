"""Where the server listens, who may reach it, and how it stops.

Without a token only this machine may: the address has to be a loopback address, and what clients
call it a name of this machine, for a page of another name may have that name lead here. A client
that dawdles is cut off, whatever it dawdles with: a request has to arrive whole, and its answer has
to be taken, within the server's limit of time. So is who comes when there are `MAX_CONNECTIONS`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import re
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from sorl import files
from sorl.errors import InputError

TOKEN_VARIABLE = "SORL_SERVE_TOKEN"

MAX_CONNECTIONS = 1024
"""Each keeps up to 64 KiB of what it has sent before anybody reads it."""


def read_token(path: Path | None) -> str | None:
    """The token in a file, or else in the environment variable, or None.

    Raises:
        InputError: the file cannot be read, or the token is no token.
    """
    if path is None:
        text, where = os.environ.get(TOKEN_VARIABLE), f"the variable {TOKEN_VARIABLE}"
        if text is None:
            return None
    else:
        with files.explained("read", path):
            text, where = path.read_bytes().decode("utf-8", "replace"), str(path)
    # What may stand behind "Bearer" (RFC 6750, section 2.1).
    if re.fullmatch(r"[A-Za-z0-9._~+/-]{16,1024}=*", token := text.strip()) is None:
        raise InputError(
            f"There is no usable token in {where}: write 16 or more letters, digits or ._~+/- "
            "there, for example those of `openssl rand -hex 32`."
        )
    return token


def listen(host: str, port: int, *, token: str | None) -> socket.socket:
    """A socket that listens, so that the port is taken; `port` 0 takes a free one.

    Who connects waits until `Server.run` answers, or is cut off when the socket is closed.

    Raises:
        InputError: there is no such address, it is not ours, it is taken, or it can be reached
            from other machines and there is no token.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"Port {port} is not possible: use 1 to 65535, or 0 for a free one.")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise InputError(f"There is no address {host!r} ({error}): check --host.") from error
    family, kind, protocol, _, address = found[0]
    if token is None and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise InputError(
            f"{host} can be reached from other machines, and there is no token to keep strangers "
            f"out: give --token-file, set {TOKEN_VARIABLE}, or use --host 127.0.0.1."
        )
    ours = socket.socket(family, kind, protocol)
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        ours.bind(address)
        ours.listen()
    except OSError as error:
        ours.close()
        raise InputError(
            f"Cannot listen on port {port} of {host} ({error.strerror}): choose another --port."
        ) from error
    return ours


def is_local(host: str, ours: str) -> bool:
    """Whether a `Host` header calls this machine by a loopback address, localhost or `ours`."""
    name = re.sub(r":[0-9]*$", "", host.strip()).strip("[]").lower()
    try:
        return name in ("localhost", ours.lower()) or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def address_of(ours: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = ours.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server:
    """Serves an application until it is asked to stop.

    Args:
        app: the application.
        max_seconds: the server's limit of time for one request.
    """

    def __init__(self, app: FastAPI, *, max_seconds: float) -> None:
        class Protocol(_ImpatientProtocol):
            seconds = max_seconds

        config = uvicorn.Config(
            app,
            loop="asyncio",
            http=Protocol,
            ws="none",
            lifespan="on",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            # Every request has been answered by then.
            timeout_graceful_shutdown=int(max_seconds) + 2,
        )
        self._server = uvicorn.Server(config)

    def stop(self) -> None:
        """Take no more connections, answer what was asked, and let `run` return.

        A signal handler may call it, also before `run`.
        """
        self._server.should_exit = True

    def run(self, ours: socket.socket, on_start: Callable[[], None] = lambda: None) -> None:
        """Serve until `stop`, or until SIGINT or SIGTERM, which are passed on afterwards.

        Args:
            ours: what to listen on; it is closed at the end.
            on_start: called once connections are accepted.

        Raises:
            InputError: the system refuses what serving needs.
        """
        address = address_of(ours)

        async def serve() -> None:
            told = asyncio.ensure_future(self._tell(on_start))
            await self._server.serve([ours])
            told.cancel()

        try:
            with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
                runner.run(serve())
        except OSError as error:
            raise InputError(
                f"Cannot serve on {address} ({error.strerror or error}): start it again, or choose "
                "another --port."
            ) from error

    async def _tell(self, on_start: Callable[[], None]) -> None:
        while not self._server.started:
            await asyncio.sleep(0.01)
        on_start()


class _ImpatientProtocol(H11Protocol):
    """Cuts a connection whose request has not arrived, or whose answer is not taken, in time.

    A second later than the application would answer 408, so that clients hear why.
    """

    seconds: float

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._arriving: asyncio.TimerHandle | None = None
        self._leaving: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
        self._arriving = self._cut_later()

    def data_received(self, data: bytes) -> None:
        # When it arrived, before it waits for its turn in the event loop.
        self.app_state = {"arrival": time.monotonic()}
        super().data_received(data)
        if self.conn.their_state in (h11.IDLE, h11.SEND_BODY):
            self._arriving = self._arriving or self._cut_later()
        elif self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._leaving = self._leaving or self._cut_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self._arriving, self._leaving):
            if timer is not None:
                timer.cancel()

    def _cut_later(self) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self.seconds + 1, self.transport.abort)
