"""Released policies: saved whole, loaded without anything else, acting under a budget."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.core import Tracer

from sorl import algorithms, inference
from sorl.algorithm import AbstractAlgorithm, AbstractPolicy, AbstractScoredPolicy, in_units
from sorl.algorithms.sorl import SORL
from sorl.deployment import storage
from sorl.deployment.policy import NotFiniteError, Policy, load_stacked, save_policy
from sorl.errors import InputError
from sorl.losses import Aggregation
from sorl.types import Budget, Member, Spec
from sorl.units import Units

SPEC = Spec(observation_size=3, action_size=2)


class Noisy(AbstractPolicy):
    """Gaussian noise around a linear map; no critic."""

    linear: eqx.nn.Linear
    flags: jax.Array
    scale: float = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        if steps > 8:
            raise InputError(f"{steps} steps are too many: choose at most 8.")

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (int(self.linear.out_features),)

    def from_noise(self, observation: jax.Array, noise: jax.Array, *, steps: int) -> jax.Array:
        return jnp.clip(self.linear(observation) / steps + self.scale * noise, -1, 1)


class Judged(AbstractScoredPolicy):
    """The same with a verifier that likes actions near a place that depends on the observation."""

    noisy: Noisy
    aggregation: Aggregation = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        self.noisy.check_steps(steps)

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return self.noisy.noise_shape(steps)

    def from_noise(self, observation: jax.Array, noise: jax.Array, *, steps: int) -> jax.Array:
        return self.noisy.from_noise(observation, noise, steps=steps)

    def values(self, observation: jax.Array, action: jax.Array, *, steps: int) -> jax.Array:
        value = -jnp.sum((action - jnp.sin(7 * observation[:2])) ** 2)
        return jnp.stack([value, 3 * value + action[0]])


@dataclasses.dataclass(frozen=True)
class Tiny(AbstractAlgorithm[Any]):
    """An algorithm that only knows how to start."""

    hidden: tuple[int, ...] = (4, 4)
    scale: float = 0.5
    critic: bool = True
    default_budget: ClassVar[Budget] = Budget(4, 1)

    def init(self, spec: Spec, *, key: jax.Array) -> Any:
        linear = eqx.nn.Linear(spec.observation_size, spec.action_size, key=key)
        return Noisy(linear, jnp.array([True, False]), self.scale)

    def update(self, state: Any, batch: Any, update_index: Any, *, key: Any) -> Any:
        raise NotImplementedError

    def policy(self, state: Any) -> AbstractPolicy:
        return Judged("mean", state) if self.critic else state


@pytest.fixture(autouse=True)
def discovery(monkeypatch: pytest.MonkeyPatch) -> None:
    real = algorithms.get
    monkeypatch.setattr(algorithms, "get", lambda name: Tiny if name == "tiny" else real(name))
    monkeypatch.setattr(algorithms, "name_of", lambda algorithm: "tiny")


def make(algorithm: AbstractAlgorithm[Any], seed: int = 0) -> AbstractPolicy:
    return start(algorithm, jax.random.key(seed))


@eqx.filter_jit
def start(algorithm: AbstractAlgorithm[Any], key: jax.Array) -> AbstractPolicy:
    return algorithm.policy(algorithm.init(SPEC, key=key))


def save(
    folder: Path,
    *,
    algorithm: AbstractAlgorithm[Any] | None = None,
    member: Member = Member(2, 0),  # noqa: B008
    update: int = 100,
) -> AbstractPolicy:
    algorithm = algorithm or Tiny()
    policy = make(algorithm, member.task * 100 + member.seed)
    save_policy(
        folder,
        policy,
        algorithm=algorithm,
        spec=SPEC,
        member=member,
        update=update,
        provenance={"dataset": "abc"},
    )
    return policy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    for member in (Member(2, 10), Member(2, 3), Member(10, 0)):
        save(tmp_path / "run" / "policy" / str(member), member=member)
    (tmp_path / "run" / "policy" / ".saving-task1-seed0").mkdir()
    return tmp_path / "run"


@eqx.filter_jit
def act_alone(policy: Any, observation: Any, budget: Budget, key: Any) -> jax.Array:
    return inference.act(policy, observation, budget=budget, key=key)


def assert_same_arrays(left: Any, right: Any) -> None:
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    for a, b in pairs:
        if eqx.is_array(a):
            assert a.dtype == b.dtype
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# --- saving and loading -----------------------------------------------------------------------


def test_a_policy_comes_back_bit_for_bit(folder: Path) -> None:
    loaded = Policy.load(folder)
    original = make(Tiny(), 200)
    assert jax.tree.structure(loaded.module) == jax.tree.structure(original)
    assert_same_arrays(loaded.module, original)
    assert loaded.algorithm == Tiny()
    assert hash(loaded.algorithm) == hash(Tiny())
    assert (loaded.spec, loaded.member, loaded.update) == (SPEC, Member(2, 0), 100)
    assert loaded.provenance == {"dataset": "abc"}


def test_a_policy_of_sorl_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    sorl_class = algorithms.get("sorl")
    algorithm = sorl_class(discretization=4, backprop_steps=2, hidden=(8, 8))  # pyright: ignore[reportCallIssue]
    policy = save(tmp_path / "p", algorithm=algorithm)
    loaded = Policy.load(tmp_path / "p")
    assert loaded.algorithm == algorithm
    assert_same_arrays(loaded.module, policy)
    observation, key = np.ones(3, np.float32), jax.random.key(1)
    expected = act_alone(policy, jnp.asarray(observation), Budget(4, 8), key)
    found = loaded.act(observation, steps=4, best_of=8, key=key)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    seeds = (7, np.int64(7), np.uint32(7))
    same, *others = (loaded.act(observation, steps=4, best_of=8, key=seed) for seed in seeds)
    for other in others:
        np.testing.assert_array_equal(other, same)
    with pytest.raises(InputError, match="6 sampling steps"):
        loaded.act(observation, steps=6)
    decision = loaded.act_info(observation, steps=4, best_of=8, sampler="renoise", key=key)
    assert decision.candidates.shape == (8, 2)


def test_saving_again_replaces_the_whole(folder: Path) -> None:
    save(folder, algorithm=Tiny(scale=0.25), update=200)
    loaded = Policy.load(folder)
    assert (loaded.update, loaded.algorithm) == (200, Tiny(scale=0.25))
    assert sorted(path.name for path in folder.iterdir()) == ["policy.json", "policy.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_a_save_that_fails_keeps_the_old_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match="disk is full"):
        save(folder, update=200)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["policy"]


def test_a_run_gives_the_lowest_member_unless_asked(run: Path) -> None:
    assert Policy.load(run).member == Member(2, 3)
    assert Policy.load(run, seed=10).member == Member(2, 10)
    assert Policy.load(run, task=10).member == Member(10, 0)
    assert_same_arrays(Policy.load(run, task=10).module, make(Tiny(), 1000))
    with pytest.raises(InputError, match=r"task 10 and seed 3: choose one of task2-seed3, task2-"):
        Policy.load(run, task=10, seed=3)


def test_a_policy_folder_is_one_member(folder: Path) -> None:
    assert Policy.load(folder, task=2, seed=0).member == Member(2, 0)
    with pytest.raises(InputError, match="holds the policy of task2-seed0"):
        Policy.load(folder, seed=1)


def test_nowhere(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(InputError, match="no policy in"):
            Policy.load(path)
        with pytest.raises(InputError, match="no policy in"):
            load_stacked(path)


def test_loading_needs_neither_data_nor_training_nor_environments(folder: Path) -> None:
    script = (
        "import sys\n"
        "from sorl.deployment.policy import Policy\n"
        "from sorl.errors import InputError\n"
        "try: Policy.load(sys.argv[1])\n"
        "except InputError as error: print(error)\n"
        "heavy = ['ogbench', 'gymnasium', 'mujoco', 'orbax', 'matplotlib', 'sorl.training',"
        " 'sorl.data', 'sorl.environments', 'sorl.evaluation', 'sorl.checkpoint']\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True
    )
    lines = result.stdout.splitlines()
    assert "no algorithm 'tiny'" in lines[0]
    assert lines[1] == "[]"


def rewrite(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change policy.json and seal it anew, as another version could have written it."""
    description = json.loads((folder / "policy.json").read_text())
    digests = description.pop("sha256")
    change(description)
    digests["description"] = storage._digest(storage._canonical(description))
    (folder / "policy.json").write_text(json.dumps({**description, "sha256": digests}))


