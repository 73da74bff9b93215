"""The NICs of a QEMU: macvtaps made, opened and checked, and taken away when nobody has them open any more."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from guestnet import apply
from guestnet.closes import Closes
from guestnet.errors import MEDDLED, ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.kernel import lock, tap
from guestnet.kernel.link import Links
from guestnet.kernel.tap import Tap
from guestnet.kernel.vhost import Vhost as VhostFds
from guestnet.machine import machine_id
from guestnet.model import Link, LinkName, Mac, Mode, Multicast, Owner, Request, one_of, qemu_alias, vlan_id
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host, made_for_guests
from guestnet.plan.qemu import Vhost
from guestnet.plan.steps import AddLink, DeleteLink, LinkStep
from guestnet.undo import Undo

GUEST = "qemu"
"""What a guest without a name is called."""

_SPARE_FDS = 16  # for what a command opens besides: sockets, sysfs, the lock


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenNic:
    """One NIC whose tap is open. ``fds`` are its queues, ``vhost_fds`` as many of vhost-net, or none.

    All are checked to be this macvtap's and are close-on-exec: hand them on with ``pass_fds``.
    """

    plan: plan.Nic
    fds: tuple[int, ...]
    vhost_fds: tuple[int, ...]

    @property
    def mac(self) -> Mac:
        """The address the guest's NIC must have: frames for another do not reach it."""
        return self.plan.mac

    @property
    def ifname(self) -> str:
        """The name of the macvtap."""
        return self.plan.ifname

    @property
    def pass_fds(self) -> tuple[int, ...]:
        """The fds that a child needs, for subprocess.Popen."""
        return (*self.fds, *self.vhost_fds)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The options that give a QEMU which inherits the fds this NIC."""
        return plan.command_line(self.plan, self.fds, self.vhost_fds)


@dataclass(slots=True, kw_only=True)
class Options:
    """How NICs are made. ``guest`` names the guest, for its MACs and for a person who looks at the links.

    ``vnet_header`` says whether each frame has a virtio-net header before it; None: as the NIC's model has it.
    """

    guest: str = ""
    vhost: Vhost = Vhost.AUTO
    vnet_header: bool | None = None
    watch: apply.Watch | None = None
    notice: Callable[[str], None] | None = None


class Opened(Closes):
    """NICs whose taps are open in this process.

    At the end of the block the fds are closed and the macvtaps deleted, with the VLANs made for them that nobody uses.
    A macvtap that another process has open still, such as a QEMU in the background, stays with all it stands on;
    ``left`` are those. It goes with `guestnet gc`, or with the next NIC that is made here, once it is closed.
    """

    def __init__(
        self, nics: tuple[OpenNic, ...], links: tuple[Link, ...], steps: tuple[LinkStep, ...], notes: tuple[str, ...]
    ) -> None:
        self.nics = nics
        self.links = links
        self.steps = steps
        self.notes = notes
        self.left: tuple[tuple[Link, tuple[tap.Holder, ...]], ...] = ()
        self._open = True

    def close_fds(self) -> None:
        """Close this process's own fds, once a child has inherited them."""
        if self._open:
            self._open = False
            for nic in self.nics:
                for fd in nic.pass_fds:
                    os.close(fd)

    def hand_over(self) -> None:
        """Close the fds and leave the links to whoever was given them."""
        self.links = ()
        self.close_fds()

    def close(self) -> None:
        """Close the fds and delete what nobody else has open."""
        links, self.links = self.links, ()
        self.close_fds()
        if links:
            self.left = remove(links)


