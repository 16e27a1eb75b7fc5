"""Exported policies: every algorithm and format acts as JAX does; damage and lies are found out."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import equinox as eqx
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from hypothesis import given

from choices_by_hand import by_hand
from sorl import algorithms, cli
from sorl.algorithm import AbstractPolicy, AbstractScoredPolicy, in_units
from sorl.choices import Choice
from sorl.deployment.export import check, numpy_format, numpy_policy, onnx_format, stablehlo_format
from sorl.deployment.export.exporting import Format, export
from sorl.deployment.export.graphs import Contents, Graph, Outputs, decide
from sorl.deployment.policy import Policy, save_policy
from sorl.deployment.storage import SavedPolicy
from sorl.errors import InputError
from sorl.losses import Aggregation
from sorl.types import Budget, Member, Spec
from sorl.units import Units
from sorl.verifiers import OWN, Verifier

SPEC = Spec(3, 2)
MODULES: dict[str, Any] = {
    "numpy": numpy_format,
    "onnx": onnx_format,
    "stablehlo": stablehlo_format,
}
SOME = ("bc", "idql", "sorl")
CASES = [(name, format) for name in algorithms.names() for format in ("numpy", "onnx")]
BEST, CENTRAL, TYPICAL = Choice("best"), Choice("central"), Choice("typical", 2)
CASES += [(name, "stablehlo") for name in SOME]


@functools.cache
def policy_of(name: str) -> Policy:
    """A policy with small networks; all its arrays are moved, so that none is 0 or 1 alone."""
    fields = {field.name for field in dataclasses.fields(algorithms.get(name))}  # pyright: ignore[reportArgumentType]
    wanted = {"hidden": (8, 6), "sampling_std": 0.3}
    algorithm = algorithms.get(name)(**{key: wanted[key] for key in wanted if key in fields})

    @eqx.filter_jit
    def start(key: jax.Array) -> AbstractPolicy:
        policy = algorithm.policy(algorithm.init(SPEC, key=key))
        arrays, static = eqx.partition(policy, eqx.is_inexact_array)
        keys = iter(jax.random.split(key, len(jax.tree.leaves(arrays))))
        moved = jax.tree.map(lambda a: a + 0.2 * jax.random.normal(next(keys), a.shape), arrays)
        return eqx.combine(moved, static)

    module = start(jax.random.key(0))
    saved = SavedPolicy(module, algorithm, SPEC, Member(2, 0), 100, {})
    return Policy(saved, None, random_seed=0)


@functools.cache
def exported(
    name: str, format: Format, root: Path, choice: str = "own"
) -> tuple[Path, dict[str, Any]]:
    folder = root / f"{name}-{format}-{choice}"
    return folder, export(policy_of(name), folder, format=format, choice=choice)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exports")


def noise_of(policy: Policy, budget: Budget, key: jax.Array) -> np.ndarray:
    """What `Policy.act` draws with this key for one observation: `[1, best_of, *noise_shape]`."""
    shape = policy.module.noise_shape(budget.steps)
    keys = jax.random.split(key, budget.best_of)
    return np.stack([np.asarray(jax.random.normal(k, shape)) for k in keys])[None]


@pytest.mark.parametrize(("name", "format"), CASES)
def test_an_export_acts_as_the_policy_does_from_the_same_noise(
    name: str, format: Format, root: Path, rng: np.random.Generator
) -> None:
    policy = policy_of(name)
    folder, manifest = exported(name, format, root)
    run = MODULES[format].load(folder)
    scored = isinstance(policy.module, AbstractScoredPolicy)
    names = {graph["name"] for graph in manifest["graphs"]}
    own = policy.algorithm.default_budget
    assert f"{own.steps}x{'N' if own.best_of > 1 else 1}" in names
    for graph in manifest["graphs"]:
        chooses = graph["name"].endswith("N")
        assert scored or not chooses
        for best_of in (1, 5) if chooses else (1,):
            budget = Budget(graph["steps"], best_of)
            for seed in range(4):
                observation = 2 * rng.standard_normal(3, np.float32)
                key = jax.random.key(seed)
                expected = policy.act(
                    observation, steps=budget.steps, best_of=budget.best_of, key=key
                )
                noise = noise_of(policy, budget, key)
                found = run(Graph(budget.steps, chooses), observation[None], noise)
                np.testing.assert_allclose(found.action[0], expected, atol=2e-5)


@functools.cache
def acted(name: str, choice: str, budget: Budget) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Observations, the noise and the actions of `Policy.act` in JAX."""
    policy, key = policy_of(name), jax.random.key(5)
    observations = np.random.default_rng(budget.best_of).standard_normal((24, 3), np.float32)
    noise = [noise_of(policy, budget, row) for row in jax.random.split(key, 24)]
    actions = policy.act(
        observations, steps=budget.steps, best_of=budget.best_of, choice=choice, key=key
    )
    return observations, np.concatenate(noise), actions


