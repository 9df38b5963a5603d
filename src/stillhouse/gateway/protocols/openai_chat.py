"""``POST /v1/chat/completions``: closed questions, answers and streams of OpenAI's chat protocol."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from stillhouse.gateway.protocols.closed import EnumForm, LabelForm, ToolForm, read_object, read_tools
from stillhouse.gateway.protocols.messages import (
    HARMLESS,
    MAX_LABEL_TOKENS,
    ResponseHead,
    error_body,
    read_conversation,
    token_count,
)
from stillhouse.gateway.protocols.sse import DONE, read_events, write_event
from stillhouse.gateway.questions import Answer, ClosedQuestion, LocalAnswer, Reply, ToolCall, Unrecognised

__all__ = ["OpenAIChat"]

Json = Mapping[str, Any]

_UNUSUAL = ("audio", "prediction", "web_search_options", "functions", "function_call", "logit_bias")
"""Fields that make a request no closed question."""
_FINISHED = ("stop", "tool_calls", "function_call")


class OpenAIChat:
    """The chat protocol.

    >>> request = {
    ...     "model": "m",
    ...     "messages": [{"role": "user", "content": "Where is my card?"}],
    ...     "max_tokens": 5,
    ... }
    >>> (question,) = OpenAIChat().read_request(request)
    >>> question.observation
    'Where is my card?'
    """

    name = "openai_chat"
    path = "/v1/chat/completions"

    def read_request(self, request: Json, task_name: str | None = None) -> tuple[ClosedQuestion, ...] | Unrecognised:
        """The closed question in a request: one, or why there is none.

        :param task_name: of the header ``x-stillhouse-task``: then the messages before the user's are not part of the
            task.
        """
        if not isinstance(model := request.get("model"), str):
            return Unrecognised("malformed")
        if request.get("n") not in (None, 1):
            return Unrecognised("n")
        if unusual := next((field for field in _UNUSUAL if request.get(field)), None):
            return Unrecognised(unusual)
        if request.get("modalities") not in (None, ["text"]):
            return Unrecognised("modalities")
        conversation = read_conversation(request.get("messages"), "text")
        if isinstance(conversation, Unrecognised):
            return conversation
        observation, messages = conversation
        form = _read_form(request, is_named=task_name is not None)
        if isinstance(form, Unrecognised):
            return form
        constant = {key: request[key] for key in sorted(request) if key not in HARMLESS and key != "messages"}
        if task_name is None:
            constant["messages"] = messages
        options = request.get("stream_options")
        question = ClosedQuestion(
            protocol=self.name,
            model=model,
            observation=observation,
            constant=constant,
            form=form,
            streams=request.get("stream") is True,
            stream_usage=isinstance(options, dict) and options.get("include_usage") is True,
            upstream_only=_upstream_only(request),
        )
        return (question,)

    def read_answers(self, questions: Sequence[ClosedQuestion], body: bytes, streamed: bool) -> tuple[Answer, ...]:
        """The upstream's answers to the questions of one request, in their order.

        :raises ValueError: if the body is not a complete answer of this protocol.
        """
        (question,) = questions
        content = _assemble(body) if streamed else msgspec.json.decode(body)
        if not isinstance(content, dict) or not isinstance(content.get("choices"), list):
            raise ValueError("no chat completion")
        return (_read_answer(question, content),)

    def write_answers(self, questions: Sequence[ClosedQuestion], answers: Sequence[LocalAnswer]) -> list[bytes]:
        """The body of a local answer: one part, or an event each if the request streams."""
        (question,), (answer,) = questions, answers
        reply = question.form.write(answer.action)
        head = ResponseHead(f"chatcmpl-{secrets.token_hex(14)}", int(time.time()), question.model)
        finish = "tool_calls" if reply.calls and not _is_named(question) else "stop"
        usage = {
            "prompt_tokens": answer.input_tokens,
            "completion_tokens": 0,
            "total_tokens": answer.input_tokens,
        }
        calls = [
            {"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": call._asdict()}
            for call in reply.calls
        ]
        if question.streams:
            return list(_stream(question, head, reply, calls, finish, usage))
        message: dict[str, Any] = {"role": "assistant", "content": reply.text, "refusal": None, "annotations": []}
        if calls:
            message["tool_calls"] = calls
        body = {
            "id": head.id,
            "object": "chat.completion",
            "created": head.created,
            "model": head.model,
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": finish}],
            "usage": usage,
            "system_fingerprint": None,
        }
        return [msgspec.json.encode(body)]

    def write_error(self, status: int, code: str, message: str) -> bytes:
        """An error of ours in the protocol's shape."""
        return error_body(status, code, message)


