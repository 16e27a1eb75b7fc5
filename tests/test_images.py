"""Images of data sets: stacking, shifting, sampling, where they come from, bad ones."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sorl.algorithms.bc import BC
from sorl.cli.train import Options
from sorl.data.dataset import Dataset
from sorl.data.images import PADDING, ImageSettings, augmented, images_of, random_crop
from sorl.data.importing.work import import_files
from sorl.data.mixtures import mix
from sorl.data.sources import load_dataset
from sorl.errors import InputError
from sorl.jobs.job import config_of, job_of, settings_of
from sorl.jobs.work import start
from sorl.types import Budget, Transition

SHAPE = (3, 4, 2)
PLAIN = ImageSettings(augment_probability=0.0)


def frames(rows: int, seed: int = 0, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape), dtype=np.uint8)


def arrays(seed: int = 0, *, state: bool = True, lengths: tuple[int, ...] = (4, 3)) -> dict:
    rows, random = sum(lengths), np.random.default_rng(seed)
    image = frames(rows, seed)
    terminals = np.zeros(rows)
    terminals[np.cumsum(lengths) - 1] = 1
    return {
        "observations": {"image": image, "state": random.normal(size=(rows, 2))}
        if state
        else image,
        "actions": random.uniform(-1, 1, (rows, 2)),
        "terminals": terminals,
        "rewards": random.normal(size=(1, rows)),
        "masks": np.ones((1, rows)),
    }


def by_hand(given: dict, row: int, stack: int) -> np.ndarray:
    """The observation of a row, assembled in plain Python."""
    both = given["observations"]
    image, state = (both["image"], both["state"]) if isinstance(both, dict) else (both, None)
    first = row
    while first > 0 and not given["terminals"][first - 1]:
        first -= 1
    pixels = [
        int(image[max(row - stack + 1 + back, first), y, x, c])
        for y in range(SHAPE[0])
        for x in range(SHAPE[1])
        for back in range(stack)
        for c in range(SHAPE[2])
    ]
    return np.asarray([*pixels, *([] if state is None else state[row])], np.float32)


@settings(max_examples=6, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 5), min_size=1, max_size=4),
    stack=st.integers(1, 4),
    state=st.booleans(),
)
def test_frames_are_stacked_within_episodes(lengths: list, stack: int, state: bool) -> None:
    given_arrays = arrays(state=state, lengths=tuple(lengths))
    dataset = Dataset.from_arrays(**given_arrays).reading_images(
        ImageSettings(frame_stack=stack, augment_probability=0.0)
    )
    rows = np.arange(sum(lengths))
    expected = np.stack([by_hand(given_arrays, row, stack) for row in range(len(rows))])
    np.testing.assert_array_equal(dataset.observed(jnp.asarray(rows)), expected)
    assert dataset.spec.observation_size == expected.shape[1]
    assert dataset.spec.image is not None
    assert dataset.spec.image.shape == (3, 4, 2 * stack)


def test_a_batch_is_its_transitions_one_by_one() -> None:
    given_arrays = arrays()
    dataset = Dataset.from_arrays(**given_arrays).reading_images(PLAIN)
    batch = dataset.sample(jax.random.key(0), 0, 16)
    actions = np.asarray(dataset.actions)
    for place in range(16):
        (row,) = np.flatnonzero((actions == np.asarray(batch.action[place])).all(axis=1))
        np.testing.assert_array_equal(batch.observation[place], by_hand(given_arrays, int(row), 3))
        after = by_hand(given_arrays, int(row) + 1, 3)
        np.testing.assert_array_equal(batch.next_observation[place], after)
    assert dataset.images is not None
    assert dataset.images.frames.dtype == jnp.uint8


def slow_crop(image: np.ndarray, down: int, right: int) -> np.ndarray:
    height, width, _ = image.shape
    result = np.empty_like(image)
    for y, x in np.ndindex(height, width):
        row = min(max(y + down - PADDING, 0), height - 1)
        column = min(max(x + right - PADDING, 0), width - 1)
        result[y, x] = image[row, column]
    return result


@settings(max_examples=10, deadline=None)
@given(down=st.integers(0, 2 * PADDING), right=st.integers(0, 2 * PADDING))
def test_a_crop_is_the_slow_one(down: int, right: int) -> None:
    image = frames(1, shape=(5, 4, 2))[0]
    crop = random_crop(jnp.asarray(image), jnp.asarray([down, right]))
    np.testing.assert_array_equal(crop, slow_crop(image, down, right))


def test_shifts_are_uniform_and_independent() -> None:
    """The image is a ramp, so that one crop tells its shift; s and s' are the same image."""
    side, rows = 2 * PADDING + 3, 4000
    ramp = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), axis=-1)
    dataset = Dataset.from_arrays(
        {"image": np.stack([ramp.astype(np.uint8)] * 2), "state": np.full((2, 1), 7.0)},
        *(np.zeros((2, 1)), [0, 1], np.zeros((1, 2)), np.ones((1, 2))),
    )
    image = dataset.reading_images(dataclasses.replace(PLAIN, frame_stack=2)).spec.image
    assert image is not None
    flat = jnp.concatenate([jnp.tile(jnp.asarray(ramp), 2).reshape(-1) * 1.0, jnp.asarray([7.0])])
    many = jnp.broadcast_to(flat, (rows, flat.size))
    zeros = jnp.zeros(rows)
    batch = Transition(many, zeros[:, None], zeros, zeros, many, zeros[:, None], zeros)
    moved = augmented(batch, image, 0.5, key=jax.random.key(3))
    centre, shifts = side // 2, []
    for seen in (moved.observation, moved.next_observation):
        np.testing.assert_array_equal(seen[:, -1], 7.0)  # the state stays
        pixels = np.asarray(seen[:, :-1]).reshape(rows, side, side, 2, 2)
        np.testing.assert_array_equal(pixels[..., 0, :], pixels[..., 1, :])  # both frames alike
        shifts.append(pixels[:, centre, centre, 0] - centre)
    stayed = ((shifts[0] == 0) & (shifts[1] == 0)).all(axis=1)
    assert abs(stayed.mean() - (0.5 + 0.5 / 7**4)) < 0.04
    for drawn in np.concatenate([shift[~stayed].T for shift in shifts]):
        values, counts = np.unique(drawn, return_counts=True)
        assert values.tolist() == list(range(-PADDING, PADDING + 1))
        assert np.abs(counts / len(drawn) - 1 / 7).max() < 0.04
    four = np.concatenate(shifts, axis=1)[~stayed]
    assert np.abs(np.corrcoef(four.T) - np.eye(4)).max() < 0.1
    unmoved = augmented(batch, image, 0.0, key=jax.random.key(3))
    np.testing.assert_array_equal(unmoved.observation, many)


