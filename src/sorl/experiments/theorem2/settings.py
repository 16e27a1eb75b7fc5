"""What is trained and measured: one `Setting` a training."""

from __future__ import annotations

import dataclasses

from sorl.errors import InputError
from sorl.experiments.theorem2.mixtures import Mixture, star
from sorl.hyperparameters import check_at_least, check_layers, check_positive, check_power_of_two


@dataclasses.dataclass(frozen=True)
class Setting:
    """One training of the shortcut network on one behaviour, measured at some moments.

    Args:
        dimension: entries of an action.
        seed: seed of everything random in the training and in what is measured.
        updates: when the network is measured, rising; the last is the length of the training.
        hidden: sizes of the hidden layers.
        batch_size: rows of each of the two losses.
        learning_rate: of Adam.
        discretization: M^disc, the finest number of steps; a power of two, at least 2.
        radius: distance of the modes from 0.
        std: standard deviation of a mode.
        samples: pairs of noise and action behind every measured error.
        transport_samples: samples on each side of an optimal transport, at most `samples`.
        jacobian_samples: points of one step of one size at which derivatives are taken.
    """

    dimension: int
    seed: int = 0
    updates: tuple[int, ...] = (300, 3_000, 30_000)
    hidden: tuple[int, ...] = (64, 64, 64)
    batch_size: int = 256
    learning_rate: float = 1e-3
    discretization: int = 128
    radius: float = 0.5
    std: float = 0.25
    samples: int = 1_000
    transport_samples: int = 1_000
    jacobian_samples: int = 128

    def __post_init__(self) -> None:
        """Check what the measurements assume."""
        check_at_least(self, 1, "dimension", "batch_size", "jacobian_samples")
        check_at_least(self, 2, "samples", "transport_samples", "discretization")
        check_power_of_two(self, "discretization")
        check_positive(self, "learning_rate", "radius", "std")
        check_layers(self, "hidden")
        if self.transport_samples > self.samples:
            raise InputError(
                f"Setting transport_samples={self.transport_samples} is more than samples="
                f"{self.samples}: choose fewer."
            )
        if not self.updates or list(self.updates) != sorted({*self.updates, 0})[1:]:
            raise InputError(
                f"Setting updates={self.updates} must be rising numbers of updates above 0."
            )

    def behaviour(self) -> Mixture:
        """Two modes on every axis."""
        return star(self.dimension, radius=self.radius, std=self.std)


def settings(scale: str) -> list[Setting]:
    """The settings of one scale, the cheapest first.

    Args:
        scale: `laptop`: 12 trainings of a small network, some ten minutes of one core;
            `gpu-hour`: 25 of a larger one; `paper`: 40 of SORL's own network and learning rate,
            as long as SORL trains.

    Raises:
        InputError: there is no such scale.
    """
    if scale == "laptop":
        return [Setting(dimension, seed) for dimension in (1, 2, 4, 8) for seed in range(3)]
    if scale == "gpu-hour":
        return [
            Setting(
                dimension,
                seed,
                hidden=(256, 256, 256),
                batch_size=1_024,
                samples=4_000,
                transport_samples=2_000,
                jacobian_samples=256,
            )
            for dimension in (1, 2, 4, 8, 16)
            for seed in range(5)
        ]
    if scale == "paper":
        return [
            Setting(
                dimension,
                seed,
                updates=(1_000, 10_000, 100_000, 1_000_000),
                hidden=(512, 512, 512, 512),
                learning_rate=1e-4,
                samples=8_000,
                transport_samples=2_000,
                jacobian_samples=512,
            )
            for dimension in (1, 2, 4, 8, 16)
            for seed in range(8)
        ]
    raise InputError(f"There is no scale {scale!r}: choose laptop, gpu-hour or paper.")
