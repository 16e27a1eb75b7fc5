"""Algorithms, one file each, found by discovery.

A module in this folder that defines exactly one public, concrete subclass of
`AbstractAlgorithm` IS the algorithm of the module's name. Nothing is registered by hand.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from typing import Any

from sorl.algorithm import AbstractAlgorithm
from sorl.errors import InputError


def names() -> list[str]:
    """Names of all algorithms, sorted; what `sorl train NAME` accepts."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name[0] != "_")


@functools.cache
def get(name: str) -> type[AbstractAlgorithm[Any]]:
    """The algorithm class that the file `<name>.py` defines.

    Raises:
        InputError: there is no such algorithm.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise InputError(
            f"There is no algorithm {name!r}: choose one of {', '.join(names())}.{hint}"
        )
    module = importlib.import_module(f"{__name__}.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value)
        and value.__name__[0] != "_"
        and issubclass(value, AbstractAlgorithm)
        and value.__module__ == module.__name__
        and not inspect.isabstract(value)
    ]
    if len(found) != 1:
        raise TypeError(
            f"{module.__name__} must define exactly one concrete algorithm, not {len(found)}."
        )
    fields = {field.name for field in dataclasses.fields(found[0])}  # pyright: ignore[reportArgumentType]
    if wrong := sorted(fields & {"presets", "default_budget"}):
        raise TypeError(
            f"{module.__name__} must declare {' and '.join(wrong)} as ClassVar: otherwise it would "
            "be a hyperparameter."
        )
    return found[0]


def description_of(name: str) -> str:
    """What an algorithm is, in a line: the first of its file's docstring, without its name."""
    documentation = inspect.getmodule(get(name)).__doc__ or ""
    first = documentation.strip().partition("\n")[0]
    return first.partition(": ")[2] or first


def name_of(algorithm: AbstractAlgorithm[Any]) -> str:
    """The name under which `get` finds the class of `algorithm`."""
    return type(algorithm).__module__.rpartition(".")[2]


def describe(algorithm: AbstractAlgorithm[Any]) -> dict[str, Any]:
    """Name and hyperparameters, as JSON can hold them; the inverse of `build`."""
    fields = dataclasses.fields(algorithm)  # pyright: ignore[reportArgumentType]
    return {
        "name": name_of(algorithm),
        **{field.name: getattr(algorithm, field.name) for field in fields},
    }


def build(description: Mapping[str, Any]) -> AbstractAlgorithm[Any]:
    """The algorithm that `describe` described, perhaps through JSON.

    Raises:
        InputError: no such algorithm, a hyperparameter it does not have, or a bad value.
    """
    fields = {name: _frozen(value) for name, value in description.items()}
    name = fields.pop("name", None)
    algorithm = get(str(name))
    known = {field.name for field in dataclasses.fields(algorithm)}  # pyright: ignore[reportArgumentType]
    unknown = sorted(set(fields) - known)
    if unknown:
        raise InputError(
            f"The algorithm {name!r} of this version has no {', '.join(unknown)}: use the version "
            "of sorl that wrote it."
        )
    return algorithm(**fields)


def preset(name: str, dataset: str) -> dict[str, Any]:
    """The published hyperparameters of `name` for a dataset such as `cube-single-play-v0`.

    Empty where none are published: the algorithm's defaults then stand.
    """
    return dict(get(name).presets.get(dataset.removesuffix("-v0"), {}))


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples they were: hyperparameters are hashable."""
    return tuple(_frozen(entry) for entry in value) if isinstance(value, list) else value
