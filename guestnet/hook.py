"""What libvirt calls when a guest starts, stops or arrives: `python3 -I -m guestnet.hook GUEST OPERATION …`.

The domain's XML is on stdin (https://libvirt.org/hooks.html); templates/hook/launcher stands in front of it.

It never calls libvirt, which waits for it with the guest's lock held, and takes the host's lock alone. A guest that can
start does: only a NIC that libvirt could not start with, or must not, ends the start.
"""

import gc
import os
import re
import sys
import syslog
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path

from guestnet import apply, parents
from guestnet.errors import HOOK_REFUSED, ConflictError, GuestnetError
from guestnet.guest import handed
from guestnet.guest.handed import Handed, Refused
from guestnet.guest.xml import Record
from guestnet.kernel import lock, tap
from guestnet.kernel.link import Links
from guestnet.model import Backend, Kind, Link
from guestnet.plan import hook as plan
from guestnet.plan.host import Host
from guestnet.plan.parent import parent_on_record
from guestnet.plan.steps import AddLink, DeleteLink, LinkStep, SetUp
from guestnet.undo import Undo

LOCK_SECONDS = 10.0
"""How long the host's lock is waited for. Who asks libvirt about the guest meanwhile waits as well, for at most 30 s
(QEMU_JOB_WAIT_TIME)."""

CONFIGURED = Path("/etc/libvirt/qemu")
"""Where libvirt keeps the configurations of guests (src/qemu/qemu_conf.c)."""

_TOLD_MOST = 16
_SOURCE = re.compile(rb"""<source dev=(['"])([^'"<>/]{1,127})\1""")


def main(argv: list[str], given: int = 0) -> int:
    """Do what the operation asks for; the exit status. ``given`` is the fd of the XML."""
    syslog.openlog("guestnet", syslog.LOG_PID, syslog.LOG_DAEMON)
    name, operation = (*argv, "", "")[:2]
    with open(given, "rb", closefd=False) as file:
        data = file.read(handed.LARGEST + 1)
    try:
        match operation:
            case "prepare":
                return _prepare(handed.read(data, name))
            case "release":
                _release(handed.read(data, name))
            case "reconnect":
                _reconnect(handed.read(data, name))
            case "migrate" | "restore":
                _arrive(data, name)
    except (GuestnetError, OSError) as error:
        _say(name, syslog.LOG_ERR, f"{operation}: {error}")
    except Exception:
        import traceback

        _say(name, syslog.LOG_ERR, f"{operation}: {' '.join(traceback.format_exc().split())}")
        raise
    return 0


def _prepare(guest: Handed) -> int:
    """Make what the guest's NICs need and is not there."""
    with _locked(guest) as alone, Links() as links:
        lock.stir(guest.uuid)
        refused = [*guest.refused, *_make(guest, links, alone=alone)]
        host = Host(links=links.all() if refused else ())
    _tell_refused(guest, refused)
    ends = [one for one in refused if one.fatal or (one.device and not _may_start_on(one.device, guest, host))]
    if not ends:
        return 0
    sys.stderr.write("".join(f"guestnet: {guest.name}: {one.nic}: {one.why}\n" for one in ends[:_TOLD_MOST]))
    return HOOK_REFUSED


def _may_start_on(device: str, guest: Handed, host: Host) -> bool:
    """Whether libvirt finds that link, and it is no other guest's."""
    link = host.find(device)
    return link is not None and link.guest_uuid in ("", guest.uuid)


def _make(guest: Handed, links: Links, *, alone: bool) -> tuple[Refused, ...]:
    """Take the steps for each NIC, and look again until there are none; the NICs that cannot be made.

    A NIC that fails is taken back and stops no other. Without the lock of the host somebody else may come between: so
    each gets a second try.
    """
    tries: dict[str, int] = {}
    failed: list[Refused] = []
    todo = guest
    names = {nic.record.ifname for nic in guest.nics}  # of the guest's links, whosever they are
    held = _held(link for link in links.all() if link.name in names)
    while True:
        made = _plan(todo, links, held)
        if not made.works:
            return (*failed, *made.refused)
        for work in made.works:
            mac = work.nic.record.mac
            tries[mac] = tries.get(mac, 0) + 1
            why = "" if tries[mac] <= (1 if alone else 2) else "it is not as it was made"
            # what failed may have deleted it, what is only set back did not
            stands = work.stands and (why or not any(isinstance(step, DeleteLink) for step in work.steps))
            try:
                if not why:
                    with Undo() as undo:
                        apply.run(work.steps, apply.Doors(links=links, target=links), undo)
                    _say(guest.name, syslog.LOG_INFO, f"NIC {mac}: {_done(work.steps)}")
                    continue
            except (GuestnetError, OSError) as error:
                hint = error.hint if isinstance(error, GuestnetError) else ""
                why = "; ".join([f"{error} ({hint})" if hint else str(error), *getattr(error, "__notes__", ())])
                if not alone and tries[mac] == 1:
                    break
            fatal = work.nic.record.backend is Backend.MACVTAP and not stands
            failed.append(Refused(nic=f"NIC {mac}", why=why, device=work.nic.device, fatal=fatal))
            todo = replace(todo, nics=tuple(nic for nic in todo.nics if nic is not work.nic))
            break  # those after it were planned for a host that has it


