"""What taking a topology down has to know and the kernel cannot say: what sysctls of the host were before, which guests
have a NIC of it, and which namespaces were about to be made.

Files in /run, so that they go with a reboot, as the sysctls do. They say nothing about links: those are marked
themselves.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from guestnet.errors import GuestnetError, NotPermittedError
from guestnet.kernel import files, lock

Values = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """``sysctls`` are, by the name that is set, what it and those that change with it were, and ``set_to`` what it was
    set to; ``namespaces`` and ``links`` (name and MAC) are what was to be made here, some of which a maker that was
    killed may have left without its mark; ``guests`` are the NICs given to guests, as name and MAC; ``source`` is the
    file it was brought up from."""

    name: str
    node: str = ""
    source: str = ""
    sysctls: Mapping[str, Values] = field(default_factory=dict)
    set_to: Mapping[str, str] = field(default_factory=dict)
    namespaces: tuple[str, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    guests: tuple[tuple[str, str], ...] = ()


def directory() -> Path:
    """Where the files are."""
    return lock.PATH.parent / "topology"


def read(name: str) -> State | None:
    """What is known of that topology; None where nothing is. Raises GuestnetError for a file that makes no sense."""
    path = directory() / f"{name}.json"
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise NotPermittedError(f"{path}: {error.strerror}", hint="run this with sudo") from None
    except (OSError, ValueError) as error:
        raise GuestnetError(f"{path} cannot be read: {error}", hint=f"look at it, then remove it: {path}") from None
    try:
        return State(
            name=name, node=str(found["node"]), source=str(found["source"]),
            sysctls={str(key): _pairs(values) for key, values in found["sysctls"].items()},
            set_to={str(key): str(value) for key, value in found["set_to"].items()},
            namespaces=tuple(str(one) for one in found["namespaces"]), links=_pairs(found["links"]),
            guests=_pairs(found["guests"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError):
        raise GuestnetError(f"{path} is not what guestnet writes", hint=f"look at it, then remove it: {path}") from None


def _pairs(values: Any) -> Values:
    return tuple((str(one), str(other)) for one, other in values)


def write(state: State) -> None:
    """Keep it. Like all that follows, with the lock of the host's links held."""
    where = directory()
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.replace(where / f"{state.name}.json", (json.dumps(asdict(state), indent=2) + "\n").encode(), 0o600)


def put_back(name: str, before: State | None) -> None:
    """Make it what it was."""
    if before is None:
        remove(name)
    else:
        write(before)


def remove(name: str) -> None:
    """Forget a topology; the directory goes with the last one."""
    where = directory()
    for path in (where / f"{name}.json", *where.glob(f"{files.UNFINISHED}*")):  # the latter of one that was killed
        path.unlink(missing_ok=True)
    try:
        where.rmdir()
    except OSError:
        return  # others are there, or it is gone


def names() -> tuple[str, ...]:
    """The topologies of which something is known."""
    try:
        return tuple(sorted(path.stem for path in directory().glob("*.json")))
    except PermissionError:
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Handing:
    """What becomes of sysctls that a topology needs no more: those that are put back to what they and those that go
    with them were, and the files of other topologies that get what was before instead."""

    back: Mapping[str, Values]
    heirs: tuple[State, ...]


def hand_over(state: State) -> Handing:
    """What is to be done with the sysctls of this state when what they were set for goes.

    Of several topologies that need one, each knows what it was before itself. One that came later, and so found what
    this one had set, gets what was before both; what one that came before has set is what it is put back to. Raises
    GuestnetError for a file of another topology that makes no sense.
    """
    others = {name: found for name in names() if name != state.name and (found := read(name)) is not None}
    back: dict[str, Values] = {}
    heirs: dict[str, State] = {}
    for sysctl, values in state.sysctls.items():
        sharing = [other for other in others.values() if sysctl in other.sysctls]
        later = [other for other in sharing if dict(other.sysctls[sysctl]).get(sysctl) == state.set_to.get(sysctl)]
        if later:
            heir = later[0]
            others[heir.name] = heirs[heir.name] = replace(heir, sysctls={**heir.sysctls, sysctl: values})
        elif not sharing or dict(values).get(sysctl) != state.set_to.get(sysctl):
            back[sysctl] = values
    return Handing(back=back, heirs=tuple(heirs.values()))
