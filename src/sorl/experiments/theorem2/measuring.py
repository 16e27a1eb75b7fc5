"""How far the policies are from the behaviour, beside the errors and the bound of the theorem.

Errors of flow matching and of self-consistency are taken at fresh pairs of noise and action, on
their straight interpolation, as training sees them; the half steps of ε_SC are the network's own,
as the theorem has them, while training aims at those of its moving average. Distances are taken of
other samples: the policy of every step size and the exact flow start from the same fresh noise. So
nothing in the comparison of the two holds by construction.

Paths are not clipped to the box of the actions: see the end of the proof in `bound`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sorl import checkpoint
from sorl.experiments.theorem2 import lipschitz
from sorl.experiments.theorem2.batched import at, inputs, residual
from sorl.experiments.theorem2.bound import Errors, Terms, one_constant, step_by_step
from sorl.experiments.theorem2.mixtures import Mixture
from sorl.experiments.theorem2.settings import Setting
from sorl.experiments.theorem2.training import Shortcut, chunks, fresh, trained
from sorl.experiments.theorem2.transport import coupled, wasserstein
from sorl.flows import Velocity

Values = npt.NDArray[np.float64]
Row = dict[str, float | int | str]

# Settles what is random in measuring, apart from the training of the same seed.
MEASURING = 2

CHECKPOINT_SECONDS = 60.0


def measure(
    setting: Setting,
    on_progress: Callable[[int, int], None] | None = None,
    folder: Path | None = None,
) -> list[Row]:
    """Train, and measure at each of `setting.updates`: one row for every step size.

    Args:
        setting: the setting.
        on_progress: told how many parts of the work are done, and of how many.
        folder: where the training is saved once a minute, and goes on from what is there; None
            saves nothing.

    Returns:
        Rows, by updates and then by falling size of the steps, with the columns
        `dimension`, `seed`, `updates`, `h` (the number of steps k = 1/h);
        `w2` (between the policy and independent actions of the behaviour), `w2_floor` (the same
        between two independent samples of the behaviour: what `w2` shows at distance 0),
        `w2_common_noise` (between the policy and the exact flow from the same noise, which is
        free of that floor), `coupled_common_noise` (the distance of that coupling, of the same
        samples, at least the former), `coupled` (the same of all samples);
        `eps_fm` and `eps_sc` (ε_FM, and ε_SC of this size, 0 for the finest: root mean square
        over t) and their largest values over t, `eps_fm_max` and `eps_sc_max`;
        `lipschitz` (seen L), `lipschitz_product` (proven L), `lipschitz_drift` (L_v, proven),
        `second_moment` (M_v), `acceleration` (A);
        `discretisation`, `flow_matching`, `self_consistency` and their sum `bound`, with the seen
        L; `bound_drift` with L_v where that is larger, `bound_product` with the proven L; and
        `stepwise_discretisation` and so on, the sharper bound with errors and seen Lipschitz
        constants of every step.

    Raises:
        InputError: the folder cannot be read or written.
    """
    rows: list[Row] = []
    begun, start = 0, None
    if folder is not None and checkpoint.latest(folder) is not None:
        state, kept = checkpoint.restore(folder, fresh(setting))
        rows, begun = kept["rows"], kept["update"]
        start = begun, state
    sizes = setting.discretization.bit_length()
    parts = chunks(setting) + len(setting.updates) * sizes
    done = chunks(setting) - chunks(setting, begun) + len(rows)

    def advance() -> None:
        nonlocal done
        done += 1
        if on_progress is not None:
            on_progress(done, parts)

    probe = Probe.of(setting, setting.behaviour())
    saved = time.monotonic()
    for updates, state in trained(setting, start):
        advance()
        if updates in setting.updates:
            common = {"dimension": setting.dimension, "seed": setting.seed, "updates": updates}
            proven = lipschitz.of_the_weights(state.actor)
            measured = probe.measure(Shortcut(state.actor), proven, advance)
            rows += [{**common, **row} for row in measured]
        if folder is not None and time.monotonic() - saved >= CHECKPOINT_SECONDS:
            checkpoint.save(folder, updates, state, {"rows": rows})
            saved = time.monotonic()
    return rows


@dataclasses.dataclass(frozen=True)
class Probe:
    """What every velocity of one behaviour is measured with.

    Attributes:
        behaviour: the behaviour.
        finest: M.
        noise: of the errors, `[samples, dimension]`.
        action: of the errors, the same shape.
        flow: the exact flow on the grid of t = i/M from other noise, `[M + 1, samples, dimension]`.
        fresh: independent actions for the transport, `[transport_samples, dimension]`.
        floor: W2 between `fresh` and as many others.
        jacobian_samples: points of one step at which derivatives are taken.
        seed: of where they lie.
    """

    behaviour: Mixture
    finest: int
    noise: Values
    action: Values
    flow: Values
    fresh: Values
    floor: float
    jacobian_samples: int
    seed: int

    @classmethod
    def of(cls, setting: Setting, behaviour: Mixture) -> Probe:
        """Draw all samples and integrate the exact flow."""
        rng = np.random.default_rng([setting.seed, MEASURING])
        shape = setting.samples, behaviour.dimension
        action = behaviour.sample(setting.samples, rng)
        fresh = behaviour.sample(setting.transport_samples, rng)
        others = behaviour.sample(setting.transport_samples, rng)
        return cls(
            behaviour=behaviour,
            finest=setting.discretization,
            noise=rng.normal(size=shape),
            action=action,
            flow=behaviour.flow(rng.normal(size=shape), setting.discretization),
            fresh=fresh,
            floor=wasserstein(fresh, others),
            jacobian_samples=setting.jacobian_samples,
            seed=setting.seed,
        )

    def measure(
        self, velocity: Velocity, proven: float, advance: Callable[[], None] = lambda: None
    ) -> list[Row]:
        """One row for every number of steps k = 1, 2, 4, ..., M; the columns of `measure`.

        Args:
            velocity: s.
            proven: a proven Lipschitz constant of s in x.
            advance: called after every number of steps.
        """
        sizes = [2**power for power in range(self.finest.bit_length())]
        slope, step_lipschitz, ends = 0.0, {}, {}
        for steps in sizes:
            ends[steps], slopes, step_lipschitz[steps] = self._walk(velocity, steps)
            slope = max(slope, float(slopes.max()))
            advance()
        errors = self.errors(velocity)
        theorem = one_constant(errors, slope)
        product = one_constant(errors, proven)
        stepwise = step_by_step(errors, step_lipschitz)
        grid = np.arange(self.finest) / self.finest
        steepest = max(self.behaviour.lipschitz(t) for t in grid)
        drift = one_constant(errors, max(slope, steepest))
        drifts = [np.mean(self._drift(t) ** 2) * self.behaviour.dimension for t in grid]
        rows: list[Row] = []
        for steps in sizes:
            consistency = errors.self_consistency.get(steps, np.zeros(1))
            rows.append(
                {
                    "h": steps,
                    **self._distances(ends[steps]),
                    "eps_fm": _root_mean_square(errors.flow_matching),
                    "eps_fm_max": float(errors.flow_matching.max()),
                    "eps_sc": _root_mean_square(consistency),
                    "eps_sc_max": float(consistency.max()),
                    "lipschitz": slope,
                    "lipschitz_product": proven,
                    "lipschitz_drift": steepest,
                    "second_moment": float(max(drifts)),
                    "acceleration": float(errors.acceleration.max()),
                    **_columns("", theorem[steps]),
                    "bound_drift": drift[steps].bound,
                    "bound_product": product[steps].bound,
                    **_columns("stepwise_", stepwise[steps]),
                }
            )
        return rows

    def errors(self, velocity: Velocity) -> Errors:
        """ε_FM, A and ε_SC of a velocity under p_t."""
        grid = np.arange(self.finest + 1) / self.finest
        finest = float(np.log2(self.finest))
        flow_matching = []
        for t in grid[:-1]:
            z = self._interpolated(t)
            found = np.asarray(at(velocity, *inputs(z, t, finest)), np.float64)
            flow_matching.append(coupled(found, self.behaviour.drift(z, t)))
        # Of one step the larger of the values at its two ends; between them A hardly changes.
        accelerations = np.array(
            [_norm(self.behaviour.acceleration(self._interpolated(t), t)) for t in grid]
        )
        consistency = {}
        for power in range(self.finest.bit_length() - 1):
            steps = 2**power
            consistency[steps] = np.array(
                [
                    _norm(residual(velocity, *inputs(self._interpolated(t), t, float(power))))
                    for t in np.arange(steps) / steps
                ]
            )
        return Errors(
            flow_matching=np.array(flow_matching),
            acceleration=np.maximum(accelerations[:-1], accelerations[1:]),
            self_consistency=consistency,
            left_noise=self.behaviour.left_noise,
        )

    def _walk(self, velocity: Velocity, steps: int) -> tuple[Values, Values, Values]:
        """Where the policy of k steps ends, and Lipschitz constants seen on the way, `[k]` each.

        Derivatives are taken where the proof needs them: between the policy's path and the exact
        flow, and, at the second half of a coarser step, between where its first half ends and the
        exact flow.
        """
        rng = np.random.default_rng([self.seed, MEASURING, steps])
        exact = self.flow[:: self.finest // steps]
        level = float(np.log2(steps))
        x = half = exact[0]
        slopes, step_slopes = [], []
        for i in range(steps):
            t = i / steps
            other = np.concatenate([x, half])
            between = rng.choice(len(other), self.jacobian_samples)
            z = exact[i][between % len(x)]
            points = z + rng.uniform(size=(len(z), 1)) * (other[between] - z)
            slope, step_slope = lipschitz.seen(velocity, *inputs(points, t, level))
            slopes.append(float(slope))
            step_slopes.append(float(step_slope))
            half = exact[i] + np.asarray(at(velocity, *inputs(exact[i], t, level))) / steps
            x = x + np.asarray(at(velocity, *inputs(x, t, level)), np.float64) / steps
        return x, np.array(slopes), np.array(step_slopes)

    def _distances(self, end: Values) -> Row:
        count = len(self.fresh)
        exact = self.flow[-1]
        return {
            "w2": wasserstein(end[:count], self.fresh),
            "w2_floor": self.floor,
            "w2_common_noise": wasserstein(end[:count], exact[:count]),
            "coupled_common_noise": coupled(end[:count], exact[:count]),
            "coupled": coupled(end, exact),
        }

    def _interpolated(self, time: float) -> Values:
        return self.behaviour.interpolate(self.noise, self.action, time)

    def _drift(self, time: float) -> Values:
        return self.behaviour.drift(self._interpolated(time), time)


def _norm(rows: npt.ArrayLike) -> float:
    """Root of the mean squared Euclidean norm of the rows."""
    return float(np.sqrt((np.asarray(rows, np.float64) ** 2).sum(1).mean()))


def _root_mean_square(values: Values) -> float:
    return float(np.sqrt(np.mean(values**2)))


def _columns(prefix: str, terms: Terms) -> Row:
    return {f"{prefix}{name}": value for name, value in dataclasses.asdict(terms).items()} | {
        f"{prefix}bound": terms.bound
    }
