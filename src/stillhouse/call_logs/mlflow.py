"""Traces of MLflow, one a line, as ``Trace.to_json`` writes them; their assessments are outcomes.

Calls are the spans of type ``CHAT_MODEL`` or ``LLM`` whose inputs are a request and whose outputs are a response of the
OpenAI protocol, as MLflow's automatic tracing writes them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from stillhouse.call_logs.calls import Call, Outcome, Reader, Unusable, as_list, as_mapping, decoded
from stillhouse.call_logs.openai import make_call

__all__ = ["reader"]

_MODEL_SPANS = {"CHAT_MODEL", "LLM"}
_CONFIRMATIONS = {"correct", "correctness", "is_correct"}


def reader(assessment: str | None) -> Reader:
    """A function that reads the calls of one trace.

    :param assessment: name of the assessment that holds the true action; None: any expectation, or feedback of a
        person, whose value can be an outcome.
    """
    return partial(_read_record, assessment=assessment)


def _read_record(line: int, record: Mapping[str, Any], assessment: str | None) -> Iterator[Call | Unusable]:
    info, spans = as_mapping(record.get("info")), as_list(as_mapping(record.get("data")).get("spans"))
    if not info:
        yield Unusable(line, "it is no trace of MLflow")
        return
    model_spans = [
        span
        for span in map(as_mapping, spans)
        if decoded(as_mapping(span.get("attributes")).get("mlflow.spanType")) in _MODEL_SPANS
    ]
    if not model_spans:
        yield Unusable(line, "its trace has no span of type CHAT_MODEL or LLM")
    assessments = [as_mapping(stated) for stated in as_list(info.get("assessments"))]
    for span in model_spans:
        call = _read_span(line, span, info)
        of_call = [stated for stated in assessments if _is_about(stated, span, len(model_spans) == 1)]
        yield replace(call, outcome=_outcome(of_call, assessment)) if isinstance(call, Call) else call


def _read_span(line: int, span: Mapping[str, Any], info: Mapping[str, Any]) -> Call | Unusable:
    attributes = as_mapping(span.get("attributes"))
    request = as_mapping(attributes.get("mlflow.spanInputs"))
    if "messages" not in request and "input" not in request:
        return Unusable(line, "the inputs of its span hold no `messages` and no `input`")
    failed = as_mapping(span.get("status")).get("code") in ("STATUS_CODE_ERROR", "ERROR")
    nanoseconds = str(span.get("start_time_unix_nano", ""))
    return make_call(
        line,
        request,
        as_mapping(attributes.get("mlflow.spanOutputs")),
        time=int(nanoseconds) / 1e9 if nanoseconds.isdigit() else info.get("request_time"),
        call_id=f"{info.get('trace_id')}:{span.get('span_id')}",
        error="the call failed" if failed else "",
    )


def _is_about(assessment: Mapping[str, Any], span: Mapping[str, Any], is_only_call: bool) -> bool:
    """Whether an assessment is about the call of a span, or about a trace with this call alone."""
    span_id = assessment.get("span_id")
    return span_id == span.get("span_id") if span_id else is_only_call


def _outcome(assessments: Sequence[Mapping[str, Any]], name: str | None) -> Outcome | None:
    """The newest assessment that can be an outcome; expectations come before feedback."""
    found = list[tuple[bool, str, Outcome]]()
    for stated in assessments:
        if stated.get("valid") is False:
            continue
        time = str(stated.get("last_update_time") or stated.get("create_time") or "")
        for kind in ("expectation", "feedback"):
            value = decoded(as_mapping(stated.get(kind)).get("value"))
            if value is None or as_mapping(stated.get(kind)).get("error"):
                continue
            if name is not None:
                usable = stated.get("assessment_name") == name
            elif kind == "expectation":
                usable = isinstance(value, str)
            else:
                by_person = as_mapping(stated.get("source")).get("source_type") == "HUMAN"
                confirms = value is True and str(stated.get("assessment_name")).lower() in _CONFIRMATIONS
                usable = by_person and (isinstance(value, str) or confirms)
            if usable:
                found.append((kind == "expectation", time, Outcome(value, time or None)))
    return max(found, key=lambda candidate: candidate[:2])[2] if found else None
