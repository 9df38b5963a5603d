"""Read YAML within limits of time and memory, and report errors with the line.

A few lines of YAML can expand to more than a machine can hold (an alias of aliases of aliases), can contain themselves,
or can nest deeper than the parser can follow; converting a very long number can take minutes.
"""

from __future__ import annotations

from typing import Any

import yaml

from stillhouse.errors import ConfigError

__all__ = ["read_yaml"]

_MAX_NODES = 30_000
"""Values and keys; each alias counts with everything that it stands for."""
_MAX_DEPTH = 40
_MAX_NUMBER_CHARACTERS = 300

_TOO_DEEP = f"nested deeper than {_MAX_DEPTH} levels, with aliases expanded"
_TOO_MANY = f"more than {_MAX_NODES:,} values, with aliases expanded"
_BOOLEAN_TAG = "tag:yaml.org,2002:bool"
_NUMBER_TAGS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with limits; parsing time grows with the square of the depth, so depth is checked early."""

    _depth = _nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._nodes += 1
        self._depth += 1
        if self._depth > _MAX_DEPTH or self._nodes > _MAX_NODES:
            problem = _TOO_DEEP if self._depth > _MAX_DEPTH else _TOO_MANY
            raise yaml.composer.ComposerError(None, None, problem, self.peek_event().start_mark)  # type: ignore[no-untyped-call]
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """A mapping whose keys ``on``, ``off``, ``yes`` and ``no`` are text, as in YAML 1.2; as values they are not."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        for key, _ in node.value:
            if key.tag == _BOOLEAN_TAG and key.value.lower() not in ("true", "false"):
                key.tag = "tag:yaml.org,2002:str"
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except ValueError as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error
        except (ArithmeticError, LookupError, AttributeError, TypeError) as error:  # raised by PyYAML's constructors
            problem = f"the value {str(node.value)[:50]!r} does not fit its tag"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def read_yaml(text: str) -> tuple[yaml.Node | None, Any]:
    """Read the one document of ``text``: as nodes, which know their lines, and as plain Python values.

    >>> read_yaml("a: 1")[1]
    {'a': 1}

    :raises ConfigError: ``<line>: <problem>`` if it is not YAML, is too large or too deep, or contains itself.
    """
    loader = None
    try:
        loader = _Loader(text)  # the constructor already checks the characters
        root = loader.get_single_node()
        if root is None:
            return None, None
        _require_bounded(root)
        return root, loader.construct_document(root)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{line}: is not YAML: {problem}") from error
    except RecursionError as error:
        raise ConfigError(f"1: is not YAML: {_TOO_DEEP}") from error
    finally:
        if loader is not None:
            loader.dispose()


def _require_bounded(root: yaml.Node) -> None:
    """:raises yaml.YAMLError: if the tree is too large or too deep with aliases expanded, or contains itself."""
    sizes = dict[int, tuple[int, int]]()  # nodes and depth, by id of the node
    ancestors = set[int]()

    def refuse(node: yaml.Node, problem: str) -> None:
        raise yaml.composer.ComposerError(None, None, problem, node.start_mark)

    def measure(node: yaml.Node) -> tuple[int, int]:
        """Number of nodes, and depth, of the tree below ``node``."""
        if (size := sizes.get(id(node))) is not None:
            return size
        if id(node) in ancestors:
            refuse(node, "contains itself through an alias")
        is_number = isinstance(node, yaml.ScalarNode) and node.tag in _NUMBER_TAGS
        if is_number and len(node.value) > _MAX_NUMBER_CHARACTERS:
            refuse(node, f"a number of more than {_MAX_NUMBER_CHARACTERS} characters: put it in quotes")
        ancestors.add(id(node))
        children = [measure(child) for child in _children(node)]
        ancestors.discard(id(node))
        nodes, depth = 1 + sum(nodes for nodes, _ in children), 1 + max((depth for _, depth in children), default=0)
        if nodes > _MAX_NODES:
            refuse(node, _TOO_MANY)
        if depth > _MAX_DEPTH:
            refuse(node, _TOO_DEEP)
        sizes[id(node)] = nodes, depth
        return nodes, depth

    measure(root)


def _children(node: yaml.Node) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
