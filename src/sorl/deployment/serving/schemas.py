"""What goes in and out of the server as JSON, with the very bounds of one policy and one server."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    create_model,
)

from sorl import inference
from sorl.algorithm import AbstractScoredPolicy
from sorl.deployment.policy import Policy
from sorl.deployment.serving.batching import Batcher
from sorl.errors import InputError
from sorl.inference import Strategy
from sorl.samplers import Sampler
from sorl.types import MAX_BEST_OF, MAX_SEED, MAX_STEPS, Budget

CHOSEN_BY_DEADLINE = ("steps", "best_of", "sampler", "verifier", "choice")
"""What a request with a deadline leaves out."""

MAX_ENTRY = 1e9
"""Largest size of an observation's entry: far beyond it float32 overflows inside a network."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request may ask for; the method's own budget is always served.

    Args:
        max_steps: most sampling steps. Compiling takes longer in proportion to them.
        max_best_of: most candidates for each observation.
        max_seconds: from a request's arrival to its answer; also the longest deadline.

    Raises:
        InputError: a number is out of range.
    """

    max_steps: int = 32
    max_best_of: int = 64
    max_seconds: float = 10.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value, most in (
            ("max_steps", self.max_steps, MAX_STEPS),
            ("max_best_of", self.max_best_of, MAX_BEST_OF),
            ("max_seconds", self.max_seconds, 3600),
        ):
            if not 0 < value <= most:
                raise InputError(f"{name}={value} is not possible: use more than 0, to {most}.")


class SpentBudget(BaseModel):
    """Compute of one decision."""

    steps: int = Field(description="Sampling steps of one candidate.")
    best_of: int = Field(description="Candidates that the action was chosen among.")


class Information(BaseModel):
    """What the actions were chosen from; one entry for each observation."""

    chosen: list[int] = Field(description="Place of the action among the candidates.")
    candidates: list[list[list[float]]] = Field(description="Actions in the order drawn.")
    scores: list[list[float]] = Field(description="The verifier's score of each candidate.")
    steps: list[list[int]] = Field(description="Sampling steps of each candidate.")


class Answer(BaseModel):
    """Actions and what they cost."""

    actions: list[list[float]] = Field(
        description="One action per observation, within action_low and action_high of GET /policy."
    )
    budget: SpentBudget = Field(description="What was spent on each observation.")
    seed: int = Field(description="With the same seed the same request gives the same actions.")
    update: int = Field(description="After how many updates the policy was saved.")
    milliseconds: float = Field(description="From the request's arrival to the actions.")
    info: Information | None = Field(description="Present if asked for, else null.")


class Budgets(BaseModel):
    """Which compute a request can choose."""

    default: str = Field(description="What the method uses by itself, steps x best-of.")
    compiled: list[str] = Field(description="Budgets that are ready; others compile at first use.")
    steps: list[int] = Field(description="Numbers of sampling steps that can be served.")
    max_best_of: int = Field(description="Most candidates.")
    samplers: list[str] = Field(description="How candidates can be drawn.")
    deadlines: bool = Field(description="Whether a budget can be chosen by a deadline.")


class RequestLimits(BaseModel):
    """What one request may be."""

    max_observations: int
    max_body_bytes: int
    max_seconds: float


class Served(BaseModel):
    """The policy that acts here."""

    algorithm: str
    hyperparameters: dict[str, Any]
    observation_size: int
    action_size: int
    action_low: list[float] = Field(description="The least value of each entry of an action.")
    action_high: list[float] = Field(description="The largest.")
    task: int
    seed: int = Field(description="Seed of the training.")
    update: int
    budgets: Budgets
    limits: RequestLimits
    provenance: dict[str, Any] = Field(description="Data, training and versions it comes from.")


class Health(BaseModel):
    """That the server answers."""

    status: Literal["ok"]


class ErrorAnswer(BaseModel):
    """Why there is no answer."""

    error: str = Field(description="One sentence: what is wrong and what to do.")


def servable_steps(policy: Policy, most: int) -> list[int]:
    """Numbers of sampling steps, up to `most`, that the policy can serve."""
    found = []
    for steps in range(1, most + 1):
        try:
            policy.module.check_steps(steps)
        except InputError:
            continue
        found.append(steps)
    return found


def servable_samplers(policy: Policy, steps: list[int]) -> list[str]:
    """Samplers that the policy can serve with one of these numbers of steps, at best-of 2."""
    found = []
    for sampler in get_args(Sampler):
        for count in steps:
            try:
                inference.check(policy.module, Budget(count, 2), Strategy(sampler=sampler))
            except InputError:
                continue
            found.append(sampler)
            break
    return found or ["independent"]


def _whole(value: Any) -> Any:
    """JSON does not tell 4 from 4.0, and some clients write the latter."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _optional(kind: Any, description: str, **bounds: Any) -> Any:
    """A field that may be left out, but not be null."""
    extra = bounds.pop("extra", {})

    def finish(schema: dict[str, Any]) -> None:
        schema.pop("default", None)
        schema.update(extra)

    return kind, Field(default=None, description=description, json_schema_extra=finish, **bounds)