@pytest.mark.parametrize("format", list(MODULES))
@pytest.mark.parametrize(
    ("name", "choice", "expected"),
    [
        ("sorl", "own", "typical-2"),
        ("sorl", "best", "best"),
        ("sorl", "central", "central"),
        ("idql", "own", "best"),
    ],
)
def test_an_export_chooses_as_the_policy_does(
    name: str, choice: str, expected: str, format: Format, root: Path
) -> None:
    folder, manifest = exported(name, format, root, choice)
    assert manifest["choice"] == expected
    run, rule = MODULES[format].load(folder), Choice.parse(expected)
    places = set()
    for best_of in (1, 2, 5, 8):
        observations, noise, actions = acted(name, choice, Budget(4, best_of))
        found = run(Graph(4, True), observations, noise)
        for row, action in enumerate(actions):
            candidates = found.candidates[row]
            scores = np.zeros(best_of) if found.scores is None else found.scores[row]
            possible = by_hand(rule.rule, rule.parameter, candidates, scores)
            # Clipped candidates may be equal.
            chosen = {*np.flatnonzero((candidates == found.action[row]).all(axis=1)).tolist()}
            assert chosen & possible
            if len(possible) == 1:
                np.testing.assert_allclose(found.action[row], action, atol=2e-5)
                places.add((best_of, *possible))
    assert len(places) > 8, "few choices are near a tie, and they differ"


def test_central_leaves_the_critic_out_and_works_without_one(root: Path, tmp_path: Path) -> None:
    for format in get_args(Format):
        _, central = exported("sorl", format, root, "central")
        _, best = exported("sorl", format, root, "best")
        size_central, size_best = (
            sum(entry["bytes"] for entry in manifest["files"].values())
            for manifest in (central, best)
        )
        assert size_central < size_best
        assert [list(m["graphs"][-1]["outputs"]) for m in (central, best)] == [
            ["action", "candidates"],
            ["action", "candidates", "scores"],
        ]
        folder = tmp_path / format
        export(policy_of("bc"), folder, format=format, budgets=[Budget(1, 4)], choice="central")
        rng = np.random.default_rng(0)
        observations = rng.standard_normal((9, 3), np.float32)
        found = MODULES[format].load(folder)(
            Graph(1, True), observations, rng.standard_normal((9, 4, 2), np.float32)
        )
        for action, candidates in zip(found.action, found.candidates, strict=True):
            places = by_hand("central", 0, candidates, np.zeros(4))
            assert any((action == candidates[place]).all() for place in places)


def test_nothing_in_a_graph_draws_at_random(root: Path) -> None:
    for choice in ("own", "best", "central"):
        folder, _ = exported("sorl", "stablehlo", root, choice)
        content = (folder / "4xN.stablehlo").read_bytes()
        text = jax.export.deserialize(bytearray(content)).mlir_module()
        assert "stablehlo." in text
        assert not any(word in text for word in ("rng", "random", "threefry", "ui32"))


@pytest.mark.parametrize(("name", "format"), [(n, f) for n in ("sorl", "bc") for f in MODULES])
def test_the_manifest_tells_what_is_there(name: str, format: Format, root: Path) -> None:
    folder, manifest = exported(name, format, root, "best")
    assert json.loads((folder / "export.json").read_text()) == json.loads(json.dumps(manifest))
    assert (manifest["format"], manifest["kind"], manifest["verifier"]) == (1, format, "own")
    assert manifest["choice"] == "best"
    assert manifest["algorithm"]["name"] == name
    assert manifest["spec"] == {"observation_size": 3, "action_size": 2}
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert files == {*manifest["files"], "export.json"}
    for file, entry in manifest["files"].items():
        content = (folder / file).read_bytes()
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
        assert entry["bytes"] == len(content)
    for graph in manifest["graphs"]:
        assert graph["file"] in files
        assert tuple(graph["inputs"]["noise"][2:]) == (2,)
        assert 0 <= graph["difference"]["actions"] <= 1e-4
        assert (graph["difference"]["scores"] is None) == graph["name"].endswith("x1")
    assert {graph["name"] for graph in manifest["graphs"]} == (
        {"1x1"} if name == "bc" else {"1x1", "4x1", "4xN"}
    )


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_any_batch_and_any_number_of_candidates_equal_one_by_one(
    root: Path, batch: int, candidates: int, seed: int
) -> None:
    graph, rng = Graph(4, True), np.random.default_rng(seed)
    observation = rng.standard_normal((batch, 3), np.float32)
    noise = rng.standard_normal((batch, candidates, 2), np.float32)
    for format in get_args(Format):
        run = loaded("sorl", format, root, "best")
        found = run(graph, observation, noise)
        assert found.action.shape == (batch, 2)
        assert found.candidates.shape == (batch, candidates, 2)
        if candidates == 1 and format == "numpy":
            assert found.scores is None
            continue
        assert found.scores.shape == (batch, candidates)
        chosen = np.argmax(found.scores, axis=1)
        np.testing.assert_array_equal(found.action, found.candidates[np.arange(batch), chosen])
        for i in range(batch):
            alone = run(graph, observation[i : i + 1], noise[i : i + 1])
            np.testing.assert_allclose(alone.candidates[0], found.candidates[i], atol=1e-5)
            np.testing.assert_allclose(alone.scores[0], found.scores[i], atol=1e-4)


