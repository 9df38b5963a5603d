"""Write docs/reference/cli.md from the parsers of the commands: ``python docs/tools/command_reference.py``.

``make docs`` runs it, and a test fails while the page differs from the commands.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import typer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from flows.by_hand import app as flows_app  # noqa: E402
from stillhouse.cli import app as engine_app  # noqa: E402

_TYPES: dict[Any, str] = {int: "number", float: "number", Path: "path", datetime: "time"}
PAGE = ROOT / "docs" / "reference" / "cli.md"
_HEAD = """# Commands

<!-- Written by docs/tools/command_reference.py from the parsers: change the commands, not this page. -->

Every command with its arguments and options, as `--help` shows them. An agent is the name of an agent file in
`agents/`. `make help` lists the words of the Makefile.
"""
_PARTS = (
    (
        "stillhouse",
        engine_app,
        "The engine's commands. They need neither Prefect nor a server; `make install` puts them into `.venv/bin`.",
    ),
    (
        "python -m flows",
        flows_app,
        "One flow, now, in this process, from the root of a clone. Without `PREFECT_API_URL` a temporary Prefect "
        "server runs until the flow ends.",
    ),
)


def write_page() -> str:
    """The page as Markdown."""
    parts = [_HEAD]
    for program, app, about in _PARTS:
        parts.append(f"\n## {program}\n\n{about}\n")
        parts += _write_group(program, typer.main.get_command(app))
    return "".join(parts)


def _write_group(program: str, group: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _write_group(f"{program} {name}", command)
        elif not command.hidden:
            yield _write_command(f"{program} {name}", command)


def _write_command(name: str, command: Any) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if not parameter.hidden and parameter not in arguments]
    usage = " ".join([name, *("[OPTIONS]" if options else "",), *(_metavar(argument) for argument in arguments)])
    text = inspect.cleandoc((command.help or "").replace("\f", ""))
    blocks = [f"\n### {name}\n", text, f"```text\n{' '.join(usage.split())}\n```"]
    rows = [_write_row(parameter) for parameter in (*arguments, *options)]
    if rows:
        blocks.append("| argument or option | meaning | default |\n|---|---|---|\n" + "\n".join(rows))
    return "\n".join([blocks[0], "\n\n".join(filter(None, blocks[1:]))]) + "\n"


def _metavar(argument: Any) -> str:
    name = (argument.metavar or argument.name).upper().replace("[", "").replace("]", "")
    name += "..." if argument.nargs == -1 else ""
    return name if argument.required else f"[{name}]"


def _write_row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        shown = f"`{_metavar(parameter)}`"
    else:
        names = " ".join(f"`{name}`" for name in (*parameter.opts, *parameter.secondary_opts))
        shown = names if parameter.is_flag else f"{names} {_describe_type(parameter)}"
    return f"| {shown} | {_escape(parameter.help or '')} | {_describe_default(parameter)} |"


def _describe_type(parameter: Any) -> str:
    kind = parameter.type_descriptor.annotation
    kinds = [part for part in get_args(kind) if part is not type(None)] if _is_wrapper(kind) else [kind]
    (kind,) = kinds if len(kinds) == 1 else (str,)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join(f"`{choice}`" for choice in get_args(kind))
    low, high = parameter.min, parameter.max
    bounds = f" `{low}`…`{high}`" if None not in (low, high) else f" ≥ `{low}`" if low is not None else ""
    return f"{_TYPES.get(kind, 'text')}{bounds}"


def _is_wrapper(kind: Any) -> bool:
    """Whether it is optional or a list of something."""
    return get_origin(kind) in (Union, UnionType, list)


def _describe_default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    default = parameter.default
    return "" if default in (None, "", (), []) or default is False else f"`{getattr(default, 'value', default)}`"


def _escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(write_page(), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
