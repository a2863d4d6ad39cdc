"""Read YAML and record the file and line of each key, for error messages."""

import re
from typing import Any

import yaml

from ladder_lite.errors import UserError

# ("eval", "samples") -> "recipes/tiny.yaml:12"; list items by their index, () the whole document
Places = dict[tuple[str, ...], str]


def read_yaml(text: str, place: str, *, one_line: bool = False) -> tuple[Any, Places]:
    """Return the value of a YAML document, and the place of every key and list item in it.

    `place` names the document. Places and errors of a `one_line` text have no line numbers.
    Raises UserError for invalid syntax, non-string or duplicate keys, aliases, and values that JSON cannot represent.
    """
    places: Places = {(): place}

    def place_of(mark: yaml.Mark | None) -> str:
        return place if one_line or mark is None else f"{place}:{mark.line + 1}"

    def read(node: yaml.Node, path: tuple[str, ...]) -> Any:
        if isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):  # items get places too: ("personas", "0")
                places[(*path, str(index))] = place_of(child.start_mark)
            return [read(child, (*path, str(index))) for index, child in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode):
            mapping: dict[str, Any] = {}
            for key_node, child in node.value:
                key = key_node.value
                if not isinstance(key, str):
                    raise _mistake("a key must be plain text", key_node)
                if key in mapping:  # PyYAML would silently keep the last one
                    raise _mistake(f'"{key}" is set twice, first at {places[(*path, key)]}', key_node)
                places[(*path, key)] = place_of(key_node.start_mark)
                mapping[key] = read(child, (*path, key))
            return mapping
        value = loader.construct_object(node)
        if not isinstance(value, str | int | float | None):
            raise _mistake(f"{node.tag} is not allowed", node)
        return value

    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        return (None if node is None else read(node, ())), places
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{place_of(error.problem_mark)}: not valid YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{place}: not valid YAML: {error}") from error


class _Loader(yaml.SafeLoader):
    """Scalars as in YAML 1.2: 1e-5 is a number (PyYAML reads a string), `no` and 2024-01-01 are strings."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's name)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):  # a recipe should read from top to bottom
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed", mark)
        return super().compose_node(parent, index)


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    ("float", r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))


def _mistake(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark)
