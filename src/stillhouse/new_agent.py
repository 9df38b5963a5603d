"""Begin an agent from one of the tested examples: its agent file, its Python and a test, under a name of one's own.

The examples are those of the repository, ``agents/<example>.yaml`` with ``examples/<example>.py``. An installed package
has a copy of both folders, made when it was built, so no example is kept twice.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from stillhouse.config.base import NAME_PATTERN
from stillhouse.config.explain import suggest
from stillhouse.errors import ConfigError
from stillhouse.files import write_atomic

__all__ = ["copy_example", "list_examples"]

_TEST = "agent_test.py"
"""The test of every example, in the folder ``examples``; it finds the agent file by its own name."""

_LOADERS = "load_config|load_champion|open_registry|Agent|Registry"
"""What Python calls with the name of its own agent."""


class _Copy(NamedTuple):
    """A file of an example, and the name that its copy gets."""

    source: Path
    name: str


def list_examples() -> list[str]:
    """The examples that an agent can begin from, by name.

    >>> {"flights", "router"} <= set(list_examples())
    True
    """
    root = _templates()
    return sorted(path.stem for path in root.glob("agents/*.yaml") if (root / "examples" / f"{path.stem}.py").is_file())


def copy_example(name: str, like: str, folder: Path) -> list[Path]:
    """Write the files of the example ``like`` into ``folder`` for an agent called ``name``; nothing is overwritten.

    :returns: the agent file first, then the Python, other files of the example, and the test.
    :raises ConfigError: if the name is not one of an agent, there is no such example, or a file exists already.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name[:80]!r} is no name of an agent: it has small letters, digits, _ and -, and begins with a letter"
        )
    if like not in (examples := list_examples()):
        raise ConfigError(f"there is no example {like!r}; {suggest(like, examples, 'there are')}")
    copies = _list_copies(name, like)
    if existing := [str(folder / copy.name) for copy in copies if (folder / copy.name).exists()]:
        raise ConfigError(
            f"{', '.join(existing)}: already there, and nothing is overwritten: choose another name or --folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for copy in copies:
        write_atomic(folder / copy.name, _rename(copy.source.read_text(encoding="utf-8"), name, like, copies))
    return [folder / copy.name for copy in copies]


def _templates() -> Path:
    """The folder that contains ``agents`` and ``examples``: of the installed package, or the root of the repository."""
    package = Path(__file__).parent
    built = package / "templates"
    return built if built.is_dir() else package.parents[1]


def _list_copies(name: str, like: str) -> list[_Copy]:
    """Agent file, Python, data of the same name, the files ``<like>_…`` that they name, and the test."""
    root, module = _templates(), _module_name(name, like)
    agent_file, python = root / "agents" / f"{like}.yaml", root / "examples" / f"{like}.py"
    text = agent_file.read_text(encoding="utf-8") + python.read_text(encoding="utf-8")
    named = set(re.findall(rf"\b{like}_[\w.]+\b", text))
    more = [path for path in sorted((root / "examples").glob(f"{like}_*.*")) if named & {path.name, path.stem}]
    data = [path for path in sorted((root / "examples").glob(f"{like}.*")) if path.suffix != ".py"]
    return [
        _Copy(agent_file, f"{name}.yaml"),
        _Copy(python, f"{module}.py"),
        *(_Copy(path, f"{module}{path.suffix}") for path in data),
        *(_Copy(path, f"{module}{path.name.removeprefix(like)}") for path in more),
        _Copy(root / "examples" / _TEST, f"test_{name}.py"),
    ]


def _rename(text: str, name: str, like: str, copies: list[_Copy]) -> str:
    """The text of a copy: what names the example's files, its module or its agent names those of the new agent.

    - the line ``agent: <like>`` of the agent file;
    - the target ``examples.<like>:object``, and the import of another file, ``from examples.<like>_… import``, which
      gets a dot;
    - the agent that the Python opens, ``load_config("<like>")``;
    - the path ``agents/<like>.yaml`` or ``examples/<like>.py``, and the name of any other copied file.

    Everything else is left as it is: a column ``flights`` stays one.
    """
    module = _module_name(name, like)
    text = re.sub(rf"^agent: {like}$", f"agent: {name}", text, flags=re.MULTILINE)
    text = re.sub(rf"\bfrom examples\.{like}(?![a-z0-9])", f"from .{module}", text)
    text = re.sub(rf"\bexamples\.{like}(?![a-z0-9])", module, text)
    text = re.sub(rf'\b({_LOADERS})\("{like}"', rf'\1("{name}"', text)
    for source, new in copies:
        text = text.replace(f"{source.parent.name}/{source.name}", new)
        if source.stem not in (like, Path(_TEST).stem):
            text = re.sub(rf"\b{re.escape(source.name)}\b", new, text)
    return text


def _module_name(name: str, like: str) -> str:
    """The module of the copy: the agent's name, or ``<name>_<like>`` if its data has the name of the agent file."""
    module = name.replace("-", "_")
    return f"{module}_{like}" if (_templates() / "examples" / f"{like}.yaml").is_file() else module
