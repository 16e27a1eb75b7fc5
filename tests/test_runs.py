"""A run's folder: tables that survive a kill, settings that are compared, one trainer at a time."""

import errno
import json
import math
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sorl import files, provenance, tables
from sorl.errors import InputError
from sorl.recorder import DashboardWarning, Recorder
from sorl.runs import Run, check_same_config

CONFIG: dict[str, Any] = {
    "algorithm": {"name": "sorl", "hidden": (256, 256), "discount": 0.99},
    "environment": None,
    "tasks": [2],
    "seeds": [0, 1],
    "dataset": {"path": "data/a.npz", "fingerprint": "abc"},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create(tmp_path / "runs" / "a", CONFIG)


def metric(update: Any, **values: Any) -> dict[str, Any]:
    return {"update": update, "task": 2, "seed": 0, **values}


# --- tables -----------------------------------------------------------------------------------

COLUMNS = st.text("abcdefg_", min_size=1, max_size=4)
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=8)
CELLS = st.one_of(
    st.floats(),
    st.floats(width=32).map(np.float32),
    st.integers(-(2**53), 2**53),
    WORDS.filter(lambda word: not tables._NUMBER.fullmatch(word)),
)
ROWS = st.lists(st.dictionaries(COLUMNS, CELLS, min_size=1, max_size=4), max_size=4)


def as_read(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value if isinstance(value, str) else float(value)
        for name, value in row.items()
        if value != ""
    }


def bits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """NaN equals NaN here, and -0.0 does not equal 0.0."""
    return [
        {name: value if isinstance(value, str) else value.hex() for name, value in row.items()}
        for row in rows
    ]


