"""Images from data to decisions: every algorithm, policies, environments, a problem to be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sorl import algorithms, encoders, inference
from sorl.algorithm import AbstractScoredPolicy
from sorl.algorithms.bc import BC
from sorl.algorithms.rebrac import ReBRAC
from sorl.algorithms.sorl import SORL
from sorl.data.dataset import Dataset
from sorl.data.images import ImageSettings
from sorl.deployment.export import check
from sorl.deployment.export.exporting import export
from sorl.deployment.policy import Policy, load_stacked, save_policy
from sorl.deployment.storage import SavedPolicy, policy_folder
from sorl.encoders import Encoder
from sorl.environments import VectorEnvironment
from sorl.errors import InputError
from sorl.evaluation import Evaluator
from sorl.flow_policy import FlowPolicy
from sorl.jobs.calibration import states_of
from sorl.jobs.job import Job, config_of
from sorl.jobs.work import load_data
from sorl.nn import ActionNetwork, Critic
from sorl.runs import Run
from sorl.spaces import take_apart
from sorl.training import train
from sorl.types import Budget, Image, Member, Spec, Transition
from tiny_environments import SideAndState, side_picture

SIDE = "tiny_environments:Side-v0"
BOTH = "tiny_environments:SideAndState-v0"
IMAGE = Image(4, 4, 2, frames=2)
SPEC = Spec(IMAGE.size + 3, 2, IMAGE)
SETTINGS = ImageSettings(frame_stack=2, augment_probability=0.0)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoders, "CHANNELS", (4,))
    monkeypatch.setattr(encoders, "UNITS", 8)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def batch_of(spec: Spec, rows: int = 6) -> Transition:
    random = np.random.default_rng(0)
    pixel_count = spec.observation_size - spec.state_size

    def seen() -> np.ndarray:
        pixels = random.integers(0, 256, (rows, pixel_count))
        return np.concatenate([pixels, random.normal(size=(rows, spec.state_size))], axis=1)

    def acted() -> np.ndarray:
        return random.uniform(-1, 1, (rows, spec.action_size))

    ones = np.ones(rows)
    arrays = (seen(), acted(), random.normal(size=rows), ones, seen(), acted(), ones)
    return Transition(*(jnp.asarray(array, jnp.float32) for array in arrays))


def encoders_in(state: Any) -> dict[str, Encoder]:
    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=lambda x: isinstance(x, Encoder))
    return {jax.tree_util.keystr(path): x for path, x in leaves if isinstance(x, Encoder)}


@pytest.mark.parametrize("name", algorithms.names())
def test_every_algorithm_learns_its_encoders(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run eagerly, since compiling every algorithm again would cost minutes."""

    def loop(start: int, stop: Any, body: Any, carry: Any) -> Any:
        for i in range(start, int(stop)):
            carry = body(jnp.int32(i), carry)
        return carry

    monkeypatch.setattr(jax.lax, "fori_loop", loop)
    kind: Any = algorithms.get(name)
    algorithm = kind(hidden=(4,))
    with jax.disable_jit():
        before = algorithm.init(SPEC, key=jax.random.key(0))
        after, metrics = algorithm.update(
            before, batch_of(SPEC), jnp.int32(0), key=jax.random.key(1)
        )
    assert all(np.isfinite(value) for value in metrics.values())
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(eqx.filter(after, eqx.is_array)))
    old, new = encoders_in(before), encoders_in(after)
    online = [path for path in new if "optimizer" not in path]
    assert online
    for path in online:
        kernel, other = (it[path].stacks[0].convolution.weight for it in (old, new))
        assert not np.array_equal(kernel, other), path
    policy = algorithm.policy(after)
    assert encoders.image_of(policy) == IMAGE


def test_an_image_is_encoded_once_for_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = Encoder.__call__

    def counted(self: Encoder, observation: Any) -> Any:
        calls.append(observation)
        return encode(self, observation)

    monkeypatch.setattr(Encoder, "__call__", counted)
    velocity = ActionNetwork(SPEC, (4,), scalars=1, key=jax.random.key(0))
    critic = Critic(SPEC, 0, (4,), heads=2, key=jax.random.key(1))
    flow = FlowPolicy(velocity=velocity, critic=critic, aggregation="mean")
    shortcut = SORL(hidden=(4,))
    state = shortcut.init(SPEC, key=jax.random.key(2))
    seen, noise = batch_of(SPEC).observation[0], jnp.zeros(2)
    for policy in (flow, shortcut.policy(state)):
        calls.clear()
        jax.make_jaxpr(lambda s, p=policy: p.from_noise(s, noise, steps=8))(seen)
        assert len(calls) == 1
    # The same, one step after the other with the image encoded anew.
    x = jnp.asarray([0.3, -0.4])
    path = x
    for i in range(4):
        path = path + velocity(seen, path, jnp.asarray(i / 4)) / 4
    np.testing.assert_allclose(
        flow.from_noise(seen, x, steps=4), np.clip(path, -1, 1), rtol=1e-5, atol=1e-6
    )


