"""Checks of hyperparameters that several algorithms share; each raises one clear sentence.

Every function takes the algorithm and names of its fields. NaN fails every check.
"""

from __future__ import annotations

import math
import typing
from typing import Any, ClassVar, Literal

import numpy as np

from sorl.errors import InputError


def make_plain(algorithm: object) -> None:
    """Give every field a plain Python value of its type: no lists, no numbers of NumPy's.

    Compiled programs are told apart by these values, and files hold them as JSON.

    Raises:
        InputError: a value of another type, such as a fraction where a whole number belongs.
    """
    for name, kind in typing.get_type_hints(type(algorithm)).items():
        if typing.get_origin(kind) is not ClassVar:
            plain = _plain(f"{_place(algorithm, name)}", kind, getattr(algorithm, name))
            object.__setattr__(algorithm, name, plain)


def _plain(place: str, kind: Any, value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if typing.get_origin(kind) is tuple:
        if isinstance(value, list | tuple | np.ndarray):
            return tuple(_plain(place, typing.get_args(kind)[0], entry) for entry in value)
        raise InputError(f"{place}={value!r} must be several values, such as (256, 256).")
    for wanted, possible, what in (
        (bool, bool, "True or False"),
        (int, int, "a whole number"),
        (float, int | float, "a number"),
    ):
        fits = isinstance(value, possible) and (kind is bool) == isinstance(value, bool)
        if kind is wanted and not fits:
            raise InputError(f"{place}={value!r} must be {what}.")
    return value


def check_positive(algorithm: object, *names: str) -> None:
    """Raise `InputError` unless every field is above 0 and finite."""
    for name, value in _fields(algorithm, names):
        if not 0 < value < math.inf:
            raise InputError(f"{_place(algorithm, name)}={value} must be a number above 0.")


def check_not_negative(algorithm: object, *names: str) -> None:
    """Raise `InputError` unless every field is 0 or more and finite."""
    for name, value in _fields(algorithm, names):
        if not 0 <= value < math.inf:
            raise InputError(f"{_place(algorithm, name)}={value} must be a number, 0 or more.")


def check_power_of_two(algorithm: object, *names: str) -> None:
    """Raise `InputError` unless every field is 1, 2, 4, 8, ..."""
    for name, value in _fields(algorithm, names):
        if value < 1 or value & (value - 1):
            raise InputError(
                f"{_place(algorithm, name)}={value} must be a power of two: 1, 2, 4, 8, ..."
            )


def check_rate(algorithm: object, name: str = "target_rate") -> None:
    """Raise `InputError` unless the field is a share to move by, in (0, 1]."""
    value = getattr(algorithm, name)
    if not 0 < value <= 1:
        raise InputError(f"{_place(algorithm, name)}={value} must be above 0 and at most 1.")


def check_discount(algorithm: object, name: str = "discount") -> None:
    """Raise `InputError` unless the field is in [0, 1)."""
    value = getattr(algorithm, name)
    if not 0 <= value < 1:
        raise InputError(f"{_place(algorithm, name)}={value} must be in [0, 1).")


def check_between_0_and_1(algorithm: object, *names: str) -> None:
    """Raise `InputError` unless every field is in (0, 1)."""
    for name, value in _fields(algorithm, names):
        if not 0 < value < 1:
            raise InputError(f"{_place(algorithm, name)}={value} must be between 0 and 1.")


def check_at_least(algorithm: object, least: int, *names: str) -> None:
    """Raise `InputError` unless every field is `least` or more."""
    for name, value in _fields(algorithm, names):
        if value < least:
            raise InputError(f"{_place(algorithm, name)}={value} must be {least} or more.")


def check_layers(algorithm: object, name: str, *, may_be_empty: bool = False) -> None:
    """Raise `InputError` unless the field holds sizes of layers, each of at least one unit."""
    sizes = getattr(algorithm, name)
    if (not sizes and not may_be_empty) or any(size < 1 for size in sizes):
        raise InputError(
            f"{_place(algorithm, name)}={sizes} is not possible: give at least one layer, each of "
            "1 or more units."
        )


def check_choices(algorithm: object) -> None:
    """Raise `InputError` unless every field of a type such as `Literal["mean", "min"]` fits it."""
    for name, kind in typing.get_type_hints(type(algorithm)).items():
        choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else None
        value = getattr(algorithm, name, None)
        if choices is not None and value not in choices:
            raise InputError(
                f"{_place(algorithm, name)}={value!r} is not possible: give one of "
                f"{', '.join(map(str, choices))}."
            )


def _fields(algorithm: object, names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(name, getattr(algorithm, name)) for name in names]


def _place(algorithm: object, name: str) -> str:
    return f"{type(algorithm).__name__} {name}"
