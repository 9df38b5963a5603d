"""Closed answers in OpenAI's protocols: enums in a JSON schema, calls of tools, and plain labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stillhouse.gateway.questions import MAX_ACTIONS, MAX_LABEL_CHARACTERS, NO_TOOL, Reply, ToolCall, Unrecognised

__all__ = ["ClosedObject", "EnumForm", "LabelForm", "ToolForm", "Value", "read_object", "read_tools"]

Value = str | bool | int | None
Json = Mapping[str, Any]

_MAX_REFERENCES = 8


def _values(schema: Any, root: Json, depth: int = 0) -> list[Value] | None:
    """The values that a schema allows, in its order; None if they are not a short list of scalars."""
    if not isinstance(schema, dict) or depth > _MAX_REFERENCES:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _values(_resolve(reference, root), root, depth + 1)
    if "const" in schema:
        values: list[Any] = [schema["const"]]
    elif isinstance(schema.get("enum"), list):
        values = schema["enum"]
    elif schema.get("type") == "boolean":
        values = [True, False]
    else:
        parts = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
        if not isinstance(parts, list) or not parts or ("allOf" in schema and len(parts) > 1):
            return None
        lists = [_values(part, root, depth + 1) for part in parts]
        values = []
        for part in lists:
            if part is None:
                return None
            values += part
    scalars = [value for value in values if value is None or isinstance(value, str | bool | int)]
    return scalars if scalars and len(scalars) == len(values) <= MAX_ACTIONS else None


def _resolve(reference: str, root: Json) -> Any:
    """The schema that ``#/$defs/Name`` refers to; None if there is none."""
    if not reference.startswith("#/"):
        return None
    found: Any = root
    for part in reference[2:].split("/"):
        if not isinstance(found, dict):
            return None
        found = found.get(part.replace("~1", "/").replace("~0", "~"))
    return found


def action_name(value: Value) -> str:
    """The action of a JSON value: a text as it is, anything else as JSON.

    >>> action_name("refund"), action_name(True)
    ('refund', 'true')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _named(values: Sequence[Value]) -> dict[str, Value] | None:
    """The values by action; None if two have the same name."""
    named = {action_name(value): value for value in values}
    return named if len(named) == len(values) else None


@dataclass(frozen=True, slots=True)
class ClosedObject:
    """A JSON object whose properties are all fixed but one, which is one of several values."""

    choice: str | None
    """The property that varies; None: no property does, or the whole value is the choice."""
    values: Mapping[str, Value]
    """Its values by action; empty if nothing varies."""
    fixed: Mapping[str, Value]
    """All properties in the schema's order; the one that varies has its first value."""
    is_object: bool = True

    def write(self, action: str | None) -> str:
        """The JSON that says ``action``."""
        if not self.is_object:
            return json.dumps(self.values[str(action)], ensure_ascii=False)
        content = dict(self.fixed)
        if self.choice is not None:
            content[self.choice] = self.values[str(action)]
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    def read(self, text: str) -> str | None:
        """The action that a JSON text says."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            return None
        if self.is_object:
            if not isinstance(content, dict) or self.choice is None:
                return None
            content = content.get(self.choice)
        if not (content is None or isinstance(content, str | bool | int)):
            return None
        name = action_name(content)
        return name if name in self.values and type(self.values[name]) is type(content) else None


def read_object(schema: Any) -> ClosedObject | str:
    """The closed object that a JSON schema describes, or why it describes none.

    >>> intent = {"enum": ["pay", "move"]}
    >>> read_object({"type": "object", "properties": {"intent": intent}, "required": ["intent"]}).write("move")
    '{"intent":"move"}'
    >>> read_object({"type": "object", "properties": {"reply": {"type": "string"}}})
    'free schema'
    """
    if not isinstance(schema, dict):
        return "free schema"
    root, seen = schema, 0
    while isinstance(schema, dict) and isinstance(schema.get("$ref"), str) and seen <= _MAX_REFERENCES:
        schema, seen = _resolve(schema["$ref"], root), seen + 1
    if not isinstance(schema, dict):
        return "free schema"
    properties = schema.get("properties", {})
    if schema.get("type", "object") != "object" or ("enum" in schema and not properties):
        values = _values(schema, root)
        named = _named(values) if values else None
        return "free schema" if named is None or len(named) < 2 else ClosedObject(None, named, {}, is_object=False)
    if not isinstance(properties, dict) or "patternProperties" in schema:
        return "free schema"
    choices: dict[str, dict[str, Value]] = {}
    fixed: dict[str, Value] = {}
    for name, part in properties.items():
        values = _values(part, root)
        named = _named(values) if values else None
        if values is None or named is None:
            return "free schema"
        fixed[name] = values[0]
        if len(named) > 1:
            choices[name] = named
    if len(choices) > 1:
        return "several choices"
    if not choices:
        return ClosedObject(None, {}, fixed)
    ((choice, named),) = choices.items()
    if choice not in (schema.get("required") or ()):
        return "optional choice"
    return ClosedObject(choice, named, fixed)


# --------------------------------------------------------------------------- forms of an answer


@dataclass(frozen=True, slots=True)
class EnumForm:
    """The action is an enum's value in a JSON text."""

    content: ClosedObject

    @property
    def actions(self) -> tuple[str, ...]:
        return tuple(self.content.values)

    @property
    def local_actions(self) -> frozenset[str] | None:
        return None

    def write(self, action: str) -> Reply:
        return Reply(self.content.write(action))

    def read(self, reply: Reply) -> str | None:
        return None if reply.calls or reply.text is None else self.content.read(reply.text)