@functools.cache
def loaded(name: str, format: Format, root: Path, choice: str) -> Callable[..., Any]:
    return MODULES[format].load(exported(name, format, root, choice)[0])


def test_the_same_policy_gives_the_same_bytes(root: Path, tmp_path: Path) -> None:
    for format in get_args(Format):
        folder, manifest = exported("sorl", format, root)
        again = export(policy_of("sorl"), tmp_path / format, format=format)
        assert again["files"] == manifest["files"]
        for path in (*folder.iterdir(), *(tmp_path / format).iterdir()):
            assert b"site-packages" not in path.read_bytes()
            assert str(Path(numpy_policy.__file__).parent).encode() not in path.read_bytes()


def test_budgets_and_the_verifier_are_the_callers(tmp_path: Path) -> None:
    policy = policy_of("idql")
    manifest = export(
        policy,
        tmp_path / "e",
        format="numpy",
        budgets=[Budget(3, 7), Budget(2, 1)],
        verifier="mean",
    )
    assert [graph["name"] for graph in manifest["graphs"]] == ["2x1", "3xN"]
    assert manifest["graphs"][1]["difference"]["best_of"] == 7
    run = numpy_format.load(tmp_path / "e")
    rng = np.random.default_rng(1)
    observation = rng.standard_normal((50, 3), np.float32)
    noise = rng.standard_normal((50, 7, 3, 2), np.float32)
    found = run(Graph(3, True), observation, noise)
    for verifier, equal in ((Verifier("mean"), True), (OWN, False)):
        arrays = jnp.asarray(observation), jnp.asarray(noise)
        exact = decide(policy.module, Graph(3, True), verifier, BEST, *arrays)
        assert np.allclose(found.scores, exact.scores, atol=1e-4) is equal


@pytest.mark.parametrize(
    ("own", "budgets", "expected"),
    [
        ((4, 1), [(1, 1), (4, 8)], (4, 1)),
        ((4, 1), [(4, 8)], (4, 1)),
        ((4, 8), [(1, 1), (4, 2)], (4, 8)),
        ((4, 8), [(1, 1), (4, 1)], (1, 1)),
        ((4, 1), [(1, 1), (1, 8)], (1, 1)),
    ],
)
def test_the_default_is_the_methods_own_budget_where_a_graph_serves_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own: tuple[int, int],
    budgets: list[tuple[int, int]],
    expected: tuple[int, int],
) -> None:
    policy = policy_of("sorl")
    monkeypatch.setattr(type(policy.algorithm), "own_budget", Budget(*own))
    export(policy, tmp_path / "e", format="numpy", budgets=[Budget(*b) for b in budgets])
    found = numpy_policy.Policy(tmp_path / "e")
    steps, best_of = expected
    rows = np.full((4, 3), 0.5)
    rng = np.random.default_rng
    np.testing.assert_array_equal(
        found.act(rows, rng=rng(1)), found.act(rows, steps=steps, best_of=best_of, rng=rng(1))
    )


def test_without_a_cpu_exporting_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def devices(*_: Any, **__: Any) -> None:
        raise RuntimeError("Unknown backend cpu")

    policy = policy_of("bc")
    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setattr(jax, "local_devices", devices)
    with pytest.raises(InputError, match="leaves out the CPU"):
        export(policy, tmp_path / "e", format="numpy", budgets=[Budget(1, 1)])


# Loaded elsewhere --------------------------------------------------------------------------

BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError(f"{{name}} must not be imported")
sys.meta_path.insert(0, Blocker())
"""


def run_elsewhere(code: str, folder: Path, *, blocked: tuple[str, ...]) -> np.ndarray:
    """What the code prints as JSON in a process that cannot import `blocked`."""
    result = subprocess.run(
        [sys.executable, "-c", BLOCKED.format(blocked=blocked) + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return np.asarray(json.loads(result.stdout))


def test_numpy_alone_is_enough(root: Path) -> None:
    folder, _ = exported("sorl", "numpy", root)
    code = (
        "import json, numpy as np\n"
        "from numpy_policy import Policy\n"
        "policy = Policy('.')\n"
        "rng = np.random.default_rng(3)\n"
        "print(json.dumps(policy.act([0.1, -1, 2], steps=4, best_of=8, rng=rng).tolist()))\n"
        "assert not any(name in sys.modules for name in ('scipy', 'numpy.testing'))\n"
    )
    blocked = ("sorl", "jax", "jaxlib", "equinox", "safetensors", "onnx", "onnxruntime", "scipy")
    found = run_elsewhere(code, folder, blocked=blocked)
    noise = np.random.default_rng(3).standard_normal((1, 8, 2), np.float32)
    policy = policy_of("sorl").module
    observation = jnp.asarray([[0.1, -1.0, 2.0]])
    exact = decide(policy, Graph(4, True), OWN, TYPICAL, observation, jnp.asarray(noise))
    np.testing.assert_allclose(found, exact.action[0], atol=1e-5)


def test_stablehlo_needs_jax_but_not_sorl(root: Path) -> None:
    folder, _ = exported("sorl", "stablehlo", root)
    code = (
        "import json, jax, numpy as np\n"
        "from jax import export\n"
        "from pathlib import Path\n"
        "graph = export.deserialize(bytearray(Path('4xN.stablehlo').read_bytes()))\n"
        "assert graph.platforms == ('cpu', 'cuda')\n"
        "answer = graph.call(np.ones((2, 3), np.float32), np.ones((2, 5, 2), np.float32))\n"
        "print(json.dumps(np.asarray(answer['action']).tolist()))\n"
    )
    found = run_elsewhere(code, folder, blocked=("sorl", "equinox"))
    arrays = jnp.ones((2, 3)), jnp.ones((2, 5, 2))
    exact = decide(policy_of("sorl").module, Graph(4, True), OWN, TYPICAL, *arrays)
    np.testing.assert_allclose(found, exact.action, atol=1e-6)


# The NumPy runner --------------------------------------------------------------------------


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    """A copy of an export in the NumPy format, to be damaged."""
    source, _ = exported("sorl", "numpy", root, "typical-2")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in source.iterdir():
        if path.is_file():
            (copy / path.name).write_bytes(path.read_bytes())
    return copy


def test_leading_shapes_defaults_and_generators(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = numpy_policy.Policy(folder)
    assert (policy.observation_size, policy.action_size, policy.steps) == (3, 2, [1, 4])
    assert policy.act([0.1, 2, 3]).shape == (2,)
    assert policy.act(np.zeros((0, 3))).shape == (0, 2)
    rng = np.random.default_rng
    observations = rng(0).standard_normal((2, 3, 3))
    folded = policy.act(observations, best_of=4, rng=rng(5))
    flat_observations = observations.reshape(6, 3)
    flat = policy.act(flat_observations, steps=4, best_of=4, rng=rng(5))
    assert folded.dtype == np.float32
    np.testing.assert_array_equal(folded.reshape(6, 2), flat)
    many = [policy.act([1, 2, 3]) for _ in range(50)]  # some are cut off at the bounds alike
    assert len(np.unique(many, axis=0)) > 1, "noise is drawn"
    with monkeypatch.context() as patch:
        patch.setattr(jaxtyping.config, "jaxtyping_disable", True)
        whole: Any = {"steps": np.int64(4), "best_of": np.int32(4)}
        np.testing.assert_array_equal(policy.act(flat_observations, **whole, rng=rng(5)), flat)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"observation": [1, 2]}, r"shape \[2\], but this policy takes \[3\]"),
        ({"observation": 1.0}, r"shape \[\]"),
        ({"observation": [1, 2, float("nan")]}, "not finite"),
        ({"observation": [1, 2, 1e300]}, "not finite"),
        ({"observation": "left"}, "no array of numbers"),
        ({"observation": [1, 2, 3], "steps": 2}, "not exported for 2 sampling steps.*1, 4"),
        ({"observation": [1, 2, 3], "steps": 1, "best_of": 2}, "no critic was exported"),
        ({"observation": [1, 2, 3], "best_of": 0}, "best_of=0 is not possible"),
        ({"observation": [1, 2, 3], "best_of": 8.0}, "best_of=8.0 is not possible"),
        ({"observation": [1, 2, 3], "best_of": "8"}, "best_of='8' is not possible"),
        ({"observation": [1, 2, 3], "best_of": True}, "best_of=True is not possible"),
        ({"observation": [1, 2, 3], "steps": [4]}, r"steps=\[4\] is not possible"),
        ({"observation": [1, 2, 3], "steps": "4"}, "steps='4' is not possible"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_sentence(
    folder: Path, arguments: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Users have nothing that checks types before.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=expected) as caught:
        numpy_policy.Policy(folder).act(**arguments)
    assert "\n" not in str(caught.value)


def test_an_action_that_is_not_finite_is_not_handed_out(folder: Path) -> None:
    policy = numpy_policy.Policy(folder)
    batch = np.zeros((2, 3, 3), np.float32)
    batch[1, 1:] = np.finfo(np.float32).max
    with pytest.raises(ValueError, match=r"answer to observation \[1, 1\] is not finite"):
        policy.act(batch)
    with pytest.raises(ValueError, match="answer to the observation is not finite"):
        policy.act(batch[1, 1])
    assert policy.act(batch[0]).shape == (3, 2)


@pytest.mark.parametrize("shape", [(), (2,), (1, 2), (1, 4, 3), (2, 4, 2)])
def test_noise_of_another_shape_is_refused(folder: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="The noise has shape"):
        numpy_policy.Policy(folder).from_noise(np.zeros((1, 3)), np.zeros(shape), steps=4)


def refused(folder: Path) -> str:
    with pytest.raises(ValueError, match=r": (export|use|check) ") as caught:
        numpy_policy.Policy(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_flipped_byte_of_the_data_is_noticed(folder: Path) -> None:
    for name in ("weights.safetensors", "programs.json"):
        original = (folder / name).read_bytes()
        for position in range(0, len(original), 97):
            damaged = bytearray(original)
            damaged[position] ^= 4
            (folder / name).write_bytes(damaged)
            assert f"{name} is damaged" in refused(folder)
        (folder / name).write_bytes(original)
        (folder / name).unlink()
        assert "No such file" in refused(folder)
        (folder / name).write_bytes(original)
    numpy_policy.Policy(folder)


@pytest.mark.parametrize("text", ["", "[]", "{}", "[" * 100_000, '{"format": 2, "kind": "numpy"}'])
def test_another_manifest_is_refused(folder: Path, text: str) -> None:
    (folder / "export.json").write_text(text)
    refused(folder)


def seal(folder: Path, name: str, content: bytes) -> None:
    """Write a file as if it had been exported like that."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "export.json").read_text())
    manifest["files"][name]["sha256"] = hashlib.sha256(content).hexdigest()
    (folder / "export.json").write_text(json.dumps(manifest))


