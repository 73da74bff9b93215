"""The verbs on the host's own shim: add, list, delete. It is what lets a host and its guests talk."""

import errno
import os
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import guestnet
from guestnet import templates
from guestnet.apply import topology as effects
from guestnet.errors import ConflictError, GuestnetError, NotPermittedError
from guestnet.inet import Assigned
from guestnet.kernel import files, lock, sysctl
from guestnet.kernel.place import Places
from guestnet.machine import machine_id
from guestnet.model import Kind, Link
from guestnet.plan import shim as plan
from guestnet.plan.host import Host
from guestnet.plan.steps import DeleteLink
from guestnet.plan.topology import HERE, Contents, Step, Within
from guestnet.topology import vlans
from guestnet.topology.observe import wait_addresses
from guestnet.undo import Undo

UNITS = Path("/etc/systemd/system")
_WANTS = "multi-user.target.wants"
_RUNNING = Path("/run/systemd/system")
_OTHERS = "something else on this host changes it: look at network managers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A shim: the parent, addresses and routes it has, the guests it reaches and those it does not, by their links, and
    whether it comes back at boot. ``state`` is "up", or what is amiss."""

    name: str
    parent: str
    mac: str
    addresses: tuple[str, ...]
    routes: tuple[str, ...]
    guests: tuple[str, ...]
    unreached: tuple[str, ...]
    persists: bool
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a verb did: the shim as it is then, the steps, whether the unit was written or taken away, the seconds."""

    name: str
    rows: tuple[Row, ...]
    steps: tuple[Step, ...]
    unit: str
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False

    @property
    def changed(self) -> bool:
        """Whether anything is other than before."""
        return bool(self.steps or self.unit) and not self.dry_run


@dataclass(slots=True, kw_only=True)
class Options:
    """How a verb goes about its work."""

    uri: str
    dry_run: bool = False
    persist: bool = False
    keep_unit: bool = False
    notice: Callable[[str], None] | None = None


def add(wanted: plan.Wanted, options: Options) -> Outcome:
    """Make the host's shim on a parent, or give the one there is what it has not; with ``persist`` also the unit that
    makes it again at boot. On a failure everything is as it was."""
    begun = time.monotonic()
    plan.check_words(wanted)
    _must_be_root(options)
    with Places() as places, Undo() as undo:
        with undo.part("the host's link", lambda: _locked(options)) as part:
            made = _planned(wanted, places)
            if made.steps:
                places.here.links.check_support([Kind.MACVLAN])
            if not options.dry_run and made.steps:
                effects.run(made.steps, effects.Ground(places), part)
                left = _planned(wanted, places).steps
                if left:
                    raise GuestnetError(f"it is not as it was made, there is still to do: {left[0]}", hint=_OTHERS)
        if not options.dry_run and made.steps:
            wait_addresses(lambda: _assigned(places, made.name))
        unit, notes = "", made.notes
        if options.persist:
            notes = (*notes, *_warnings())
        rows = tuple(row for row in _rows(places) if row.name == made.name)
        if options.persist and not options.dry_run:
            unit = _persist(made, rows[0], wanted, undo)
            rows = (replace(rows[0], persists=True),)
    return Outcome(
        name=made.name, rows=rows, steps=made.steps, unit=unit, notes=notes, seconds=time.monotonic() - begun,
        dry_run=options.dry_run,
    )  # fmt: skip


def rows() -> tuple[Row, ...]:
    """The shims there are, and those that a unit makes and that are not there."""
    with Places() as places:
        found = _rows(places)
    names = {plan.unit_name(row.name) for row in found}
    gone = [path for path in sorted(UNITS.glob("guestnet-host-*.service")) if path.name not in names]
    return (
        *found,
        *(
            Row(
                name=path.name, parent="", mac="", addresses=(), routes=(), guests=(), unreached=(), persists=True,
                state="not there: its unit has not made it",
            )
            for path in gone
        ),
    )  # fmt: skip


def delete(name: str, options: Options) -> Outcome:
    """Take a shim away, by its name or its parent's, with its unit, and with a VLAN that guestnet made and nobody uses
    then."""
    begun = time.monotonic()
    _must_be_root(options)
    with Places() as places:
        notes: list[str] = []
        door = places.here.links
        needed = vlans.sources(door, options.uri, notes)
        with _locked(options), Undo() as undo:
            host = Host(links=door.all())
            link = plan.delete(name, host)
            row = next(one for one in _rows(places) if one.name == link.name)
            steps = [_deletion(link)]
            if not options.dry_run:
                effects.run(steps, effects.Ground(places), undo)
                if needed is not None and link.parent is not None:
                    more = [_deletion(one) for one in vlans.unused(door, {link.parent}, needed)]
                    effects.run(more, effects.Ground(places), undo)
                    steps += more
        unit = "" if options.keep_unit or options.dry_run else _forget(link.name)
    return Outcome(
        name=link.name, rows=(row,), steps=tuple(steps), unit=unit, notes=tuple(notes),
        seconds=time.monotonic() - begun, dry_run=options.dry_run,
    )  # fmt: skip


def _locked(options: Options) -> AbstractContextManager[object]:
    return nullcontext() if options.dry_run else lock.held(notice=options.notice)


def _must_be_root(options: Options) -> None:
    if os.geteuid() != 0 and not options.dry_run:
        raise NotPermittedError("making and deleting links needs root", hint="run this with sudo")


def _deletion(link: Link) -> Within:
    return Within(netns=HERE, step=DeleteLink(name=link.name, index=link.index))


