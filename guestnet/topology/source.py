"""YAML as plain values, each with the line it was written on.

What a file may say is bounded before anything is built from it: its size, its depth, and the number of values that its
aliases stand for all together. Only the words of YAML's core schema are known (YAML 1.2, 10.3): no tag makes anything.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from guestnet.errors import UsageError

if TYPE_CHECKING:
    from ruamel.yaml.error import MarkedYAMLError

BYTES_MAX, DEPTH_MAX, VALUES_MAX = 1 << 18, 16, 20_000

Path = tuple[str | int, ...]

_WORDS: Mapping[str, Any] = MappingProxyType(
    dict.fromkeys(("", "~", "null", "Null", "NULL"))
    | dict.fromkeys(("true", "True", "TRUE"), True)
    | dict.fromkeys(("false", "False", "FALSE"), False)
)
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_MERGE = "<<"
_BRACKETS = MappingProxyType({"while parsing a flow mapping": ("{", "}"), "while parsing a flow sequence": ("[", "]")})
_MET = re.compile(r"(?:got|found) '([^']+)'")


@dataclass(frozen=True, slots=True)
class Source:
    """A document: its value, and the line (from 1) of each value in it by its path, of a mapping's that of the key."""

    name: str
    value: Any
    lines: dict[Path, int]

    def line(self, path: Sequence[str | int]) -> int:
        """The line of that value; of the nearest thing above it where it is not written."""
        heads = (tuple(path[:length]) for length in range(len(path), -1, -1))
        return next((self.lines[head] for head in heads if head in self.lines), 1)

    def at(self, path: Sequence[str | int]) -> str:
        """Where that is, for an error: ``FILE:LINE: a.b[0]``."""
        words = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
        return f"{self.name}:{self.line(path)}" + (f": {words}" if words else "")


@dataclass(slots=True)
class _Node:
    """A scalar's text, a sequence's items, or a mapping's pairs; ``whole`` once its end was read."""

    line: int
    text: str | None = None
    plain: bool = False
    items: list["_Node"] | None = None
    pairs: list[tuple["_Node", "_Node"]] | None = None
    whole: bool = False


def load(data: bytes, name: str) -> Source:
    """The document in ``data``, which a person knows as ``name``. Raises UsageError with the line."""
    if len(data) > BYTES_MAX:
        raise UsageError(f"{name} is larger than {BYTES_MAX // 1024} KiB")
    root = _Reader(name).read(data)
    reader = _Values(name)
    return Source(name, reader.value(root, ()), reader.lines)