@given(st.lists(ROWS, max_size=4), st.binary(max_size=12).filter(lambda tail: b"\n" not in tail))
@settings(deadline=None)
def test_rows_come_back_exactly_however_columns_grow(
    batches: list[list[dict[str, Any]]], half_line: bytes
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        expected: list[dict[str, Any]] = []
        for batch in batches:
            tables.append_rows(path, batch)
            expected += [as_read(row) for row in batch]
            assert bits(tables.read_rows(path)) == bits(expected)
            with path.open("ab") as file:  # as a kill in the midst of the next row leaves it
                file.write(half_line)
            assert bits(tables.read_rows(path)) == bits(expected)


def test_columns_keep_the_order_in_which_they_appeared(run: Run) -> None:
    run.append_metrics([metric(1, loss=0.5)])
    run.append_metrics([metric(2, q=1.0, loss=0.25), metric(3, extra="x")])
    text = (run.path / "metrics.csv").read_text()
    assert text == "update,task,seed,loss,q,extra\n1,2,0,0.5,,\n2,2,0,0.25,1.0,\n3,2,0,,,x\n"
    assert run.metrics()[0] == {"update": 1.0, "task": 2.0, "seed": 0.0, "loss": 0.5}


def test_numpy_and_bool_values(run: Run) -> None:
    run.append_metrics(
        [metric(np.int64(1), loss=np.float32(0.1), ok=True, no=np.bool_(False), zero_d=np.ones(()))]
    )
    row = run.metrics()[0]
    assert row["loss"] == float(np.float32(0.1))
    assert (row["ok"], row["no"], row["zero_d"]) == (1.0, 0.0, 1.0)


def test_a_text_of_two_lines_is_refused(run: Run) -> None:
    with pytest.raises(ValueError, match="one line"):
        run.append_metrics([metric(1, note="a\nb")])
    assert run.metrics() == []


def test_no_rows_write_nothing(run: Run) -> None:
    run.append_metrics([])
    assert not (run.path / "metrics.csv").exists()


def test_rewinding_equals_never_having_gone_on(tmp_path: Path) -> None:
    straight, killed = Run.create(tmp_path / "a", CONFIG), Run.create(tmp_path / "b", CONFIG)

    def work(run: Run, updates: range) -> None:
        for update in updates:
            run.append_metrics([metric(update, loss=np.float32(1 / (update + 1)))])
            run.append_timing([{"update": update, "seconds": update / 3}])
            if update % 4 == 0:
                run.append_evaluations([metric(update, budget="4x8", success=0.5)])
                run.append_event(update, "evaluated", task=2, seed=0)
            if update == 6:
                run.append_metrics([metric(update, late=1.0)])

    work(straight, range(12))
    work(killed, range(9))
    for name in ("metrics.csv", "timing.csv", "evaluations.csv", "events.jsonl"):
        with (killed.path / name).open("ab") as file:
            file.write(b'{"9,2,0,0.')
    killed.rewind(5)
    assert max(row["update"] for row in killed.metrics()) == 5
    assert [event["update"] for event in killed.events()] == [0, 4]
    work(killed, range(6, 12))
    for name in ("metrics.csv", "timing.csv", "evaluations.csv", "events.jsonl"):
        assert (killed.path / name).read_bytes() == (straight.path / name).read_bytes(), name


def test_a_half_line_is_skipped_and_then_removed(run: Run) -> None:
    run.append_metrics([metric(1, loss=0.5)])
    path = run.path / "metrics.csv"
    whole = path.read_bytes()
    path.write_bytes(whole + b"2,2,0,0.2")
    assert [row["update"] for row in run.metrics()] == [1]
    run.append_metrics([metric(3, loss=0.125)])
    assert path.read_bytes() == whole + b"3,2,0,0.125\n"
    run.append_event(1, "first")
    with (run.path / "events.jsonl").open("ab") as file:
        file.write(b'{"update": 2, "mess')
    assert [event["message"] for event in run.events()] == ["first"]
    run.append_event(3, "third")
    assert [event["message"] for event in run.events()] == ["first", "third"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"update,loss\n1,2\n1,2,3\n2,3\n", "line 3 has 3 cells where the header has 2"),
        (b"update,update\n1,2\n", "header"),
        (b"update,loss\n1,\xff\n", "no UTF-8"),
        (b'update,loss\n1,"2\n', "no CSV"),
    ],
)
def test_a_damaged_table_is_told_in_one_sentence(run: Run, content: bytes, expected: str) -> None:
    (run.path / "metrics.csv").write_bytes(content)
    for use in (run.metrics, lambda: run.append_metrics([metric(9)]), lambda: run.rewind(0)):
        with pytest.raises(InputError, match=expected) as caught:
            use()
        assert "metrics.csv is damaged" in str(caught.value)
    assert (run.path / "metrics.csv").read_bytes() == content


def test_a_row_without_update_cannot_be_rewound(run: Run) -> None:
    (run.path / "metrics.csv").write_text("update,loss\nx,2\n")
    with pytest.raises(InputError, match="a row has no update"):
        run.rewind(0)


def test_a_damaged_event_names_its_line(run: Run) -> None:
    (run.path / "events.jsonl").write_text('{"update": 1}\n[]\n')
    with pytest.raises(InputError, match=r"events\.jsonl is damaged: line 2"):
        run.events()


# --- the folder -------------------------------------------------------------------------------


def test_a_run_is_created_once_and_opened_again(run: Run) -> None:
    again = Run.open(run.path)
    assert again == run
    assert again.config["algorithm"]["hidden"] == [256, 256]
    assert again.config["format"] == 1
    before = (run.path / "config.json").read_bytes()
    with pytest.raises(InputError, match=r"sorl resume .* another --out"):
        Run.create(run.path, {})
    assert (run.path / "config.json").read_bytes() == before


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty"):
        Run.create(tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_creation_that_was_killed_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / ".saving-config.json").write_text('{"form')
    (tmp_path / "lock").touch()
    Run.create(tmp_path, CONFIG)
    assert not (tmp_path / ".saving-config.json").exists()


