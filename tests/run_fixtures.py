"""Fixtures of whole runs: data, a finished run and a tiny algorithm, made once for all tests."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from finished_run import TINY, Processes, tiny_arrays, train_arguments
from scripted_world import World
from sorl import algorithms, cli
from sorl.evaluation import Evaluation, Evaluator


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small generated set of a real OGBench environment."""
    out = tmp_path_factory.mktemp("data")
    arguments = "generate pointmaze-medium-navigate-v0 --episodes 2 --workers 1 --seed 0 --out"
    assert cli.run([*arguments.split(), str(out)]) == 0
    return out / "pointmaze-medium-navigate-v0.npz"


@pytest.fixture(scope="session")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Processes:
    return Processes(tmp_path_factory.mktemp("compiled"))


@pytest.fixture(scope="session")
def finished(data: Path, processes: Processes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed; tests leave it as it is and work on copies."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    code, stdout, stderr = processes.run(*train_arguments(data, out))
    assert (code, stderr) == (0, "")
    assert "Done." in stdout
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, to be damaged."""
    return Path(shutil.copytree(finished, tmp_path / "copied"))


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A set that holds its own rewards: two episodes of a point in the plane."""
    path = tmp_path / "tiny.npz"
    np.savez(path, allow_pickle=False, **tiny_arrays())
    return path


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("algorithms")
    (folder / "tiny.py").write_text(textwrap.dedent(TINY))
    return folder


@pytest.fixture
def tiny(tiny_folder: Path) -> Iterator[None]:
    """Discovery finds the algorithm `tiny`."""
    algorithms.__path__.append(str(tiny_folder))
    algorithms.get.cache_clear()
    try:
        yield
    finally:
        algorithms.__path__.remove(str(tiny_folder))
        algorithms.get.cache_clear()


@pytest.fixture
def world(tiny: None, monkeypatch: pytest.MonkeyPatch) -> World:
    world = World()
    monkeypatch.setattr("sorl.jobs.work.load_dataset", world.load_dataset)

    def evaluate(*arguments: Any, **options: Any) -> list[Evaluation]:
        return world.evaluate(*arguments, **options)

    monkeypatch.setattr(Evaluator, "evaluate", evaluate)
    monkeypatch.setattr(jax, "clear_caches", world.clear_caches)  # compiling again takes long
    return world