def test_an_image_is_encoded_once_for_all_candidates() -> None:
    algorithm = SORL(hidden=(4,))
    policy = algorithm.policy(algorithm.init(SPEC, key=jax.random.key(0)))
    seen = batch_of(SPEC).observation[0]

    def work(best_of: int) -> float:
        def act(s: Any, key: Any) -> Any:
            return inference.act(policy, s, budget=Budget(2, best_of), key=key)

        lowered: Any = jax.jit(act).lower(seen, jax.random.key(0))
        return lowered.cost_analysis()["flops"]

    lowered: Any = jax.jit(lambda s: encoders.encode(policy.critic.encoder, s)).lower(seen)
    encoding = lowered.cost_analysis()["flops"]
    # Encoded anew, six more candidates would cost twelve images.
    assert work(8) - work(2) < encoding


def bandit(rows: int = 256) -> Dataset:
    """Episodes of one step: a random action towards the bright side is worth what it is."""
    random = np.random.default_rng(1)
    sides, actions = random.integers(2, size=rows), random.uniform(-1, 1, rows)
    shown = np.stack([side_picture(int(side), 0) for side in np.repeat(sides, 2)])
    return Dataset.from_arrays(
        shown,
        np.repeat(actions, 2)[:, None],
        np.tile([0, 1], rows),
        np.repeat(actions * (2 * sides - 1), 2)[None],
        np.tile([0, 1], rows)[None],
    ).reading_images(SETTINGS)