def header_of(content: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry.update(dtype="F64"),
        lambda entry: entry.update(dtype=["F32"]),
        lambda entry: entry.update(shape=[-1, -4]),
        lambda entry: entry.update(shape=[10**12]),
        lambda entry: entry.update(shape=5),
        lambda entry: entry.update(data_offsets=[0, 10**15]),
        lambda entry: entry.update(data_offsets=[8, 4]),
        lambda entry: entry.update(data_offsets=[0.0, 4.0]),
        lambda entry: entry.clear(),
    ],
)
def test_weights_that_are_not_where_the_header_says(folder: Path, change: Any) -> None:
    header, data = header_of((folder / "weights.safetensors").read_bytes())
    change(header["velocity.mlp.layers[0].weight"])
    text = json.dumps(header).encode()
    seal(folder, "weights.safetensors", len(text).to_bytes(8, "little") + text + data)
    assert "velocity.mlp.layers[0].weight" in refused(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 7, b"\xff" * 20, (2).to_bytes(8, "little") + b"[]", (3).to_bytes(8, "little")],
)
def test_no_safetensors_in_the_file(folder: Path, content: bytes) -> None:
    seal(folder, "weights.safetensors", content)
    refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda p: p.pop("observation_size"),
        lambda p: p.update(observation_size="many"),
        lambda p: p.update(observation_size=10**15),
        lambda p: p.pop("choice"),
        *(
            lambda p, c=choice: p.update(choice=c)
            for choice in ("own", "softmax-1", "typical", "typical-0", "typical-1.5", 2, None)
        ),
        lambda p: p["programs"][0].pop("noise_shape"),
        lambda p: p["programs"][0]["noise_shape"].append(10**15),
        lambda p: p["programs"][0].update(score={"output": "%0"}),
        lambda p: p["programs"][0]["candidates"].update(output="nothing"),
        lambda p: p["programs"][0]["candidates"]["operations"].append(["%0", "add", [1, 2], {}]),
        lambda p: p["programs"][0]["candidates"]["operations"].clear(),
        lambda p: p["programs"][0]["candidates"]["operations"].pop(3),
        lambda p: p["programs"][0]["candidates"]["operations"][3].pop(),
        lambda p: p["programs"][0]["candidates"]["operations"][3].__setitem__(1, "__import__"),
        lambda p: p["programs"][0]["candidates"]["operations"][3].__setitem__(2, [["a"]]),
        lambda p: p["programs"][0]["candidates"]["operations"][3].__setitem__(3, {"dtype": "S"}),
        lambda p: p["programs"][0]["candidates"]["operations"][0].__setitem__(
            3, {"shape": ["rows", 10**15]}
        ),
    ],
)
def test_programs_that_cannot_run(folder: Path, change: Any) -> None:
    programs = json.loads((folder / "programs.json").read_text())
    change(programs)
    seal(folder, "programs.json", json.dumps(programs).encode())
    assert "describes no policy that can be run" in refused(folder)


# What the formats can express --------------------------------------------------------------