def replace_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    import safetensors.numpy

    tensors = safetensors.numpy.load((folder / "policy.safetensors").read_bytes())
    change(tensors)
    content = safetensors.numpy.save(tensors)
    (folder / "policy.safetensors").write_bytes(content)
    description = json.loads((folder / "policy.json").read_text())
    description["sha256"]["tensors"] = storage._digest(content)
    (folder / "policy.json").write_text(json.dumps(description))


def test_every_flipped_byte_is_noticed(folder: Path) -> None:
    for path in folder.iterdir():
        original = path.read_bytes()
        for position in range(0, len(original), 7):
            damaged = bytearray(original)
            damaged[position] ^= 4
            path.write_bytes(damaged)
            try:
                loaded = Policy.load(folder)
            except InputError:
                continue
            # JSON may be written in several ways; then all it says is still the same.
            assert loaded.algorithm == Tiny()
            assert loaded.update == 100
        path.write_bytes(original)
    content = bytearray((folder / "policy.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "policy.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=r"policy\.safetensors is damaged"):
        Policy.load(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda d: d.update(format=3), "format 3"),
        (lambda d: d["algorithm"].update(name="magic"), "no algorithm 'magic'"),
        (lambda d: d["algorithm"].update(hiden=3), "cannot be used.* has no hiden"),
        (lambda d: d.pop("algorithm"), "cannot build .*algorithm"),
        (lambda d: d["spec"].update(observation_size="many"), "cannot build"),
        (lambda d: d["spec"].update(observation_size=4), r"does not fit .*\[2, 3\] instead"),
        (lambda d: d.pop("member"), "lacks 'member'"),
        (lambda d: d.pop("update"), "lacks 'update'"),
    ],
)
def test_a_description_of_something_else(folder: Path, change: Any, expected: str) -> None:
    rewrite(folder, change)
    with pytest.raises(InputError, match=expected):
        Policy.load(folder)


