"""The body of a request: read within bounds of size, parsed more strictly than JSON parsers do.

What is wrong is an `HTTPException` with one sentence: 413 too large, 415 no JSON by its own word,
400 no JSON in fact, 422 an object of more than `MAX_NAMES` names. Names that occur twice, NaN,
Infinity and bytes that are no UTF-8 are no JSON.
"""

from __future__ import annotations

import json
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request

MAX_NAMES = 64
"""Most names of one object: each that no field has would be an error to tell, and takes time."""


async def read_json(request: Request, most: int) -> Any:
    """What the body says, if it has at most `most` bytes; how long that takes is the caller's."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(
            415, "The body is not declared to be JSON: send it with Content-Type: application/json."
        )
    return _parsed(await _read(request, most))


async def _read(request: Request, most: int) -> bytes:
    too_large = HTTPException(413, f"The body is larger than {most} bytes: send less at a time.")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 12 or int(length) > most):
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise too_large
    return bytes(body)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(
            body.decode("utf-8"), object_pairs_hook=_object, parse_constant=_no_number
        )
    except UnicodeDecodeError:
        reason = "its bytes are not UTF-8"
    except RecursionError:
        reason = "it is nested too deeply"
    except json.JSONDecodeError as error:
        reason = f"{error.msg} at character {error.pos}"
    except ValueError as error:  # ours from below, or an integer of thousands of digits
        reason = str(error).partition(";")[0]
    raise HTTPException(400, f"The body is not valid JSON: {reason}.")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(pairs) > MAX_NAMES:
        raise HTTPException(
            422, f"An object of the body has more than {MAX_NAMES} names: give fields of /docs."
        )
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{ascii(name)[:80]} occurs twice in one object")
        found[name] = value
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number")