class Everything(AbstractScoredPolicy):
    """Uses whatever array programs know, once at least."""

    matrix: jax.Array
    tensor: jax.Array
    aggregation: Aggregation = eqx.field(static=True)

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (steps, 4)

    def from_noise(self, observation: jax.Array, noise: jax.Array, *, steps: int) -> jax.Array:
        def step(carry: jax.Array, z: jax.Array) -> tuple[jax.Array, jax.Array]:
            carry = jnp.where(z > 0.2, jnp.sin(carry + z), jnp.cos(carry) * jax.nn.sigmoid(z))
            return carry, carry * (z + 4) ** -2

        carry, stacked = jax.lax.scan(step, jnp.ones(4), noise, reverse=True)
        left, right = jnp.split(jnp.abs(stacked[-1]) ** 1.5 + carry, 2)
        both = jnp.stack([left, right])
        mixed = jnp.einsum("ij,kj,kl->il", both, self.matrix, self.matrix)
        mixed = mixed + jnp.einsum("abj,j->ab", self.tensor, observation)[:2, :2]
        mixed = mixed + jnp.einsum("abj,ab->j", self.tensor, self.tensor[..., 0])[None, :2]
        picked = mixed.T[1:, :][0]
        flags = (picked <= 0.5) | ~(picked >= -0.5) & (picked != 0) | (picked == 1) & (picked < 9)
        picked = jnp.where(flags, jnp.sqrt(jnp.square(picked) + 1), jnp.sign(picked))
        total = jnp.max(mixed) - jnp.min(mixed, axis=0) + jnp.log(jnp.exp(jnp.sum(left)) + 1)
        weight = jnp.where(observation[:2] > 0, jnp.float32(jnp.pi), flags.astype(jnp.float32))
        return jax.lax.clamp(
            -1.0, jnp.tanh(0.3 * (total - weight)) / (-picked) * self.matrix[:, 1], 1.0
        )

    def values(self, observation: jax.Array, action: jax.Array, *, steps: int) -> jax.Array:
        constant = jnp.asarray([jnp.inf, 2.0])
        return jnp.minimum(jnp.outer(observation, action).sum(0) * steps, constant)


class Sorting(AbstractPolicy):
    """Does what they cannot express."""

    def check_steps(self, steps: int) -> None:
        pass

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return (2,)

    def from_noise(self, observation: jax.Array, noise: jax.Array, *, steps: int) -> jax.Array:
        return jnp.clip(jnp.sort(noise), -1, 1)


class Still(Sorting):
    """Reads neither noise nor observation."""

    def noise_shape(self, steps: int) -> tuple[int, ...]:
        return ()

    def from_noise(self, observation: jax.Array, noise: jax.Array, *, steps: int) -> jax.Array:
        return jnp.asarray([0.25, -0.5])


def contents_of(policy: AbstractPolicy, graph: Graph, choice: Choice = BEST) -> Contents:
    return Contents(policy, SPEC, [graph], OWN, choice, Budget(graph.steps, 1))


def write(folder: Path, format: str, contents: Contents) -> Callable[..., Any]:
    """An export without a check, loaded."""
    folder.mkdir()
    MODULES[format].write(folder, contents)
    digests = {
        p.name: {"sha256": hashlib.sha256(p.read_bytes()).hexdigest()} for p in folder.iterdir()
    }
    manifest = {"format": 1, "kind": "numpy", "files": digests}
    (folder / "export.json").write_text(json.dumps(manifest))
    return MODULES[format].load(folder)


@pytest.mark.parametrize("format", ["numpy", "onnx"])
@pytest.mark.parametrize("steps", [1, 3])
def test_every_operation_means_the_same(tmp_path: Path, format: str, steps: int) -> None:
    keys = jax.random.split(jax.random.key(0), 2)
    matrix, tensor = (
        jax.random.normal(key, shape) for key, shape in zip(keys, ((2, 2), (4, 2, 3)), strict=True)
    )
    policy = Everything("min", matrix, tensor)
    graph, rng = Graph(steps, True), np.random.default_rng(0)
    run = write(tmp_path / "e", format, contents_of(policy, graph))
    observation = rng.standard_normal((20, 3), np.float32)
    noise = rng.standard_normal((20, 6, steps, 4), np.float32)
    found = run(graph, observation, noise)
    exact = decide(policy, graph, OWN, BEST, jnp.asarray(observation), jnp.asarray(noise))
    assert len(np.unique(np.asarray(exact.candidates))) > 60
    np.testing.assert_allclose(found.candidates, exact.candidates, atol=1e-4)
    np.testing.assert_allclose(found.scores, exact.scores, atol=1e-3)


