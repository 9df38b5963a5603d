"""YAML that somebody wrote, read within limits: in time, in bounded memory, and with a sentence about what is wrong.

YAML lets a few lines stand for more than a machine can hold (an alias of aliases of aliases), contain themselves, or
nest deeper than the parser can follow; numbers may be written so that turning them into numbers takes minutes.
"""

from __future__ import annotations

from typing import Any

import yaml

from stillhouse.errors import ConfigError

__all__ = ["read_yaml"]

_MOST_NODES = 30_000
"""Values and keys, each alias counted with all that it stands for."""
_DEEPEST = 40
_LONGEST_NUMBER = 300  # characters


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader; its parser takes time by the square of the depth, so depth is limited as it reads."""

    _depth = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._depth > _DEEPEST or self._nodes > _MOST_NODES:
            what = _TOO_DEEP if self._depth > _DEEPEST else _TOO_MANY
            raise yaml.composer.ComposerError(None, None, what, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        except (ArithmeticError, LookupError, AttributeError, TypeError) as error:  # of PyYAML's own constructors
            said = f"the value {str(node.value)[:50]!r} does not fit its tag"
            raise yaml.constructor.ConstructorError(None, None, said, node.start_mark) from error


_TOO_DEEP = f"nested deeper than {_DEEPEST} levels, aliases written out"
_TOO_MANY = f"more than {_MOST_NODES:,} values, aliases counted with all that they stand for"


def read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """The one document of the text: as nodes, which know their lines, and as plain Python values.

    :raises ConfigError: ``<line>: <what is wrong>`` if it is no YAML, or too large, too deep, or contains itself.
    """
    loader = None
    try:
        loader = _Loader(text)  # looks at the characters
        root = loader.get_single_node()
        if root is None:
            return None, None
        _require_bounded(root)
        return root, loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{line}: is not YAML: {said}") from error
    except RecursionError as error:
        raise ConfigError(f"1: is not YAML: {_TOO_DEEP}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _require_bounded(root: yaml.Node) -> None:
    """:raises yaml.YAMLError: if it is too large or too deep with every alias written out, or contains itself."""
    measured = dict[int, tuple[int, int]]()
    above = set[int]()

    def refuse(node: yaml.Node, why: str) -> None:
        raise yaml.composer.ComposerError(None, None, why, node.start_mark)

    def measure(node: yaml.Node) -> tuple[int, int]:
        """How many nodes there are, and how deep they lie."""
        if (known := measured.get(id(node))) is not None:
            return known
        if id(node) in above:
            refuse(node, "contains itself through an alias")
        if node.tag in _NUMBERS and isinstance(node, yaml.ScalarNode) and len(node.value) > _LONGEST_NUMBER:
            refuse(node, f"a number of more than {_LONGEST_NUMBER} characters: put it in quotes")
        above.add(id(node))
        parts = [measure(part) for part in _parts(node)]
        above.discard(id(node))
        nodes, depth = 1 + sum(nodes for nodes, _ in parts), 1 + max((depth for _, depth in parts), default=0)
        if nodes > _MOST_NODES:
            refuse(node, _TOO_MANY)
        if depth > _DEEPEST:
            refuse(node, _TOO_DEEP)
        measured[id(node)] = nodes, depth
        return nodes, depth

    measure(root)


def _parts(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