def _read_form(request: Json, *, is_named: bool) -> EnumForm | LabelForm | ToolForm | Unrecognised:
    tools, response_format = request.get("tools"), request.get("response_format") or {}
    kind = response_format.get("type") if isinstance(response_format, dict) else "malformed"
    if tools and request.get("tool_choice") != "none":
        if kind not in (None, "text"):
            return Unrecognised("tools and response_format")
        return _read_tool_form(tools, request.get("tool_choice"))
    if kind == "json_schema":
        description = response_format.get("json_schema")
        content = read_object(description.get("schema") if isinstance(description, dict) else None)
        if isinstance(content, str):
            return Unrecognised(content)
        return EnumForm(content) if content.values else Unrecognised("one option")
    if kind not in (None, "text"):
        return Unrecognised("json_object" if kind == "json_object" else "response_format")
    structured = request.get("structured_outputs")
    labels = request.get("guided_choice") or (structured.get("choice") if isinstance(structured, dict) else None)
    if isinstance(labels, list) and len(labels) > 1 and all(isinstance(label, str) for label in labels):
        return LabelForm(tuple(dict.fromkeys(labels)))
    limits = [request.get("max_tokens"), request.get("max_completion_tokens")]
    is_short = any(isinstance(limit, int) and 0 < limit <= MAX_LABEL_TOKENS for limit in limits)
    return LabelForm() if is_named or is_short else Unrecognised("free text")


def _read_tool_form(tools: Any, choice: Any) -> ToolForm | Unrecognised:
    if not isinstance(tools, list):
        return Unrecognised("malformed")
    if isinstance(choice, dict):
        function = choice.get("function")
        choice = function if choice.get("type") == "function" and isinstance(function, dict) else {}
    return read_tools(
        tools,
        choice,
        (tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None for tool in tools),
    )


def _upstream_only(request: Json) -> str | None:
    """Why a request has to go upstream although its question is closed."""
    if request.get("logprobs"):
        return "logprobs"
    return "store" if request.get("store") else None


def _is_named(question: ClosedQuestion) -> bool:
    return isinstance(question.form, ToolForm) and question.form.is_named


# --------------------------------------------------------------------------- the upstream's answers


def _read_answer(question: ClosedQuestion, content: Json) -> Answer:
    usage = content.get("usage")
    about: dict[str, Any] = {
        "model": _text(content.get("model")),
        "fingerprint": _text(content.get("system_fingerprint")),
        "input_tokens": token_count(usage, "prompt_tokens"),
        "output_tokens": token_count(usage, "completion_tokens"),
        "answer_id": _text(content.get("id")),
    }
    choices = content["choices"]
    if len(choices) != 1 or not isinstance(choices[0], dict) or not isinstance(choices[0].get("message"), dict):
        return Answer(None, reason="several answers", **about)
    choice, message = choices[0], choices[0]["message"]
    if choice.get("finish_reason") not in _FINISHED:
        return Answer(None, reason="not finished", **about)
    if message.get("refusal"):
        return Answer(None, reason="refused", **about)
    calls = [call.get("function") for call in message.get("tool_calls") or () if isinstance(call, dict)]
    reply = Reply(
        _text(message.get("content")),
        tuple(
            ToolCall(str(call.get("name")), str(call.get("arguments") or "{}"))
            for call in calls
            if isinstance(call, dict)
        ),
    )
    action = question.form.read(reply)
    if action is None:
        return Answer(None, reason="none of the actions", **about)
    return Answer(action, _probs(question, choice, action), **about)


