"""``POST /v1/responses``: closed questions, answers and streams of OpenAI's responses protocol."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.gateway.protocols.closed import EnumForm, LabelForm, ToolForm, read_object, read_tools
from stillhouse.gateway.protocols.messages import (
    HARMLESS,
    MAX_LABEL_TOKENS,
    error_body,
    read_conversation,
    texts_of,
    token_count,
)
from stillhouse.gateway.protocols.sse import read_events, write_event
from stillhouse.gateway.questions import Answer, ClosedQuestion, LocalAnswer, Reply, ToolCall, Unrecognised

__all__ = ["LOCAL_ID_PREFIX", "OpenAIResponses", "task_of_local_id"]

Json = Mapping[str, Any]

LOCAL_ID_PREFIX = "resp_sh"
"""What the ids of our own answers begin with; the task's key and random digits follow."""

_UNUSUAL = ("background", "prompt", "truncation_strategy")


def task_of_local_id(answer_id: str) -> str | None:
    """The key of the task that an answer of ours belongs to; None if the answer is not ours.

    >>> task_of_local_id("resp_sh0123456789abcdef" + "0" * 24), task_of_local_id("resp_68af")
    ('0123456789abcdef', None)
    """
    length = len(LOCAL_ID_PREFIX) + 16
    return answer_id[len(LOCAL_ID_PREFIX) : length] if answer_id.startswith(LOCAL_ID_PREFIX) else None


class OpenAIResponses:
    """The responses protocol.

    >>> request = {"model": "m", "input": "Where is my card?", "max_output_tokens": 16}
    >>> (question,) = OpenAIResponses().read_request(request)
    >>> question.observation
    'Where is my card?'
    """

    name = "openai_responses"
    path = "/v1/responses"

    def read_request(self, request: Json, task_name: str | None = None) -> tuple[ClosedQuestion, ...] | Unrecognised:
        """The closed question in a request: one, or why there is none."""
        if not isinstance(model := request.get("model"), str):
            return Unrecognised("malformed")
        if previous := request.get("previous_response_id"):
            return Unrecognised("previous_response_id", previous if isinstance(previous, str) else None)
        if request.get("conversation"):
            return Unrecognised("conversation")
        if unusual := next((field for field in _UNUSUAL if request.get(field)), None):
            return Unrecognised(unusual)
        conversation = _read_input(request.get("input"))
        if isinstance(conversation, Unrecognised):
            return conversation
        observation, messages = conversation
        form = _read_form(request, is_named=task_name is not None)
        if isinstance(form, Unrecognised):
            return form
        hidden = {"input", *(() if task_name is None else ("instructions",))}
        constant = {key: request[key] for key in sorted(request) if key not in HARMLESS and key not in hidden}
        if task_name is None:
            constant["input"] = messages
        question = ClosedQuestion(
            protocol=self.name,
            model=model,
            observation=observation,
            constant=constant,
            form=form,
            streams=request.get("stream") is True,
            stream_usage=True,
            upstream_only="logprobs" if "message.output_text.logprobs" in (request.get("include") or ()) else None,
        )
        return (question,)

    def read_answers(self, questions: Sequence[ClosedQuestion], body: bytes, streamed: bool) -> tuple[Answer, ...]:
        """The upstream's answers to the questions of one request, in their order.

        :raises ValueError: if the body is not a complete answer of this protocol.
        """
        (question,) = questions
        content = _last_response(body) if streamed else msgspec.json.decode(body)
        if not isinstance(content, dict) or not isinstance(content.get("output"), list):
            raise ValueError("no response")
        return (_read_answer(question, content),)

    def write_answers(self, questions: Sequence[ClosedQuestion], answers: Sequence[LocalAnswer]) -> list[bytes]:
        """The body of a local answer: one part, or an event each if the request streams."""
        (question,), (answer,) = questions, answers
        reply = question.form.write(answer.action)
        item = _output_item(reply)
        response = _response(question, answer, item)
        if question.streams:
            return list(_stream(response, item, reply))
        return [msgspec.json.encode(response)]

    def write_error(self, status: int, code: str, message: str) -> bytes:
        """An error of ours in the protocol's shape."""
        return error_body(status, code, message)


def _read_input(content: Any) -> tuple[str, list[Any]] | Unrecognised:
    if isinstance(content, str):
        return content, []
    if not isinstance(content, list):
        return Unrecognised("malformed")
    if any(isinstance(item, dict) and item.get("type", "message") != "message" for item in content):
        return Unrecognised("history")
    return read_conversation(content, "input_text")


def _read_form(request: Json, *, is_named: bool) -> EnumForm | LabelForm | ToolForm | Unrecognised:
    tools, text = request.get("tools"), request.get("text") or {}
    description = (text.get("format") or {}) if isinstance(text, dict) else None
    if not isinstance(description, dict):
        return Unrecognised("malformed")
    kind = description.get("type")
    if tools and request.get("tool_choice") != "none":
        if kind not in (None, "text"):
            return Unrecognised("tools and response_format")
        if not isinstance(tools, list):
            return Unrecognised("malformed")
        choice = request.get("tool_choice")
        if isinstance(choice, dict) and choice.get("type") != "function":
            return Unrecognised("tool_choice")
        functions = (tool if isinstance(tool, dict) and tool.get("type") == "function" else None for tool in tools)
        return read_tools(tools, choice, functions)
    if kind == "json_schema":
        content = read_object(description.get("schema"))
        if isinstance(content, str):
            return Unrecognised(content)
        return EnumForm(content) if content.values else Unrecognised("one option")
    if kind not in (None, "text"):
        return Unrecognised("json_object" if kind == "json_object" else "response_format")
    limit = request.get("max_output_tokens")
    is_short = isinstance(limit, int) and 0 < limit <= MAX_LABEL_TOKENS
    return LabelForm() if is_named or is_short else Unrecognised("free text")


