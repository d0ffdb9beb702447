"""A small YAML: mappings, lists and plain values, each with its line; no tag, anchor or alias.

Values are read by the YAML 1.2 core rules (`1e-3` is a number, `no` is text), which PyYAML does not
follow by itself. Knows no recipe. Nothing in a file can make it call or build anything else.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
MAX_CHARACTERS = 200_000
MAX_DEPTH = 16

_NULL = re.compile(r"(?:~|null|Null|NULL|)")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INT = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_RULES = (("null", _NULL), ("bool", _BOOL), ("int", _INT), ("float", _FLOAT))


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012

    def ignore_aliases(self, data: Any) -> bool:
        return True


for _kind, _pattern in _RULES:
    for _user in (_Loader, _Dumper):
        _user.add_implicit_resolver(
            f"tag:yaml.org,2002:{_kind}", re.compile(f"{_pattern.pattern}$"), None
        )


@dataclass(frozen=True)
class Problem:
    """Something wrong at a line (from 1)."""

    line: int
    text: str


@dataclass
class Document:
    """`value`: what the file says; `lines`: the line of each path; `problems`: all at once."""

    value: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


def read(text: str) -> Document:
    """Read one document. Never raises for what the text holds; see `problems`."""
    document = Document()
    if len(text) > MAX_CHARACTERS:
        problem = Problem(1, f"{len(text)} characters, more than the {MAX_CHARACTERS} allowed")
        return Document({}, {}, [problem])
    try:
        document.problems.extend(_forbidden(text))
        if not document.problems:
            root = yaml.compose(text, _Loader)
            document.value = {} if root is None else _value(root, (), document)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        document.problems.append(Problem(mark.line + 1 if mark else 1, f"not YAML: {reason}"))
    except yaml.YAMLError as error:
        document.problems.append(Problem(1, f"not YAML: {str(error).splitlines()[0]}"))
    return document


def write(value: Any) -> str:
    """As block YAML that `read` reads back."""
    return str(yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))


def _forbidden(text: str) -> Iterator[Problem]:
    """Whatever a recipe may not hold, found before any value is built."""
    depth, documents = 0, 0
    for event in yaml.parse(text, _Loader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            yield Problem(line, f"alias *{event.anchor} is not allowed; write the value out")
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                yield Problem(line, "a second document (---) is not allowed; use another file")
                return
        elif isinstance(event, yaml.NodeEvent):
            if event.anchor is not None:
                yield Problem(line, f"anchor &{event.anchor} is not allowed; write the value out")
            tag = getattr(event, "tag", None)
            if tag is not None:
                yield Problem(line, f"tag {tag} is not allowed; a recipe holds plain values")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                yield Problem(line, f"nested more than {MAX_DEPTH} deep")
                return
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _value(node: yaml.Node, path: KeyPath, document: Document) -> Any:
    line = node.start_mark.line + 1
    document.lines.setdefault(path, line)
    if isinstance(node, yaml.MappingNode):
        mapping: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key_line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):
                document.problems.append(Problem(key_line, "a key must be a word"))
                continue
            key = key_node.value
            if key in mapping:
                first = document.lines[(*path, key)]
                dotted = ".".join(str(part) for part in (*path, key))
                document.problems.append(
                    Problem(key_line, f"{dotted} is given twice, first in line {first}; keep one")
                )
                continue
            document.lines[(*path, key)] = key_line
            mapping[key] = _value(value_node, (*path, key), document)
        return mapping
    if isinstance(node, yaml.SequenceNode):
        return [_value(child, (*path, i), document) for i, child in enumerate(node.value)]
    return _scalar(node, line, document)


def _scalar(node: yaml.Node, line: int, document: Document) -> Any:
    kind, text = node.tag.rpartition(":")[2], str(node.value)
    try:
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            return int(text)
        if kind == "float":
            return float(text)
    except ValueError:
        document.problems.append(Problem(line, f"a number of {len(text)} digits is not allowed"))
        return 0
    return text
