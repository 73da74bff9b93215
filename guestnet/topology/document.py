"""The file of a topology: what may be in it, and the values it becomes. docs/schema/topology.json is made of this."""

from collections.abc import Callable, Collection, Iterator, Sequence
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from guestnet import inet, templates
from guestnet.errors import GuestnetError, NotFoundError, UsageError
from guestnet.model import Kind, LinkName, Mac, Mode, Multicast, vlan_id
from guestnet.plan.layout import Endpoint, Node, Problem, Topology, Where, Wire, problems
from guestnet.plan.reach import circles
from guestnet.topology import source

SUFFIXES = (".yaml", ".yml")
ENDPOINTS_MAX = 256
SCHEMA = "docs/schema/topology.json"

_T = TypeVar("_T")
_MANY = 5  # errors that are told at once
_MAY_GO = (
    "type",
    "mode",
    "mac",
    "mtu",
    "multicast",
    "sysctls",
)  # of an endpoint, without which the rest means the same
_WANTED = {
    "string_type": ("text", "put it in quotes"),
    "int_type": ("a whole number", ""),
    "list_type": ("a list", "write it as in [one, other]"),
    "dict_type": ("a mapping", "write it as in {key: value}"),
    "model_type": ("a mapping", "write it as in {key: value}"),
}


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    """Our own parser as a validator: the text stays what it was, and a refusal becomes an error of that place."""

    def check(text: str) -> str:
        try:
            parse(text)
        except UsageError as error:
            raise PydanticCustomError("guestnet", "{said}", {"said": error.message, "hint": error.hint}) from None
        return text

    return AfterValidator(check)


def _one_of(words: type[Where] | type[Kind] | type[Mode] | type[Multicast], *left_out: str) -> BeforeValidator:
    names = [str(word) for word in words if word not in left_out]

    def check(text: object) -> object:
        if isinstance(text, str) and text not in names:
            near = get_close_matches(text, names, n=1)
            hint = f"did you mean {near[0]}?" if near else f"one of {', '.join(names)}"
            raise PydanticCustomError("guestnet", "{said}", {"said": f"{text!r} is not one of these", "hint": hint})
        return text

    return BeforeValidator(check)


_Mac = Annotated[str, _checked(Mac), Field(description="Its MAC; else one that is the same each time.")]
_Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=40)]
_NodeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?$", max_length=63)]
_LinkName = Annotated[str, _checked(LinkName)]
_Vlan = Annotated[int, Field(ge=1, le=4094)]
_Address = Annotated[str, _checked(inet.address), Field(examples=["192.0.2.1/24", "2001:db8::1/64"])]
_Route = Annotated[
    str,
    _checked(inet.Route.parse),
    Field(examples=["default via 192.0.2.1", "default dev", "192.0.2.64/26 dev", "192.0.2.64/26 via 192.0.2.1"]),
]
_Sysctl = Annotated[str, _checked(inet.sysctl)]
_SysctlText = Annotated[str, Field(pattern=r"^[ -~]+$", max_length=200)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class OnWire(_Part):
    """A parent that is a VLAN on another parent of the same node."""

    on: Annotated[_Word, Field(description="The parent it is a VLAN of.")]
    vlan: Annotated[_Vlan, Field(description="The VLAN ID.")]


class EndpointPart(_Part):
    """One link on a parent, and what has it."""

    kind: Annotated[
        Literal["netns", "host", "guest", "qemu"], _one_of(Where),
        Field(description="A network namespace, the host itself, a libvirt guest, or a QEMU that is run by hand."),
    ]  # fmt: skip
    parent: Annotated[_Word, Field(description="One of the node's parents.")]
    type: Annotated[Literal["macvtap", "macvlan"], _one_of(Kind, "vlan"), Field(description="What it is.")] = "macvtap"
    link: Annotated[
        _LinkName | None, Field(description="The link's name; else the endpoint's, of a guest's one from the MAC.")
    ] = None
    mode: Annotated[
        Literal["bridge", "vepa", "private", "passthru"], _one_of(Mode, "source"), Field(description="Its mode.")
    ] = "bridge"
    mac: _Mac | None = None
    mtu: Annotated[int | None, Field(description="Its MTU; else the parent's.")] = None
    multicast: Annotated[
        Literal["all", "filtered"] | None, _one_of(Multicast), Field(description="For a guest: what gets to it.")
    ] = None
    netns: Annotated[_Word | None, Field(description="Of kind netns: the namespace; else the endpoint's name.")] = None
    guest: Annotated[
        str | None, Field(description="Of kind guest: the libvirt domain; else the endpoint's name.", max_length=200)
    ] = None
    addresses: Annotated[list[_Address], Field(description="Its addresses, with prefix length.")] = []
    routes: Annotated[list[_Route], Field(description="In ip-route(8)'s words.")] = []
    sysctls: Annotated[
        dict[_Sysctl, int | _SysctlText],
        Field(description="What its place needs; {link} and {parent} stand for the names of these links."),
    ] = {}


class NodePart(_Part):
    """A host."""

    parents: Annotated[
        dict[_Word, _LinkName | OnWire],
        Field(description="The links it has, under the names of the networks they are on.", min_length=1),
    ]
    endpoints: dict[_Word, EndpointPart] = {}


class TopologyPart(_Part):
    """What `guestnet topology` brings up: hosts, and on them links of namespaces, of the hosts, and of guests."""

    name: Annotated[_Word, Field(description="What it is called, and what its links are marked with.")]
    about: Annotated[str, Field(description="One line for a person.", max_length=500)] = ""
    nodes: Annotated[dict[_NodeName, NodePart], Field(min_length=1)]


def schema() -> dict[str, Any]:
    """The JSON schema of a topology's file."""
    made = TopologyPart.model_json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made, "title": "guestnet topology"}