def test_a_description_that_was_edited(folder: Path) -> None:
    text = (folder / "policy.json").read_text()
    (folder / "policy.json").write_text(text.replace('"update": 100', '"update": 900'))
    with pytest.raises(InputError, match=r"policy\.json is damaged"):
        Policy.load(folder)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t.pop("noisy.linear.bias"), r"noisy\.linear\.bias is missing"),
        (lambda t: t.update(more=np.ones(1)), "more is not expected"),
        (lambda t: t.update({"noisy.flags": np.ones(2)}), r"float64\[2\] instead of bool\[2\]"),
    ],
)
def test_other_tensors(folder: Path, change: Any, expected: str) -> None:
    replace_tensors(folder, change)
    with pytest.raises(InputError, match=expected):
        Policy.load(folder)


def test_a_policy_that_is_replaced_while_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_json, newer = storage.files.read_json, []

    def read(path: Path) -> dict[str, Any]:
        found = read_json(path)
        if not newer:
            newer.append(save(folder, member=Member(2, 7), update=200))
        return found

    monkeypatch.setattr(storage.files, "read_json", read)
    loaded = Policy.load(folder)
    assert (loaded.update, loaded.member) == (200, Member(2, 7))
    assert_same_arrays(loaded.module, newer[0])


def test_no_safetensors_in_the_file(folder: Path) -> None:
    (folder / "policy.safetensors").write_bytes(b"\xff" * 20)
    description = json.loads((folder / "policy.json").read_text())
    description["sha256"]["tensors"] = storage._digest(b"\xff" * 20)
    (folder / "policy.json").write_text(json.dumps(description))
    with pytest.raises(InputError, match=r"policy\.safetensors is damaged"):
        Policy.load(folder)


def test_a_missing_file(folder: Path) -> None:
    (folder / "policy.safetensors").unlink()
    with pytest.raises(InputError, match=r"There is no .*policy\.safetensors"):
        Policy.load(folder)