@contextmanager
def nic(
    parent: str,
    *,
    vlan: int | None = None,
    mac: str | None = None,
    mode: str = "bridge",
    ifname: str | None = None,
    model: str = "virtio",
    queues: int = 1,
    mtu: int | None = None,
    multicast: str = "all",
    vhost: str = "auto",
    guest: str = GUEST,
) -> Iterator[OpenNic]:
    """A NIC on the link ``parent`` (NIC, NIC.VID, bond, bridge) for as long as the block lasts.

    What it yields has ``fds``, ``vhost_fds``, ``mac``, ``ifname``, and ``arguments`` and ``pass_fds`` for a QEMU. The
    words mean what those of `guestnet qemu run` do. At the end the fds are closed and the macvtap is deleted, unless
    another process has it open still. Raises GuestnetError; nothing is left then.
    """
    request = Request(
        parent=parent, vlan=None if vlan is None else vlan_id(vlan), mac=None if mac is None else Mac(mac),
        mode=Mode.parse(mode), model=model, ifname=None if ifname is None else LinkName(ifname), queues=queues,
        mtu=mtu, multicast=one_of(Multicast, multicast),
    )  # fmt: skip
    with opened((request,), Options(guest=guest, vhost=one_of(Vhost, vhost))) as made:
        yield made.nics[0]


def opened(requests: Sequence[Request], options: Options) -> Opened:
    """Make the macvtaps of these NICs and open them, all or none; a context manager.

    Raises what the plan raises, and NotFoundError where vhost-net is asked for and is not there.
    """
    plan.check_requests(requests, options.vhost)
    need_root("making a NIC")
    with Links() as links, Undo() as undo, ExitStack() as mine:
        left_over = tap.unheld(link for link in links.all() if link.owner is Owner.QEMU)
        if left_over:
            remove(left_over, options.notice)
        with undo.part("links", lambda: lock.held(notice=options.notice)) as part:
            wiring = _wire(requests, links, options)
            apply.run(wiring.steps, apply.Doors(links=links, target=links), part, options.watch)
            taps = [mine.enter_context(_open(nic, options.vnet_header)) for nic in wiring.nics]
            made = verified(wiring.nics, links)
        notes = [f"{link.name} has no carrier" for link in made if not link.carrier]
        kernels = [_vhost(nic, options.vhost, mine) for nic in wiring.nics]
        nics = tuple(
            OpenNic(plan=nic, fds=one.fds, vhost_fds=kernel)
            for nic, one, kernel in zip(wiring.nics, taps, kernels, strict=True)
        )
        mine.pop_all()  # the fds are those of what is returned from here on
    return Opened(nics, made, wiring.steps, (*wiring.notes, *notes))


def _open(nic: plan.Nic, vnet_header: bool | None) -> Tap:
    wanted = tap.has_vnet_header(nic.model) if vnet_header is None else vnet_header
    return Tap.open(nic.ifname, queues=nic.queues, vnet_header=wanted)


def planned(requests: Sequence[Request], options: Options) -> plan.Wiring:
    """What ``opened`` would do, without doing it."""
    plan.check_requests(requests, options.vhost)
    with Links() as links:
        return _wire(requests, links, options)


def _wire(requests: Sequence[Request], links: Links, options: Options) -> plan.Wiring:
    there = links.all()
    host = Host(links=there, wireless=links.wireless(there) if os.geteuid() == 0 else frozenset())
    if any(request.mode is Mode.PASSTHRU for request in requests):
        host = replace(host, used_elsewhere=links.used_elsewhere())
    stale = tap.unheld(link for link in there if link.owner is Owner.QEMU) if os.geteuid() == 0 else ()
    guest = options.guest or GUEST
    wiring = plan.wire(requests, host, guest=guest, machine_id=machine_id(), alias=qemu_alias(guest), stale=stale)
    check_support(wiring.steps, links)
    check_fd_limit(sum(nic.queues for nic in wiring.nics) * (1 if options.vhost is Vhost.OFF else 2))
    return wiring


def need_root(what: str) -> None:
    """Raise NotPermittedError for an ordinary user, with what an administrator can do."""
    if os.geteuid() != 0:
        raise NotPermittedError(
            f"{what} needs root",
            hint="run this with sudo; an administrator can also make the macvtap (guestnet macvtap add) and let you "
            'open it: see "As an ordinary user" in docs/qemu.md',
        )