def shipped() -> tuple[str, ...]:
    """The names of the topologies that came with guestnet."""
    return tuple(sorted(path.stem for path in (templates.directory() / "topologies").glob("*.yaml")))


def find(name: str) -> Topology:
    """The topology of a file, or a shipped one by its name.

    Raises NotFoundError with the near names, UsageError for what is wrong in it, with the line.
    """
    if is_file(name):
        return parse(_read(Path(name)), name)
    if name == "-":
        raise UsageError("a topology is read from a file, not from stdin", hint="write it into a file: FILE.yaml")
    names = shipped()
    if name not in names:
        near = get_close_matches(name, names, n=2, cutoff=0.5)
        raise NotFoundError(
            f"no topology {name} came with guestnet",
            hint=f"did you mean {' or '.join(near)}?" if near else f"a file ends in .yaml; there is {', '.join(names)}",
        )
    return parse(templates.read(f"topologies/{name}.yaml"), f"{name}.yaml")


def is_file(name: str) -> bool:
    """Whether that names a file: a word with a slash, or that ends in .yaml or .yml."""
    return "/" in name or name.endswith(SUFFIXES)


def from_anywhere(name: str) -> str:
    """The word by which another directory's process finds the same: of a file its absolute path."""
    return str(Path(name).absolute()) if is_file(name) else name


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(source.BYTES_MAX + 1)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}", hint=f"those that came: {', '.join(shipped())}") from None
    except OSError as error:
        raise GuestnetError(f"{path} cannot be read: {error.strerror}") from error


def parse(data: bytes, name: str) -> Topology:
    """The topology that a file's bytes say; ``name`` is what errors call the file.

    Raises UsageError for the first thing wrong, with the others as notes: each with its line and its path.
    """
    text = source.load(data, name)
    if not isinstance(text.value, dict):
        raise UsageError(f"{text.at(())}: a topology is a mapping", hint="begin with `name:` and `nodes:`")
    try:
        part = TopologyPart.model_validate(text.value)
    except ValidationError as error:
        errors = (_of_pydantic(one, text.value) for one in error.errors(include_url=False))
        refused = {one.path: one for one in errors}
        raise _told([*refused.values(), *_of_the_rest(text, refused)], text) from None
    count = sum(len(node.endpoints) for node in part.nodes.values())
    if count > ENDPOINTS_MAX:
        raise UsageError(f"{name} has {count} endpoints, {ENDPOINTS_MAX} are the most", hint="split it")
    found: list[Problem] = []
    topology = _topology(part, found, text)
    found = [*found, *problems(topology)] or list(circles(topology))
    if found:
        raise _told(found, text)
    return topology


def _of_the_rest(text: source.Source, refused: Collection[source.Path]) -> list[Problem]:
    """What contradicts itself in a document besides what was refused: the keys and endpoints of that are left out.

    Nothing where the parents are refused, or what is left is no topology.
    """
    if any(path[2:3] == ("parents",) for path in refused):
        return []
    rest = deepcopy(text.value)
    for path in refused:
        if path[2:3] == ("endpoints",):
            may_go = path[4:5] and (path[4] in _MAY_GO or path[4] not in EndpointPart.model_fields)
            path = path[: 5 if may_go else 4]
        holder = rest
        for key in path[:-1]:
            holder = holder.get(key, {}) if isinstance(holder, dict) else {}
        if isinstance(holder, dict) and path:
            holder.pop(path[-1], None)
    try:
        part = TopologyPart.model_validate(rest)
    except ValidationError:
        return []
    found: list[Problem] = []
    topology = _topology(part, found, text)
    return [*found, *problems(topology)]


def _told(found: Sequence[Problem], text: source.Source) -> UsageError:
    """The first problem in the order of the lines, with the others as notes."""
    found = sorted(found, key=lambda one: text.line(one.path))
    first, *others = found[:_MANY]
    error = UsageError(f"{text.at(first.path)}: {first.message}", hint=first.hint)
    for other in others:
        error.add_note(f"{text.at(other.path)}: {other.message}" + (f" ({other.hint})" if other.hint else ""))
    if len(found) > _MANY:
        error.add_note(f"and {len(found) - _MANY} more")
    return error