# --- acting -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(algorithms, "get", lambda name: Tiny)
        patch.setattr(algorithms, "name_of", lambda algorithm: "tiny")
        path = tmp_path_factory.mktemp("policies") / "policy"
        save(path)
        return Policy.load(path)


@given(st.sampled_from([1, 2, 5]), st.sampled_from([1, 4]), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_a_batch_equals_its_rows_one_by_one(
    loaded: Policy, rows: int, best_of: int, seed: int
) -> None:
    observations = np.random.default_rng(seed).normal(size=(rows, 3))
    key = jax.random.key(seed)
    together = loaded.act(observations, best_of=best_of, key=key)
    assert together.shape == (rows, 2)
    assert together.dtype == np.float32
    for row, row_key in enumerate(jax.random.split(key, rows)):
        alone = loaded.act(observations[row], best_of=best_of, key=row_key)
        np.testing.assert_allclose(together[row], alone, atol=1e-6)
        observation = jnp.asarray(observations[row], jnp.float32)
        expected = act_alone(loaded.module, observation, Budget(4, best_of), row_key)
        np.testing.assert_allclose(alone, expected, atol=1e-6)


def test_every_observation_may_have_its_own_key(loaded: Policy) -> None:
    observations = np.random.default_rng(0).normal(size=(2, 3, 3))
    keys = jax.random.split(jax.random.key(8), (2, 3))
    found = loaded.act(observations, best_of=4, key=keys)
    told = loaded.act_info(observations, best_of=4, key=keys)
    for place in np.ndindex(2, 3):
        alone = loaded.act(observations[place], best_of=4, key=keys[place])
        np.testing.assert_allclose(found[place], alone, atol=1e-6)
        np.testing.assert_allclose(told.action[place], alone, atol=1e-6)
    with pytest.raises(InputError, match=r"keys of shape \[2, 3\] for observations of shape \[3\]"):
        loaded.act(observations[0], key=keys)
    with pytest.raises(InputError, match=r"keys of shape \[2, 3\] for observations of shape \[\]"):
        loaded.act(observations[0, 0], key=keys)


def test_every_leading_shape_is_flattened_in_order(loaded: Policy) -> None:
    observations = np.random.default_rng(0).normal(size=(2, 3, 3))
    folded = loaded.act(observations, key=5)
    flat = loaded.act(observations.reshape(6, 3), key=5)
    assert folded.shape == (2, 3, 2)
    assert (folded.reshape(6, 2) == flat).all()
    assert loaded.act(np.zeros((0, 3))).shape == (0, 2)
    assert loaded.act([0, 0.5, 1]).shape == (2,)


def test_the_stream_is_fresh_every_call_and_the_same_every_load(folder: Path) -> None:
    observation = np.zeros(3)
    first, second = (Policy.load(folder, random_seed=7) for _ in range(2))
    draws = [first.act(observation) for _ in range(4)]
    assert len({draw.tobytes() for draw in draws}) == 4
    assert all((second.act(observation) == draw).all() for draw in draws)
    assert (Policy.load(folder, random_seed=8).act(observation) != draws[0]).any()
    for key in (jax.random.key(3), jax.random.PRNGKey(3)):
        assert (first.act(observation, key=key) == first.act(observation, key=3)).all()
    assert (first.act(observation, key=3) == second.act(observation, key=3)).all()


def test_draws_of_the_stream_are_folded_into_its_key(folder: Path) -> None:
    """One observation and a batch draw from the same stream, each call what its place gives."""
    policy, seen = Policy.load(folder, random_seed=7), np.zeros((3, 3), np.float32)
    stream = jax.random.key(7)
    given = [policy.act(rows) for rows in (seen[0], seen, seen[0], seen[:1])]
    for place, (rows, actions) in enumerate(
        zip((seen[0], seen, seen[0], seen[:1]), given, strict=True)
    ):
        again = policy.act(rows, key=jax.random.fold_in(stream, place))
        np.testing.assert_array_equal(actions, again)


def test_threads_never_share_a_draw(folder: Path) -> None:
    policy = Policy.load(folder)
    alone = Policy.load(folder)
    expected = {alone.act(np.zeros(3)).tobytes() for _ in range(80)}
    found: list[bytes] = []
    barrier = threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for _ in range(10):
            found.append(policy.act(np.zeros(3)).tobytes())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == len(set(found)) == 80
    assert set(found) == expected


def test_one_compilation_for_a_budget_and_a_batch_shape(folder: Path) -> None:
    policy = Policy.load(folder)
    policy.act(np.zeros((3, 3)), steps=2)
    compiled: Any = policy._act
    before = compiled._cache_size()
    for seed in range(3):
        policy.act(np.full((3, 3), seed), steps=2, key=seed)
        policy.act(np.zeros((3, 3), np.float64), steps=2)
    assert compiled._cache_size() == before == 1
    keys = jax.random.split(jax.random.key(0), 1)
    for rows, key in [(np.zeros(3), None), (np.zeros(3), 1), (np.zeros((1, 3)), None)]:
        policy.act(rows, steps=2, key=key)
    policy.act(np.zeros((1, 3)), steps=2, key=keys)
    policy.act(np.zeros((1, 1, 3)), steps=2, key=keys.reshape(1, 1))
    assert compiled._cache_size() == before + 1  # one row, with an axis of rows or without
    policy.act(np.zeros((3, 3)), steps=4)
    assert compiled._cache_size() == before + 2


def test_one_row_with_an_axis_or_a_seed_hands_nothing_on_to_more_programs(
    loaded: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = jax.random.key(4)
    (row_key,) = jax.random.split(key, 1)
    expected = loaded.act(np.ones(3), key=row_key)

    def program(*_: Any) -> None:
        raise AssertionError("one more program, which costs as much as a small policy")

    for name in ("_fold_in", "_split", "_only"):
        monkeypatch.setattr(f"sorl.deployment.policy.{name}", program)
    for leading in ((1,), (1, 1)):
        observation = np.ones((*leading, 3))
        for same in (4, np.uint32(4), key):
            found = loaded.act(observation, key=same)
            np.testing.assert_array_equal(found, expected.reshape(*leading, 2))
        assert loaded.act(observation).shape == (*leading, 2)


@pytest.mark.parametrize(
    ("observation", "expected"),
    [
        (np.zeros(4), r"shape \[4\], but this policy takes \[3\]"),
        (np.zeros((3, 4)), r"shape \[3, 4\]"),
        (1.0, r"shape \[\]"),
        ([1.0, np.nan, 0.0], r"entry \[1\] is nan"),
        ([[0, 0, 0], [0, 0, np.inf]], r"entry \[1, 2\] is inf"),
        ([0, 1e300, 0], r"entry \[1\] is inf"),
        (["a", "b", "c"], "no array of numbers"),
        ([[1, 2, 3], [1, 2]], "no array of numbers"),
        ([None, {}, 1], "no array of numbers"),
    ],
)
def test_an_observation_that_is_none(loaded: Policy, observation: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        loaded.act(observation)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        (-1, "key=-1 is no seed: give 0 to 4294967295"),
        (2**32, "key=4294967296 is no seed"),
        (2**70, "is no seed"),
        (np.int64(2**40), "is no seed"),
        ("a", "is a str that is no random key"),
        (1.5, "is a float that is no random key"),
        (np.zeros(3, np.uint32), "is a ndarray that is no random key"),
    ],
)
def test_a_key_that_is_none(
    loaded: Policy, key: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users have nothing that checks types before.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=expected):
        loaded.act(np.zeros(3), key=key)


@pytest.mark.parametrize("seed", [-1, 2**32, np.int64(2**40), 1.5, "1"])
def test_a_random_seed_that_is_none(
    folder: Path, run: Path, seed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for path in (folder, run):
        told = re.escape(f"random_seed={seed!r} is no seed: give 0 to 4294967295.")
        with pytest.raises(InputError, match=told):
            Policy.load(path, random_seed=seed)


def test_budgets_are_checked(loaded: Policy, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="too many"):
        loaded.act(np.zeros(3), steps=16)
    with pytest.raises(InputError, match="best_of=0"):
        loaded.act(np.zeros(3), best_of=0)
    save(tmp_path / "plain", algorithm=Tiny(critic=False))
    plain = Policy.load(tmp_path / "plain")
    assert plain.act(np.zeros(3)).shape == (2,)
    with pytest.raises(InputError, match="no critic"):
        plain.act(np.zeros(3), best_of=2)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"adaptive": "yes"}, "adaptive='yes' is not possible: give True, False, or a threshold"),
        ({"adaptive": -1.0}, "threshold=-1.0 must be a number, 0 or more"),
        ({"choice": 2}, "choice=2 is not possible: give words such as 'typical-2'"),
        ({"choice": 0}, "choice=0 is not possible"),
        ({"verifier": ["min"]}, r"verifier=\['min'\] is not possible"),
        ({"sampler": ["spread"]}, r"sampler=\['spread'\] is not possible: give a word such as"),
        ({"deadline_ms": "3"}, "deadline_ms='3' is not possible: give a number"),
        ({"deadline_ms": True}, "deadline_ms=True is not possible"),
        ({"steps": 4.0}, "Budget steps=4.0 is not possible: give a whole number"),
        ({"steps": np.bool_(True)}, "is not possible: give a whole number"),
        ({"best_of": "8"}, "Budget best_of='8' is not possible"),
    ],
)
def test_an_argument_of_another_kind(
    loaded: Policy, arguments: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users have nothing that checks types before.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(InputError, match=expected):
        loaded.act(np.zeros(3), **arguments)


def test_numbers_of_numpy_are_numbers(loaded: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    observation = np.ones(3)
    whole: Any = {"steps": np.int64(4), "best_of": np.uint8(8)}
    found = loaded.act(observation, **whole, key=0)
    np.testing.assert_array_equal(found, loaded.act(observation, steps=4, best_of=8, key=0))
    assert json.dumps(dataclasses.asdict(Budget(**whole))) == '{"steps": 4, "best_of": 8}'
    no: Any = np.bool_(False)
    np.testing.assert_array_equal(loaded.act(observation, **whole, adaptive=no, key=0), found)
    yes: Any = np.bool_(True)
    with pytest.raises(InputError, match="Adaptive spending needs a calibration"):
        loaded.act(observation, **whole, adaptive=yes)


def test_a_bare_number_is_the_threshold_of_adaptive_spending(loaded: Policy) -> None:
    observation = np.ones(3)
    found = []
    for threshold in (0.0, 1e6):
        found.append(loaded.act(observation, best_of=8, adaptive=threshold, key=0))
        same = inference.Adaptive(threshold)
        expected = loaded.act(observation, best_of=8, adaptive=same, key=0)
        np.testing.assert_array_equal(found[-1], expected)
    assert not np.array_equal(*found)


def test_without_a_budget_it_is_the_methods_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = Policy.load(folder)
    monkeypatch.setattr(Tiny, "default_budget", Budget(2, 8))
    observation = np.ones(3)
    own = loaded.act(observation, key=3)
    assert (own == loaded.act(observation, steps=2, best_of=8, key=3)).all()
    fewer = loaded.act(observation, best_of=1, key=3)
    assert (fewer == loaded.act(observation, steps=2, best_of=1, key=3)).all()
    faster = loaded.act(observation, steps=1, key=3)
    assert (faster == loaded.act(observation, steps=1, best_of=8, key=3)).all()
    assert len({own.tobytes(), fewer.tobytes(), faster.tobytes()}) == 3


def test_a_policy_of_one_pass_acts_without_a_budget(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_pass(_: Noisy, steps: int) -> None:
        if steps != 1:
            raise InputError(f"{steps} steps are not possible: use 1.")

    monkeypatch.setattr(Noisy, "check_steps", one_pass)
    monkeypatch.setattr(Tiny, "default_budget", Budget(1, 1))
    loaded = Policy.load(folder)
    assert loaded.act(np.zeros(3)).shape == (2,)
    with pytest.raises(InputError, match="4 steps are not possible"):
        loaded.act(np.zeros(3), steps=4)


# --- which budgets are served -------------------------------------------------------------------


def served(algorithm: AbstractAlgorithm[Any]) -> list[str]:
    return [str(budget) for budget in inference.servable_budgets(algorithm)]


def test_servable_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    assert served(Tiny()) == ["1x1", "4x1", "4x8"]
    assert served(Tiny(critic=False)) == ["1x1", "4x1"]
    # The method's own joins them where it belongs, and is left out where it cannot be served.
    monkeypatch.setattr(Tiny, "default_budget", Budget(2, 32))
    assert served(Tiny()) == ["1x1", "2x32", "4x1", "4x8"]
    assert served(Tiny(critic=False)) == ["1x1", "4x1"]
    monkeypatch.setattr(Tiny, "default_budget", Budget(8, 1))
    assert served(Tiny(critic=False)) == ["1x1", "4x1", "8x1"]
    monkeypatch.setattr(Tiny, "default_budget", Budget(16, 1))
    assert served(Tiny(critic=False)) == ["1x1", "4x1"]


def test_servable_budgets_go_beyond_what_training_saw() -> None:
    sorl = algorithms.get("sorl")
    for algorithm in (sorl(), sorl(discretization=2, backprop_steps=2)):  # pyright: ignore[reportCallIssue]
        assert served(algorithm) == ["1x1", "4x1", "4x8"]


def test_servable_budgets_are_found_without_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    traced: list[bool] = []

    def init(_: Tiny, spec: Spec, *, key: jax.Array) -> Any:
        traced.append(isinstance(key, Tracer))
        return Noisy(eqx.nn.Linear(spec.observation_size, 1, key=key), jnp.ones(2), 0.5)

    monkeypatch.setattr(Tiny, "init", init)
    assert served(Tiny()) == ["1x1", "4x1", "4x8"]
    assert traced == [True]


def test_actions_are_the_callers_own(loaded: Policy) -> None:
    action = loaded.act(np.zeros(3), key=0)
    action += 1
    assert (loaded.act(np.zeros(3), key=0) == action - 1).all()


# --- all members ------------------------------------------------------------------------------


def test_the_policies_of_a_run_are_stacked_in_order(run: Path) -> None:
    stacked, members = load_stacked(run)
    assert members == [Member(2, 3), Member(2, 10), Member(10, 0)]
    for index, member in enumerate(members):
        one = jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, stacked)  # noqa: B023
        assert_same_arrays(one, Policy.load(run, task=member.task, seed=member.seed).module)
    keys = jax.random.split(jax.random.key(0), 3)
    act = eqx.filter_vmap(lambda policy, key: act_alone(policy, jnp.ones(3), Budget(2, 4), key))
    for index, action in enumerate(act(stacked, keys)):
        member = members[index]
        alone = Policy.load(run, task=member.task, seed=member.seed).module
        expected = act_alone(alone, jnp.ones(3), Budget(2, 4), keys[index])
        np.testing.assert_allclose(action, expected, atol=1e-6)


def test_policies_of_different_kinds_are_not_stacked(run: Path) -> None:
    shutil.rmtree(run / "policy" / "task10-seed0")
    member = Member(10, 0)
    save(run / "policy" / str(member), algorithm=Tiny(scale=1.0), member=member)
    with pytest.raises(InputError, match="task2-seed3 and task10-seed0"):
        load_stacked(run)


def test_policies_of_different_updates_are_not_stacked(run: Path) -> None:
    member = Member(10, 0)
    save(run / "policy" / str(member), member=member, update=200)
    told = r"different updates \(100, 200\).*`sorl resume .*, or it is being trained right now"
    with pytest.raises(InputError, match=told):
        load_stacked(run)


def test_policies_of_different_units_are_not_stacked(run: Path) -> None:
    member = Member(10, 0)
    units = Units((-2, -2), (2, 2), (0, 0, 0), (0.5, 0.5, 0.5))
    module, algorithm = in_units(make(Tiny()), units), Tiny()
    told: dict[str, Any] = {"spec": SPEC, "member": member, "update": 100, "provenance": {}}
    save_policy(run / "policy" / str(member), module, algorithm=algorithm, **told)
    with pytest.raises(InputError, match=r"task2-seed3 and task10-seed0 .* units"):
        load_stacked(run)


# --- what a decision was chosen from ----------------------------------------------------------


@pytest.mark.parametrize("sampler", ["independent", "spread"])
@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3)])
def test_a_decision_tells_what_it_was_chosen_from(
    folder: Path, sampler: Any, leading: tuple[int, ...]
) -> None:
    policy = Policy.load(folder)
    observations = np.random.default_rng(0).normal(size=(*leading, 3)).astype(np.float32)
    asked: Any = {"steps": 4, "best_of": 5, "sampler": sampler, "verifier": "mean-0.5std"}
    found = policy.act_info(observations, **asked, key=3)
    assert found.action.shape == (*leading, 2)
    assert found.candidates.shape == (*leading, 5, 2)
    assert found.scores.shape == found.steps.shape == (*leading, 5)
    assert found.chosen.shape == leading
    for place in np.ndindex(leading):
        assert found.chosen[place] == np.argmax(found.scores[place])
        np.testing.assert_array_equal(
            found.action[place], found.candidates[place][found.chosen[place]]
        )
        for action, score, steps in zip(
            found.candidates[place], found.scores[place], found.steps[place], strict=True
        ):
            module: Any = policy.module
            values = np.asarray(module.values(observations[place], action, steps=int(steps)))
            assert score == pytest.approx(values.mean() - 0.5 * values.std(), abs=1e-5)
    np.testing.assert_allclose(policy.act(observations, **asked, key=3), found.action, atol=1e-6)