# --------------------------------------------------------------------------- the upstream's answers


def _read_answer(question: ClosedQuestion, content: Json) -> Answer:
    usage = content.get("usage")
    about: dict[str, Any] = {
        "model": content.get("model") if isinstance(content.get("model"), str) else None,
        "input_tokens": token_count(usage, "input_tokens"),
        "output_tokens": token_count(usage, "output_tokens"),
        "answer_id": content.get("id") if isinstance(content.get("id"), str) else None,
    }
    if content.get("status", "completed") != "completed":
        return Answer(None, reason="not finished", **about)
    texts, calls = list[str](), list[ToolCall]()
    for item in content["output"]:
        kind = item.get("type") if isinstance(item, dict) else None
        if kind == "function_call":
            calls.append(ToolCall(str(item.get("name")), str(item.get("arguments") or "{}")))
        elif kind == "message":
            parts = item.get("content") or ()
            if any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts):
                return Answer(None, reason="refused", **about)
            texts.append(texts_of(parts, "output_text"))
        elif kind != "reasoning":
            return Answer(None, reason="none of the actions", **about)
    if len(texts) > 1:
        return Answer(None, reason="several answers", **about)
    action = question.form.read(Reply(texts[0] if texts else None, tuple(calls)))
    return Answer(action, reason=None if action is not None else "none of the actions", **about)


def _last_response(body: bytes) -> Any:
    """The response in the event ``response.completed``.

    :raises ValueError: if the stream has no such event.
    """
    for data in read_events(body):
        event = msgspec.json.decode(data) if data != "[DONE]" else None
        if isinstance(event, dict) and event.get("type") == "response.completed":
            return event.get("response")
    raise ValueError("the stream is not complete")


# --------------------------------------------------------------------------- our answers


def _output_item(reply: Reply) -> dict[str, Any]:
    if reply.calls:
        (call,) = reply.calls
        return {
            "id": f"fc_{secrets.token_hex(24)}",
            "type": "function_call",
            "status": "completed",
            "arguments": call.arguments,
            "call_id": f"call_{secrets.token_hex(12)}",
            "name": call.name,
        }
    return {
        "id": f"msg_{secrets.token_hex(24)}",
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "annotations": [], "logprobs": [], "text": reply.text}],
    }


def _response(question: ClosedQuestion, answer: LocalAnswer, item: dict[str, Any]) -> dict[str, Any]:
    constant = question.constant
    return {
        "id": f"{LOCAL_ID_PREFIX}{answer.task[:16]}{secrets.token_hex(12)}",
        "object": "response",
        "created_at": int(time.time()),
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "instructions": constant.get("instructions"),
        "max_output_tokens": constant.get("max_output_tokens"),
        "max_tool_calls": constant.get("max_tool_calls"),
        "model": question.model,
        "output": [item],
        "parallel_tool_calls": constant.get("parallel_tool_calls", True),
        "previous_response_id": None,
        "reasoning": constant.get("reasoning", {"effort": None, "summary": None}),
        "service_tier": None,
        "store": False,
        "temperature": constant.get("temperature", 1.0),
        "text": constant.get("text", {"format": {"type": "text"}}),
        "tool_choice": constant.get("tool_choice", "auto"),
        "tools": constant.get("tools", []),
        "top_logprobs": 0,
        "top_p": constant.get("top_p", 1.0),
        "truncation": constant.get("truncation", "disabled"),
        "usage": {
            "input_tokens": answer.input_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": 0,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": answer.input_tokens,
        },
        "user": None,
        "metadata": {},
    }


def _stream(response: dict[str, Any], item: dict[str, Any], reply: Reply) -> Iterator[bytes]:
    """The events of a streamed answer."""
    number = 0

    def event(kind: str, **content: Any) -> bytes:
        nonlocal number
        number += 1
        return write_event({"type": kind, "sequence_number": number - 1, **content}, kind)

    unfinished = response | {"status": "in_progress", "output": [], "usage": None}
    yield event("response.created", response=unfinished)
    yield event("response.in_progress", response=unfinished)
    where: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    if reply.calls:
        opened = item | {"status": "in_progress", "arguments": ""}
        yield event("response.output_item.added", output_index=0, item=opened)
        yield event("response.function_call_arguments.delta", **where, delta=item["arguments"])
        yield event("response.function_call_arguments.done", **where, name=item["name"], arguments=item["arguments"])
    else:
        opened = item | {"status": "in_progress", "content": []}
        part = item["content"][0]
        yield event("response.output_item.added", output_index=0, item=opened)
        yield event("response.content_part.added", **where, content_index=0, part=part | {"text": ""})
        yield event("response.output_text.delta", **where, content_index=0, delta=reply.text, logprobs=[])
        yield event("response.output_text.done", **where, content_index=0, text=reply.text, logprobs=[])
        yield event("response.content_part.done", **where, content_index=0, part=part)
    yield event("response.output_item.done", output_index=0, item=item)
    yield event("response.completed", response=response)