def request_model(batcher: Batcher, limits: Limits) -> type[BaseModel]:
    """What `POST /act` takes, with the very bounds of this policy and server."""
    policy = batcher.policy
    steps = servable_steps(policy, limits.max_steps)
    size, own = policy.spec.observation_size, policy.algorithm.own_budget
    scored = isinstance(policy.module, AbstractScoredPolicy)
    samplers = servable_samplers(policy, steps)
    number = Annotated[float, Field(ge=-MAX_ENTRY, le=MAX_ENTRY, allow_inf_nan=False)]
    row = Annotated[list[number], Field(min_length=size, max_length=size)]
    # Errors of one row are enough: a batch of wrong images would be a hundred thousand.
    rows: Any = Annotated[list[row], FailFast()]  # pyright: ignore[reportInvalidTypeForm]
    whole = Annotated[int, BeforeValidator(_whole)]
    # The schema also says which combinations there are; they are checked where they are made.
    together: dict[str, Any] = {
        "not": {
            "required": ["deadline_ms"],
            "anyOf": [
                *({"required": [name]} for name in CHOSEN_BY_DEADLINE),
                {"required": ["info"], "properties": {"info": {"const": True}}},
            ],
        }
    }
    if "renoise" in samplers:
        possible: list[dict[str, Any]] = [
            {"properties": {"steps": {"multipleOf": 2}}}
            | ({"required": ["steps"]} if own.steps % 2 else {}),
            {"properties": {"best_of": {"const": 1}}}
            | ({"required": ["best_of"]} if own.best_of > 1 else {}),
        ]
        together["if"] = {"properties": {"sampler": {"const": "renoise"}}, "required": ["sampler"]}
        together["then"] = {"anyOf": possible}
    return create_model(
        "Ask",
        __config__=ConfigDict(strict=True, extra="forbid", json_schema_extra=together),
        __doc__="Observations, and the compute for each of them.",
        observations=(
            rows,
            Field(
                min_length=1,
                max_length=batcher.max_batch,
                description="One list of numbers per observation.",
            ),
        ),
        steps=_optional(
            whole,
            f"Sampling steps of one candidate; {own.steps} if left out.",
            ge=1,
            le=limits.max_steps,
            extra={} if len(steps) == limits.max_steps else {"enum": steps},
        ),
        best_of=_optional(
            whole,
            f"Candidates among which one is chosen; {own.best_of} if left out.",
            ge=1,
            le=limits.max_best_of if scored else 1,
        ),
        deadline_ms=_optional(
            float,
            "Milliseconds from the arrival of the request within which the actions must be there; "
            "the best budget that fits is chosen, and how it is spent. Not together with "
            f"{', '.join(CHOSEN_BY_DEADLINE)}, nor with info.",
            gt=0,
            le=1e3 * limits.max_seconds,
        ),
        seed=_optional(
            whole, "Seed of the sampling noise; drawn afresh if left out.", ge=0, le=MAX_SEED
        ),
        sampler=_optional(
            Literal[tuple(samplers)],  # pyright: ignore[reportInvalidTypeForm]
            "How candidates are drawn; independent if left out.",
        ),
        verifier=_optional(
            str,
            "How the critic's heads become one score: own (as the method does), mean, min, or "
            "such as mean-0.5std.",
            pattern=r"^(own|mean|min|mean-[0-9]{1,3}(\.[0-9]{1,6})?std)$",
        ),
        choice=_optional(
            str,
            "Which candidate acts: own (as the method does), best (the highest score), central "
            "(the nearest to all others), or such as typical-2 (the highest of the two most "
            "central) or softmax-1.",
            pattern=r"^(own|best|central|typical-[1-9][0-9]{0,3}"
            r"|softmax-([1-9][0-9]{0,2}(\.[0-9]{1,6})?|0\.[0-9]{0,5}[1-9]))$",
        ),
        info=_optional(
            bool,
            "Whether to tell candidates and scores as well; needs a critic.",
            extra={} if scored else {"const": False},
        ),
    )


def sentence(error: ValidationError) -> str:
    """The first thing that is wrong with a request, and how many more were found."""
    first, *others = error.errors(include_url=False, include_context=False, include_input=False)
    place = "The body"
    for step in first["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{ascii(step)[1:-1][:40]}"
    more = f" (and {len(others)} more)" if others else ""
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"{place.removeprefix('The body.')}: {reason}{more}; see /docs."
