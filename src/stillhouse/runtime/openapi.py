"""``/openapi.json``: what can be asked and answered, made from the agent files that are served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.config import AgentConfig
from stillhouse.knowledge.answers_page import MAX_PAGE_ROWS
from stillhouse.runtime.http import RequestLimits
from stillhouse.runtime.ids import LONGEST_ID
from stillhouse.version import __version__

__all__ = ["describe"]

Json = dict[str, Any]

_INFINITE = 2.0**128 - 2.0**103  # from here on a number is infinite as float32
_FLOAT32: Json = {"exclusiveMinimum": -_INFINITE, "exclusiveMaximum": _INFINITE}
_READ_AS = {"number": ("number", "boolean"), "string": ("string", "number", "boolean")}
"""What is read as a number, and as a text: :mod:`stillhouse.values`."""
_TIME: Json = {"type": "string", "format": "date-time"}

_REFUSALS = {
    "400": "what was sent is not well-formed, or is meant for another host",
    "401": "a bearer token is needed",
    "404": "there is no such agent, decision, version or page here; the message says what there is",
    "408": "the body did not arrive in time",
    "413": "the body, or the number of rows, is above the limit",
    "415": "another Content-Type, or a compressed body",
    "422": "JSON, but not what the agent file wants; the message names the place",
    "503": "not now: there is no champion, the spool is full, or too many requests wait; Retry-After says when",
}
_TAKES_BODY = ("400", "401", "408", "413", "415", "422", "503")


def describe(agents: Sequence[AgentConfig], limits: RequestLimits, *, secured: bool) -> Json:
    """OpenAPI 3.1.

    :param secured: whether a bearer token is needed.
    """
    paths: Json = {}
    schemas = _shared()
    for config in agents:
        schemas[_own(config, "Observation")] = _observation(config)
        paths |= _of_agent(config, limits)
    paths |= _of_server(agents, limits)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stillhouse",
            "version": __version__,
            "description": "Decisions of a small model that is kept fresh, and what it learns from. Every error has "
            'the shape {"error": {"code", "message"}}.',
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {status: _refusal(status, text) for status, text in _REFUSALS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}] if secured else [],
    }


def _of_agent(config: AgentConfig, limits: RequestLimits) -> Json:
    """The paths of one agent, each with its own name in it: their schemas differ."""
    base, name = f"/v1/agents/{config.agent}", config.agent
    observation = {"$ref": f"#/components/schemas/{_own(config, 'Observation')}"}
    decision = {"$ref": "#/components/schemas/Decision"}
    outcome = _object(
        {"decision_id": {"type": "string"}, "action": {"enum": list(config.actions)}, "known_at": _or_null(_TIME)},
        ["decision_id", "action"],
    )
    many = {"type": "array", "minItems": 1, "maxItems": limits.max_rows}
    return {
        base: {"get": _operation(f"{name}_status", f"How {name} stands", _json({"type": "object"}), ("401", "404"))},
        f"{base}/decisions": {
            "post": {
                **_operation(
                    f"{name}_decide",
                    config.description or f"Let {name} decide",
                    _json(
                        {"anyOf": [decision, _object({"decisions": many | {"items": decision}}, ["decisions"])]},
                        "recorded before it was answered",
                    ),
                    _TAKES_BODY,
                ),
                "parameters": [_query("probabilities", {"type": "boolean", "default": False}, "of every action")],
                "requestBody": _body(
                    {
                        "oneOf": [
                            _object({"observation": observation}, ["observation"]),
                            _object({"observations": many | {"items": observation}}, ["observations"]),
                        ]
                    }
                ),
            }
        },
        f"{base}/outcomes": {
            "post": {
                **_operation(
                    f"{name}_learn",
                    "What turned out to be true: late or again, of several the last known counts",
                    _json(_object({"recorded": {"type": "integer"}}, ["recorded"])),
                    (*_TAKES_BODY, "404"),
                ),
                "requestBody": _body(
                    {
                        "oneOf": [
                            outcome,
                            _object({"outcomes": many | {"items": outcome}}, ["outcomes"]),
                        ]
                    }
                ),
            }
        },
        f"{base}/model": {
            "get": {
                **_operation(
                    f"{name}_model",
                    "The champion as .tar.gz: model.onnx, manifest.json, variant.py, values.py",
                    {
                        "description": "the same model is the same bytes; ETag and Content-Digest are its SHA-256",
                        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
                    },
                    ("401", "404", "503"),
                    {"304": {"description": "you have it (If-None-Match)"}},
                ),
                "parameters": [
                    _query("version", {"type": "string"}, "answer 404 if it is another"),
                    {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}},
                ],
            }
        },
        f"{base}/knowledge": {
            "get": {
                **_operation(
                    f"{name}_knowledge",
                    "What the teachers have said, oldest first; Link says where it goes on",
                    {
                        "description": "a line per answer",
                        "content": {
                            "application/x-ndjson": {"schema": {"type": "string"}},
                            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
                        },
                    },
                    ("401", "404", "422", "503"),
                ),
                "parameters": [
                    _query("since", _TIME, "only what was asked later"),
                    _query(
                        "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_ROWS, "default": 1000}, "rows"
                    ),
                    _query(
                        "after", {"type": "string"}, "the header Stillhouse-Next of the page before; since is not read"
                    ),
                ],
            }
        },
    }


def _of_server(agents: Sequence[AgentConfig], limits: RequestLimits) -> Json:
    names = [config.agent for config in agents]
    text = {"description": "text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    bare = {"description": "as MLflow says it", "content": {"application/json": {}}}
    ready = _json({"type": "object"}, "alive, and every agent has a champion")
    rows = {"type": "array", "minItems": 1, "maxItems": limits.max_rows, "items": {"type": "object"}}
    split = _object(
        {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "array", "minItems": 1, "maxItems": limits.max_rows, "items": {"type": "array"}},
            "index": {"type": ["array", "null"]},
        },
        ["columns", "data"],
    )
    either = {"anyOf": [rows, {"type": "object"}]}
    forms = {"dataframe_split": split, "dataframe_records": rows, "instances": either, "inputs": either}
    prediction = _object({"action": {"type": "string"}}, ["action"]) | {"additionalProperties": {"type": "number"}}
    predicted = _object(
        {
            "predictions": {"type": "array", "items": prediction},
            "decision_ids": {"type": "array", "items": {"type": "string"}},
            "warnings": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string"}},
                "description": "by row, what of it lies outside the data contract",
            },
        },
        ["predictions"],
    )
    asked = {"oneOf": [{"type": "object", "properties": {k: v}, "required": [k]} for k, v in forms.items()]}
    return {
        "/v1/agents": {"get": _operation("agents", "Who is served", _json({"type": "object"}), ("401",))},
        "/invocations": {
            "post": {
                **_operation(
                    "invocations",
                    "MLflow's scoring protocol, as `mlflow models serve`",
                    _json(predicted),
                    ("400", "401", "404", "408", "413", "415", "503"),
                ),
                "parameters": [
                    _query("agent", {"enum": names}, "where several are served"),
                    _query("decision_ids", {"type": "boolean", "default": False}, "beside the predictions"),
                    _query(
                        "warnings",
                        {"type": "boolean", "default": False},
                        "beside the predictions; the header Stillhouse-Warnings counts the rows that have some",
                    ),
                    {"name": "Stillhouse-Agent", "in": "header", "schema": {"enum": names}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": asked},
                        "text/csv": {"schema": {"type": "string"}},
                    },
                },
            }
        },
        "/ping": {"get": _operation("ping", "200 with a champion, else 404", bare, ("404",)) | {"security": []}},
        "/health": {"get": _operation("health", "As /ping", bare, ("401", "404"))},
        "/version": {"get": _operation("version", "MLflow's version", bare, ("401",))},
        "/healthz": {
            "get": _operation(
                "healthz",
                "Whether decisions work, and what does not",
                ready,
                (),
                {
                    "503": _json({"type": "object"}, "an agent cannot decide or record") | {"headers": _RETRY_AFTER},
                },
            )
            | {"security": []}
        },
        "/readyz": {
            "get": _operation(
                "readyz",
                "Whether everything works: as /healthz, for alarms",
                ready,
                (),
                {
                    "503": _json({"type": "object"}, "`reasons` says what does not") | {"headers": _RETRY_AFTER},
                },
            )
            | {"security": []}
        },
        "/metrics": {"get": _operation("metrics", "For Prometheus", text, ("401",))},
        "/openapi.json": {"get": _operation("openapi", "This", _json({"type": "object"}), ("401",))},
    }


def _observation(config: AgentConfig) -> Json:
    """What an agent perceives, in the order of its file."""
    observations = config.observations
    types = {
        **dict.fromkeys(observations.numbers, "number"),
        **dict.fromkeys((*observations.categories, *observations.texts), "string"),
    }
    properties: Json = {}
    for name, kind in types.items():
        column = observations.columns[name]
        told = {key: value for key in ("min", "max", "values") if (value := getattr(column, key, None)) is not None}
        properties[name] = {"type": [*_READ_AS[kind], "null"]} | (_FLOAT32 if kind == "number" else {})
        if told:  # held to by the data contract, which keeps such rows out of training: they are decided all the same
            properties[name]["description"] = "usual: " + ", ".join(f"{key} {value}" for key, value in told.items())
    properties["observation_id"] = _or_null({"type": list(_READ_AS["string"]), "minLength": 1, "maxLength": LONGEST_ID})
    properties["observed_at"] = _or_null(_TIME | {"description": "at most an hour ahead; without it, now"})
    return _object(properties, list(types))


def _shared() -> Json:
    return {
        "Decision": _object(
            {
                "decision_id": {"type": "string", "description": "for its outcome"},
                "observation_id": {"type": "string"},
                "action": {"type": "string"},
                "confidence": {"type": "number", "minimum": 0, "maximum": 1},
                "decider": {"enum": ["student", "teacher"]},
                "version": {"type": "string", "description": "of the decider"},
                "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
                "warnings": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "what in the observation lies outside the data contract; absent: nothing",
                },
            },
            ["decision_id", "observation_id", "action", "confidence", "decider", "version"],
        ),
        "Error": _object(
            {
                "error": _object({"code": {"type": "string"}, "message": {"type": "string"}}, ["code", "message"]),
            },
            ["error"],
        ),
    }


_RETRY_AFTER: Json = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}


def _refusal(status: str, text: str) -> Json:
    found = _json({"$ref": "#/components/schemas/Error"}, text)
    if status == "401":
        found["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return found | ({"headers": _RETRY_AFTER} if status == "503" else {})


def _operation(name: str, summary: str, answer: Json, refusals: Sequence[str], others: Json | None = None) -> Json:
    responses = {"200": answer, **(others or {})}
    for status in sorted({"400", *refusals}):  # 400: a wrong Host
        responses.setdefault(status, {"$ref": f"#/components/responses/{status}"})
    return {"operationId": name, "summary": summary, "responses": responses}


def _own(config: AgentConfig, what: str) -> str:
    return f"{config.agent}.{what}"


def _object(properties: Json, required: Sequence[str]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _or_null(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _json(schema: Json, description: str = "done") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}