def test_sampling_shifts_images_and_draws_the_same_rows() -> None:
    plain = Dataset.from_arrays(**arrays()).reading_images(PLAIN)
    always = plain.reading_images(ImageSettings(augment_probability=1.0))
    one, other = (it.sample(jax.random.key(1), 0, 32) for it in (plain, always))
    np.testing.assert_array_equal(one.action, other.action)
    assert not np.array_equal(one.observation, other.observation)
    assert not np.array_equal(one.next_observation, other.next_observation)


def test_fingerprints_know_images_and_not_how_they_are_read() -> None:
    dataset = Dataset.from_arrays(**arrays())
    assert dataset.reading_images(PLAIN).fingerprint == dataset.fingerprint
    changed = arrays()
    changed["observations"]["image"][3, 1, 1, 0] ^= 1
    assert Dataset.from_arrays(**changed).fingerprint != dataset.fingerprint


def test_mixed_images_stay_in_their_episodes() -> None:
    given_arrays = [arrays(0), arrays(1)]
    mixed = mix(
        [Dataset.from_arrays(**it) for it in given_arrays], [None, None], ["a", "b"]
    ).reading_images(PLAIN)
    seen = np.asarray(mixed.observed(jnp.arange(14)))
    for row in range(14):
        np.testing.assert_array_equal(seen[row], by_hand(given_arrays[row // 7], row % 7, 3))


def test_first_rows() -> None:
    ends = np.array([False, False, True, False, True])
    assert images_of(frames(5), ends).first.tolist() == [0, 0, 0, 3, 3]


@pytest.mark.parametrize("state", [False, True])
def test_your_own_episodes(state: bool) -> None:
    image, numbers = frames(4), np.arange(8.0).reshape(4, 2)
    seen: Any = {"image": image, "state": numbers} if state else image
    episode = {"observations": seen, "actions": np.linspace(-1, 1, 3)[:, None], "rewards": [0] * 3}
    dataset = Dataset.from_episodes([episode, episode])
    assert dataset.images is not None
    np.testing.assert_array_equal(dataset.images.frames, np.concatenate([image, image]))
    assert dataset.observations.shape == (8, 2 if state else 0)
    assert dataset.ends.tolist() == [False, False, False, True] * 2


def test_your_own_transitions() -> None:
    """In random order every row is an episode of its own, whose last frame is the next one."""
    image = frames(6)
    order = np.array([4, 0, 2])
    dataset = Dataset.from_transitions(
        image[order],
        np.linspace(-1, 1, 3)[:, None],
        rewards=np.zeros(3),
        next_observations=image[order + 1],
    )
    assert dataset.images is not None
    expected = np.stack([order, order + 1], axis=1).reshape(-1)
    np.testing.assert_array_equal(dataset.images.frames, image[expected])


@pytest.mark.parametrize("state", [False, True])
def test_files(tmp_path: Path, state: bool) -> None:
    given_arrays = arrays(state=state)
    seen = given_arrays.pop("observations")
    stored = {"observations": seen["state"], "images": seen["image"]} if state else {}
    np.savez(
        tmp_path / "mine.npz",
        **{"observations": seen, **given_arrays, **stored}
        | {name: given_arrays[name][0] for name in ("rewards", "masks")},
    )
    loaded = load_dataset(data=tmp_path / "mine.npz")
    assert loaded.fingerprint == Dataset.from_arrays(seen, **given_arrays).fingerprint


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (frames(7).astype(np.float32), "must have 2 dimension"),
        (frames(7)[..., 0], "images must be uint8 of shape"),
        (frames(6), "actions have shape"),
        ({"image": frames(7).astype(float)}, "images must be uint8"),
        ({"picture": frames(7)}, "must hold `image`"),
        ({"image": frames(7), "state": np.zeros((6, 2))}, "images have shape"),
        ({"image": frames(7), "state": np.full((7, 2), np.nan)}, "not a finite number"),
    ],
)
def test_bad_images_get_one_sentence(seen: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected) as raised:
        Dataset.from_arrays(**{**arrays(), "observations": seen})
    assert str(raised.value).startswith("data: ")
    assert str(raised.value).endswith(".")


def test_imported_images(tmp_path: Path) -> None:
    image = frames(6)
    np.savez(
        tmp_path / "log.npz",
        observations=image,
        actions=np.linspace(-2, 2, 6)[:, None],
        rewards=np.zeros(6),
        terminals=[0, 0, 1, 0, 0, 1],
    )
    done = import_files([tmp_path / "log.npz"], tmp_path / "mine")
    assert "images of 3x4x2" in str(done.report)
    loaded = load_dataset(data=done.path)
    assert loaded.images is not None
    # The last frame of a terminated episode is repeated, since nothing came after.
    np.testing.assert_array_equal(loaded.images.frames, image[[0, 1, 2, 2, 3, 4, 5, 5]])
    assert loaded.units.action_high == (2.0,)
    with pytest.raises(InputError, match="cannot be standardised"):
        import_files([tmp_path / "log.npz"], tmp_path / "other", standardize=True)


def test_bad_settings_and_standardising() -> None:
    with pytest.raises(InputError, match="augment_probability=2"):
        ImageSettings(augment_probability=2)
    with pytest.raises(InputError, match="frames=0"):
        ImageSettings(frame_stack=0)
    episode = {"observations": frames(3), "actions": np.eye(2), "rewards": [0, 0]}
    with pytest.raises(InputError, match="cannot be standardised"):
        Dataset.from_episodes([episode], standardize=True)
    other = {**episode, "observations": frames(3, shape=(3, 5, 2))}
    with pytest.raises(InputError, match="images have shape"):
        Dataset.from_episodes([episode, other])


def test_settings_stand_in_a_run(tmp_path: Path) -> None:
    """They come back from config.json, and runs on states say nothing of them."""
    given_arrays = arrays(state=False)
    flat = {**given_arrays, **{name: given_arrays[name][0] for name in ("rewards", "masks")}}
    np.savez(tmp_path / "mine.npz", **flat)
    data = (str(tmp_path / "mine.npz"),)
    options = Options(data=data, encoder="impala", frame_stack=2, augment_probability=0.25)
    job = options.job([Budget(1, 1)])
    algorithm = BC(hidden=(4,))
    dataset = load_dataset(data=data[0]).reading_images(job.images)
    config = config_of(algorithm, job, dataset)
    assert config["images"] == {
        "encoder": "impala",
        "frame_stack": 2,
        "augment_probability": 0.25,
    }
    assert config["spec"]["image"]["frames"] == 2
    assert job_of(config)[0].images == job.images
    usual = dataclasses.replace(job, images=ImageSettings())
    assert "images" not in settings_of(algorithm, usual)
    states = Dataset.from_arrays(**{**given_arrays, "observations": np.zeros((7, 2))})
    assert not {"images", "image"} & {*config_of(algorithm, usual, states)}
    assert job_of(config_of(algorithm, usual, states))[0].images == ImageSettings()
    with pytest.raises(InputError, match="Fitted Q evaluation reads states"):
        start(tmp_path / "run", algorithm, job, quiet=True)
    assert not (tmp_path / "run").exists()