@pytest.mark.parametrize("format", list(MODULES))
def test_a_policy_that_reads_nothing(tmp_path: Path, format: str) -> None:
    run = write(tmp_path / "e", format, contents_of(Still(), Graph(1, False)))
    found = run(Graph(1, False), np.zeros((4, 3), np.float32), np.zeros((4, 1), np.float32))
    np.testing.assert_array_equal(found.action, [[0.25, -0.5]] * 4)


@pytest.mark.parametrize("format", ["numpy", "onnx"])
def test_what_a_format_cannot_express_is_refused(tmp_path: Path, format: str) -> None:
    contents = contents_of(Sorting(), Graph(1, False))
    with pytest.raises(InputError, match=r"Sorting cannot be exported .* sort .*use the format st"):
        write(tmp_path / "e", format, contents)
    run = write(tmp_path / "s", "stablehlo", contents)
    noise = np.array([[[2, -0.5]]], np.float32)
    assert run(Graph(1, False), np.zeros((1, 3), np.float32), noise).action.tolist() == [[-0.5, 1]]


# The check ---------------------------------------------------------------------------------

CHOOSING = Graph(4, True)


def compare_with(
    change: Callable[[Outputs], Outputs], choice: Choice = BEST, told: Choice | None = None
) -> check.Difference:
    """What the check says of an export that chooses by `choice` and is told to be by `told`."""
    contents = contents_of(policy_of("sorl").module, CHOOSING, told or choice)

    def run(graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
        arrays = jnp.asarray(observation), jnp.asarray(noise)
        answer = _decide(contents.policy, graph, OWN, choice, *arrays)
        return change(jax.tree.map(np.array, answer))

    return check.compare(contents, CHOOSING, run, candidates=3)


_decide = eqx.filter_jit(decide)


def choose(answer: Outputs, scores: np.ndarray) -> Outputs:
    rows = np.arange(len(scores))
    action = answer.candidates[rows, np.argmax(scores, axis=1)]
    return Outputs(action, answer.candidates, scores)


def test_the_check_lets_rounding_pass_even_where_it_changes_the_choice() -> None:
    found = compare_with(lambda answer: answer)
    assert found.best_of == 3
    assert max(found.actions, found.scores or 0.0) < 1e-5
    noise = np.random.default_rng(0).uniform(-5e-5, 5e-5, (1000, 3)).astype(np.float32)
    moved = compare_with(lambda answer: choose(answer, answer.scores + noise))
    assert 1e-5 < (moved.scores or 0.0) < 1e-4


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a._replace(action=a.action + np.float32(2e-4)),
        lambda a: a._replace(candidates=a.candidates + np.float32(2e-4)),
        lambda a: a._replace(scores=a.scores + np.float32(1e-2)),
        lambda a: a._replace(action=a.candidates[np.arange(1000), np.argmin(a.scores, axis=1)]),
        lambda a: choose(a, -a.scores),
        lambda a: a._replace(action=a.action * np.nan),
        lambda a: a._replace(scores=a.scores * np.nan),
    ],
)
def test_the_check_finds_wrong_actions_scores_and_choices(change: Any) -> None:
    with pytest.raises(InputError, match="The export of 4xN differs"):
        compare_with(change)


def test_the_check_asks_a_policy_that_standardises_about_observations_like_its_data() -> None:
    mean, scale = (1e3, -50.0, 0.0), (5.0, 0.125, 1.0)
    units = Units(observation_mean=mean, observation_scale=scale)
    graph = Graph(1, False)
    contents = contents_of(in_units(policy_of("bc").module, units), graph)
    asked = []

    def run(graph: Graph, observation: np.ndarray, noise: np.ndarray) -> Outputs:
        asked.append(observation)
        arrays = jnp.asarray(observation), jnp.asarray(noise)
        return jax.tree.map(np.array, _decide(contents.policy, graph, OWN, BEST, *arrays))

    check.compare(contents, graph, run, candidates=1)
    between = (np.concatenate(asked) - np.array(mean)) / np.array(scale)
    assert between.shape == (1000, 3)
    np.testing.assert_allclose(between.mean(axis=0), 0, atol=0.15)
    np.testing.assert_allclose(between.std(axis=0), 1, atol=0.15)


def test_the_check_knows_the_choices_apart() -> None:
    typical = Choice("typical", 2)
    for choice in (BEST, CENTRAL, typical):
        found = compare_with(lambda answer: answer, choice)
        assert (found.scores is None) == (choice == CENTRAL)
    for choice, told in ((BEST, typical), (typical, BEST), (BEST, CENTRAL), (typical, CENTRAL)):
        with pytest.raises(InputError, match="The export of 4xN differs"):
            compare_with(lambda answer: answer, choice, told)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("best", [3]),
        ("central", [0, 1]),
        ("typical-1", [0, 1]),
        ("typical-2", [1]),
        ("typical-3", [2]),
        ("typical-4", [3]),
        ("typical-9", [3]),
    ],
)
def test_what_the_check_takes_for_a_possible_choice(text: str, expected: list[int]) -> None:
    # On a line: the two in the middle are as near to all others but for rounding.
    candidates = np.asarray([[[0.0], [1e-6], [-0.5], [0.75]]], np.float32)
    scores = np.asarray([[0.0, 1.0, 2.0, 3.0]], np.float32)
    possible = check.may_be_chosen(
        Choice.parse(text), candidates, None if text == "central" else scores
    )
    assert np.flatnonzero(possible[0]).tolist() == expected