def _of_pydantic(error: Any, value: Any) -> Problem:
    """One of pydantic's errors in our words, at the place in the document that it is about."""
    path, here = [], value
    for part in error["loc"]:  # what is no key of the document names a choice of pydantic's own
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
        elif not (error["type"] == "missing" and part == error["loc"][-1]):
            continue
        path.append(part)
    kind, context = error["type"], error.get("ctx", {})
    given = error["input"]
    match kind:
        case "guestnet":
            return Problem(path=tuple(path), message=context["said"], hint=context["hint"])
        case "missing":
            return Problem(path=tuple(path), message="is missing")
        case "extra_forbidden":
            known = sorted(_keys(error["loc"][:-1]))
            near = get_close_matches(str(error["loc"][-1]), known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            return Problem(path=tuple(path), message="nothing has this name here", hint=hint)
        case "string_pattern_mismatch" if "sysctls" in path:
            return Problem(path=tuple(path), message=f"{given!r} cannot be its value")
        case "string_pattern_mismatch":
            return Problem(
                path=tuple(path), message=f"{given!r} cannot be its name", hint="letters, digits and -, no blanks"
            )
        case _ if kind in _WANTED:
            wanted, hint = _WANTED[kind]
            return Problem(path=tuple(path), message=f"{_short(given)} where {wanted} belongs", hint=hint)
        case "literal_error":
            return Problem(path=tuple(path), message=f"{given!r} is not possible", hint=f"one of {context['expected']}")
    return Problem(path=tuple(path), message=f"{_short(given)}: {error['msg'][0].lower()}{error['msg'][1:]}")


def _short(value: object) -> str:
    word = {dict: "a mapping", list: "a list", type(None): "nothing"}.get(type(value))
    return word or (repr(value) if len(repr(value)) <= 60 else f"{repr(value)[:57]}…")


def _keys(path: Sequence[str | int]) -> Iterator[str]:
    """The keys that the mapping at that place may have."""
    models: dict[int, type[_Part]] = {0: TopologyPart, 2: NodePart, 4: EndpointPart}
    return iter(models.get(len(path), OnWire).model_fields)


def _topology(part: TopologyPart, found: list[Problem], text: source.Source) -> Topology:
    return Topology(
        name=part.name, about=part.about,
        nodes=tuple(_node(name, node, found, text) for name, node in part.nodes.items()),
    )  # fmt: skip


def _node(name: str, part: NodePart, found: list[Problem], text: source.Source) -> Node:
    wires = []
    for wire, parent in part.parents.items():
        at = text.at(("nodes", name, "parents", wire))
        if isinstance(parent, OnWire):
            wires.append(Wire(name=wire, on=parent.on, vlan=vlan_id(parent.vlan), at=at))
        else:
            wires.append(Wire(name=wire, link=parent, at=at))
    return Node(
        name=name, wires=tuple(wires),
        endpoints=tuple(_endpoint(each, name, endpoint, found) for each, endpoint in part.endpoints.items()),
    )  # fmt: skip


def _endpoint(name: str, node: str, part: EndpointPart, found: list[Problem]) -> Endpoint:
    path = ("nodes", node, "endpoints", name)
    kind = Where(part.kind)
    for word, of in (("netns", Where.NETNS), ("guest", Where.GUEST)):
        if getattr(part, word) is not None and kind is not of:
            found.append(Problem(path=(*path, word), message=f"this is for kind {of}, and {name} is of kind {kind}"))
    in_vm = kind in (Where.GUEST, Where.QEMU)
    if part.multicast is not None and not in_vm:
        found.append(
            Problem(
                path=(*path, "multicast"), message=f"this is for a guest, and {name} is of kind {kind}",
                hint="leave it out: the kernel lets in what its own stack listens to",
            )
        )  # fmt: skip
    link = part.link or ("" if in_vm else name)
    if not part.link and link:
        try:
            LinkName(link)
        except UsageError as error:
            found.append(Problem(path=path, message=error.message, hint="give it a `link:` of its own"))
    addresses = tuple(inet.address(text) for text in part.addresses)
    versions = frozenset(address.version for address in addresses)
    routes: list[inet.Route] = []
    for number, text in enumerate(part.routes):
        try:
            routes += inet.Route.parse(text, link, versions)
        except UsageError as error:
            found.append(Problem(path=(*path, "routes", number), message=error.message, hint=error.hint))
    return Endpoint(
        name=name, node=node, kind=kind, wire=part.parent, link=link, type=Kind(part.type), mode=Mode(part.mode),
        mac=Mac(part.mac) if part.mac is not None else None, mtu=part.mtu,
        multicast=Multicast(part.multicast) if part.multicast else None,
        inside="" if kind is Where.HOST else part.netns or part.guest or name,
        addresses=addresses, routes=tuple(routes),
        sysctls=tuple((inet.sysctl(key), str(value)) for key, value in part.sysctls.items()),
    )  # fmt: skip