def _plan(guest: Handed, links: Links, held: Mapping[int, str]) -> plan.Preparing:
    names = {nic.record.ifname for nic in guest.nics}
    there, strange = [], set()
    for link in links.all():
        if link.kind == Kind.MACVTAP and link.name in names:
            try:
                if tap.device_of(link).node() is not tap.Node.RIGHT:
                    strange.add(link.index)
            except ConflictError:
                continue  # gone since it was listed
        there.append(link)
    host = Host(links=tuple(there), wireless=links.wireless(there))
    made = plan.prepare(guest, host, held=held, strange=frozenset(strange))
    if made.refused and (here := _parents_elsewhere(guest.name)) is not None:
        made = plan.prepare(guest, host, held=held, strange=frozenset(strange), here=here)
    return made


def _release(guest: Handed) -> None:
    """Delete what is this guest's and nobody's any more."""
    with _locked(guest) as alone, Links() as links:
        host = Host(links=links.all())
        mine = {one.index: one for one in plan.links_of(guest, host)}
        held = _held(mine.values())
        made = plan.release(guest, host, held=held)
        if any(step.index not in mine for step in made.steps):
            # a VLAN is among them: what uses it and is no link here takes a look into every network namespace
            host = replace(
                host, used_elsewhere=links.used_elsewhere(), addressed=links.addressed(),
                sources=_direct_sources(guest.name),
            )  # fmt: skip
            made = plan.release(guest, host, held=held)
        steps = made.steps
        if not alone:  # somebody may be about to use a VLAN, or to mark a link
            marked = {index for index, link in mine.items() if link.guest_uuid}
            steps = tuple(step for step in steps if step.index in marked)
        with Undo() as undo:
            apply.run(steps, apply.Doors(links=links, target=links), undo)
    for text in made.kept:
        _say(guest.name, syslog.LOG_WARNING, text)
    if steps:
        _say(guest.name, syslog.LOG_INFO, ", ".join(map(str, steps)))


def _direct_sources(name: str) -> frozenset[str]:
    """The links that guests other than that one need for a NIC of type='direct', as libvirt's own files have it.

    libvirt cannot be asked from here. What a file calls the source of a disk is among them, and is no link's name.
    """
    found: set[str] = set()
    for path in CONFIGURED.glob("*.xml"):
        if path.stem != name:
            with suppress(OSError):  # undefined meanwhile
                found.update(dev.decode(errors="replace") for _, dev in _SOURCE.findall(path.read_bytes()))
    return frozenset(found)


def _reconnect(guest: Handed) -> None:
    """Say what is out of line. The guest runs: nothing of it is touched, and libvirt would end it for any failure."""
    with Links() as links:
        found = plan.reconnect(guest, Host(links=links.all()))
    _tell_refused(guest, guest.refused)
    for text in found:
        _say(guest.name, syslog.LOG_WARNING, f"{text}: guestnet repair {guest.name}")


def _arrive(data: bytes, name: str) -> None:
    """Give the guest's parents their names on this host: its XML goes to stdout where that changes it."""
    here = _parents_elsewhere(name)
    if here is None:
        return
    with Links() as links:
        host = Host(links=links.all())

    def place(record: Record) -> tuple[str, str]:
        parent = here(record.parent)
        if record.backend is not Backend.DIRECT:
            return parent, ""
        try:
            return parent, parent_on_record(parent, record.outer, host).device
        except GuestnetError:
            return parent, parent

    text, changes = handed.rewrite(data, name, place)
    for change in changes:
        _say(name, syslog.LOG_INFO, change)
    if changes:
        sys.stdout.buffer.write(text)
        sys.stdout.buffer.flush()


# What they have in common


@contextmanager
def _locked(guest: Handed) -> Iterator[bool]:
    """The host's lock, or False where it cannot be had in time: a guest shall not wait for a guestnet that hangs."""
    with ExitStack() as stack:
        alone = True
        try:
            stack.enter_context(lock.held(LOCK_SECONDS))
        except (GuestnetError, OSError) as error:
            _say(guest.name, syslog.LOG_WARNING, f"{error}: going on without the lock")
            alone = False
        yield alone


def _held(links: Iterable[Link]) -> dict[int, str]:
    """Which processes have the macvtaps among these open, in words, by ifindex."""
    return {index: ", ".join(map(str, holders)) for index, holders in tap.held(links).items()}


def _done(steps: Iterable[LinkStep]) -> str:
    """What a person wants to know of the steps that were taken."""
    said: list[LinkStep] = [step for step in steps if isinstance(step, AddLink | DeleteLink)]
    made = {step.new.name for step in said if isinstance(step, AddLink)}
    said += [step for step in steps if isinstance(step, SetUp) and step.name not in made]
    return ", ".join(map(str, said))


@cache
def _parents_elsewhere(name: str) -> Callable[[str], str] | None:
    """What parents of other hosts are called here; None where nobody wrote that down, or it cannot be read."""
    if not os.path.lexists(parents.PATH):
        return None
    try:
        return parents.read().here
    except GuestnetError as error:
        _say(name, syslog.LOG_ERR, str(error))
        return None


def _tell_refused(guest: Handed, refused: Iterable[Refused]) -> None:
    lines = [f"{one.nic} is refused: {one.why}" for one in refused]
    for text in lines[:_TOLD_MOST]:
        _say(guest.name, syslog.LOG_ERR, text)
    if len(lines) > _TOLD_MOST:
        _say(guest.name, syslog.LOG_ERR, f"{len(lines) - _TOLD_MOST} more NICs are refused")


def _say(name: str, level: int, text: str) -> None:
    """One line in the log of the system."""
    line = f"{name}: {text}"
    syslog.syslog(level, "".join(one if one.isprintable() else ascii(one)[1:-1] for one in line))


if __name__ == "__main__":
    gc.disable()
    sys.exit(main(sys.argv[1:]))
