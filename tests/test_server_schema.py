"""The server against its own OpenAPI schema, by schemathesis: nothing may differ from it.

SORL_SCHEMA_EXAMPLES=500 python -m pytest tests/test_server_schema.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings

from served import running, small_policy
from sorl.deployment.serving.schemas import Limits

EXAMPLES = int(os.environ.get("SORL_SCHEMA_EXAMPLES", "10"))
TOKEN = "correct.horse.battery.staple"
OPERATIONS = ("POST /act", "GET /policy", "GET /healthz", "GET /metrics")
POSITIVE, NEGATIVE = schemathesis.GenerationMode


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    policy = small_policy(tmp_path_factory.mktemp("policies") / "policy")
    limits = Limits(max_steps=8, max_best_of=4, max_seconds=60)
    with running(policy, limits=limits, token=TOKEN, max_batch=2, max_plans=1000) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


def test_every_operation_is_tried(schema: Any) -> None:
    found = [result.ok().label for result in schema.get_all_operations()]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize(
    ("label", "mode"), [*((label, POSITIVE) for label in OPERATIONS), ("POST /act", NEGATIVE)]
)
def test_it_is_what_it_declares(schema: Any, label: str, mode: schemathesis.GenerationMode) -> None:
    method, path = label.split()
    cases: Any = schema[path][method].as_strategy(generation_mode=mode)

    @given(cases)
    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))  # pyright: ignore[reportArgumentType]
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})

    check()