@dataclass(frozen=True, slots=True)
class LabelForm:
    """The action is the whole text."""

    actions: tuple[str, ...] = ()

    @property
    def local_actions(self) -> frozenset[str] | None:
        return None

    def write(self, action: str) -> Reply:
        return Reply(action)

    def read(self, reply: Reply) -> str | None:
        text = (reply.text or "").strip()
        if reply.calls or not text or len(text) > MAX_LABEL_CHARACTERS or not text.isprintable():
            return None
        return text if not self.actions or text in self.actions else None


@dataclass(frozen=True, slots=True)
class ToolForm:
    """The action is the tool that is called, or the enum in the arguments of the only tool."""

    arguments: Mapping[str, ClosedObject | None]
    """By tool; None: arguments that only a language model can write."""
    may_talk: bool
    """Whether the answer may be a text instead of a call."""
    enum_tool: str | None = None
    """The tool whose arguments hold the choice; None: the choice is the tool."""
    is_named: bool = False
    """Whether the request names the tool that has to be called."""

    @property
    def actions(self) -> tuple[str, ...]:
        if self.enum_tool is not None:
            content = self.arguments[self.enum_tool]
            return () if content is None else tuple(content.values)
        return (*self.arguments, *([NO_TOOL] if self.may_talk else []))

    @property
    def local_actions(self) -> frozenset[str] | None:
        if self.enum_tool is not None:
            return None
        return frozenset(name for name, content in self.arguments.items() if content is not None and not content.values)

    def write(self, action: str) -> Reply:
        name = action if self.enum_tool is None else self.enum_tool
        content = self.arguments[name]
        assert content is not None, "this call has free arguments"
        return Reply(None, (ToolCall(name, content.write(action if self.enum_tool else None)),))

    def read(self, reply: Reply) -> str | None:
        if not reply.calls:
            return NO_TOOL if self.may_talk and reply.text else None
        if len(reply.calls) > 1 or reply.calls[0].name not in self.arguments:
            return None
        if self.enum_tool is None:
            return reply.calls[0].name
        content = self.arguments[self.enum_tool]
        return None if content is None else content.read(reply.calls[0].arguments)


def read_tools(tools: Any, choice: Any, functions: Iterator[Json | None]) -> ToolForm | Unrecognised:
    """The form of an answer to a request with tools.

    :param choice: ``auto``, ``required``, or the name of the only tool in a mapping ``{"name": …}``.
    :param functions: each tool's ``{"name", "parameters"}``; None for a tool that is no function.
    """
    found: dict[str, ClosedObject | None] = {}
    for function in functions:
        if not isinstance(function, dict) or not isinstance(function.get("name"), str) or function["name"] in found:
            return Unrecognised("tools that are no functions")
        parameters = function.get("parameters")
        content = ClosedObject(None, {}, {}) if not parameters else read_object(parameters)
        found[function["name"]] = None if isinstance(content, str) else content
    may_talk = choice in (None, "auto")
    is_named = isinstance(choice, dict)
    if is_named:
        if choice.get("name") not in found:
            return Unrecognised("tool_choice")
        found = {choice["name"]: found[choice["name"]]}
    elif not may_talk and choice != "required":
        return Unrecognised("tool_choice")
    if len(found) > MAX_ACTIONS:
        return Unrecognised("too many options")
    if len(found) == 1 and not may_talk:
        ((name, only),) = found.items()
        if only is None:
            return Unrecognised("free arguments")
        if len(only.values) < 2:
            return Unrecognised("one option")
        return ToolForm(found, False, name, is_named)
    if NO_TOOL in found:
        return Unrecognised("tools that are no functions")
    return ToolForm(found, may_talk, None, is_named)