def test_an_export_that_differs_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    export(policy_of("bc"), out, format="numpy")
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    monkeypatch.setitem(numpy_policy.OPERATIONS, "tanh", np.sin)
    for folder in (out, tmp_path / "other"):
        with pytest.raises(InputError, match="differs from the policy"):
            export(policy_of("bc"), folder, format="numpy")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# The command -------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    policy = policy_of("bc")
    about = {"algorithm": policy.algorithm, "spec": SPEC, "update": 100, "provenance": {}}
    for member in (Member(1, 0), Member(1, 7)):
        folder = tmp_path / "run" / "policy" / str(member)
        save_policy(folder, policy.module, member=member, **about)
    return tmp_path / "run"


def test_the_command(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(saved), "--format", "onnx", "--out", str(out)]
    assert cli.run([*arguments, "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "1x1: largest difference of actions" in printed
    assert f"wrote {out}: task1-seed7 as onnx" in printed
    assert sorted(path.name for path in out.iterdir()) == ["1x1.onnx", "export.json"]
    assert cli.run(arguments) == 0
    assert json.loads((out / "export.json").read_text())["member"]["seed"] == 0
    folder = saved / "policy" / "task1-seed0"
    assert cli.run(["export", str(folder), "--format", "numpy", "--out", str(out)]) == 0
    assert not (out / "1x1.onnx").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--budgets", "4x1"], "cannot act in 4 sampling steps"),
        (["--budgets", "1x2"], "no critic"),
        (["--budgets", "four"], "cannot be read"),
        (["--verifier", "best"], "'best' cannot be read"),
        (["--choice", "worst"], "'worst' cannot be read"),
        (["--choice", "softmax-1"], "softmax-1.0 draws at random"),
        (["--choice", "typical-2", "--budgets", "1x2"], "no critic"),
        (["--seed", "3"], "no policy with seed 3"),
    ],
)
def test_impossible_wishes(
    saved: Path, tmp_path: Path, capsys: Any, arguments: list[str], expected: str
) -> None:
    out = tmp_path / "out"
    base = ["export", str(saved), "--format", "numpy", "--out", str(out)]
    assert cli.run([*base, *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_that_is_no_export_is_not_replaced(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["export", str(saved), "--format", "numpy", "--out", str(saved)]) == 2
    assert "is there and is no export" in capsys.readouterr().err
    assert (saved / "policy").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("export.json", b'{"format": 1, "files": {"thesis.tex": {}}}', "is there and is no export"),
        ("export.json", b'{"format": 9, "kind": "onnx", "files": {}}', "is there and is no export"),
        ("export.json", b'{"format": 1, "kind": "onnx"}', "is there and is no export"),
        ("export.json", b"[]", "is there and is no export"),
        ("thesis.tex", b"", "thesis.tex is no part of the export"),
        (".git/config", b"", ".git is no part of the export"),
        ("weights.safetensors/mine", b"", "weights.safetensors is no part of the export"),
    ],
)
def test_what_lies_in_the_folder_besides_an_export_is_never_removed(
    saved: Path, tmp_path: Path, capsys: Any, name: str, content: bytes, expected: str
) -> None:
    out = tmp_path / "out"
    arguments = ["export", str(saved), "--format", "numpy", "--out", str(out)]
    assert cli.run(arguments) == 0
    (out / "__pycache__").mkdir()
    assert cli.run(arguments) == 0, "only what Python has made of numpy_policy.py"
    path = out / name
    if path.parent != out:
        path.parent.unlink(missing_ok=True)
        path.parent.mkdir()
    path.write_bytes(content)
    before = sorted(out.rglob("*"))
    capsys.readouterr()
    assert cli.run(arguments) == 2
    message = capsys.readouterr().err
    assert expected in message
    assert message.count("\n") == 1
    assert sorted(out.rglob("*")) == before
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("format", "package"), [("onnx", "onnxruntime"), ("stablehlo", "flatbuffers")]
)
def test_a_missing_package_is_named(
    saved: Path, tmp_path: Path, monkeypatch: Any, capsys: Any, format: str, package: str
) -> None:
    monkeypatch.delitem(sys.modules, f"sorl.deployment.export.{format}_format")
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "out"
    assert cli.run(["export", str(saved), "--format", format, "--out", str(out)]) == 2
    assert f"pip install 'sorl[{format}]'" in capsys.readouterr().err
    assert not out.exists()