class _Reader:
    """Builds the tree of nodes from the parser's events, without recursion."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._open: list[_Node] = []
        self._keys: list[_Node | None] = []  # of each open mapping, the key whose value comes next
        self._anchors: dict[str, _Node] = {}
        self._root: _Node | None = None

    def read(self, data: bytes) -> _Node:
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        documents = 0
        try:
            for event in YAML(typ="safe", pure=True).parse(data):
                kind = type(event).__name__
                if kind == "DocumentStartEvent":
                    documents += 1
                    if documents > 1:
                        raise self._error(event.start_mark, "a second document begins here", "one file, one topology")
                else:
                    self._take(kind, event)
        except MarkedYAMLError as error:
            raise self._error(*_told(error)) from None
        except (YAMLError, UnicodeDecodeError, ValueError) as error:
            raise UsageError(f"{self._name} is no YAML: {str(error).splitlines()[0]}") from None
        if self._root is None:
            raise UsageError(f"{self._name} is empty", hint="templates/topologies has examples")
        return self._root

    def _error(self, mark: Any, message: str, hint: str = "") -> UsageError:
        line = mark.line + 1 if mark is not None else 1
        return UsageError(f"{self._name}:{line}: {message}", hint=hint)

    def _take(self, kind: str, event: Any) -> None:
        match kind:
            case "ScalarEvent" | "MappingStartEvent" | "SequenceStartEvent":
                node = _Node(event.start_mark.line + 1)
                if event.tag is not None:
                    raise self._error(event.start_mark, f"the tag {event.tag} is not taken here", "leave it out")
                if event.anchor is not None:
                    self._anchors[event.anchor] = node
                self._put(node, event)
                if kind == "ScalarEvent":
                    node.text, node.plain, node.whole = event.value, event.implicit[0], True
                    return
                if kind == "SequenceStartEvent":
                    node.items = []
                else:
                    node.pairs = []
                if len(self._open) >= DEPTH_MAX:
                    raise self._error(event.start_mark, f"nested over {DEPTH_MAX} deep")
                self._open.append(node)
                self._keys.append(None)
            case "MappingEndEvent" | "SequenceEndEvent":
                self._open.pop().whole = True
                self._keys.pop()
            case "AliasEvent":
                known = self._anchors.get(event.anchor)
                if known is None:
                    raise self._error(event.start_mark, f"there is no anchor &{event.anchor} before this")
                if not known.whole:
                    raise self._error(event.start_mark, f"*{event.anchor} contains itself")
                self._put(known, event)

    def _put(self, node: _Node, event: Any) -> None:
        if not self._open:
            self._root = node
            return
        parent = self._open[-1]
        if parent.items is not None:
            parent.items.append(node)
            return
        assert parent.pairs is not None
        key = self._keys[-1]
        if key is None:
            if type(event).__name__ != "ScalarEvent":
                raise self._error(event.start_mark, "a key must be a word", "quote what has a `{`, `[` or `*` in it")
            self._keys[-1] = node
        else:
            parent.pairs.append((key, node))
            self._keys[-1] = None


def _told(error: "MarkedYAMLError") -> tuple[Any, str, str]:
    """Where the parser's error is, what it is, and what to do: of what is not closed, where it was opened."""
    mark, begun = error.problem_mark or error.context_mark, error.context_mark
    problem, within = str(error.problem or error.context or "it is no YAML"), str(error.context or "")
    met = _MET.search(problem)
    if begun is not None and met is not None and within in _BRACKETS:
        opening, closing = _BRACKETS[within]
        there = "the file ends" if met[1] == "<stream end>" else f"there is `{met[1]}`"
        return (
            begun, f"a `{opening}` is not closed, or has no `,` between two things in it",
            f"on line {mark.line + 1} {there} where `,` or `{closing}` belongs",
        )  # fmt: skip
    if begun is not None and within == "while scanning a quoted scalar":
        return begun, "a quote is not closed", "a text that has a quote in it goes into the other kind of quotes"
    if "\\t" in problem or "\t" in problem:
        return mark, problem, "indent with spaces: a tab is none in YAML"
    if met is not None and met[1] in ("}", "]"):
        return mark, problem, f"one `{met[1]}` too many, or its other half is missing"
    if "<block end>" in problem:
        return mark, problem, "what is in one mapping or list is indented alike"
    return mark, problem, "quote what has a `:`, `#` or `{` in it"


@dataclass(slots=True)
class _Values:
    """Makes values of nodes, and keeps the lines. An alias counts as often as it is used."""

    name: str
    lines: dict[Path, int] = field(default_factory=dict)
    count: int = 0

    def value(self, node: _Node, path: Path, line: int | None = None) -> Any:
        """What a node says, with all below it."""
        self._one_more(node)
        if len(path) > DEPTH_MAX:
            raise UsageError(f"{self.name}:{node.line}: nested over {DEPTH_MAX} deep")
        self.lines[path] = line or node.line
        if node.items is not None:
            return [self.value(item, (*path, number)) for number, item in enumerate(node.items)]
        if node.pairs is not None:
            return self._mapping(node, path)
        return _scalar(node)

    def _one_more(self, node: _Node) -> None:
        self.count += 1
        if self.count > VALUES_MAX:
            raise UsageError(
                f"{self.name}:{node.line}: by here it stands for over {VALUES_MAX} values", hint="use fewer aliases"
            )

    def _mapping(self, node: _Node, path: Path) -> dict[str, Any]:
        found: dict[str, Any] = {}
        merged: list[_Node] = []
        assert node.pairs is not None
        for key, value in node.pairs:
            name = key.text or ""
            if name == _MERGE and key.plain:
                merged += value.items if value.items is not None else [value]
                continue
            if name in found:
                raise UsageError(
                    f"{self.name}:{key.line}: {name} is there twice, first on line {self.lines[(*path, name)]}",
                    hint="what is in a mapping has a name of its own",
                )
            found[name] = self.value(value, (*path, name), key.line)
        for other in merged:
            if other.pairs is None:
                raise UsageError(f"{self.name}:{other.line}: only mappings can be merged by <<")
            for key, value in other.pairs:
                self._one_more(key)
                name = key.text or ""
                if name not in found:
                    found[name] = self.value(value, (*path, name), key.line)
        return found


def _scalar(node: _Node) -> Any:
    text = node.text or ""
    if not node.plain:
        return text
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    return float(text) if _FLOAT.fullmatch(text) else text
