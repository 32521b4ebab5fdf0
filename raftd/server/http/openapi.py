"""The specification of `/v1`, OpenAPI 3.1, made from the route table."""

from __future__ import annotations

from typing import Any

import msgspec

import raftd
from raftd.limits import KEYS_KEPT
from raftd.server.http import problems
from raftd.server.http.routes import RAW, Needs, Route
from raftd.server.http.shapes import MORE_SCHEMA
from raftd.server.http.site import JSON

#: What any call may meet, and what those with a body or a change may.
_ALWAYS = ("bad-request", "unknown-name", "too-large", "too-slow", "not-ready", "stopping", "internal", "overloaded")
_WITH_BODY = ("unsupported-media-type",)
_CHANGING = ("cross-site", "read-only")
_FOR_USERS = ("not-authenticated", "not-authorized", "too-many-passwords", "over-quota", "not-committed")
#: How a caller shows who he is, in a cluster that has users.
_SECURITY = {
    "token": {"type": "http", "scheme": "bearer"},
    "password": {"type": "http", "scheme": "basic"},
    "certificate": {"type": "mutualTLS"},
}
_REF = "#/components/schemas/{name}"


def specification(routes: list[Route]) -> bytes:
    """The document, as JSON."""
    kinds = _kinds(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    for name, more in MORE_SCHEMA.items():
        components[name].update(more)
    schema_of = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return msgspec.json.encode(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "raftd",
                "version": raftd.__version__,
                "description": "A replicated job queue. Every node serves every call. Whatever is answered is on the disks of a majority.",
            },
            "paths": paths,
            "components": {"schemas": components, "securitySchemes": _SECURITY},
        }
    )


def _kinds(routes: list[Route]) -> list[Any]:
    kinds: dict[str, Any] = {repr(problems.Problem): problems.Problem}
    for route in routes:
        fields = [item.type for kind in (route.query, route.raw) if kind is not None for item in msgspec.structs.fields(kind)]
        for kind in (route.answer, route.body, *route.parts.values(), *fields, route.key):
            if kind is not None:
                kinds[repr(kind)] = kind
    return list(kinds.values())


def _operation(route: Route, schema_of: dict[str, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": schema_of[repr(kind)]} for name, kind in route.parts.items()
    ]
    parameters += [_parameter(item, "query", schema_of) for item in msgspec.structs.fields(route.query)]
    if route.raw is not None:
        parameters += [_parameter(item, "header", schema_of) for item in msgspec.structs.fields(route.raw)]
    if route.key is not None:
        description = (
            f"Asked again with the same key it does nothing, and gives the first answer: for an hour, "
            f"and as long as no {KEYS_KEPT:,} other keys were used since."
        )
        schema = schema_of[repr(route.key)]
        parameters.append({"name": "Idempotency-Key", "in": "header", "required": False, "schema": schema, "description": description})
    operation: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "parameters": parameters, "responses": {}}
    if route.needs is not Needs.NOTHING:
        operation["security"] = [{}, *({name: []} for name in _SECURITY)]
    if route.body is not None:
        content = {JSON: {"schema": schema_of[repr(route.body)]}}
        if route.raw is not None:
            content[RAW] = {"schema": {}}
        operation["requestBody"] = {"required": not route.body_is_optional, "content": content}
    responses = operation["responses"]
    responses[str(route.status)] = {"description": "Done."}
    if route.answer is not None:
        responses[str(route.status)]["content"] = {route.kind: {"schema": schema_of[repr(route.answer)] if route.kind == JSON else {}}}
    for status in route.also:
        responses[str(status)] = dict(responses[str(route.status)])
    if route.key is not None:
        replayed = {"description": "true if it was put before.", "schema": {"type": "string"}}
        responses[str(route.status)]["headers"] = {"Idempotency-Replayed": replayed}
    if route.links:
        responses[str(route.status)]["links"] = {name: {"operationId": name, **link} for name, link in route.links.items()}
    names = [*_ALWAYS, *route.problems]
    names += _WITH_BODY if route.body is not None else ()
    names += _CHANGING if route.method != "GET" else ()
    names += _FOR_USERS if route.needs is not Needs.NOTHING else ()
    for name in sorted(set(names), key=list(problems.PROBLEMS).index):
        kind = problems.PROBLEMS[name]
        response = responses.setdefault(
            str(kind.status), {"description": "", "content": {problems.KIND: {"schema": schema_of[repr(problems.Problem)]}}}
        )
        response["description"] = f"{response['description']} {kind.title} (`{problems.PATH}#{name}`).".strip()
    return operation


def _parameter(item: Any, where: str, schema_of: dict[str, Any]) -> dict[str, Any]:
    return {"name": item.encode_name, "in": where, "required": item.required, "schema": schema_of[repr(item.type)]}
