"""The HTTP interface of a policy: routes and schemas.

    POST /act           actions for observations, with compute chosen by this very request
    GET  /policy        what is served, which budgets, which limits
    GET  /healthz       whether it answers
    GET  /metrics       counters for Prometheus
    GET  /docs          these routes for people; /openapi.json the same for programs

Every error is `{"error": "one sentence"}`:

    400 no JSON, 401 no token, 404 no such path, 405 no such method, 408 body too slow, 413 body too
    large, 415 not declared as JSON, 421 asked by the name of another host, 422 values that the
    policy cannot serve, 409 what it has not been prepared for (a deadline without calibration), 503
    overloaded or stopping, 504 a deadline or the server's own limit of time that cannot be met, 500
    a defect (the log has the traceback)

A deadline counts from the arrival of the request's head to the computed action: reading the body
and waiting in the queue are taken off, the way through the network is not. Requests that cannot
meet theirs any more are answered 504 without computing anything.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from fastapi import FastAPI, Security
from fastapi.security import HTTPBearer
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import sorl
from sorl import algorithms
from sorl.algorithm import AbstractScoredPolicy
from sorl.choices import Choice
from sorl.deployment.policy import Policy, told_of
from sorl.deployment.serving import pages
from sorl.deployment.serving.batching import (
    Batcher,
    LateError,
    Order,
    Outcome,
    OverloadedError,
    Plan,
    StoppingError,
    UnpreparedError,
    plan_of,
)
from sorl.deployment.serving.counters import CONTENT_TYPE_LATEST, ServerMetrics
from sorl.deployment.serving.listener import is_local
from sorl.deployment.serving.request_body import read_json
from sorl.deployment.serving.schemas import (
    CHOSEN_BY_DEADLINE,
    Answer,
    ErrorAnswer,
    Health,
    Limits,
    Served,
    request_model,
    sentence,
    servable_samplers,
    servable_steps,
)
from sorl.errors import InputError
from sorl.inference import Strategy
from sorl.types import Budget
from sorl.verifiers import Verifier

_MOST_BYTES = 2**28
"""Bodies that are read at a time have no more bytes together, but one there always is."""

_OPEN = ("/healthz", "/docs", "/openapi.json")
"""Paths that need no token: they tell nothing that the policy has learned."""


def create_app(
    batcher: Batcher,
    metrics: ServerMetrics,
    *,
    limits: Limits = Limits(),  # noqa: B008 - frozen
    token: str | None = None,
    host: str = "localhost",
) -> FastAPI:
    """The application; `batcher` is closed when the application shuts down.

    Args:
        batcher: computes, already warm.
        metrics: counts requests; the batcher counts its batches there.
        limits: what one request may ask for.
        token: what clients have to send as `Authorization: Bearer ...`; None asks for nothing.
        host: where there is no token, the name that clients may give besides localhost and loopback
            addresses.
    """
    policy = batcher.policy
    metrics.watch_queue(lambda: batcher.waiting)
    asks = request_model(batcher, limits)
    max_body = 4096 + 64 * batcher.max_batch * policy.spec.observation_size
    served = _described(batcher, limits, max_body)
    reading = asyncio.Semaphore(max(1, _MOST_BYTES // max_body))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await batcher.close(limits.max_seconds)

    app = FastAPI(
        title="sorl serve",
        description="Actions of a trained policy; every request chooses its own compute.",
        version=sorl.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    for kind, handler in _HANDLERS.items():
        app.add_exception_handler(kind, handler)
    app.add_middleware(_Gate, token=token, host=host, metrics=metrics)
    guarded = _declared(421 if token is None else 401)
    # It only declares the token; `_Gate` asks for it, whatever the path.
    bearer = HTTPBearer(scheme_name="token", auto_error=False)
    asking: list[Any] = [] if token is None else [Security(bearer)]

    async def ordered(request: Request) -> Order:
        """What a request asks for, apart from its body, which need not stay while it waits."""
        # The listener notes it; other servers that run this application do not.
        arrival = request.scope.get("state", {}).get("arrival", time.monotonic())
        try:
            async with asyncio.timeout(limits.max_seconds), reading:
                body = await read_json(request, max_body)
        except TimeoutError as error:
            raise HTTPException(
                408,
                f"The body did not arrive within {limits.max_seconds:g} s: send it faster, or "
                "when others send less.",
            ) from error
        try:
            asked = asks.model_validate(body).model_dump(exclude_unset=True)
        except ValidationError as error:
            raise HTTPException(422, sentence(error)) from error
        return _order(asked, policy, arrival)

    @app.post(
        "/act",
        summary="Choose actions",
        response_model=Answer,
        responses=guarded | _declared(400, 408, 409, 413, 415, 422, 500, 503, 504),
        dependencies=asking,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": asks.model_json_schema()}},
            },
        },
    )
    async def act(request: Request) -> Response:
        """Actions for observations, each with the compute that this request asks for.

        Give `steps` and `best_of`, or a `deadline_ms`, or nothing for the method's own budget.
        """
        order = await ordered(request)
        try:
            async with asyncio.timeout(order.arrival + limits.max_seconds - time.monotonic()):
                outcome = await batcher.act(order)
        except TimeoutError as error:
            raise HTTPException(
                504,
                f"The actions were not ready within {limits.max_seconds:g} s: ask for less "
                "compute, or again once the budget is compiled.",
            ) from error
        return _answer(order, outcome, policy.update)

    @app.get(
        "/policy",
        summary="Describe the policy",
        response_model=Served,
        responses=guarded,
        dependencies=asking,
    )
    async def describe() -> Response:
        """What is served: algorithm, sizes, budgets, limits and origin."""
        served["budgets"]["compiled"] = list(map(str, batcher.budgets))
        return _json(served)

    @app.get("/healthz", summary="Tell whether the server answers", response_model=Health)
    async def health() -> Response:
        """Needs no token."""
        return _json({"status": "ok"})

    @app.get(
        "/metrics",
        summary="Read the counters",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **guarded},
        dependencies=asking,
    )
    async def read_metrics() -> Response:
        """Requests, latencies, batches, queue and compute, in the text format of Prometheus."""
        return Response(metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(pages.render(app.openapi()))

    return app


# Requests and answers.


def _order(asked: Mapping[str, Any], policy: Policy, arrival: float) -> Order:
    deadline = asked.get("deadline_ms")
    if deadline is not None and any(name in asked for name in CHOSEN_BY_DEADLINE):
        raise InputError(
            "deadline_ms chooses the budget and how it is spent: leave out "
            f"{', '.join(CHOSEN_BY_DEADLINE)}, or the deadline."
        )
    own = policy.algorithm.own_budget
    budget = Budget(asked.get("steps", own.steps), asked.get("best_of", own.best_of))
    info = asked.get("info", False)
    strategy = Strategy(
        sampler=asked.get("sampler", "independent"),
        verifier=Verifier.parse(asked.get("verifier", "own")),
        choice=Choice.parse(asked.get("choice", "own")),
    )
    return Order(
        observations=np.asarray(asked["observations"], np.float32),
        plan=plan_of(budget, strategy, info) if deadline is None else Plan(None, info=info),
        seed=asked.get("seed", secrets.randbits(32)),
        arrival=arrival,
        deadline_ms=deadline,
    )


def _json(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    # What a client sent may come back in a sentence, so everything beyond ASCII is escaped.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status, headers, "application/json")


def _error(status: int, told: str, headers: Mapping[str, str] | None = None) -> Response:
    return _json({"error": told}, status, headers)


def _answer(order: Order, outcome: Outcome, update: int) -> Response:
    found = outcome.decision
    arrays = [outcome.actions] if found is None else [outcome.actions, found.scores]
    for array in arrays:
        if told := told_of(array, axes=1):
            raise InputError(told)
    info = None
    if found is not None:
        info = {
            "chosen": found.chosen.tolist(),
            "candidates": found.candidates.tolist(),
            "scores": found.scores.tolist(),
            "steps": found.steps.tolist(),
        }
    return _json(
        {
            "actions": outcome.actions.tolist(),
            "budget": {"steps": outcome.budget.steps, "best_of": outcome.budget.best_of},
            "seed": order.seed,
            "update": update,
            "milliseconds": round(1e3 * (time.monotonic() - order.arrival), 3),
            "info": info,
        }
    )


def _described(batcher: Batcher, limits: Limits, max_body: int) -> dict[str, Any]:
    policy = batcher.policy
    hyperparameters = algorithms.describe(policy.algorithm)
    steps = servable_steps(policy, limits.max_steps)
    origin = policy.provenance
    dataset = origin.get("dataset")
    # A white list: paths and the machine are nobody's business.
    shown = {
        name: origin[name]
        for name in ("environment", "training", "versions", "created")
        if name in origin
    }
    if isinstance(dataset, Mapping):
        shown["dataset"] = {k: dataset[k] for k in ("fingerprint", "rows") if k in dataset}
    return {
        "algorithm": hyperparameters.pop("name"),
        "hyperparameters": hyperparameters,
        "observation_size": policy.spec.observation_size,
        "action_size": policy.spec.action_size,
        "action_low": list(policy.units.action_low) or [-1.0] * policy.spec.action_size,
        "action_high": list(policy.units.action_high) or [1.0] * policy.spec.action_size,
        "task": policy.member.task,
        "seed": policy.member.seed,
        "update": policy.update,
        "budgets": {
            "default": str(policy.algorithm.own_budget),
            "compiled": [],
            "steps": steps,
            "max_best_of": limits.max_best_of
            if isinstance(policy.module, AbstractScoredPolicy)
            else 1,
            "samplers": servable_samplers(policy, steps),
            "deadlines": bool(batcher.offers),
        },
        "limits": {
            "max_observations": batcher.max_batch,
            "max_body_bytes": max_body,
            "max_seconds": limits.max_seconds,
        },
        "provenance": shown,
    }


# Errors.

_MEANING = {
    400: "The body is no JSON.",
    401: "The token is missing or wrong.",
    408: "The body took too long to arrive.",
    409: "The policy or the server has not been prepared for this.",
    413: "The body is too large.",
    415: "The body is not declared to be JSON.",
    421: "The request is for the name of another host, and there is no token.",
    422: "The policy cannot serve what is asked.",
    500: "A defect of the server.",
    503: "Too many requests wait, or the server is stopping; Retry-After tells seconds.",
    504: "The deadline, or the server's own limit of time, cannot be met.",
}


def _declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {s: {"model": ErrorAnswer, "description": _MEANING[s]} for s in statuses}


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    told = {
        404: "There is nothing at this path: GET /docs tells what there is.",
        405: "This path has no such method: GET /docs tells which it has.",
    }.get(error.status_code, error.detail)
    return _error(error.status_code, told, error.headers)


def _with_status(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def answer(request: Request, error: Exception) -> Response:
        headers = {"Retry-After": "1"} if status == 503 else None
        return _error(status, str(error), headers)

    return answer


async def _defect(request: Request, error: Exception) -> Response:
    return _error(500, "The server failed on this request: its log tells why.")


_HANDLERS: dict[type[Exception], Callable[[Request, Exception], Awaitable[Response]]] = {
    HTTPException: _http_error,
    InputError: _with_status(422),
    UnpreparedError: _with_status(409),
    OverloadedError: _with_status(503),
    StoppingError: _with_status(503),
    LateError: _with_status(504),
    ClientDisconnect: _with_status(400),  # nobody is there to read it
    Exception: _defect,
}


class _Gate:
    """Every request passes here: it is counted, and must show the token where one is asked for.

    Without one it must come by a name of this machine: pages of whoever owns another name could let
    that name lead here, and a browser would then give them the answers.
    """

    def __init__(self, app: ASGIApp, token: str | None, host: str, metrics: ServerMetrics) -> None:
        self._app = app
        self._host = host
        self._expected = None if token is None else token.encode()
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await (self._refusal(scope) or self._app)(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in (*_OPEN, *_COUNTED) else "other"
            self._metrics.count_request(path, status, time.perf_counter() - began)

    def _refusal(self, scope: Scope) -> Response | None:
        if scope["path"] in _OPEN:
            return None
        asked, shown = (
            [value for name, value in scope["headers"] if name == wanted]
            for wanted in (b"host", b"authorization")
        )
        if self._expected is not None:
            if len(shown) == 1 and _shows(shown[0], self._expected):
                return None
            return _error(
                401,
                "The token is missing or wrong: send it as Authorization: Bearer TOKEN.",
                {"WWW-Authenticate": "Bearer"},
            )
        for host in (value.decode("latin-1") for value in asked):
            if not is_local(host, self._host):
                return _error(
                    421,
                    f"Without a token nobody is answered who asks for {ascii(host)[:80]}: ask for "
                    "localhost or a loopback address, or start the server with a token.",
                )
        return None


def _shows(authorization: bytes, expected: bytes) -> bool:
    scheme, _, shown = authorization.partition(b" ")
    # The comparison takes the same time wherever the first difference is.
    return scheme.lower() == b"bearer" and hmac.compare_digest(shown.strip(), expected)


_COUNTED = ("/act", "/policy", "/metrics")
