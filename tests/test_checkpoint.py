"""Checkpoints: whole or absent, verified, restored bit for bit."""

import contextlib
import errno
import json
import os
import pickle
import resource
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sorl import checkpoint, files
from sorl.checkpoint import DamagedCheckpointWarning
from sorl.errors import InputError


class Network(eqx.Module):
    weight: jax.Array
    layers: list[eqx.nn.Linear]
    name: str = eqx.field(static=True)
    activation: Any = jax.nn.gelu


def make_state(width: int = 4, seed: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "network": Network(
            jnp.array([jnp.nan, -0.0, jnp.inf, 1e-45]),
            [eqx.nn.Linear(3, width, key=keys[0])],
            "actor",
        ),
        "typed keys": keys,
        "slash/dot.name": jax.random.PRNGKey(seed),
        "counter": jnp.asarray(7, jnp.int32),
        "flags": jnp.array([True, False]),
        "half": jnp.arange(3, dtype=jnp.bfloat16),
        "empty": jnp.zeros((0, 3)),
        "bytes": jnp.arange(250, 256, dtype=jnp.uint8),
        "host": np.array([2**60 + 1, -1], np.int64),
        "pair": (jnp.float32(0.1), None),
    }


def assert_same_bits(left: Any, right: Any) -> None:
    assert jax.tree.structure(left) == jax.tree.structure(right)
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        if not isinstance(a, jax.Array | np.ndarray):
            assert a is b
            continue
        assert type(a) is type(b)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.fixture(scope="module")
def three_checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    for update in (10, 20, 30):
        checkpoint.save(folder, update, make_state(seed=update), {"note": f"at {update}"})
    return folder


@pytest.fixture
def saved(three_checkpoints: Path, tmp_path: Path) -> Path:
    return shutil.copytree(three_checkpoints, tmp_path / "checkpoints")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_a_state_comes_back_bit_for_bit(saved: Path) -> None:
    restored, metadata = checkpoint.restore(saved, make_state())
    assert_same_bits(restored, make_state(seed=30))
    assert metadata == {"note": "at 30", "update": 30, "milestone": False}
    draw = jax.random.normal(restored["typed keys"][0], (3,))
    assert (draw == jax.random.normal(make_state(seed=30)["typed keys"][0], (3,))).all()


def test_shapes_alone_suffice_to_restore(tmp_path: Path) -> None:
    def make(seed: int) -> dict[str, Any]:
        return {name: value for name, value in make_state(seed=seed).items() if name != "host"}

    checkpoint.save(tmp_path / "shapes", 20, make(20), {})
    restored, _ = checkpoint.restore(tmp_path / "shapes", eqx.filter_eval_shape(make, 0))
    assert_same_bits(restored, make(20))


def test_the_newest_three_and_all_milestones_are_kept(tmp_path: Path) -> None:
    for update in range(8):
        checkpoint.save(tmp_path, update, {"x": jnp.ones(2)}, {}, milestone=update in (1, 6))
    assert checkpoint.updates(tmp_path) == [1, 5, 6, 7]
    assert checkpoint.latest(tmp_path) == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        f"{update:09d}" for update in (1, 5, 6, 7)
    ]


def test_going_back_leaves_one_history(saved: Path) -> None:
    checkpoint.save(saved, 20, make_state(seed=99), {"note": "again"})
    assert checkpoint.updates(saved) == [10, 20]
    restored, metadata = checkpoint.restore(saved, make_state())
    assert metadata["note"] == "again"
    assert_same_bits(restored, make_state(seed=99))


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    assert checkpoint.latest(tmp_path / "missing") is None
    assert checkpoint.updates(tmp_path) == []
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.restore(tmp_path, make_state())


def test_an_update_without_checkpoint_names_those_there_are(saved: Path) -> None:
    with pytest.raises(InputError, match=r"update 15 .* 10, 20, 30"):
        checkpoint.restore(saved, make_state(), 15)


def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    newest = saved / "000000030"
    generator = np.random.default_rng(0)
    found = sorted(path for path in newest.rglob("*") if path.is_file())
    assert len(found) > 5
    for path in found:
        original = path.read_bytes()
        for position in {0, len(original) // 2, len(original) - 1} if original else ():
            damaged = bytearray(original)
            damaged[position] ^= 1 << int(generator.integers(8))
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=r"000000030 is damaged .* \(10, 20\)"):
                checkpoint.restore(saved, make_state(), 30)
        path.write_bytes(original)
    assert checkpoint.restore(saved, make_state(), 30)[1]["update"] == 30


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "extra", "no digests"])
def test_a_damaged_newest_checkpoint_costs_only_the_work_since_the_one_before(
    saved: Path, damage: str
) -> None:
    newest = saved / "000000030"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = largest.read_bytes()
    if damage == "flip":
        largest.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    elif damage == "truncate":
        largest.write_bytes(content[:-1])
    elif damage == "missing":
        largest.unlink()
    elif damage == "extra":
        (newest / "state" / "stray").touch()
    else:
        (newest / "SHA256SUMS").unlink()
    with pytest.warns(DamagedCheckpointWarning, match=r"000000030 is damaged .* update 20\."):
        restored, metadata = checkpoint.restore(saved, make_state())
    assert metadata["update"] == 20
    assert_same_bits(restored, make_state(seed=20))


