"""The server against its own OpenAPI schema, by schemathesis: nothing may differ from it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import settings

from served import running, small_policy

EXAMPLES = int(os.environ.get("SORL_SCHEMA_EXAMPLES", "10"))
TOKEN = "correct.horse.battery.staple"


@pytest.fixture(scope="module")
def served_schema(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    policy = small_policy(tmp_path_factory.mktemp("policies") / "policy")
    with running(policy, token=TOKEN, max_batch=2, max_plans=1000) as url:
        yield schemathesis.openapi.from_url(f"{url}/openapi.json")


lazy = schemathesis.pytest.from_fixture("served_schema")


@lazy.parametrize()
@settings(max_examples=EXAMPLES)
def test_it_is_what_it_declares(case: schemathesis.Case) -> None:
    case.call_and_validate(headers={"Authorization": f"Bearer {TOKEN}"})
