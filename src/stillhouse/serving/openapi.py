"""``/openapi.json``: the description of all endpoints, made from the agent files that are served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.config import AgentConfig
from stillhouse.knowledge.answers_page import MAX_PAGE_ROWS
from stillhouse.runtime.ids import MAX_ID_LENGTH
from stillhouse.serving.http import RequestLimits
from stillhouse.version import __version__

__all__ = ["build_openapi"]

Json = dict[str, Any]

_FLOAT32_OVERFLOW = 2.0**128 - 2.0**103  # numbers from here on are infinite as float32
_FLOAT32: Json = {"exclusiveMinimum": -_FLOAT32_OVERFLOW, "exclusiveMaximum": _FLOAT32_OVERFLOW}
_ACCEPTED_TYPES = {"number": ("number", "boolean"), "string": ("string", "number", "boolean")}
"""JSON types that are accepted for a number, and for a text (:mod:`stillhouse.values`)."""
_TIME: Json = {"type": "string", "format": "date-time"}

_ERRORS = {
    "400": "the request is malformed, or is meant for another host",
    "401": "a bearer token is needed",
    "404": "there is no such agent, decision, version or page here; the message lists what there is",
    "408": "the body did not arrive in time",
    "413": "the body, or the number of rows, is above the limit",
    "415": "unsupported Content-Type, or a compressed body",
    "422": "JSON that does not fit the agent file; the message names the place",
    "503": "temporarily unavailable: no champion, a full spool, or too many requests; Retry-After says when to retry",
}
_BODY_ERRORS = ("400", "401", "408", "413", "415", "422", "503")


def build_openapi(
    agents: Sequence[AgentConfig], limits: RequestLimits, *, requires_token: bool, has_door: bool = False
) -> Json:
    """The OpenAPI 3.1 description.

    >>> build_openapi([], RequestLimits(), requires_token=False)["openapi"]
    '3.1.0'

    :param requires_token: whether a bearer token is needed.
    :param has_door: whether requests are passed on to an upstream.
    """
    paths: Json = {}
    schemas = _shared_schemas()
    for config in agents:
        schemas[_schema_name(config, "Observation")] = _observation_schema(config)
        paths |= _agent_paths(config, limits)
    paths |= _server_paths(agents, limits)
    if has_door:
        paths |= _door_paths()
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "stillhouse",
            "version": __version__,
            "description": "Decisions of a small model that is kept fresh, and the knowledge it learns from. "
            'Every error has the shape {"error": {"code", "message"}}.',
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": {status: _error_response(status, text) for status, text in _ERRORS.items()},
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"bearer": []}] if requires_token else [],
    }


def _agent_paths(config: AgentConfig, limits: RequestLimits) -> Json:
    """The paths of one agent; they contain its name, because the schemas differ between agents."""
    base, name = f"/v1/agents/{config.agent}", config.agent
    observation = {"$ref": f"#/components/schemas/{_schema_name(config, 'Observation')}"}
    decision = {"$ref": "#/components/schemas/Decision"}
    outcome = _object(
        {"decision_id": {"type": "string"}, "action": {"enum": list(config.actions)}, "known_at": _nullable(_TIME)},
        ["decision_id", "action"],
    )
    row_list = {"type": "array", "minItems": 1, "maxItems": limits.max_rows}
    return {
        base: {
            "get": _operation(f"{name}_status", f"Status of {name}", _json_response({"type": "object"}), ("401", "404"))
        },
        f"{base}/decisions": {
            "post": {
                **_operation(
                    f"{name}_decide",
                    config.description or f"Let {name} decide",
                    _json_response(
                        {"anyOf": [decision, _object({"decisions": row_list | {"items": decision}}, ["decisions"])]},
                        "recorded before this response was sent",
                    ),
                    _BODY_ERRORS,
                ),
                "parameters": [_PROBABILITIES],
                "requestBody": _json_body(
                    {
                        "oneOf": [
                            _object({"observation": observation}, ["observation"]),
                            _object({"observations": row_list | {"items": observation}}, ["observations"]),
                        ]
                    }
                ),
            }
        },
        f"{base}/rankings": {
            "post": {
                **_operation(
                    f"{name}_rank",
                    "Show the best of several candidates, sorted by the probability of one action",
                    _json_response({"$ref": "#/components/schemas/Ranking"}, "recorded before this response was sent"),
                    _BODY_ERRORS,
                ),
                "parameters": [_PROBABILITIES],
                "requestBody": _json_body(
                    _object(
                        {
                            "candidates": row_list | {"items": observation},
                            "top": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1, "default": 10},
                            "action": {"enum": [*config.actions, None]},
                        },
                        ["candidates"] if len(config.actions) == 2 else ["candidates", "action"],
                    )
                ),
            }
        },
        f"{base}/outcomes": {
            "post": {
                **_operation(
                    f"{name}_learn",
                    "Record outcomes, the true actions; of several for one decision the one known last counts",
                    _json_response(_object({"recorded": {"type": "integer"}}, ["recorded"])),
                    (*_BODY_ERRORS, "404"),
                ),
                "requestBody": _json_body(
                    {
                        "oneOf": [
                            outcome,
                            _object({"outcomes": row_list | {"items": outcome}}, ["outcomes"]),
                        ]
                    }
                ),
            }
        },
        f"{base}/handed-in": {
            "post": {
                **_operation(
                    f"{name}_hand_in",
                    "Record decisions that a champion made elsewhere; the same decision handed in again counts once",
                    _json_response(
                        _object(
                            {
                                "recorded": {"type": "integer"},
                                "decision_ids": {"type": "array", "items": {"type": "string"}},
                            },
                            ["recorded", "decision_ids"],
                        ),
                        "synced to the server's disk before this response was sent",
                    ),
                    (*_BODY_ERRORS, "404"),
                ),
                "requestBody": _json_body(
                    _object({"decisions": row_list | {"items": _made_decision(config, observation)}}, ["decisions"])
                ),
            }
        },
        f"{base}/model": {
            "get": {
                **_operation(
                    f"{name}_model",
                    "The champion as .tar.gz: model.onnx, manifest.json, variant.py, values.py",
                    {
                        "description": "the same model has the same bytes; ETag and Content-Digest are its SHA-256",
                        "content": {"application/gzip": {"schema": {"type": "string", "format": "binary"}}},
                    },
                    ("401", "404", "503"),
                    {"304": {"description": "the client has this content already (If-None-Match)"}},
                ),
                "parameters": [
                    _query_parameter("version", {"type": "string"}, "404 if the champion has another version"),
                    {"name": "If-None-Match", "in": "header", "schema": {"type": "string"}},
                ],
            }
        },
        f"{base}/knowledge": {
            "get": {
                **_operation(
                    f"{name}_knowledge",
                    "The teachers' answers, oldest first; the header Link has the address of the next page",
                    {
                        "description": "one line per answer",
                        "content": {
                            "application/x-ndjson": {"schema": {"type": "string"}},
                            "application/vnd.apache.arrow.stream": {"schema": {"type": "string", "format": "binary"}},
                        },
                    },
                    ("401", "404", "422", "503"),
                ),
                "parameters": [
                    _query_parameter("since", _TIME, "only answers to questions asked later"),
                    _query_parameter(
                        "limit", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_ROWS, "default": 1000}, "rows"
                    ),
                    _query_parameter(
                        "after", {"type": "string"}, "the header Stillhouse-Next of the previous page; since is ignored"
                    ),
                ],
            }
        },
    }


def _made_decision(config: AgentConfig, observation: Json) -> Json:
    """The schema of a decision that was made elsewhere."""
    probability = {"type": "number", "minimum": 0, "maximum": 1}
    return _object(
        {
            "decision_id": {
                "type": "string",
                "minLength": 1,
                "maxLength": MAX_ID_LENGTH,
                "description": "what the decision is called where it was made",
            },
            "observation": {"allOf": [observation, {"required": ["observation_id", "observed_at"]}]},
            "decided_at": _TIME,
            "action": {"enum": list(config.actions), "description": "the most probable one"},
            "probabilities": _object(dict.fromkeys(config.actions, probability), list(config.actions)),
            "version": {"type": "string", "description": f"of the champion: {config.agent}@7"},
        },
        ["decision_id", "observation", "decided_at", "action", "probabilities", "version"],
    )


def _server_paths(agents: Sequence[AgentConfig], limits: RequestLimits) -> Json:
    names = [config.agent for config in agents]
    text = {"description": "text", "content": {"text/plain": {"schema": {"type": "string"}}}}
    mlflow_response = {"description": "as MLflow answers", "content": {"application/json": {}}}
    ready = _json_response({"type": "object"}, "alive, and every agent has a champion")
    rows = {"type": "array", "minItems": 1, "maxItems": limits.max_rows, "items": {"type": "object"}}
    split = _object(
        {
            "columns": {"type": "array", "items": {"type": "string"}},
            "data": {"type": "array", "minItems": 1, "maxItems": limits.max_rows, "items": {"type": "array"}},
            "index": {"type": ["array", "null"]},
        },
        ["columns", "data"],
    )
    rows_or_columns = {"anyOf": [rows, {"type": "object"}]}
    formats = {
        "dataframe_split": split,
        "dataframe_records": rows,
        "instances": rows_or_columns,
        "inputs": rows_or_columns,
    }
    prediction = _object({"action": {"type": "string"}}, ["action"]) | {"additionalProperties": {"type": "number"}}
    predictions = _object(
        {
            "predictions": {"type": "array", "items": prediction},
            "decision_ids": {"type": "array", "items": {"type": "string"}},
            "warnings": {
                "type": "array",
                "items": {"type": "array", "items": {"type": "string"}},
                "description": "by row, its values outside the data contract",
            },
        },
        ["predictions"],
    )
    request = {"oneOf": [{"type": "object", "properties": {k: v}, "required": [k]} for k, v in formats.items()]}
    return {
        "/v1/agents": {
            "get": _operation("agents", "The agents that are served", _json_response({"type": "object"}), ("401",))
        },
        "/invocations": {
            "post": {
                **_operation(
                    "invocations",
                    "MLflow's scoring protocol, as of `mlflow models serve`",
                    _json_response(predictions),
                    ("400", "401", "404", "408", "413", "415", "503"),
                ),
                "parameters": [
                    _query_parameter("agent", {"enum": names}, "needed if several agents are served"),
                    _query_parameter(
                        "decision_ids", {"type": "boolean", "default": False}, "include them in the response"
                    ),
                    _query_parameter(
                        "warnings",
                        {"type": "boolean", "default": False},
                        "include them in the response; the header Stillhouse-Warnings counts the rows with warnings",
                    ),
                    {"name": "Stillhouse-Agent", "in": "header", "schema": {"enum": names}},
                ],
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": request},
                        "text/csv": {"schema": {"type": "string"}},
                    },
                },
            }
        },
        "/ping": {
            "get": _operation("ping", "200 with a champion, else 404", mlflow_response, ("404",)) | {"security": []}
        },
        "/health": {"get": _operation("health", "As /ping", mlflow_response, ("401", "404"))},
        "/version": {"get": _operation("version", "MLflow's version", mlflow_response, ("401",))},
        "/healthz": {
            "get": _operation(
                "healthz",
                "Whether decisions work, and the present problems",
                ready,
                (),
                {
                    "503": _json_response({"type": "object"}, "an agent cannot decide or record")
                    | {"headers": _RETRY_AFTER},
                },
            )
            | {"security": []}
        },
        "/readyz": {
            "get": _operation(
                "readyz",
                "As /healthz, but 503 also for problems that do not affect decisions; for alarms",
                ready,
                (),
                {
                    "503": _json_response({"type": "object"}, "`reasons` has the problems") | {"headers": _RETRY_AFTER},
                },
            )
            | {"security": []}
        },
        "/metrics": {"get": _operation("metrics", "Metrics for Prometheus", text, ("401",))},
        "/openapi.json": {
            "get": _operation("openapi", "This description", _json_response({"type": "object"}), ("401",))
        },
    }


def _door_paths() -> Json:
    """The front door's own path, and those that are passed on and recorded; their schemas are the upstream's."""
    passed_on = {
        "/v1/chat/completions": ("chat_completions", "Passed on to the upstream, or answered by a task's champion"),
        "/v1/responses": ("responses", "Passed on to the upstream, or answered by a task's champion"),
        "/v1/systemone": ("systemone", "Passed on to the upstream, or answered by the questions' champions"),
    }
    response = {"description": "as the upstream answers", "content": {"application/json": {}}}
    unreachable = {"502": {"description": "the upstream cannot be reached"}}
    paths: Json = {
        path: {
            "post": _operation(name, text, response, (), unreachable)
            | {"security": [], "requestBody": _json_body({"type": "object"})}
        }
        for path, (name, text) in passed_on.items()
    }
    return paths | {
        "/v1/door": {
            "get": _operation(
                "door", "Counts of the front door, over all workers", _json_response({"type": "object"}), ("401",)
            )
        }
    }


def _observation_schema(config: AgentConfig) -> Json:
    """The schema of an observation, with the columns in the agent file's order."""
    observations = config.observations
    types = {
        **dict.fromkeys(observations.numbers, "number"),
        **dict.fromkeys((*observations.categories, *observations.texts), "string"),
    }
    properties: Json = {}
    for name, json_type in types.items():
        column = observations.columns[name]
        bounds = {key: value for key in ("min", "max", "values") if (value := getattr(column, key, None)) is not None}
        properties[name] = {"type": [*_ACCEPTED_TYPES[json_type], "null"]} | (_FLOAT32 if json_type == "number" else {})
        if bounds:  # a description only: other values are decided all the same, and kept out of training
            text = ", ".join(f"{key} {value}" for key, value in bounds.items())
            properties[name]["description"] = f"usual: {text}"
    properties["observation_id"] = _nullable(
        {"type": list(_ACCEPTED_TYPES["string"]), "minLength": 1, "maxLength": MAX_ID_LENGTH}
    )
    properties["observed_at"] = _nullable(_TIME | {"description": "at most an hour ahead; without it, now"})
    return _object(properties, list(types))


