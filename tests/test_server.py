"""The HTTP interface: what is answered, what is refused and how, and that it survives all of it."""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import jax.numpy as jnp
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from served import OBSERVATION, small_policy
from sorl.choices import Choice
from sorl.deployment.policy import Policy
from sorl.deployment.serving.app import create_app
from sorl.deployment.serving.batching import Batcher, Offer, Plan
from sorl.deployment.serving.counters import ServerMetrics
from sorl.deployment.serving.request_body import read_json
from sorl.deployment.serving.schemas import Limits
from sorl.errors import InputError
from sorl.inference import Strategy
from sorl.types import Budget
from sorl.verifiers import Verifier

TOKEN = "correct.horse.battery.staple"
SPENT = Strategy(verifier=Verifier("min"), choice=Choice("best"))
ONE_ROW = [[0.5, -1, 0.2]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return small_policy(tmp_path_factory.mktemp("policies") / "policy")


def made(
    policy: Policy,
    *,
    token: str | None = None,
    host: str = "localhost",
    seconds: float = 30,
    **options: Any,
) -> Any:
    metrics = ServerMetrics()
    batcher = Batcher(policy, max_batch=4, on_batch=metrics.count_batch, **options)
    return create_app(
        batcher,
        metrics,
        limits=Limits(max_best_of=8, max_seconds=seconds),
        token=token,
        host=host,
    )


@pytest.fixture(scope="module")
def app(policy: Policy) -> FastAPI:
    return made(policy)


def ask(app: FastAPI, method: str, path: str, **options: Any) -> httpx.Response:
    async def main() -> httpx.Response:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **options)

    return asyncio.run(main())


def act(app: FastAPI, **body: Any) -> httpx.Response:
    return ask(app, "POST", "/act", json={"observations": ONE_ROW, **body})


def raw(app: FastAPI, content: Any, kind: str = "application/json") -> httpx.Response:
    return ask(app, "POST", "/act", content=content, headers={"Content-Type": kind})