def test_all_checkpoints_damaged(saved: Path) -> None:
    for path in saved.iterdir():
        (path / "metadata.json").write_text("{}")
    with pytest.raises(InputError, match=r"checkpoints .*000000030.*000000010 are damaged"):
        checkpoint.restore(saved, make_state())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda state: make_state(width=5),
            r"bias is float32\[4\] instead of float32\[5\] \(and 1 more\)",
        ),
        (lambda state: {**state, "more": jnp.ones(1)}, r"\['more'\] is missing"),
        (lambda state: state.pop("flags") is None or state, r"\['flags'\] is not expected"),
        (lambda state: {**state, "flags": jnp.ones(2)}, r"bool\[2\] instead of float32\[2\]"),
    ],
)
def test_another_configuration_is_refused(saved: Path, change: Any, expected: str) -> None:
    with pytest.raises(InputError, match=f"another training state.*{expected}"):
        checkpoint.restore(saved, change(make_state()))


def test_a_later_format_is_refused(saved: Path) -> None:
    newest = saved / "000000030"
    description = json.loads((newest / "metadata.json").read_text())
    files.write_json(newest / "metadata.json", {**description, "format": 2})
    (newest / "SHA256SUMS").write_text(checkpoint._digests(newest))
    with pytest.raises(InputError, match="format 2"):
        checkpoint.restore(saved, make_state())


@contextlib.contextmanager
def no_file_larger_than(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 1000, 300_000])
def test_a_full_disk_leaves_the_earlier_checkpoints(
    saved: Path, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    before = contents(saved)
    noise = jax.random.normal(jax.random.key(0), (500, 500))
    with no_file_larger_than(size), pytest.raises(InputError, match=r"000000040.* disk is full"):
        checkpoint.save(saved, 40, {"x": noise}, {})
    assert contents(saved) == before
    assert not list(saved.glob(".*"))
    assert not caplog.records


def test_a_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot save the checkpoint"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, {"x": jnp.ones(1)}, {})

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(InputError, match="permission is missing"):
        checkpoint.save(tmp_path / "checkpoints", 1, {"x": jnp.ones(1)}, {})


def test_no_pickle_is_written_or_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    checkpoint.save(tmp_path, 1, make_state(), {})
    checkpoint.restore(tmp_path, make_state())


def test_nothing_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    checkpoint.save(tmp_path, 1, make_state(), {})
    checkpoint.restore(tmp_path, make_state())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_what_a_killed_save_left_is_cleaned_by_the_next(saved: Path) -> None:
    shutil.copytree(saved / "000000030", saved / ".saving-000000040")
    shutil.copytree(saved / "000000030", saved / ".removing-000000005")
    assert checkpoint.updates(saved) == [10, 20, 30]
    checkpoint.save(saved, 40, make_state(), {})
    assert sorted(path.name for path in saved.iterdir()) == [
        f"{update:09d}" for update in (20, 30, 40)
    ]


KILLED = textwrap.dedent(
    """
    import os, random, signal, sys, time
    from pathlib import Path
    import numpy as np
    import orbax.checkpoint
    from sorl import checkpoint, files

    folder, delays = Path(sys.argv[1]), random.Random(0)

    def in_child(work):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException as error:
                print(repr(error), flush=True)
                os._exit(1)
            os._exit(0)
        return pid

    def state(update):
        return {f"leaf{i}": np.full((64, 64), update + i, np.float32) for i in range(10)}

    def save_forever():
        update = checkpoint.latest(folder) or 0
        while True:
            update += 1
            checkpoint.save(folder, update, state(update), {}, milestone=update % 5 == 0)
            files.write_text(marker, str(update))

    def check():
        restored, metadata = checkpoint.restore(folder, state(0))
        assert metadata["update"] >= int(marker.read_text()), metadata
        for name, value in state(metadata["update"]).items():
            assert (restored[name] == value).all(), name
        for update in checkpoint.updates(folder):
            checkpoint.restore(folder, state(0), update)

    marker = folder / "saved.txt"
    for round in range(10):
        before = marker.read_text() if marker.exists() else None
        pid = in_child(save_forever)
        deadline = time.monotonic() + 60
        while (marker.read_text() if marker.exists() else None) == before:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.25))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        _, status = os.waitpid(in_child(check), 0)
        assert status == 0, status
    """
)


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
