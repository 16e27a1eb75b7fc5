"""What is set before JAX starts, and the CPU that training needs beside an accelerator."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax
import pytest

from sorl import platform
from sorl.errors import InputError
from sorl.launch import worker


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("cuda", "cuda,cpu"), ("cpu", "cpu"), ("cuda,cpu", "cuda,cpu")],
)
def test_a_list_of_platforms_is_completed_by_the_cpu(
    monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", before)
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_concurrency_optimized_scheduler=true")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "3")
    platform.prepare()
    assert os.environ["JAX_PLATFORMS"] == after
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "3"
    assert os.environ["XLA_FLAGS"].count("concurrency_optimized_scheduler") == 1


def test_a_worker_that_stays_on_some_cores_has_as_many_devices(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whatever the launcher, whose environment it has, has got itself."""
    stayed: list[set[int]] = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, cores: stayed.append(cores))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "64")
    assert worker.main(["--cores", "0,2", str(tmp_path / "none")]) == 2
    assert stayed == [{0, 2}]
    assert os.environ["JAX_NUM_CPU_DEVICES"] == "2"


def test_without_a_cpu_one_sentence_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert platform.cpu().platform == "cpu"

    def devices(*_: Any) -> None:
        raise RuntimeError("Unknown backend cpu")

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    with pytest.raises(
        InputError, match=r"JAX_PLATFORMS=cuda leaves out .* JAX_PLATFORMS=cuda,cpu"
    ):
        platform.cpu()
