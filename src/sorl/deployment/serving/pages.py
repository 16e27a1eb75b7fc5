"""A page for people about the server's routes, made from its OpenAPI schema; needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem }
th, td { border: 1px solid #bbb; padding: 0.2rem 0.6rem; text-align: left; vertical-align: top }
code, pre { font-size: 14px; background: #f2f2f2; padding: 0.1rem 0.3rem; overflow-x: auto }
"""


def render(schema: Mapping[str, Any]) -> str:
    """The page for an OpenAPI schema as FastAPI makes it."""
    title = escape(f"{schema['info']['title']} {schema['info']['version']}")
    sections = [
        _operation(schema, path, method, operation)
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    ]
    return "\n".join(
        [
            '<!doctype html><html lang="en"><meta charset="utf-8">',
            f"<title>{title}</title><style>{_STYLE}</style>",
            f"<h1>{title}</h1><p>{escape(schema['info']['description'])}",
            'The same for programs: <a href="openapi.json">openapi.json</a>.</p>',
            *sections,
            "</html>\n",
        ]
    )


def _operation(
    schema: Mapping[str, Any], path: str, method: str, operation: Mapping[str, Any]
) -> str:
    parts = [
        f"<h2><code>{method.upper()} {escape(path)}</code> {escape(operation['summary'])}</h2>"
    ]
    parts += [f"<p>{escape(text)}</p>" for text in operation["description"].split("\n\n")]
    if operation.get("security"):
        parts.append("<p>Needs <code>Authorization: Bearer TOKEN</code>.</p>")
    if body := operation.get("requestBody"):
        asked = body["content"]["application/json"]["schema"]
        example = json.dumps({"observations": [_zeros(asked)]})
        parts += ["<h3>Body</h3>", _fields(asked)]
        parts.append(
            f"<pre>curl -H 'Content-Type: application/json' \\\n  -d '{escape(example)}' \\\n"
            f"  http://HOST:PORT{escape(path)}</pre>"
        )
    parts.append("<h3>Answers</h3>")
    parts.append(_table(("status", "meaning"), _answers(operation["responses"])))
    content = operation["responses"]["200"]["content"].get("application/json", {})
    name = content.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if name:
        parts.append(_fields(schema["components"]["schemas"][name]))
    return "\n".join(parts)


def _zeros(asked: Mapping[str, Any]) -> list[float]:
    return [0.0] * asked["properties"]["observations"]["items"]["minItems"]


def _answers(responses: Mapping[str, Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    return ((status, escape(answer["description"])) for status, answer in responses.items())


def _fields(model: Mapping[str, Any]) -> str:
    required = model.get("required", ())
    return _table(
        ("field", "type", "meaning"),
        (
            (
                f"<code>{escape(name)}</code>{' (required)' if name in required else ''}",
                escape(_kind(field)),
                escape(field.get("description", "")),
            )
            for name, field in model["properties"].items()
        ),
    )


def _kind(field: Mapping[str, Any]) -> str:
    """Type and bounds of a field in a few words."""
    if "anyOf" in field:
        return " or ".join(map(_kind, field["anyOf"]))
    if "enum" in field:
        return "one of " + ", ".join(map(str, field["enum"]))
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    kind = str(field.get("type", "anything"))
    if kind == "array":
        low, high = field.get("minItems"), field.get("maxItems")
        count = "" if high is None else f"{high} x " if low == high else f"{low} to {high} x "
        return f"[{count}{_kind(field['items'])}]"
    low = field.get("minimum", field.get("exclusiveMinimum"))
    if low is None:
        return kind
    return f"{kind}, {low:g} to {field['maximum']:g}"


def _table(names: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><tr>{head}</tr>\n{body}</table>"
