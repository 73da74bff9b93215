"""libvirt domains: the one door to libvirt, of this host's system daemon only.

What libvirt refuses is raised as a GuestnetError; errors are told apart by their code, never by their text.
"""

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libvirt

from guestnet import trail
from guestnet.closes import Closes
from guestnet.errors import (
    ConflictError,
    GuestnetError,
    NotFoundError,
    NotPermittedError,
    TimedOutError,
    UsageError,
)
from guestnet.guest.xml import NAMESPACE, PREFIX, interface_element, interfaces, text_of
from guestnet.model import Guest

DEFAULT_URI = "qemu:///system"

_STATES = {
    libvirt.VIR_DOMAIN_NOSTATE: "no state",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "in shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shut off",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}
_UNFIT = {
    libvirt.VIR_DOMAIN_SHUTDOWN: "is shutting down",
    libvirt.VIR_DOMAIN_CRASHED: "has crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "is suspended by its own power management",
}
_UNFIT_PAUSES = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "is paused by an I/O error",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "is paused by its watchdog",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "is shutting down",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "is paused because it crashed",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "is being migrated",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: "is paused by a failed migration",
}
_DENIED = (
    libvirt.VIR_ERR_AUTH_FAILED,
    libvirt.VIR_ERR_AUTH_CANCELLED,
    libvirt.VIR_ERR_AUTH_UNAVAILABLE,
    libvirt.VIR_ERR_OPERATION_DENIED,
    libvirt.VIR_ERR_ACCESS_DENIED,
)
_BUSY = (libvirt.VIR_ERR_OPERATION_INVALID, libvirt.VIR_ERR_RESOURCE_BUSY)
_TICK = 250  # milliseconds between two looks at the live XML while an unplug is waited for
_ASK_AGAIN = 2.0  # seconds until the guest is asked again; libvirt has waited for five before
_AGAIN = "Then run the same detach again"


def check_uri(uri: str) -> None:
    """Raise UsageError unless ``uri`` is the system libvirt of this host, where our links are."""
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise UsageError(f"{uri!r} is not a connection: {error}", hint=f"use --connect {DEFAULT_URI}") from None
    if parts.scheme in ("qemu", "qemu+unix") and not parts.netloc and parts.path == "/system":
        return
    why, hint = "is not a QEMU system libvirt", f"use --connect {DEFAULT_URI}"
    if parts.netloc or parts.scheme in ("qemu+ssh", "qemu+tls", "qemu+tcp", "qemu+libssh", "qemu+libssh2"):
        why = "is another host's, where this command cannot make links"
        hint = f"run guestnet on that host: ssh {parts.netloc or 'HOST'} guestnet …"
    elif parts.path == "/session":
        why = "is a user's own libvirt, which may not open a macvtap"
        hint = f"define the guest in the system libvirt: --connect {DEFAULT_URI}"
    elif parts.path == "/embed":
        why = "is a libvirt inside another program, which guestnet cannot reach"
    raise UsageError(f"the connection {uri} {why}", hint=hint)


def is_usual(uri: str) -> bool:
    """Whether no other socket is named than that of the libvirt which reads its files where we read ours."""
    return not urlsplit(uri).query


def has_guests_on_record() -> bool:
    """Whether the host's own libvirt has files of a guest, defined or running: for when it cannot be asked."""
    return any(any(Path(place).glob("*.xml")) for place in ("/etc/libvirt/qemu", "/run/libvirt/qemu"))


@contextmanager
def _refusals(what: str, uri: str = "", hint: str = "") -> Iterator[None]:
    trail.tell(lambda: f"libvirt: {f'connecting to {uri}' if uri else what}")
    try:
        yield
    except libvirt.libvirtError as error:
        code, text = error.get_error_code(), (error.get_error_message() or str(error)).strip()
        # for VIR_ERR_SYSTEM_ERROR int1 is the errno (virReportSystemError)
        denied = code == libvirt.VIR_ERR_SYSTEM_ERROR and error.get_int1() in (errno.EACCES, errno.EPERM)
        if code in _DENIED or denied:
            raise NotPermittedError(f"{what}: {text}", hint="run this with sudo") from error
        if uri:
            raise GuestnetError(
                f"libvirt at {uri} cannot be reached: {text}",
                hint="start it with: systemctl start libvirtd (or virtqemud), or name another with --connect",
            ) from error
        if code == libvirt.VIR_ERR_NO_DOMAIN:
            raise NotFoundError(f"{what}: the guest is gone") from error
        if code in _BUSY:
            raise ConflictError(f"{what}: {text}") from error
        if code == libvirt.VIR_ERR_OPERATION_TIMEOUT:
            raise TimedOutError(f"{what}: {text}", hint="another job of that guest is under way; try again") from error
        raise GuestnetError(f"{what}: {text}", hint=hint) from error