def test_a_path_through_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="Cannot create the run"):
        Run.create(tmp_path / "file" / "a", CONFIG)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "not valid JSON"),
        ("[1]", "JSON object"),
        ('{"format": 2}', "format 2"),
        ("{}", "format None"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_a_damaged_config(run: Run, content: str, expected: str) -> None:
    (run.path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(InputError, match=expected):
        Run.open(run.path)


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no run in"):
        Run.open(tmp_path)


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk is full"),
        (errno.EACCES, "permission is missing"),
        (errno.EROFS, "permission is missing"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_a_failing_disk_leaves_the_old_table(
    run: Run, monkeypatch: pytest.MonkeyPatch, number: int, expected: str
) -> None:
    run.append_metrics([metric(1, loss=0.5)])
    before = (run.path / "metrics.csv").read_bytes()

    def fail(_: int) -> None:
        raise OSError(number, "Input/output error")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(InputError, match=expected):
        run.append_metrics([metric(2, wider=0.5)])
    assert (run.path / "metrics.csv").read_bytes() == before
    assert not list(run.path.glob(".*"))


# --- settings ---------------------------------------------------------------------------------


def test_the_same_settings_are_the_same(run: Run) -> None:
    check_same_config(run.config, CONFIG)
    moved = {**CONFIG, "dataset": {"path": "elsewhere.npz", "fingerprint": "abc"}, "created": "now"}
    check_same_config(run.config, moved)
    check_same_config(run.config, {"tasks": (2,)})


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({"seeds": [0]}, r"seeds is \[0, 1\] in the run and \[0\] now"),
        ({"algorithm": {"discount": 0.9}}, r"algorithm\.discount is 0\.99 .* 0\.9 now"),
        ({"dataset": {"fingerprint": "xyz"}}, r"dataset\.fingerprint"),
        ({"training": {"batch_size": 256}}, r"training\.batch_size is null"),
        ({"seeds": [0], "tasks": [1]}, r"seeds .*; tasks is \[2\] in the run and \[1\] now"),
    ],
)
def test_other_settings_are_named(run: Run, wanted: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_same_config(run.config, wanted)


# --- the lock ---------------------------------------------------------------------------------

HOLD = textwrap.dedent(
    """
    import sys
    from sorl.runs import Run
    with Run.open(sys.argv[1]).locked():
        print("locked", flush=True)
        sys.stdin.read()
    """
)


def test_only_one_process_trains_and_a_killed_one_lets_go(run: Run) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match=f"pid {other.pid}"), run.locked():
            pass
        other.kill()
        other.wait()
    with run.locked():
        pass


def test_the_lock_holds_within_one_process_too(run: Run) -> None:
    with run.locked(), pytest.raises(InputError, match="This process"), run.locked():
        pass
    with run.locked():
        pass


# --- provenance and dashboards ------------------------------------------------------------------


def test_provenance_is_complete_and_json() -> None:
    found = json.loads(json.dumps(provenance.provenance()))
    assert {"python", "sorl", "sorl source", "jax", "equinox", "optax", "numpy"} <= found[
        "versions"
    ].keys()
    assert found["machine"]["cores"] >= 1
    assert found["machine"]["memory_gib"] > 0
    assert found["machine"]["devices"]
    assert found["machine"]["processor"]
    assert found["created"].endswith("+00:00")


def test_the_source_tells_changed_code_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(Path(provenance.__file__).parent, tmp_path / "sorl")
    here = provenance.source()
    changed = tmp_path / "sorl" / "data" / "play.py"
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "sorl" / "provenance.py"))
    source = provenance.source.__wrapped__  # what is there now, not what was at first
    assert source() == here
    changed.write_text("")
    assert source() != here