def test_another_verifier_chooses_another_action(folder: Path) -> None:
    policy = Policy.load(folder)
    observations = np.random.default_rng(1).normal(size=(20, 3))
    own = policy.act(observations, best_of=8, key=0)
    assert np.array_equal(own, policy.act(observations, best_of=8, verifier="mean", key=0))
    assert not np.array_equal(own, policy.act(observations, best_of=8, verifier="min", key=0))


def test_decisions_that_cannot_be_told(tmp_path: Path, folder: Path) -> None:
    save(tmp_path / "blind", algorithm=Tiny(critic=False))
    with pytest.raises(InputError, match="Noisy has no critic, so there are no scores"):
        Policy.load(tmp_path / "blind").act_info(np.ones(3))
    policy = Policy.load(folder)
    with pytest.raises(InputError, match="give at least one"):
        policy.act_info(np.ones((0, 3)))
    with pytest.raises(InputError, match="'max' cannot be read"):
        policy.act(np.ones(3), best_of=2, verifier="max")
    with pytest.raises(InputError, match="Judged cannot take its candidates back"):
        policy.act(np.ones(3), best_of=2, sampler="renoise")
    with pytest.raises(InputError, match="not finite"):
        policy.act_info(np.full(3, np.nan))


def test_an_action_that_is_not_finite_is_not_handed_out() -> None:
    algorithm = SORL(hidden=(64, 64))
    units = Units((-2, -2), (2, 2), (0, 0, 0), (0.5, 0.5, 0.5))
    module = in_units(algorithm.policy(algorithm.init(SPEC, key=jax.random.key(0))), units)
    saved = storage.SavedPolicy(module, algorithm, SPEC, Member(0, 0), 1, {})
    policy = Policy(saved, random_seed=0)
    far = np.array([0.1, np.finfo(np.float32).max, 0.2])  # standardised it is infinite
    for act in (policy.act, policy.act_info):
        with pytest.raises(InputError, match="answer to the observation is not finite: it lies"):
            act(far, steps=4, best_of=8)
        batch = np.zeros((2, 3, 3))
        assert act(batch, steps=4, best_of=8) is not None
        batch[1, 1] = batch[1, 2] = far
        with pytest.raises(NotFiniteError, match=r"answer to observation \[1, 1\] is") as caught:
            act(batch, steps=4, best_of=8)
        answer = caught.value.answer
        actions = answer if isinstance(answer, np.ndarray) else answer.action
        wrong = [[False, False, False], [False, True, True]]
        np.testing.assert_array_equal(np.isnan(actions).any(axis=2), wrong)