class Hypervisor(Closes):
    """A connection to the system libvirt of this host, closed at the end of the block.

    libvirt's default event loop is registered for it, which only ``Domain.unplug`` runs.
    """

    def __init__(self, uri: str = DEFAULT_URI) -> None:
        check_uri(uri)
        libvirt.registerErrorHandler(_silent, None)
        libvirt.virEventRegisterDefaultImpl()  # before the first connection, or it never hears of events
        with _refusals("libvirt", uri):
            self._connection = libvirt.open(uri)

    def close(self) -> None:
        """Close the connection. Its socket goes in a turn of the event loop, which nobody else would run."""
        self._connection.close()
        timer = libvirt.virEventAddTimeout(0, _tick, [])
        libvirt.virEventRunDefaultImpl()
        libvirt.virEventRemoveTimeout(timer)

    def domain(self, name: str) -> "Domain":
        """The domain of that name. Raises NotFoundError with the near names."""
        with _refusals(repr(name)):
            try:
                return Domain(self._connection, self._connection.lookupByName(name))
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
                    raise
            except UnicodeEncodeError:
                pass  # bytes that are no UTF-8, so no name of libvirt's
            names = [found.name() for found in self._connection.listAllDomains()]
        near = get_close_matches(name, names, n=3)
        raise NotFoundError(
            f"there is no guest {name}",
            hint=f"did you mean {', '.join(near)}?" if near else "virsh list --all shows the guests there are",
        )

    def guests(self) -> tuple[Guest, ...]:
        """Every domain, sorted by name; one that goes away meanwhile is left out."""
        with _refusals("the list of guests"):
            domains = self._connection.listAllDomains()
        found = []
        for domain in domains:
            try:
                found.append(Domain(self._connection, domain).snapshot(secrets=False))
            except NotFoundError:
                continue
        return tuple(sorted(found, key=lambda guest: guest.name))