def _shared_schemas() -> Json:
    share = {"type": "number", "minimum": 0, "maximum": 1}
    decision = {
        "decision_id": {"type": "string", "description": "identifies the decision when its outcome is sent"},
        "observation_id": {"type": "string"},
        "action": {"type": "string"},
        "confidence": share,
        "decider": {"enum": ["student", "teacher"]},
        "version": {"type": "string", "description": "the decider's version"},
        "probabilities": {"type": "object", "additionalProperties": {"type": "number"}},
        "warnings": {
            "type": "array",
            "items": {"type": "string"},
            "description": "values of the observation outside the data contract; absent if there are none",
        },
    }
    required = ["decision_id", "observation_id", "action", "confidence", "decider", "version"]
    ranked = _object(
        decision | {"probability": share | {"description": "of the action that is ranked by"}},
        [*required, "probability"],
    )
    return {
        "Decision": _object(decision, required),
        "Ranking": _object(
            {
                "ranking_id": {"type": "string"},
                "action": {"type": "string", "description": "the candidates are sorted by its probability"},
                "offered": {"type": "integer", "description": "number of candidates"},
                "decisions": {"type": "array", "items": ranked, "description": "those that are shown, best first"},
            },
            ["ranking_id", "action", "offered", "decisions"],
        ),
        "Error": _object(
            {
                "error": _object({"code": {"type": "string"}, "message": {"type": "string"}}, ["code", "message"]),
            },
            ["error"],
        ),
    }


_PROBABILITIES: Json = {
    "name": "probabilities",
    "in": "query",
    "schema": {"type": "boolean", "default": False},
    "description": "include the probability of every action",
}
_RETRY_AFTER: Json = {"Retry-After": {"schema": {"type": "integer"}, "description": "seconds"}}


def _error_response(status: str, text: str) -> Json:
    response = _json_response({"$ref": "#/components/schemas/Error"}, text)
    if status == "401":
        response["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return response | ({"headers": _RETRY_AFTER} if status == "503" else {})


def _operation(
    name: str, summary: str, success: Json, errors: Sequence[str], other_responses: Json | None = None
) -> Json:
    responses = {"200": success, **(other_responses or {})}
    for status in sorted({"400", *errors}):  # 400: a wrong Host
        responses.setdefault(status, {"$ref": f"#/components/responses/{status}"})
    return {"operationId": name, "summary": summary, "responses": responses}


def _schema_name(config: AgentConfig, schema: str) -> str:
    return f"{config.agent}.{schema}"


def _object(properties: Json, required: Sequence[str]) -> Json:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _json_response(schema: Json, description: str = "done") -> Json:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _json_body(schema: Json) -> Json:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _query_parameter(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "schema": schema, "description": description}