def refused(response: httpx.Response, status: int) -> str:
    """The sentence of a refusal; there is nothing else in it."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    content = response.json()
    assert list(content) == ["error"]
    sentence = content["error"]
    assert sentence.endswith("."), sentence
    assert "Traceback" not in sentence
    assert len(sentence) < 400
    return sentence


# Answers.


def test_actions_are_those_of_the_policy(app: FastAPI, policy: Policy) -> None:
    rows = [[0.1, 0.2, 0.3], [1, 2, 3], [-1e3, 0, 4]]
    response = act(app, observations=rows, steps=2, best_of=4, seed=2**32 - 1)
    assert response.status_code == 200, response.text
    answer = response.json()
    expected = policy.act(np.array(rows), steps=2, best_of=4, key=2**32 - 1)
    np.testing.assert_allclose(answer.pop("actions"), expected, atol=1e-5)
    assert 0 < answer.pop("milliseconds") < 30_000
    assert answer == {
        "budget": {"steps": 2, "best_of": 4},
        "seed": 2**32 - 1,
        "update": 100,
        "info": None,
    }


def test_without_a_budget_it_is_the_methods_own_and_the_seed_is_told(app: FastAPI) -> None:
    first, second = act(app).json(), act(app).json()
    assert first["budget"] == {"steps": 4, "best_of": 1}
    assert first["seed"] != second["seed"]
    assert first["actions"] != second["actions"]
    again = act(app, seed=first["seed"], steps=4.0).json()
    np.testing.assert_allclose(again["actions"], first["actions"], atol=1e-5)


def test_candidates_and_scores(app: FastAPI, policy: Policy) -> None:
    asked: Any = {"steps": 2, "best_of": 4, "sampler": "spread", "verifier": "mean-0.5std"}
    asked["choice"] = "typical-2"
    info = act(app, **asked, seed=1, info=True).json()["info"]
    found = policy.act_info(np.array(ONE_ROW), **asked, key=1)
    assert info["chosen"] == found.chosen.tolist()
    assert info["steps"] == found.steps.tolist()
    np.testing.assert_allclose(info["candidates"], found.candidates, atol=1e-5)
    np.testing.assert_allclose(info["scores"], found.scores, atol=1e-4)


def test_ways_to_choose_among_one_candidate_are_one_plan(policy: Policy) -> None:
    app = made(policy, max_plans=2)
    ways: list[dict[str, Any]] = [
        {},
        *({"choice": choice} for choice in ("best", "central", "typical-3", "softmax-2")),
        *({"sampler": sampler} for sampler in ("spread", "renoise")),
    ]
    for info in (False, True):  # with the scores only the verifier matters
        found = [act(app, steps=1, best_of=1, seed=5, info=info, **way) for way in ways]
        assert [response.status_code for response in found] == [200] * len(ways), found[-1].text
        (only,) = {json.dumps([r.json()["actions"], r.json()["info"]]) for r in found}
        expected = policy.act(np.array(ONE_ROW), steps=1, best_of=1, key=5)
        np.testing.assert_allclose(json.loads(only)[0], expected, atol=1e-5)
    assert act(app, steps=1, verifier="min").status_code == 200
    assert "takes no new one" in refused(act(app, steps=1, verifier="min", info=True), 409)


def test_the_budget_of_a_deadline(policy: Policy) -> None:
    app = made(policy, offers=[Offer(1000, Plan(Budget(2, 2), SPENT))])
    assert act(app, deadline_ms=30_000).json()["budget"] == {"steps": 2, "best_of": 2}
    assert "900 ms cannot be met" in refused(act(app, deadline_ms=900), 504)
    others: list[Any] = [{"steps": 1}, {"sampler": "spread"}, {"choice": "best"}]
    for more in others:
        assert "leave out steps" in refused(act(app, deadline_ms=900, **more), 422)
    assert "info and deadline_ms" in refused(act(app, deadline_ms=30_000, info=True), 422)
    found = act(app, deadline_ms=30_000, seed=3, info=False).json()
    expected = policy.act(ONE_ROW, steps=2, best_of=2, verifier="min", choice="best", key=3)
    np.testing.assert_allclose(found["actions"], expected, atol=1e-5)
    assert ask(app, "GET", "/policy").json()["budgets"]["deadlines"]


def test_a_deadline_without_calibration(app: FastAPI) -> None:
    assert "run `sorl calibrate`" in refused(act(app, deadline_ms=20), 409)


def test_the_description_is_safe_to_show(app: FastAPI) -> None:
    described = ask(app, "GET", "/policy").json()
    assert described["algorithm"] == "sorl"
    assert described["hyperparameters"]["discretization"] == 4
    assert (described["observation_size"], described["action_size"]) == (OBSERVATION, 2)
    assert (described["task"], described["seed"], described["update"]) == (2, 0, 100)
    assert (
        described["budgets"]["steps"]
        == [1, 2, 4, 8, 16, 32, 64, 128][: len(described["budgets"]["steps"])]
    )
    assert described["budgets"]["samplers"] == ["independent", "spread", "renoise"]
    assert described["limits"]["max_observations"] == 4
    assert described["provenance"] == {
        "environment": "none",
        "dataset": {"fingerprint": "ab", "rows": 7},
    }


def test_a_policy_without_a_critic(tmp_path: Path) -> None:
    app = made(small_policy(tmp_path / "policy", "bc"))
    assert act(app, steps=1).status_code == 200
    assert "no critic" in refused(act(app, steps=1, info=True), 422)
    assert refused(act(app, steps=1, best_of=2), 422).startswith("best_of: ")
    budgets = ask(app, "GET", "/policy").json()["budgets"]
    assert (budgets["max_best_of"], budgets["samplers"]) == (1, ["independent"])


def test_health_and_pages(app: FastAPI) -> None:
    assert ask(app, "GET", "/healthz").json() == {"status": "ok"}
    page = ask(app, "GET", "/docs")
    assert page.headers["content-type"].startswith("text/html")
    for word in ("POST /act", "deadline_ms", "4 x", "curl", "504"):
        assert word in page.text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page.text)
    schema = ask(app, "GET", "/openapi.json").json()
    declared = set(schema["paths"]["/act"]["post"]["responses"])
    assert declared == {"200"} | {
        str(s) for s in (400, 408, 409, 413, 415, 421, 422, 500, 503, 504)
    }


def test_metrics(policy: Policy) -> None:
    app = made(policy)
    assert act(app, steps=1, observations=ONE_ROW * 3).status_code == 200
    refused(act(app, steps=3), 422)
    refused(ask(app, "GET", "/secret/path"), 404)
    response = ask(app, "GET", "/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'sorl_requests_total{path="/act",status="200"} 1.0',
        'sorl_requests_total{path="/act",status="422"} 1.0',
        'sorl_requests_total{path="other",status="404"} 1.0',
        'sorl_request_seconds_count{path="/act"} 2.0',
        'sorl_actions_total{budget="1x1"} 3.0',
        'sorl_batch_rows_bucket{le="2.0"} 0.0',
        'sorl_batch_rows_bucket{le="4.0"} 1.0',
        "sorl_queue_requests 0.0",
        "sorl_compilations_total 1.0",
        "sorl_deadlines_missed_total 0.0",
    ):
        assert line in response.text.splitlines()
    assert "secret" not in response.text
    assert re.search(r'^sorl_compute_seconds_total\{budget="1x1"\} [0-9]', response.text, re.M)


# Refusals.


@pytest.mark.parametrize(
    ("content", "status", "expected"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b'{"observations": [[NaN, 0, 0]]}', 400, "NaN is not a number"),
        (b'{"observations": [[-Infinity, 0, 0]]}', 400, "-Infinity is not a number"),
        (b'{"seed": 1, "seed": 2}', 400, "'seed' occurs twice"),
        (json.dumps({str(i): 0 for i in range(65)}).encode(), 422, "more than 64 names"),
        (b"[" * 4000, 400, "nested too deeply"),
        (b'{"seed": ' + b"1" * 4400 + b"}", 400, "limit"),
        (b'{"observations": [[1e999, 0, 0]]}', 422, "observations[0][0]: "),
        (b'{"observations": [[1' + b"0" * 400 + b", 0, 0]]}", 422, "observations[0][0]: "),
        (b"[]", 422, "The body: "),
        (b"{}", 422, "observations: field required"),
        (b'{"observations": [[0, 0, 0]], "\\ud800<b>": 1}', 422, "The body: "),
        (b'{"observations": [[0, 0, 0]], "\\u0e01<b>": 1}', 422, "u0e01<b>: extra"),
        (b'{"observations": [[0, 0, 0]], "verifier": "\\ud800"}', 422, "verifier: "),
        (b" " * 5000, 413, "larger than 4864 bytes"),
    ],
)
def test_bad_bodies(app: FastAPI, content: bytes, status: int, expected: str) -> None:
    assert expected in refused(raw(app, content), status)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"observations": []}, "observations: "),
        ({"observations": ONE_ROW * 5}, "at most 4 items"),
        ({"observations": [[0, 0]]}, "observations[0]: "),
        ({"observations": [[0, 0, 2e9]]}, "observations[0][2]: "),
        ({"observations": [[0, "0", True]]}, "(and 1 more)"),
        ({"observations": [[0, "0", True]] * 2, "seed": -1}, "(and 2 more)"),
        ({"observations": [[0, None, 0]]}, "observations[0][1]: "),
        ({"observations": "AAAA"}, "observations: "),
        ({"steps": 3}, "a power of two"),
        ({"steps": True}, "steps: "),
        ({"steps": 1.5}, "steps: "),
        ({"steps": 64}, "steps: "),
        ({"steps": None}, "steps: "),
        ({"best_of": 9}, "best_of: "),
        ({"best_of": 0}, "best_of: "),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**32}, "seed: "),
        ({"deadline_ms": 0}, "deadline_ms: "),
        ({"deadline_ms": 30_001}, "deadline_ms: "),
        ({"sampler": "lucky"}, "sampler: "),
        ({"sampler": "renoise", "steps": 1, "best_of": 2}, "even number"),
        ({"verifier": "max"}, "verifier: "),
        ({"choice": "worst"}, "choice: "),
        ({"choice": "softmax-0.0"}, "choice: "),
        ({"info": 1}, "info: "),
        ({"temperature": 1}, "temperature: "),
    ],
)
def test_bad_values(app: FastAPI, body: dict[str, Any], expected: str) -> None:
    assert expected in refused(act(app, **body), 422)


def test_other_paths_methods_and_types(app: FastAPI) -> None:
    assert "nothing at this path" in refused(ask(app, "GET", "/act/"), 404)
    response = ask(app, "DELETE", "/act")
    assert "no such method" in refused(response, 405)
    assert response.headers["allow"] == "POST"
    assert "Content-Type" in refused(raw(app, b"{}", "text/plain"), 415)


def test_a_body_of_unknown_length_is_bounded(app: FastAPI) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 1000
            yield b" " * 1000

    assert "larger than 4864" in refused(raw(app, endless()), 413)
    assert sent < 20_000


def test_many_names_take_no_longer_than_reading_them() -> None:
    """Every other request waits in the meantime."""
    names = ",".join(f'"{number}":0' for number in range(50_000))
    body = f'{{{names},"49999":0}}'.encode()

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    headers = [(b"content-type", b"application/json")]
    began = time.monotonic()
    with pytest.raises(HTTPException, match="more than 64 names"):
        asyncio.run(read_json(Request({"type": "http", "headers": headers}, receive), len(body)))
    assert time.monotonic() - began < 5


def test_bodies_that_are_read_at_a_time_are_bounded(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sorl.deployment.serving.app._MOST_BYTES", 2 * 4864)
    app = made(policy)
    now, most = 0, 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal now, most
        now += 1
        most = max(most, now)
        yield b"{"
        await asyncio.sleep(0.02)
        now -= 1
        yield b"}"

    async def main() -> list[httpx.Response]:
        headers = {"Content-Type": "application/json"}
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            asked = (client.post("/act", content=body(), headers=headers) for _ in range(6))
            return await asyncio.gather(*asked)

    for response in asyncio.run(main()):
        assert refused(response, 422) == "observations: field required; see /docs."
    assert most == 2


def test_a_slow_body(policy: Policy) -> None:
    async def slow() -> Any:
        yield b"{"
        await asyncio.sleep(20)

    app = made(policy, seconds=0.1)
    assert "did not arrive within 0.1 s" in refused(raw(app, slow()), 408)


def test_an_answer_that_takes_too_long(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    release, original = threading.Event(), policy.act

    def held(*arguments: Any, **options: Any) -> np.ndarray:
        assert release.wait(20)
        return original(*arguments, **options)

    app = made(policy, seconds=0.3, max_queue=1)
    monkeypatch.setattr(policy, "act", held)

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            tasks = []
            for _ in range(3):
                body = {"observations": ONE_ROW}
                tasks.append(asyncio.ensure_future(client.post("/act", json=body)))
                await asyncio.sleep(0.02)
            answers = list(await asyncio.gather(*tasks))
        release.set()
        return answers

    began = time.monotonic()
    running, queued, third = asyncio.run(main())
    assert time.monotonic() - began < 10
    for response in (running, queued):
        assert "not ready within 0.3 s" in refused(response, 504)
    assert "1 requests are waiting" in refused(third, 503)
    assert third.headers["retry-after"] == "1"


def test_a_defect_tells_clients_nothing(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> np.ndarray:
        raise ArithmeticError("a secret")

    app = made(policy)
    monkeypatch.setattr(policy, "act", broken)
    assert "secret" not in refused(act(app), 500)
    monkeypatch.undo()
    assert act(app).status_code == 200
    assert 'status="500"} 1.0' in ask(app, "GET", "/metrics").text


def test_actions_that_are_not_finite_are_not_told(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = policy.act
    monkeypatch.setattr(policy, "act", lambda *a, **k: original(*a, **k) * jnp.nan)
    assert "not finite" in refused(act(made(policy)), 422)


def test_the_token(policy: Policy) -> None:
    app = made(policy, token=TOKEN)
    body = {"observations": ONE_ROW}

    def post(**headers: str) -> httpx.Response:
        return ask(app, "POST", "/act", json=body, headers=headers)

    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": f"bearer {TOKEN}x"}):
        response = post(**headers)
        assert "Authorization: Bearer TOKEN" in refused(response, 401)
        assert response.headers["www-authenticate"] == "Bearer"
    for scheme in ("Bearer", "bearer"):
        assert post(Authorization=f"{scheme} {TOKEN}").status_code == 200
    for path in ("/policy", "/metrics", "/nothing"):
        refused(ask(app, "GET", path), 401)
    for path in ("/healthz", "/docs", "/openapi.json"):
        assert ask(app, "GET", path).status_code == 200
    schema = ask(app, "GET", "/openapi.json").json()
    assert schema["components"]["securitySchemes"]["token"] == {
        "type": "http",
        "scheme": "bearer",
    }
    assert schema["paths"]["/act"]["post"]["security"] == [{"token": []}]
    assert "401" in schema["paths"]["/policy"]["get"]["responses"]


@pytest.mark.parametrize(
    ("host", "own", "answered"),
    [
        ("localhost:8000", "localhost", True),
        ("LocalHost", "localhost", True),
        ("127.0.0.1:8000", "127.0.0.1", True),
        ("127.1.2.3", "localhost", True),
        ("[::1]:8000", "localhost", True),
        ("robot:8000", "robot", True),
        ("robot:8000", "127.0.0.1", False),
        ("evil.example:8000", "localhost", False),
        ("localhost.evil.example", "localhost", False),
        ("127.0.0.1.evil.example", "localhost", False),
        ("192.168.0.7", "localhost", False),
        ("[::2]", "localhost", False),
        ("", "localhost", False),
    ],
)
def test_without_a_token_only_names_of_this_machine_are_answered(
    policy: Policy, host: str, own: str, answered: bool
) -> None:
    """A page of evil.example could let that name lead to 127.0.0.1 and read the answers."""
    app = made(policy, host=own)
    headers = {"Host": host}
    body = {"observations": ONE_ROW, "steps": 3}
    for response in (
        ask(app, "GET", "/policy", headers=headers),
        ask(app, "POST", "/act", headers=headers, json=body),
    ):
        if answered:
            assert response.status_code in (200, 422)
        else:
            assert f"asks for {host!a}: ask for localhost" in refused(response, 421)
    assert ask(app, "GET", "/healthz", headers=headers).status_code == 200
    with_token = made(policy, token=TOKEN)
    headers["Authorization"] = f"Bearer {TOKEN}"
    assert ask(with_token, "GET", "/policy", headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("name", "value"), [("max_steps", 0), ("max_best_of", 70_000), ("max_seconds", float("nan"))]
)
def test_impossible_limits(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"{name}=.* is not possible"):
        Limits(**{name: value})


# Fuzz: whatever comes, the answer is a sentence or an action, and the next request is answered.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.sampled_from(["own", "renoise", "observations", "steps"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
fields = st.sampled_from(
    [
        *("observations", "steps", "best_of", "deadline_ms", "seed", "sampler", "verifier"),
        *("choice", "info"),
    ]
)
structures = st.dictionaries(fields | st.text(max_size=8), json_values, max_size=5)


def survives(app: FastAPI, content: bytes) -> None:
    response = raw(app, content)
    if response.status_code == 200:
        assert set(json.loads(content)) <= {
            *("observations", "steps", "best_of", "seed", "sampler", "verifier", "choice", "info")
        }
        assert np.isfinite(response.json()["actions"]).all()
    else:
        assert response.status_code in (400, 409, 413, 422)
        refused(response, response.status_code)
    assert ask(app, "GET", "/healthz").status_code == 200


@given(structures, st.booleans())
@settings(max_examples=60)
def test_any_structure(app: FastAPI, body: dict[str, Any], complete: bool) -> None:
    if complete:
        body = {"observations": ONE_ROW, **body}
    survives(app, json.dumps(body).encode("utf-8", "surrogatepass"))


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=60)
def test_flipped_bytes(app: FastAPI, flips: list[tuple[int, int]]) -> None:
    body = {"observations": ONE_ROW, "steps": 2, "best_of": 4, "seed": 12, "verifier": "min"}
    content = bytearray(json.dumps(body).encode())
    for place, change in flips:
        content[place % len(content)] ^= change
    survives(app, bytes(content))


@given(st.binary(max_size=300))
@settings(max_examples=30)
def test_any_bytes(app: FastAPI, content: bytes) -> None:
    survives(app, content)