def _probs(question: ClosedQuestion, choice: Json, action: str) -> dict[str, float] | None:
    """The probability of each action from the answer's log-probabilities, if it has them."""
    logprobs = choice.get("logprobs")
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    actions = question.form.actions
    if not isinstance(tokens, list) or not tokens or not actions or isinstance(question.form, ToolForm):
        return None
    from stillhouse.teachers.replies import probs_from_logprobs

    try:
        read = [
            (
                token["token"],
                float(token["logprob"]),
                [(other["token"], float(other["logprob"])) for other in token.get("top_logprobs") or ()],
            )
            for token in tokens
        ]
        probs = probs_from_logprobs(read, actions)
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    if not math.isclose(float(probs.sum()), 1.0, abs_tol=1e-6) or actions[int(probs.argmax())] != action:
        return None
    return dict(zip(actions, probs.tolist(), strict=True))


def _assemble(body: bytes) -> dict[str, Any]:
    """A stream of chunks as one chat completion.

    :raises ValueError: if the stream is not complete.
    """
    content: dict[str, Any] = {"choices": []}
    message: dict[str, Any] = {"content": None, "tool_calls": []}
    calls: dict[int, dict[str, Any]] = {}
    finish, logprobs, is_done, indices = None, list[Any](), False, set[int]()
    for data in read_events(body):
        if data == DONE:
            is_done = True
            break
        chunk = msgspec.json.decode(data)
        if not isinstance(chunk, dict) or "error" in chunk:
            raise ValueError("the stream ends with an error")
        content |= {key: chunk[key] for key in ("id", "model", "system_fingerprint", "usage") if chunk.get(key)}
        for choice in chunk.get("choices") or ():
            delta = choice.get("delta") or {}
            indices.add(choice.get("index", 0))
            if delta.get("content") is not None:
                message["content"] = (message["content"] or "") + delta["content"]
            if delta.get("refusal"):
                message["refusal"] = delta["refusal"]
            for part in delta.get("tool_calls") or ():
                call = calls.setdefault(part.get("index", 0), {"name": "", "arguments": ""})
                function = part.get("function") or {}
                call["name"] += function.get("name") or ""
                call["arguments"] += function.get("arguments") or ""
            if isinstance(choice.get("logprobs"), dict):
                logprobs += choice["logprobs"].get("content") or ()
            finish = choice.get("finish_reason") or finish
    if not is_done:
        raise ValueError("the stream is not complete")
    message["tool_calls"] = [{"function": call} for _, call in sorted(calls.items())]
    choice = {"message": message, "finish_reason": finish, "logprobs": {"content": logprobs}}
    content["choices"] = [choice] * max(1, len(indices))
    return content


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) else None


# --------------------------------------------------------------------------- our answers


def _stream(
    question: ClosedQuestion,
    head: ResponseHead,
    reply: Reply,
    calls: list[dict[str, Any]],
    finish: str,
    usage: dict[str, int],
) -> Iterator[bytes]:
    """The events of a streamed answer."""
    base: dict[str, Any] = {
        "id": head.id,
        "object": "chat.completion.chunk",
        "created": head.created,
        "model": head.model,
        "system_fingerprint": None,
    }
    if question.stream_usage:
        base["usage"] = None

    def chunk(delta: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return write_event(base | {"choices": [choice]})

    if calls:
        yield chunk({"role": "assistant", "content": None, "refusal": None})
        for index, call in enumerate(calls):
            opened = call | {"index": index, "function": {"name": call["function"]["name"], "arguments": ""}}
            yield chunk({"tool_calls": [opened]})
            yield chunk({"tool_calls": [{"index": index, "function": {"arguments": call["function"]["arguments"]}}]})
    else:
        yield chunk({"role": "assistant", "content": "", "refusal": None})
        yield chunk({"content": reply.text})
    yield chunk({}, finish)
    if question.stream_usage:
        yield write_event(base | {"choices": [], "usage": usage})
    yield write_event(DONE)