@pytest.fixture(scope="module")
def solved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with the policy of the bandit."""
    folder = policy_folder(tmp_path_factory.mktemp("run"), Member(0, 0))
    algorithm = ReBRAC(hidden=(16,), actor_penalty=0.01, learning_rate=5e-3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoders, "CHANNELS", (4,))
        patch.setattr(encoders, "UNITS", 8)
        dataset = bandit()
        *_, last = train(algorithm, dataset, seeds=[0], updates=400, batch_size=32, chunk=400)
        state = jax.tree.map(lambda leaf: leaf[0], last.state.algorithm)
        save_policy(
            folder,
            algorithm.policy(state),
            algorithm=algorithm,
            spec=dataset.spec,
            member=Member(0, 0),
            update=400,
            provenance={},
        )
    return folder


def test_a_policy_finds_what_the_picture_shows(solved: Path) -> None:
    policy = Policy.load(solved)
    assert policy.spec.image == IMAGE
    pictures = np.stack([np.tile(side_picture(side, 0), 2) for side in (0, 1)])
    actions = policy.act(pictures, key=0)
    np.testing.assert_allclose(actions, [[-1], [1]], atol=0.3)
    flat = pictures.reshape(2, -1)
    np.testing.assert_array_equal(policy.act(flat.astype(float), key=0), actions)
    np.testing.assert_array_equal(policy.act({"image": pictures}, key=0), actions)
    one = policy.act(pictures[1], key=0)
    np.testing.assert_allclose(one, actions[1], atol=1e-5)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (np.zeros((4, 4, 2), np.uint8), r"takes \[4, 4, 4\] \(2 frame"),
        (np.zeros((4, 4, 4)), r"takes \[64\]"),
        ({"image": np.zeros((4, 4, 4))}, "float64, but must be uint8"),
        ({"picture": 0}, "a mapping of picture, but this policy takes image"),
        (np.zeros(63), r"takes \[64\]"),
    ],
)
def test_bad_observations_get_one_sentence(solved: Path, seen: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Policy.load(solved).act(seen, key=0)


def test_evaluation_in_pictures(solved: Path) -> None:
    policies, members = load_stacked(solved.parent.parent)
    with Evaluator(SIDE, workers=1, slots=2) as evaluator:
        (result,) = evaluator.evaluate(policies, members, budgets=[Budget(1, 1)], episodes=4)
        assert result.success == 1.0
        states = BC(hidden=(4,))
        stateful = eqx.filter_vmap(lambda k: states.policy(states.init(Spec(64, 1), key=k)))(
            jax.random.split(jax.random.key(0), 1)
        )
        with pytest.raises(InputError, match="reads states, but the environment shows images"):
            evaluator.evaluate(stateful, members, budgets=[Budget(1, 1)], episodes=1)


def test_workers_stack_frames_across_the_start() -> None:
    with VectorEnvironment(BOTH, slots=1, workers=1, frames=3) as vector:
        assert vector.sizes.image == (4, 4, 6)
        assert vector.sizes.observation_size == 4 * 4 * 6 + 4
        seen = [vector.reset(0, BOTH, 5)]
        seen += [vector.step(0, np.zeros(1, np.float32)) for _ in range(2)]
        flat = vector.observations([0])
    counts = [record["image"][0, 0, ::2].tolist() for record in seen]
    assert counts == [[0, 0, 0], [0, 0, 1], [0, 1, 2]]
    bright = seen[0]["image"][..., 1::2]
    np.testing.assert_array_equal(seen[2]["image"][..., 1::2], bright)
    assert seen[0]["image"].dtype == np.uint8
    np.testing.assert_allclose(seen[2]["observation"], [0.2, -0.5, 1, 0])
    np.testing.assert_array_equal(flat[0, :96], seen[2]["image"].reshape(-1))
    np.testing.assert_allclose(flat[0, 96:], [0.2, -0.5, 1, 0])


def test_spaces_are_taken_apart() -> None:
    environment = SideAndState()
    observation, _ = environment.reset(seed=0)
    image, state = take_apart(environment.observation_space, observation)
    np.testing.assert_array_equal(image, observation["camera"])
    np.testing.assert_allclose(state, [0, -0.5, 1, 0])
    with pytest.raises(InputError, match="instead of uint8"):
        take_apart(environment.observation_space["camera"], np.zeros((4, 4, 3), np.uint8))


def test_scored_policies_see_images_too() -> None:
    algorithm = ReBRAC(hidden=(4,))
    policy = algorithm.policy(algorithm.init(SPEC, key=jax.random.key(0)))
    assert isinstance(policy, AbstractScoredPolicy)
    seen = batch_of(SPEC)
    values = jax.vmap(lambda s, a: policy.values(s, a, steps=1))(seen.observation, seen.action)
    np.testing.assert_allclose(
        values, policy.critic.batch(seen.observation, seen.action), atol=1e-4
    )


def test_calibration_draws_states_as_the_run_reads_them(tmp_path: Path) -> None:
    rng, data = np.random.default_rng(0), tmp_path / "data.npz"
    np.savez(
        data,
        allow_pickle=False,
        observations=rng.normal(size=(8, 3)).astype(np.float32),
        images=rng.integers(0, 256, (8, 4, 4, 2), np.uint8),
        actions=rng.uniform(-1, 1, (8, 2)).astype(np.float32),
        terminals=np.eye(8, dtype=np.float32)[[3, 7]].sum(0),
        rewards=np.zeros(8, np.float32),
        masks=np.ones(8, np.float32),
    )
    job = Job(environment=None, data=data, images=SETTINGS, fitted_q_updates=0)
    dataset = load_data(job)
    assert isinstance(dataset, Dataset)
    run = Run.create(tmp_path / "run", config_of(SORL(hidden=(4,)), job, dataset))
    states = states_of(run, data, 100, seed=0)
    assert states.shape == (6, SPEC.observation_size)
    known = np.asarray(dataset.observed(dataset.valid_rows))
    assert {row.tobytes() for row in states} == {row.tobytes() for row in known}


@pytest.mark.parametrize("format", ["numpy", "onnx"])
def test_exports_see_the_same(tmp_path: Path, format: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export's own check runs on 1,000 random images; here fewer, of odd and even sides."""
    pytest.importorskip("onnxruntime" if format == "onnx" else "numpy")
    monkeypatch.setattr(check, "OBSERVATIONS", 20)
    image = Image(5, 6, 2)
    spec = Spec(image.size + 1, 2, image)
    algorithm = SORL(hidden=(4,))
    module = algorithm.policy(algorithm.init(spec, key=jax.random.key(0)))
    policy = Policy(SavedPolicy(module, algorithm, spec, Member(0, 0), 1, {}), random_seed=0)
    manifest = export(policy, tmp_path / "out", format=format, budgets=[Budget(2, 2)])
    (graph,) = manifest["graphs"]
    assert max(graph["difference"][what] for what in ("actions", "scores")) < 1e-4
    assert manifest["spec"]["image"]["height"] == 5
