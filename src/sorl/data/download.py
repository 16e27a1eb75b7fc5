"""Fetch one file over HTTP: resumed where it stopped, verified, and then there at once."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from sorl.data.archive import ArchiveReader
from sorl.errors import InputError

TIMEOUT_SECONDS = 30.0
_CHUNK = 1 << 18


def download(url: str, target: Path) -> None:
    """Fetch an `.npz` file to `target`, continuing `target`.part if an earlier try left one.

    `target` appears only when it is complete and its checksums are right. Whatever has arrived
    before an error or an interrupt stays in the `.part` file for the next try. Of several that want
    the same `target` one fetches it, and the others wait and find it there.

    Args:
        url: where the file is.
        target: where it shall be; its folder is made if it does not exist.

    Raises:
        InputError: the server cannot be reached or does not have the file, the connection broke,
            the content is damaged, or the disk does not take it.
    """
    with _alone(target):
        if not os.path.exists(target):
            _download(url, target)


@contextlib.contextmanager
def _alone(target: Path) -> Iterator[None]:
    """Make this thread the only one that fetches `target`; the system drops a dead one's lock."""
    path = target.with_name(f"{target.name}.lock")
    with contextlib.ExitStack() as stack:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            waited = False
            while True:
                file = stack.enter_context(path.open("a"))
                waited |= _lock(file, target, quiet=waited)
                # Whoever had it before has removed it: another file may be the lock by now.
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                        break
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error}).") from None
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(file: IO[str], target: Path, *, quiet: bool) -> bool:
    """Lock a file; whether that took waiting."""
    # flock, not lockf, which does not keep the threads of one process apart.
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not quiet:
            sentence = f"{target} is being downloaded already: waiting for that to end."
            Console(stderr=True, soft_wrap=True, markup=False, highlight=False).print(sentence)
        fcntl.flock(file, fcntl.LOCK_EX)
        return True
    return False


def _download(url: str, target: Path) -> None:
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("ab") as file:
            _fetch(url, file)
            file.flush()
            os.fsync(file.fileno())
    except urllib.error.HTTPError as error:
        error.close()
        raise InputError(f"{url}: the server answers {error.code} {error.reason}.") from None
    except urllib.error.URLError as error:
        raise InputError(f"{url}: the server cannot be reached ({error.reason}).") from None
    except (http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise InputError(
            f"{url}: the connection broke ({error or type(error).__name__}); run again to resume "
            f"from {part}."
        ) from None
    except OSError as error:
        raise InputError(f"{part}: cannot be written ({error.strerror or error}).") from None
    finally:
        if os.path.exists(part) and os.path.getsize(part) == 0:
            part.unlink()
    try:
        ArchiveReader(part).verify()
    except InputError:
        part.unlink(missing_ok=True)
        raise InputError(
            f"{url}: what arrived is not an intact .npz file and was removed; run again."
        ) from None
    os.replace(part, target)


def _fetch(url: str, file: IO[bytes]) -> None:
    """Append what is missing; start over if the server cannot continue."""
    have = file.tell()
    request = urllib.request.Request(url)
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE or not have:
            raise
        error.close()
        if error.headers.get("Content-Range", "") == f"bytes */{have}":
            return  # everything has arrived already
        file.truncate(0)
        response = urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS)
    with response:
        resumed = re.match(rf"bytes {have}-", response.headers.get("Content-Range", ""))
        if have and not (response.status == http.HTTPStatus.PARTIAL_CONTENT and resumed):
            file.truncate(0)
        start = os.fstat(file.fileno()).st_size
        length = response.headers.get("Content-Length", "")
        total = start + int(length) if length.isdecimal() else None
        _copy(response, file, start=start, total=total, name=url.rpartition("/")[2])


def _copy(
    response: http.client.HTTPResponse, file: IO[bytes], *, start: int, total: int | None, name: str
) -> None:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    with progress:
        task = progress.add_task(name, total=total, completed=start)
        done = start
        while chunk := _received(response):
            file.write(chunk)
            done += len(chunk)
            progress.update(task, completed=done)
    if total is not None and done < total:
        raise ConnectionError(f"{done} of {total} bytes have arrived")


def _received(response: http.client.HTTPResponse) -> bytes:
    """What has arrived; whatever the network raises is a `ConnectionError`, unlike the disk's."""
    try:
        return response.read(_CHUNK)
    except OSError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error