def check_support(steps: Iterable[LinkStep], links: Links) -> None:
    """Raise where this kernel has no links of a kind that the steps make."""
    links.check_support(step.new.kind for step in steps if isinstance(step, AddLink))


def check_fd_limit(fds: int) -> None:
    """Raise ConflictError where so many fds more are over what this process may have."""
    wanted = fds + len(os.listdir("/proc/self/fd")) + _SPARE_FDS
    soft = os.sysconf("SC_OPEN_MAX")
    if 0 <= soft < wanted:
        import resource

        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        more = hard == resource.RLIM_INFINITY or wanted <= hard
        raise ConflictError(
            f"the queues need {wanted} open files, and this process may have {soft}",
            hint=f"ulimit -n {wanted}, or more: the program needs its own" if more else f"its hard limit is {hard}",
        )


def _vhost(nic: plan.Nic, vhost: Vhost, mine: ExitStack) -> tuple[int, ...]:
    if vhost is Vhost.OFF or not nic.virtio:
        return ()
    try:
        return mine.enter_context(VhostFds.open(nic.queues)).fds
    except (NotFoundError, NotPermittedError, ConflictError):
        if vhost is Vhost.ON:
            raise
        return ()


def verified(nics: Iterable[plan.Nic], links: Links) -> tuple[Link, ...]:
    """The macvtaps as they are now. What is not as it was planned is an error."""
    found = []
    for nic in nics:
        link = links.find(nic.ifname)
        if link is None or (link.mac, link.mode, link.up, link.owner) != (nic.mac, nic.mode, True, Owner.QEMU):
            how = "gone" if link is None else f"{link.mac}, mode {link.mode}, {'up' if link.up else 'down'}"
            raise GuestnetError(
                f"the macvtap {nic.ifname} is not as it was made: {how}",
                hint=MEDDLED,
            )
        found.append(link)
    return tuple(found)


def remove(
    links: Sequence[Link], notice: Callable[[str], None] | None = None
) -> tuple[tuple[Link, tuple[tap.Holder, ...]], ...]:
    """Delete macvtaps that nobody has open, and the VLANs left unused; those that are held are given, with whom.

    A link that is gone, or is another by now, is none of ours.
    """
    sources = _sources(links)
    with lock.held(notice=notice), Links() as door, Undo() as undo:
        host = Host(links=door.all())
        same = {(link.index, link.name) for link in links}
        ours = [link for link in host.links if (link.index, link.name) in same and link.owner is Owner.QEMU]
        held = tap.held(ours)
        going = [link for link in ours if link.index not in held]
        doomed = [*going]
        if sources is not None and any(made_for_guests(lower) for link in going if (lower := host.below(link))):
            host = replace(host, used_elsewhere=door.used_elsewhere(), addressed=door.addressed(), sources=sources)
            doomed += host.unused_vlans(going)
        apply.run(
            (DeleteLink(name=link.name, index=link.index) for link in doomed),
            apply.Doors(links=door, target=door),
            undo,
        )
        return tuple((link, held[link.index]) for link in ours if link.index in held)


def _sources(links: Iterable[Link]) -> frozenset[str] | None:
    """The links on which libvirt makes macvtaps itself, asked for only where a VLAN may have to go; None where it has
    guests and does not answer."""
    with Links() as door:
        host = Host(links=door.all())
    lower = [host.at(link.parent) for link in links]
    if not any(link is not None and made_for_guests(link) for link in lower):
        return frozenset()
    from guestnet.guest.domain import Hypervisor, has_guests_on_record
    from guestnet.plan.situation import direct_sources

    try:
        with Hypervisor("qemu:///system") as hypervisor:
            return direct_sources(hypervisor.guests())
    except GuestnetError:
        return None if has_guests_on_record() else frozenset()
