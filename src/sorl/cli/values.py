"""Values of hyperparameters given as text, read as the options of `sorl train` would read them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import typing
from typing import Any, Literal

import tyro

from sorl.algorithm import AbstractAlgorithm
from sorl.errors import InputError


def read_value(option: str, algorithm: type[AbstractAlgorithm[Any]], field: str, given: str) -> Any:
    """The value of a hyperparameter; entries of a tuple are joined by x, such as 256x256.

    Args:
        option: the option it was given to, for what an error says.
        algorithm: whose hyperparameter it is.
        field: its name; the value of an unknown one stays text.
        given: the text.

    Raises:
        InputError: the text is no value of that hyperparameter.
    """
    hints = typing.get_type_hints(algorithm)
    kinds = {entry.name: hints[entry.name] for entry in dataclasses.fields(algorithm)}  # pyright: ignore[reportArgumentType]
    kind, given = kinds.get(field, str), given.strip()
    words = given.split("x") if typing.get_origin(kind) is tuple else [given]
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            return tyro.cli(kind, args=words)
    except SystemExit:
        raise InputError(
            f"{option} {field}: {given!r} is not possible, give {_wanted(kind)}."
        ) from None


def _wanted(kind: Any) -> str:
    if typing.get_origin(kind) is Literal:
        return f"one of {', '.join(map(str, typing.get_args(kind)))}"
    if typing.get_origin(kind) is tuple:
        return "values joined by x, such as 256x256"
    return {float: "a number", int: "a whole number", bool: "True or False"}.get(kind, str(kind))