class Domain:
    """One domain, changed only by the methods below; each leaves it as it was when it fails, unless it says more."""

    def __init__(self, connection: Any, domain: Any) -> None:
        self._connection = connection
        self._domain = domain
        self.name: str = domain.name()
        self.uuid: str = domain.UUIDString()

    def snapshot(self, *, secrets: bool = True) -> Guest:
        """What libvirt says of it now; its configuration with passwords, so that it can be written back, or without."""
        with _refusals(self.name):
            state, reason = self._domain.state()
            active = self._domain.isActive()
            persistent = self._domain.isPersistent()
            inactive = libvirt.VIR_DOMAIN_XML_INACTIVE | (libvirt.VIR_DOMAIN_XML_SECURE if secrets else 0)
            live = self._domain.XMLDesc(0) if active else None
            config = self._domain.XMLDesc(inactive) if persistent else None
        unfit = _UNFIT.get(state, "")
        if state == libvirt.VIR_DOMAIN_PAUSED:
            unfit = _UNFIT_PAUSES.get(reason, "")
        return Guest(
            name=self.name, uuid=self.uuid, state=_STATES.get(state, "unknown"), live=live,
            config=config, unfit=unfit,
        )  # fmt: skip

    def settle(self) -> None:
        """Wait until libvirt has done with this guest what it was asked before, if only by a program that was killed.

        It goes on with a request whose caller is gone; what changes a guest waits for its turn (virDomainObjBeginJob),
        so this asks for a change that is none. Raises TimedOutError after libvirt's own 30 s.
        """
        flags = libvirt.VIR_DOMAIN_AFFECT_CURRENT
        with _refusals(f"{self.name}: waiting for libvirt"):
            try:
                self._domain.setMetadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, None, None, f"{NAMESPACE}:none", flags)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    raise

    def attach(self, xml: str, *, live: bool, config: bool) -> None:
        """Plug the <interface> in, now and in the configuration as asked."""
        with _refusals(f"{self.name}: plugging the NIC in", hint=_hint(xml)):
            self._domain.attachDeviceFlags(xml, _affect(live, config))

    def update(self, xml: str, *, live: bool, config: bool) -> None:
        """Change what libvirt can change of a NIC: link state, bandwidth; in the configuration anything."""
        with _refusals(f"{self.name}: changing the NIC", hint=_hint(xml)):
            self._domain.updateDeviceFlags(xml, _affect(live, config))

    def detach_config(self, mac: str) -> None:
        """Take the NIC with that MAC out of the configuration; nothing to do where it is not in it."""
        config = self.snapshot().config
        element = interface_element(config, mac) if config else None
        if element is not None:
            with _refusals(f"{self.name}: taking the NIC out of the configuration"):
                self._domain.detachDeviceFlags(text_of(element), libvirt.VIR_DOMAIN_AFFECT_CONFIG)

    def define(self, xml: str) -> None:
        """Set the whole configuration."""
        with _refusals(f"{self.name}: writing the configuration"):
            self._connection.defineXML(xml)

    def set_metadata(self, text: str | None, *, live: bool, config: bool) -> None:
        """Write our metadata element, or take it out where ``text`` is None."""
        with _refusals(f"{self.name}: writing the metadata"):
            try:
                self._domain.setMetadata(
                    libvirt.VIR_DOMAIN_METADATA_ELEMENT, text, PREFIX, NAMESPACE, _affect(live, config)
                )
            except libvirt.libvirtError as error:
                # taking out what is not there
                if text is not None or error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_METADATA:
                    raise

    def unplug(self, mac: str, timeout: float, waiting: Callable[[float], None] | None = None) -> None:
        """Ask the guest to let go of the NIC with that MAC, and wait until it has, at most ``timeout`` seconds.

        libvirt's own detach answers "done" after five seconds whether the NIC is gone or not; this waits for the
        device-removed event, and looks at the live XML. ``waiting`` is called with the seconds so far. Raises
        TimedOutError when the guest keeps it: the request stands then, and the NIC goes when the guest answers or
        stops; ConflictError when the guest refuses.
        """
        alias = self._live_alias(mac)
        if not alias:
            return
        begun = time.monotonic()
        outcome: list[str] = []
        ids = [
            self._connection.domainEventRegisterAny(self._domain, event, _note, (outcome, alias, word))
            for event, word in (
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED, "removed"),
                (libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVAL_FAILED, "refused"),
            )
        ]
        ticks: list[int] = []
        timer = libvirt.virEventAddTimeout(_TICK, _tick, ticks)
        try:
            if not self._ask_back(alias, mac):
                return  # an earlier request was answered just now
            asked = time.monotonic()
            while not outcome:
                if ticks and not self._live_alias(mac):
                    break
                ticks.clear()
                spent = time.monotonic() - begun
                if spent > timeout:
                    raise TimedOutError(
                        f"{self.name} did not let go of the NIC {mac} within {timeout:g} s",
                        hint="the NIC and its link are still there, and so is the configuration; the request stands: "
                        f"when the guest answers or is stopped the NIC goes. {_AGAIN}",
                    )
                if waiting is not None:
                    waiting(spent)
                # a guest that was about to boot has forgotten the request; libvirt takes up to five seconds for it
                if time.monotonic() - asked > _ASK_AGAIN and spent + 5 < timeout:
                    if not self._ask_back(alias, mac):
                        break
                    asked = time.monotonic()
                libvirt.virEventRunDefaultImpl()
        except BaseException as error:
            if not isinstance(error, Exception):  # a signal
                error.add_note(
                    f"but {self.name} was asked to let go of the NIC {mac}: when it answers the NIC goes. {_AGAIN}"
                )
            raise
        finally:
            libvirt.virEventRemoveTimeout(timer)
            for number in ids:
                self._connection.domainEventDeregisterAny(number)
        if "refused" in outcome:
            raise ConflictError(
                f"{self.name} refused to let go of the NIC {mac}",
                hint="its driver holds it; look at the guest's own kernel log",
            )

    def _ask_back(self, alias: str, mac: str) -> bool:
        """Ask the guest to let go of a NIC; False where it is gone."""
        try:
            self._domain.detachDeviceAlias(alias, libvirt.VIR_DOMAIN_AFFECT_LIVE)
        except libvirt.libvirtError as error:
            if not self._live_alias(mac):
                return False
            # a request that stands already is refused, and is what is waited for
            if error.get_error_code() not in (libvirt.VIR_ERR_OPERATION_FAILED, libvirt.VIR_ERR_INTERNAL_ERROR):
                with _refusals(f"{self.name}: unplugging the NIC {mac}"):
                    raise
        return True

    def _live_alias(self, mac: str) -> str:
        with _refusals(self.name):
            if not self._domain.isActive():
                return ""
            live = self._domain.XMLDesc(0)
        return next((nic.alias for nic in interfaces(live) if nic.mac == mac), "")


def _hint(interface: str) -> str:
    if "<bandwidth" not in interface:
        return ""
    return "rates need sch_htb, sch_sfq and act_police in the kernel; leave --inbound and --outbound out without them"


def _affect(live: bool, config: bool) -> int:
    flags = libvirt.VIR_DOMAIN_AFFECT_LIVE if live else 0
    return int(flags | (libvirt.VIR_DOMAIN_AFFECT_CONFIG if config else 0))


def _silent(_context: object, _error: object) -> None:
    """Instead of libvirt's own, which writes each error to stderr a second time."""


def _note(_connection: Any, _domain: Any, alias: str, wanted: tuple[list[str], str, str]) -> None:
    outcome, mine, word = wanted
    if alias == mine:
        outcome.append(word)


def _tick(timer: int, ticks: list[int]) -> None:
    """Wakes virEventRunDefaultImpl, which has no deadline of its own, and says that it is time for a look."""
    ticks.append(timer)