def test_importing_runs_does_not_import_jax() -> None:
    script = (
        "import sys, sorl.runs, sorl.provenance, sorl.recorder; assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_tensorboard_gets_every_number(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with Recorder(tmp_path, CONFIG) as recorder:
        recorder.record("metrics", [metric(1, loss=np.float32(0.5), note="text")])
        # What is not known is left out: TensorBoard's writer would warn of it on every row.
        recorder.record("metrics", [metric(1, unknown=math.nan, diverged=-math.inf)])
        recorder.record("evaluations", [metric(2, budget="4x8", success=1.0)])
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert file.name.startswith("events.out.tfevents.")
    assert events_in(file.read_bytes()) == [
        ("metrics/task2-seed0/loss", 0.5, 1),
        ("evaluations/task2-seed0/4x8/success", 1.0, 2),
    ]


def events_in(content: bytes) -> list[tuple[str, float, int]]:
    """The numbers in TensorBoard's file: records of a length, its checksum, an event, its checksum.

    Source: TensorFlow's TFRecord format.
    """
    from tensorboardX.proto import event_pb2

    made: Any = event_pb2
    found = []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        event = made.Event.FromString(content[12 : 12 + length])
        found += [(value.tag, value.simple_value, event.step) for value in event.summary.value]
        content = content[16 + length :]
    return found


@pytest.mark.parametrize("method", ["write", "flush"])
def test_where_tensorboard_cannot_be_written_it_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    writer = pytest.importorskip("tensorboardX.record_writer")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Recorder(tmp_path, CONFIG) as recorder:
        monkeypatch.setattr(writer.RecordWriter, method, full)
        with pytest.warns(DashboardWarning, match="No space left .* own tables have them all"):
            recorder.record("metrics", [metric(1, loss=0.5)])
        recorder.record("metrics", [metric(2, loss=0.5)])  # says nothing more


def test_what_goes_wrong_while_a_run_is_locked_is_no_matter_of_the_lock(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "run", CONFIG)
    with pytest.raises(OSError, match="Cannot allocate") as caught, run.locked():
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    assert not isinstance(caught.value, InputError)


def test_float32_is_an_arithmetic_like_any_other() -> None:
    short: dict[str, Any] = {"training": {"updates": 5, "arithmetic": "bfloat16"}}
    usual = {"training": {"updates": 5}}
    check_same_config(usual, usual)
    check_same_config(short, short)
    with pytest.raises(InputError, match='arithmetic is "bfloat16" in the run and "float32" now'):
        check_same_config(short, usual)
    with pytest.raises(InputError, match='arithmetic is "float32" in the run and "bfloat16" now'):
        check_same_config(usual, short)


def test_dashboards_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sorl.recorder._installed", lambda name: False)
    for name in ("wandb", "tensorboard"):
        with pytest.raises(InputError, match=f"not installed: install sorl.{name}"):
            Recorder(tmp_path, CONFIG, **{name: True})
    with Recorder(tmp_path, CONFIG) as recorder:
        recorder.record("metrics", [metric(1, loss=0.5)])
    assert not list(tmp_path.iterdir())


class FakeWandb:
    """Stands for the package and for the run that its `init` returns."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def init(self, **arguments: Any) -> "FakeWandb":
        self.calls.append(arguments["config"])
        return self

    def log(self, values: dict[str, float]) -> None:
        self.calls.append(values)

    def finish(self) -> None:
        self.calls.append("finished")


def test_weights_and_biases_that_cannot_be_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class RefusedError(Exception):
        pass

    class Refusing(FakeWandb):
        Error = RefusedError

        def init(self, **arguments: Any) -> "FakeWandb":
            raise RefusedError("no API key\nmore words")

    monkeypatch.setitem(sys.modules, "wandb", Refusing())
    monkeypatch.setattr("sorl.recorder._installed", lambda name: name == "wandb")
    with pytest.raises(InputError, match=r"\(no API key\): log in by `wandb login`.*`sorl resume"):
        Recorder(tmp_path, CONFIG, wandb=True)


def test_weights_and_biases_by_flag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("sorl.recorder._installed", lambda name: name == "wandb")
    with Recorder(tmp_path, CONFIG, wandb=True) as recorder:
        recorder.record("metrics", [metric(1, loss=0.5)])
        recorder.close()
    assert fake.calls == [CONFIG, {"metrics/task2-seed0/loss": 0.5, "update": 1}, "finished"]
