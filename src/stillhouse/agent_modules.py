"""Python files beside an agent file, imported under names of their own and never through ``sys.path``.

The file ``tickets.py`` in the folder of an agent file is the module ``stillhouse.agent_modules.<folder>.tickets``;
``<folder>`` is the path of that folder in base 32. Two folders may thus both have a ``tickets.py``, neither file hides
an installed package of that name, and a process that unpickles an object of such a module finds its file by the name of
the module alone. The files of one folder import each other with ``from . import helper``.
"""

from __future__ import annotations

import base64
import importlib
import os
import stat
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

from stillhouse.errors import PartError

__all__ = ["find_beside", "import_beside", "name_of"]

__path__: list[str] = []  # makes this module a package; what it contains is found by the finder below
_PREFIX = f"{__name__}."


def find_beside(folder: Path, module: str) -> Path | None:
    """The file of ``module`` (``"package.module"``) in ``folder``; None if there is none.

    >>> find_beside(Path("agents"), "no.such.module") is None
    True
    """
    path = folder.joinpath(*module.split("."))
    files = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def import_beside(folder: Path, module: str) -> ModuleType:
    """Import ``module`` from ``folder``.

    :raises PartError: if another user could change what is imported.
    :raises ImportError: if there is no such module, or it cannot be imported; any other error of its code passes.
    """
    return importlib.import_module(f"{name_of(folder)}.{module}")


def name_of(folder: Path) -> str:
    """The package that stands for ``folder``.

    >>> name_of(Path("/home/ada/agents"))
    'stillhouse.agent_modules.f_f5ug63lff5qwiyjpmftwk3tuom'
    """
    code = base64.b32encode(os.fsencode(folder.absolute())).decode().rstrip("=").lower()
    return f"{_PREFIX}f_{code}"


def _folder_of(package: str) -> Path:
    """The folder that ``package``, a result of :func:`name_of` without its prefix, stands for."""
    code = package.removeprefix("f_").upper()
    return Path(os.fsdecode(base64.b32decode(code + "=" * (-len(code) % 8))))


class _Finder:
    """Finds the packages that stand for folders, and their modules; refuses files that others can change."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(f"{_PREFIX}f_"):
            return None
        package, _, module = name.removeprefix(_PREFIX).partition(".")
        if not module:
            folder = _folder_of(package)
            _require_own(folder)
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(folder)]
            return spec
        found = PathFinder.find_spec(name, path, target)
        if found is not None and found.origin is not None:
            file = Path(found.origin)
            for place in (file, file.parent, file.parent / "__pycache__"):
                _require_own(place)
        return found


def _require_own(path: Path) -> None:
    """:raises PartError: if somebody other than this user and root owns ``path``, or everybody may write to it."""
    if not hasattr(os, "geteuid"):  # Windows: no owner as a number, no mode
        return
    try:
        status = path.stat()
    except FileNotFoundError:  # no __pycache__ yet
        return
    remedy = "Python beside an agent file runs as you, so nobody else may be able to change it"
    if status.st_uid not in (os.geteuid(), 0):
        raise PartError(
            f"{path}: belongs to another user (uid {status.st_uid}): {remedy}: copy it into a folder of your own"
        )
    if stat.S_IMODE(status.st_mode) & stat.S_IWOTH:
        raise PartError(f"{path}: every user may write to it: {remedy}: `chmod o-w {path}`")


sys.meta_path.insert(0, _Finder)  # before the finder of paths, which checks no owner
