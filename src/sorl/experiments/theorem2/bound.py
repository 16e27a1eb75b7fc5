"""The bound of the theorem: regularization to the behaviour at every step size, with its proof.

The statement has the form of Theorem 2 of SORL (arXiv 2505.22866); the constants are ours.

Notation. Noise z_0 = x_0 ~ N(0, I). z_t: the exact flow dz = v_t(z) dt, whose law at t is p_t, the
law of the straight interpolation that training sees, so that an error in L2(p_t) is an error at
z_t. ‖·‖: root of the mean square over the noise. π_k: the end x_k of x_{i+1} = x_i + h s(x_i, i h,
h), where h = 1/k. M: the most steps in training, h_m = 1/M. Assumed, at the times at which steps of
the size begin:

    flow matching      ‖s(z_t, t, h_m) - v_t(z_t)‖ ≤ ε_FM
    self-consistency   ‖s(z_t, t, 2h) - ½ [s(z_t, t, h) + s(z_t + h s(z_t, t, h), t+h, h)]‖
                       ≤ ε_SC(2h)
    smoothness         s(·, t, h) is L-Lipschitz;  ‖d/dt v_t(z_t)‖ ≤ A

(A ≤ sup_t ‖∂_t v_t(z_t)‖ + L_v √M_v for an L_v-Lipschitz drift with E|v_t|² ≤ M_v, by the chain
rule: this is where the paper's L_v and M_v enter.) Then for every h = 2^-κ ≥ h_m

    W2(π_k, behaviour) ≤ e √d + G (R_{h_m} [h_m A / 2 + ε_FM] + Σ_{2h_m ≤ g ≤ h} R_g ε_SC(g)),

    G = ((1 + h L)^k - 1) / L ≤ (e^L - 1) / L,
    R_g = Π_{g ≤ g' < h} (1 + g' L / 2) ≤ e^{(h - g) L / 2}    (sizes g, g' are doubled from h_m on)

Proof. Let Φ_i(x) = x + h s(x, i h, h) be one step, Λ_i its Lipschitz constant, and
δ_i = ‖Φ_i(z_{ih}) - z_{(i+1)h}‖ its error from the true law.

1. Steps. x and z start alike and |x_{i+1} - z_{(i+1)h}| ≤ |Φ_i(x_i) - Φ_i(z_{ih})|
   + |Φ_i(z_{ih}) - z_{(i+1)h}|, so ‖x_{i+1} - z_{(i+1)h}‖ ≤ Λ_i ‖x_i - z_{ih}‖ + δ_i and
   ‖x_k - z_1‖ ≤ Σ_i δ_i Π_{j>i} Λ_j. The pair (x_k, z_1) is a coupling of π_k and p_1, hence W2
   is at most that; and W2(p_1, behaviour) ≤ e √d, since z_1 is distributed as x1 + e x0.
2. Finest size. δ_i ≤ h_m ‖s - v‖ + ‖z_{t+h_m} - z_t - h_m v_t(z_t)‖ ≤ h_m ε_FM + h_m² A / 2, the
   latter being ‖∫ (t + h_m - u) (d/du v_u(z_u)) du‖ over one step, by Minkowski.
3. Doubling. Two steps of h from z_t end at z_t + 2h · ½ [...], so δ^{2h}_i ≤ 2h ε_SC(2h)
   + ‖Φ_{2i+1}(Φ_{2i}(z)) - z_{t+2h}‖, and as Φ_{2i}(z) is off p_{t+h} by δ_{2i},
   δ^{2h}_i ≤ 2h ε_SC(2h) + Λ_{2i+1} δ_{2i} + δ_{2i+1}.

That is `step_by_step`: it keeps ε and Λ of every step. With Λ ≤ 1 + h L and the largest ε,
D_h = max δ / h obeys D_{2h} ≤ ε_SC(2h) + (1 + h L / 2) D_h, whose solution is the bracket, and the
sum of (1) is geometric: that is `one_constant`. Both are linear in (A, ε_FM, ε_SC), so each is a
sum of three terms. Λ ≤ 1 + h L is wasteful where s pulls together (Λ < 1), as flows to narrow modes
do.

Actions that policies return are clipped to the box [-1, 1]^d. Clipping is a projection onto a
convex set, so 1-Lipschitz: for a behaviour inside the box the bound holds for clipped actions too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Errors:
    """What was measured under p_t; all are roots of mean squares of Euclidean norms.

    Attributes:
        flow_matching: ε_FM of every step of the finest size, `[M]`.
        acceleration: A of every such step, `[M]`.
        self_consistency: ε_SC of every coarser step: from the number of steps k = 1, 2, ...,
            M/2 to `[k]`.
        left_noise: e √d.
    """

    flow_matching: Values
    acceleration: Values
    self_consistency: Mapping[int, Values]
    left_noise: float = 0.0

    @property
    def finest(self) -> int:
        """M."""
        return len(self.flow_matching)


@dataclasses.dataclass(frozen=True)
class Terms:
    """The bound of one step size.

    Attributes:
        discretisation: what the finest steps leave of a curved flow, and e √d.
        flow_matching: what errors of the drift at the finest size add.
        self_consistency: what errors of the coarser sizes add.
    """

    discretisation: float
    flow_matching: float
    self_consistency: float

    @property
    def bound(self) -> float:
        """Their sum."""
        return self.discretisation + self.flow_matching + self.self_consistency


def step_by_step(errors: Errors, step_lipschitz: Mapping[int, Values]) -> dict[int, Terms]:
    """The bound with errors and Lipschitz constants of every step: (1) to (3) of the proof.

    Args:
        errors: what was measured.
        step_lipschitz: Λ_i of every step, from the number of steps k = 1, 2, ..., M to `[k]`.

    Returns:
        From the number of steps to its terms.
    """
    finest = errors.finest
    size = 1 / finest
    # Rows are the three terms.
    step = np.zeros((3, finest))
    step[0] = size**2 * errors.acceleration / 2
    step[1] = size * errors.flow_matching
    terms = {}
    steps = finest
    while True:
        distance = np.zeros(3)
        for i in range(steps):
            distance = step_lipschitz[steps][i] * distance + step[:, i]
        terms[steps] = _terms(errors, distance)
        if steps == 1:
            return terms
        step = step_lipschitz[steps][1::2] * step[:, ::2] + step[:, 1::2]
        steps //= 2
        step[2] += errors.self_consistency[steps] / steps


def one_constant(errors: Errors, lipschitz: float) -> dict[int, Terms]:
    """The bound with one Lipschitz constant L > 0 of s in z and the largest errors: the theorem.

    Returns:
        From the number of steps to its terms; infinite where they are too large for a float.
    """
    acceleration = float(errors.acceleration.max())
    flow_matching = float(errors.flow_matching.max())
    terms = {}
    finest = errors.finest
    single = np.array([acceleration / (2 * finest), flow_matching, 0.0])
    steps = finest
    with np.errstate(over="ignore", invalid="ignore"):
        while True:
            growth = np.expm1(steps * math.log1p(lipschitz / steps)) / lipschitz
            # An error of 0 stays 0 however much it could grow.
            values = np.where(single > 0, growth * single, 0.0)
            terms[steps] = _terms(errors, values)
            if steps == 1:
                return terms
            single = (1 + lipschitz / steps / 2) * single
            steps //= 2
            single[2] += float(errors.self_consistency[steps].max())


def _terms(errors: Errors, values: Values) -> Terms:
    discretisation, flow_matching, self_consistency = map(float, values)
    return Terms(errors.left_noise + discretisation, flow_matching, self_consistency)
