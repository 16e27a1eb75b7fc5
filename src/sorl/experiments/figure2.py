"""Figure 2, parallel scaling: more steps than the Q loss was trained through, and best-of-8.

For every training budget M^BTT the policy acts in 1 to 8 steps with one candidate, and, where the
steps are more than M^BTT, with the best of 8 (a star). The paper's choice is the arg max of the
critic; ours, typical-2, stands beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sorl.choices import Choice
from sorl.experiments import looks
from sorl.experiments.cells import Cell, cell
from sorl.experiments.experiment import Experiment
from sorl.experiments.figure1 import STEPS, one_candidate
from sorl.experiments.rows import Rows
from sorl.experiments.scales import Scale
from sorl.jobs.scoring import Scoring
from sorl.report.results import LAST
from sorl.types import Budget

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TRAINED = (1, 2, 4, 8)
"""M^BTT of the figure."""

BEST_OF = 8
CHOICES = (Choice("best"), Choice("typical", 2))


def cells(scale: Scale) -> list[Cell]:
    """SORL for every M^BTT."""
    return [
        cell(
            scale,
            dataset,
            tasks,
            "sorl",
            backprop_steps=trained,
            scorings=scorings(trained, scale),
        )
        for dataset, tasks in scale.environments.items()
        for trained in TRAINED
    ]


def scorings(trained: int, scale: Scale) -> tuple[Scoring, ...]:
    """One candidate in every number of steps, and several in more steps than M^BTT."""
    # Where the paper has stars; for the largest M^BTT, which has none, its own steps.
    beyond = tuple(k for k in STEPS if k > trained) or STEPS[-1:]
    budgets = tuple(Budget(k, BEST_OF) for k in beyond)
    stars = (Scoring(budgets, choice, LAST, scale.episodes) for choice in CHOICES)
    return (one_candidate(scale), *stars)


def draw(rows: Rows, note: str) -> Figure:
    """Success against M^inf, one panel an environment and M^BTT."""
    pairs = [(e, t) for e in rows.values("environment") for t in TRAINED]
    figure, every = looks.panels([f"{e}, M^BTT = {t}" for e, t in pairs], note, width=3.4)
    for axes, (environment, trained) in zip(every, pairs, strict=True):
        here = rows.where(environment=environment, backprop_steps=trained)
        single = [here.where(steps=k, best_of=1).estimate() for k in STEPS]
        looks.line(axes, STEPS, single, position=0, label="one candidate")
        for position, choice in enumerate(CHOICES, start=1):
            stars = here.where(best_of=BEST_OF, choice=str(choice))
            steps = sorted(stars.values("steps"))
            x = [k * 2 ** (0.08 * position) for k in steps]  # beside each other, not on top
            estimates = [stars.where(steps=k).estimate() for k in steps]
            name = "best of 8 (paper)" if choice == CHOICES[0] else f"{choice} of 8 (ours)"
            looks.line(axes, x, estimates, position=position, label=name, star=True)
        axes.axvspan(0.8, trained * 1.15, color="0.93", zorder=0)
        axes.set_xscale("log", base=2)
        axes.set_xlim(0.8, 10.5)
        axes.set_xticks(STEPS, [str(k) for k in STEPS])
        axes.minorticks_off()
        axes.set_xlabel("sampling steps at inference")
        looks.success_axis(axes)
    every[0].legend(frameon=False, fontsize=7, loc="upper left")
    return figure


def findings(rows: Rows, scale: Scale) -> list[str]:
    """What best-of-8 adds to more steps, and whether it makes up for a smaller M^BTT."""
    found = []
    most = STEPS[-1]
    for environment in rows.values("environment"):
        here = rows.where(environment=environment)
        full = here.where(backprop_steps=TRAINED[-1], steps=most, best_of=1)
        whole = looks.percent_interval(full.estimate())
        for trained in TRAINED:
            alone = here.where(backprop_steps=trained, best_of=1)
            parts = [alone.where(steps=k) for k in STEPS]
            values = (part.estimate() for part in parts)
            found.append(
                f"{environment}, M^BTT = {trained}, one candidate in {', '.join(map(str, STEPS))} "
                f"steps: {', '.join(map(looks.percent_interval, values))} {looks.of_last(parts)}."
            )
            at = here.where(backprop_steps=trained, steps=most)
            single = at.where(best_of=1)
            by = [at.where(best_of=BEST_OF, choice=str(choice)) for choice in CHOICES]
            if not (full and single and all(by)):
                continue
            gain = by[0].better_than(single)
            parts = [single, *by]
            texts = [looks.percent_interval(part.estimate()) for part in parts]
            reference = f"; M^BTT = {TRAINED[-1]} reaches {whole} with one"
            found.append(
                f"{environment}, M^BTT = {trained}, {most} steps: one candidate {texts[0]}, best "
                f"of {BEST_OF} {texts[1]}, {CHOICES[1]} of {BEST_OF} {texts[2]} "
                f"{looks.of_last(parts)}{'' if trained == TRAINED[-1] else reference}. "
                f"Best-of-{BEST_OF} beats one candidate with probability "
                f"{looks.percent_interval(gain)}."
            )
    return found


EXPERIMENT = Experiment(
    title="Figure 2: parallel scaling and generalisation past the training budget",
    published=(
        "Success goes on rising with M^inf beyond M^BTT when the best of 8 acts; M^BTT = 1 with "
        "best-of-N recovers the level of M^BTT = 8."
    ),
    cells=cells,
    draw=draw,
    findings=findings,
)
