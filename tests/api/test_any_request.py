"""Thousands of requests made from the OpenAPI document, by who may do everything: none fails the server."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from shunter_work_pools.contracts.agents import LOG_MEDIA_TYPE
from tests.api.serving import TOKEN, Served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
#: Requests of each operation, and of all together at the least.
EXAMPLES, ALL = 34, 2000
#: Names that are there, so that not all is about what is not.
NAMES = {"name": ("main", "job", "a1"), "queue": ("default",), "kind": ("person",)}


@schemathesis.serializer(LOG_MEDIA_TYPE)
def _frames(context: Any, value: Any) -> bytes:
    """Frames of logs are bytes as they are; what is none is refused."""
    return bytes(value) if isinstance(value, bytes | bytearray) else str(value).encode()


@pytest.mark.timeout(180)
async def test_no_request_that_fits_the_document_fails_the_server(plain: Served) -> None:
    await plain.pool()
    await plain.deploy(pool="main")
    await plain.sync()
    run = await plain.submit()
    document = await plain.get("/openapi.json")
    counts: Counter[int] = Counter()
    began = time.monotonic()
    await asyncio.to_thread(_ask, document, plain.port, run, counts)
    assert sum(counts.values()) >= ALL, counts
    assert sum(counts[status] for status in counts if status < 300) > 100, counts
    print(f"{sum(counts.values())} requests in {time.monotonic() - began:.0f} s: {dict(counts)}")


def _ask(document: Any, port: int, run: str, counts: Counter[int]) -> None:
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=f"http://127.0.0.1:{port}")
    failures = []
    for result in schema.get_all_operations():
        operation = result.ok()
        try:
            _ask_for(operation, run, counts)
        except BaseException as exc:  # the first of each operation, all of them told
            failures.append(f"{operation.method.upper()} {operation.path}: {exc}")
    assert not failures, "\n\n".join(failures)


def _ask_for(operation: Any, run: str, counts: Counter[int]) -> None:
    @seed(1)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(operation.as_strategy())
    def ask(case: Any) -> None:
        _short(case, run, sum(counts.values()))
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)
        counts[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    ask()


def _short(case: Any, run: str, number: int) -> None:
    """Not held; now and then about what there is."""
    if isinstance(case.query, dict) and "wait" in case.query:
        case.query["wait"] = 0
    if isinstance(case.body, dict) and "hold_for" in case.body:
        case.body["hold_for"] = 0
    if isinstance(case.path_parameters, dict) and number % 2:
        for name, there in (NAMES | {"run": (run,)}).items():
            if name in case.path_parameters:
                case.path_parameters[name] = there[number // 2 % len(there)]