def _contents(places: Places) -> Contents:
    here = places.here
    return Contents(links=here.links.all(), addresses=here.addresses.all(), routes=here.routes.all())


def _assigned(places: Places, name: str) -> list[tuple[str, Link, Assigned]]:
    link = places.here.links.find(name)
    return [
        (HERE, link, one)
        for one in places.here.addresses.all()
        if link is not None and one.index == link.index and one.by_hand
    ]


def _planned(wanted: plan.Wanted, places: Places) -> plan.Plan:
    contents = _contents(places)
    wireless = places.here.links.wireless(contents.links) if os.geteuid() == 0 else frozenset[str]()
    host = Host(links=contents.links, wireless=wireless)
    names = [link.name for link in plan.shims(host)]
    settings = sysctl.read(key for name in ("default", *names) for key in plan.sysctls_of(name))
    return plan.add(wanted, host, contents, machine_id(), settings)


def _rows(places: Places) -> tuple[Row, ...]:
    contents = _contents(places)
    host = Host(links=contents.links)
    found = []
    for link in plan.shims(host):
        lower = host.below(link)
        taps = [one for one in host.above(lower) if one.kind == Kind.MACVTAP] if lower is not None else []
        deaf = plan.unreached(lower, host) if lower is not None else ()
        addresses = [one for one in contents.addresses if one.index == link.index]
        own = [one.address.network for one in addresses]
        found.append(
            Row(
                name=link.name, parent=lower.readable if lower is not None else "?", mac=link.mac,
                addresses=tuple(str(one.address) for one in addresses if one.by_hand),
                routes=tuple(
                    str(one.to)
                    for one in contents.routes
                    if one.index == link.index and one.to not in own and not one.to.is_link_local
                    and not one.to.is_multicast
                ),
                guests=tuple(one.guest_name or one.name for one in taps if one not in deaf),
                unreached=tuple(one.guest_name or one.name for one in deaf),
                persists=(UNITS / plan.unit_name(link.name)).exists(),
                state="down" if not link.up else "up" if link.carrier else "no carrier",
            )
        )  # fmt: skip
    return tuple(found)


# The unit


def _persist(made: plan.Plan, row: Row, wanted: plan.Wanted, undo: Undo) -> str:
    """Write and enable the unit that makes the shim as it is; its name where that changed anything."""
    me = [sys.executable, "-I", "-m", "guestnet", "host"]
    start = [*me, "add", made.parent.readable, "--name", made.name, "--mac", row.mac]
    start += [word for address in row.addresses for word in ("--address", address)]
    start += [word for route in row.routes for word in ("--route", route)]
    start += ["--mtu", str(wanted.mtu)] if wanted.mtu is not None else []
    start += ["--yes"] if wanted.anyway else []
    text = plan.unit(
        templates.read("systemd/guestnet-host.service").decode(), parent=made.parent, start=start,
        stop=[*me, "delete", made.name, "--keep-unit"],
    )  # fmt: skip
    path = UNITS / plan.unit_name(made.name)
    link = UNITS / _WANTS / path.name
    before = _read(path)
    if before is not None and not _is_ours(before):
        raise ConflictError(
            f"{path} is there and is not guestnet's", hint="look what it is, and move it away, or do without --persist"
        )
    if before == text.encode() and link.is_symlink():
        return ""
    undo.push(f"the unit {path.name}", _put_back, path, before, enabled=link.is_symlink())
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        files.replace(path, text.encode(), 0o644)
        if not link.is_symlink():
            link.symlink_to(path)
    except OSError as error:
        raise GuestnetError(f"the unit {path} cannot be written: {error.strerror}") from error
    _reload()
    return path.name


def _warnings() -> tuple[str, ...]:
    """What a person should know who has a unit written."""
    from guestnet import launcher

    changeable = launcher.exposed(Path(sys.executable), Path(guestnet.__file__))
    return (f"systemd runs the unit as root, and others than root may change {changeable}",) if changeable else ()


def _read(path: Path) -> bytes | None:
    """What the unit says, None where there is none. What is no plain file, such as a masked unit, says nothing."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        if error.errno in (errno.ELOOP, errno.ENXIO):
            return b""
        raise GuestnetError(f"{path} cannot be read: {error.strerror}") from error
    with open(fd, "rb") as file:
        return file.read() if stat.S_ISREG(os.fstat(fd).st_mode) else b""


def _is_ours(text: bytes) -> bool:
    return text.split(b"\n", 1)[0] == templates.read("systemd/guestnet-host.service").split(b"\n", 1)[0]


def _put_back(path: Path, before: bytes | None, *, enabled: bool) -> None:
    if before is None:
        _forget_unit(path)
        return
    files.replace(path, before, 0o644)
    if not enabled:
        (path.parent / _WANTS / path.name).unlink(missing_ok=True)


def _forget(name: str) -> str:
    """Take the unit away; its name where there was one. One that is somebody else's stays."""
    path = UNITS / plan.unit_name(name)
    there = _read(path)
    if there is not None and not _is_ours(there):
        return ""
    _forget_unit(path)
    if there is not None:
        _reload()
    return path.name if there is not None else ""


def _forget_unit(path: Path) -> None:
    (path.parent / _WANTS / path.name).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _reload() -> None:
    """Let systemd read its units again, where it is what runs this host."""
    if _RUNNING.is_dir():
        done = subprocess.run(
            ("systemctl", "daemon-reload"), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if done.returncode != 0:
            raise GuestnetError(f"systemctl daemon-reload failed: {_words([done.stderr])}")


def _words(texts: Iterable[str]) -> str:
    return " ".join(" ".join(texts).split()) or "it says nothing"
