"""Links: the one place that asks the kernel for them and changes them.

Attribute numbers are those of include/uapi/linux/if_link.h. What the kernel refuses is raised as a GuestnetError that
names the link and says the kernel's reason.
"""

import errno
import itertools
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.kernel import netns, sysfs
from guestnet.kernel.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    NetlinkError,
    Rtnl,
    attribute,
    attribute_list,
    attributes,
    nested,
)
from guestnet.model import ADDR_GEN_MODE_NONE, GROUP, Counters, Kind, Link, Mac, Mode, NewLink, VlanProtocol

_NEWLINK, _DELLINK, _GETLINK, _NEWLINKPROP = 16, 17, 18, 108
_GETNSID, _NETNSA_NSID, _NETNSA_FD = 90, 1, 3
_GETADDR, _IFA_F_PERMANENT, _RT_SCOPE_LINK = 22, 0x80, 253
_DELQDISC, _TC_ROOT, _TC_INGRESS = 37, 0xFFFFFFFF, 0xFFFFFFF1
_ADDRESS, _IFNAME, _MTU, _LINK, _MASTER, _OPERSTATE, _LINKINFO = 1, 3, 4, 5, 10, 16, 18
_TXQLEN, _IFALIAS, _STATS64, _AF_SPEC, _GROUP, _NET_NS_FD, _EXT_MASK = 13, 20, 23, 26, 27, 28, 29
_PROMISCUITY, _LINK_NETNSID, _NEW_IFINDEX, _PROP_LIST, _ALT_IFNAME, _ALLMULTI = 30, 37, 49, 52, 53, 61
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND = 1, 2, 4
_MACVLAN_MODE, _MACVLAN_FLAGS, _MACVLAN_MACADDR_MODE, _MACVLAN_MACADDR, _MACVLAN_MACADDR_DATA = 1, 2, 3, 4, 5
_MACVLAN_BC_QUEUE_LEN = 7
_MACADDR_SET = 3
_VLAN_ID, _VLAN_FLAGS, _VLAN_PROTOCOL = 1, 2, 5
_VLAN_FLAG_REORDER_HDR = 1
_BR_VLAN_FILTERING = 7
_INET6_ADDR_GEN_MODE = 8
_SKIP_STATS = 1 << 3
_IFF_UP, _IFF_LOOPBACK, _IFF_ALLMULTI, _IFF_LOWER_UP = 0x1, 0x8, 0x200, 0x10000
_ARPHRD_ETHER = 1

_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_TCMSG = struct.Struct("=BxxxiIII")
_STATS = struct.Struct("=8Q")
_U32 = struct.Struct("=I")
_VLAN_FLAG_BITS = struct.Struct("=II")

_MODES = {Mode.PRIVATE: 1, Mode.VEPA: 2, Mode.BRIDGE: 4, Mode.PASSTHRU: 8, Mode.SOURCE: 16}
_MODE_NAMES = {number: mode for mode, number in _MODES.items()}
_OPERSTATES = ("unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up")
_PROTOCOLS = {0x8100: VlanProtocol.DOT1Q, 0x88A8: VlanProtocol.DOT1AD}
_ETHERTYPES = {protocol: number for number, protocol in _PROTOCOLS.items()}

_IPV6 = "/proc/sys/net/ipv6/conf"


class Links(Closes):
    """The links of one network namespace: the caller's, or that of the fd given.

    A context manager; it owns one socket. A method that fails has changed nothing unless it says otherwise.
    """

    def __init__(self, namespace: int | None = None) -> None:
        self.namespace = namespace
        self._rtnl = Rtnl() if namespace is None else netns.call(namespace, Rtnl)

    def close(self) -> None:
        """Close the socket."""
        self._rtnl.close()

    def all(self, *, counters: bool = False) -> tuple[Link, ...]:
        """Every link, by one dump; with what passed them where ``counters`` is set."""
        mask = 0 if counters else _SKIP_STATS
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_EXT_MASK, mask)
        return tuple(_link(message) for message in self._rtnl.dump(_GETLINK, payload))

    def find(self, name: str) -> Link | None:
        """The link of that name, with its counters; None where there is none."""
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + attribute(_IFNAME, name)
        try:
            return _link(self._rtnl.get(_GETLINK, payload))
        except NetlinkError as error:
            if error.errno == errno.ENODEV:
                return None
            raise

    def supports(self, kind: Kind) -> bool:
        """Whether this kernel can make links of that kind; loads the module where there is one, makes no link.

        A request without lower link is refused by a kind that exists with EINVAL, by the core with EOPNOTSUPP for
        one that does not (rtnl_newlink, net/core/rtnetlink.c).
        """
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + nested(_LINKINFO, attribute(_INFO_KIND, kind.value))
        try:
            self._rtnl.request(_NEWLINK, payload, flags=NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            return error.errno != errno.EOPNOTSUPP
        return True

    def check_support(self, kinds: Iterable[Kind]) -> None:
        """Raise GuestnetError where this kernel makes no links of one of these kinds."""
        for kind in dict.fromkeys(kinds):
            if not self.supports(kind):
                raise no_support(kind)

    def add(self, new: NewLink, parent: int, *, into: int | None = None, index: int | None = None) -> None:
        """Make a link, down and with our group mark, on the lower link ``parent``.

        ``into`` is the fd of the namespace that gets it, else it is this one. ``index`` asks for an ifindex.
        """
        parts = [attribute(_IFNAME, new.name), attribute(_LINK, parent), attribute(_GROUP, GROUP)]
        if new.mac is not None:
            parts.append(attribute(_ADDRESS, bytes.fromhex(new.mac.replace(":", ""))))
        if new.mtu is not None:
            parts.append(attribute(_MTU, new.mtu))
        if into is not None:
            parts.append(attribute(_NET_NS_FD, into))
        parts.append(nested(_LINKINFO, attribute(_INFO_KIND, new.kind.value), nested(_INFO_DATA, *_info_data(new))))
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, index or 0, 0, 0) + b"".join(parts)
        with _refusals(f"{new.kind} {new.name} on {new.parent}", new.kind):
            self._rtnl.request(_NEWLINK, payload, flags=NLM_F_CREATE | NLM_F_EXCL)

    def mark(self, link: Link, alias: str) -> None:
        """Say in the link's ifalias whose it is, and in its group that it is ours."""
        # without closing zero, which the kernel would count: 255 bytes is all it takes (dev_set_alias, net/core/dev.c)
        self._change(link, attribute(_IFALIAS, alias.encode()), attribute(_GROUP, GROUP))

    def call_also(self, link: Link, altname: str) -> None:
        """Give the link an alternative name (RTM_NEWLINKPROP, Linux 5.5); nothing to do where it is this very link's.

        None can be given at creation. Names and alternative names share one space: ConflictError where it is taken.
        """
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, link.index, 0, 0)
        payload += nested(_PROP_LIST, attribute(_ALT_IFNAME, altname))
        try:
            self._rtnl.request(_NEWLINKPROP, payload, flags=NLM_F_CREATE | NLM_F_EXCL)
        except NetlinkError as error:
            if error.errno == errno.EEXIST and any(
                one.index == link.index and altname in one.altnames for one in self.all()
            ):
                return
            with _refusals(f"the name {altname} for {link.name}"):
                raise

    def quiet(self, link: Link) -> None:
        """Keep the host's own IPv6 off the link: no link-local address, no router solicitation, no autoconf.

        The frames it would send carry the guest's MAC. Nothing to do on a kernel without IPv6, and on a link whose
        MTU is too small for it (addrconf_notify, net/ipv6/addrconf.c): such a link has none of these settings.
        """
        if link.addrgenmode is None:
            return

        def write() -> None:
            # dev_change_net_namespace and register_netdevice read none of these from the request that makes the link
            directory = f"{_IPV6}/{link.name}"
            for key, value in (("disable_ipv6", "1"), ("accept_ra", "0"), ("autoconf", "0")):
                fd = os.open(f"{directory}/{key}", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, value.encode())
                finally:
                    os.close(fd)

        mode = struct.pack("=B", ADDR_GEN_MODE_NONE)
        self._change(link, nested(_AF_SPEC, nested(socket.AF_INET6, attribute(_INET6_ADDR_GEN_MODE, mode))))
        with _refusals(f"IPv6 of {link.name}"):
            write() if self.namespace is None else netns.call(self.namespace, write)

    def set_up(self, link: Link, up: bool = True) -> None:
        """Bring the link up, or down."""
        self._change(link, flags=_IFF_UP if up else 0, change=_IFF_UP)

    def set_multicast(self, link: Link, everything: bool) -> None:
        """Let all multicast frames through the link, or only those in its filter."""
        self._change(link, flags=_IFF_ALLMULTI if everything else 0, change=_IFF_ALLMULTI)

    def set_mtu(self, link: Link, mtu: int) -> None:
        """Set the MTU; the kernel refuses more than the parent's."""
        self._change(link, attribute(_MTU, mtu))

    def set_mac(self, link: Link, mac: Mac) -> None:
        """Set the Ethernet address."""
        self._change(link, attribute(_ADDRESS, bytes.fromhex(mac.replace(":", ""))))

    def set_mode(self, link: Link, mode: Mode, source_macs: tuple[Mac, ...] = ()) -> None:
        """Change the mode of a macvlan or macvtap, in use or not, and its source list."""
        data = [attribute(_MACVLAN_MODE, _MODES[mode])]
        data += _source_list(mode, source_macs)
        self._change(link, nested(_LINKINFO, attribute(_INFO_KIND, link.kind), nested(_INFO_DATA, *data)))

    def move(self, link: Link, into: int, *, index: int | None = None) -> None:
        """Move the link into the network namespace of the fd ``into``, where it may ask for another ifindex.

        It arrives down and with the IPv6 settings of a new link; alias, group and allmulticast stay with it. Where
        its ifindex is taken there and no other is asked for, the kernel gives it one, and its node in /dev is named
        anew with it (dev_change_net_namespace, net/core/dev.c; macvtap_device_event, drivers/net/macvtap.c).
        """
        parts = [attribute(_NET_NS_FD, into)]
        if index is not None:
            parts.append(attribute(_NEW_IFINDEX, index))
        self._change(link, *parts)

    def delete(self, link: Link) -> None:
        """Delete the link. The ifindex and the name must still belong together; a link that is gone is no error."""
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, link.index, 0, 0)
        now = self.find(link.name)
        if now is None or now.index != link.index:
            return
        with _refusals(link.name):
            try:
                self._rtnl.request(_DELLINK, payload)
            except NetlinkError as error:
                if error.errno != errno.ENODEV:
                    raise

    def clear_rates(self, link: Link) -> None:
        """Take the root and the ingress queueing discipline off the link (rtnetlink, RTM_DELQDISC; tc(8))."""
        for parent in (_TC_ROOT, _TC_INGRESS):
            try:
                self._rtnl.request(_DELQDISC, _TCMSG.pack(socket.AF_UNSPEC, link.index, 0, parent, 0))
            except NetlinkError as error:
                if error.errno not in (errno.ENOENT, errno.EINVAL, errno.ENODEV):  # there is none
                    raise

    def wireless(self, links: Iterable[Link]) -> frozenset[str]:
        """Which of the links are Wi-Fi stations, whose access point takes frames of one MAC address only."""
        # a Wi-Fi card is hardware: it has no kind
        cards = [link.name for link in links if not link.kind and not link.loopback]

        def look() -> frozenset[str]:
            with sysfs.opened() as root:
                entries = ("phy80211", "wireless")
                return frozenset(
                    name for name in cards if any(sysfs.exists(root, f"class/net/{name}/{entry}") for entry in entries)
                )

        return look() if self.namespace is None else netns.call(self.namespace, look)

    def used_elsewhere(self) -> frozenset[int]:
        """The ifindexes of the links here on which a link of another network namespace stands: of one with a name or a
        process in it, since the kernel lists no others."""
        used: set[int] = set()
        with netns.own() as own:
            here = self.namespace if self.namespace is not None else own
            places = netns.others()
            if self.namespace is not None:
                places = itertools.chain(places, [own])
            for there in places:
                try:
                    with Links(there) as others:
                        number = others.number_of(here)
                        lower = (one for one in others.all() if one.kind != "veth" and one.parent_netnsid is not None)
                        used.update(one.parent for one in lower if one.parent and one.parent_netnsid == number)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # what is left of a name whose namespace is gone
                        raise
        return frozenset(used)

    def addressed(self) -> frozenset[int]:
        """The ifindexes of the links here to which somebody gave an IP address (RTM_GETADDR, rtnetlink(7)).

        IPv6 addresses that a link gives itself do not count: link-local ones, and those of a router's prefix, which
        are not permanent.
        """
        found = set()
        for message in self._rtnl.dump(_GETADDR, _IFADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)):
            family, _, flags, scope, index = _IFADDR.unpack_from(message)
            by_hand = flags & _IFA_F_PERMANENT and scope != _RT_SCOPE_LINK
            if family == socket.AF_INET or (family == socket.AF_INET6 and by_hand):
                found.add(index)
        return frozenset(found)

    def number_of(self, namespace: int) -> int:
        """The number by which links here call that namespace in ``parent_netnsid``, negative where there is none
        (NETNSA_NSID_NOT_ASSIGNED, net/core/net_namespace.c)."""
        answer = self._rtnl.get(_GETNSID, b"\0\0\0\0" + attribute(_NETNSA_FD, namespace))
        return int(struct.unpack("=i", attributes(answer, 4)[_NETNSA_NSID])[0])

    def _change(self, link: Link, *parts: bytes, flags: int = 0, change: int = 0) -> None:
        payload = _IFINFO.pack(socket.AF_UNSPEC, 0, link.index, flags, change) + b"".join(parts)
        with _refusals(link.name):
            self._rtnl.request(_NEWLINK, payload)


def _info_data(new: NewLink) -> list[bytes]:
    if new.kind is Kind.VLAN:
        # with REORDER_HDR off a frame that the guest tagged itself leaves with its tag in place of ours
        # (vlan_dev_hard_start_xmit, net/8021q/vlan_dev.c)
        return [
            attribute(_VLAN_ID, struct.pack("=H", new.vlan)),
            attribute(_VLAN_PROTOCOL, struct.pack("!H", _ETHERTYPES[new.protocol])),
            attribute(_VLAN_FLAGS, _VLAN_FLAG_BITS.pack(_VLAN_FLAG_REORDER_HDR, _VLAN_FLAG_REORDER_HDR)),
        ]
    mode = new.mode or Mode.BRIDGE
    return [attribute(_MACVLAN_MODE, _MODES[mode]), *_source_list(mode, new.source_macs)]


def _source_list(mode: Mode, macs: tuple[Mac, ...]) -> list[bytes]:
    if mode is not Mode.SOURCE:
        return []
    entries = [attribute(_MACVLAN_MACADDR, bytes.fromhex(mac.replace(":", ""))) for mac in macs]
    return [attribute(_MACVLAN_MACADDR_MODE, _MACADDR_SET), nested(_MACVLAN_MACADDR_DATA, *entries)]


@contextmanager
def _refusals(what: str, kind: Kind | None = None) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        match error.errno:
            case errno.EPERM | errno.EACCES:
                raise NotPermittedError(f"{what}: {reason}", hint="run this with sudo") from error
            case errno.EEXIST:
                raise ConflictError(f"{what}: a link of that name or ifindex exists") from error
            case errno.EBUSY:
                raise ConflictError(
                    f"{what}: {reason}", hint="the parent is a port of a bridge, bond or OVS; use that one as parent"
                ) from error
            case errno.EADDRINUSE:
                raise ConflictError(
                    f"{what}: its MAC address is in use on the same parent", hint="give another with --mac"
                ) from error
            case errno.ENODEV | errno.ENOENT:
                raise NotFoundError(f"{what}: the link is gone") from error
            case errno.EMLINK:
                raise ConflictError(
                    f"{what}: too many links stand on one another, the kernel takes 8 (MAX_NEST_DEV)",
                    hint="leave some of the VLANs out",
                ) from error
            case errno.EOPNOTSUPP if kind is not None:
                raise no_support(kind) from error
            case _:
                raise GuestnetError(f"{what}: {reason}") from error


def no_support(kind: Kind) -> GuestnetError:
    """The error for a kernel that has no links of that kind."""
    option = {Kind.VLAN: "CONFIG_VLAN_8021Q", Kind.MACVTAP: "CONFIG_MACVTAP", Kind.MACVLAN: "CONFIG_MACVLAN"}[kind]
    word = "802.1Q VLAN" if kind is Kind.VLAN else kind.value
    module = "8021q" if kind is Kind.VLAN else kind.value
    return GuestnetError(
        f"this kernel has no {word} support ({option})",
        hint=f"install a kernel that has the module {module}; cloud and micro-VM kernels often leave it out",
    )


def _link(message: bytes) -> Link:
    _, hardware, index, flags, _ = _IFINFO.unpack_from(message)
    found = attributes(message, _IFINFO.size)
    get = found.get
    info = attributes(found[_LINKINFO]) if _LINKINFO in found else {}
    kind = _text(info.get(_INFO_KIND))
    mode = vlan = None
    macvlan_flags = 0
    protocol = ""
    reorder_hdr, vlan_filtering = True, False
    bcqueuelen = None
    sources: tuple[str, ...] = ()
    addrgenmode = None
    if _INFO_DATA in info:
        if kind in ("macvtap", "macvlan"):
            data = attributes(info[_INFO_DATA])
            mode = _MODE_NAMES.get(_U32.unpack(data[_MACVLAN_MODE])[0])
            if _MACVLAN_FLAGS in data:
                (macvlan_flags,) = struct.unpack("=H", data[_MACVLAN_FLAGS])
            bcqueuelen = _number(data.get(_MACVLAN_BC_QUEUE_LEN))
            if _MACVLAN_MACADDR_DATA in data:
                sources = tuple(value.hex(":") for _, value in attribute_list(data[_MACVLAN_MACADDR_DATA]))
        elif kind == "vlan":
            data = attributes(info[_INFO_DATA])
            (vlan,) = struct.unpack("=H", data[_VLAN_ID])
            protocol = _PROTOCOLS.get(int.from_bytes(data[_VLAN_PROTOCOL], "big"), "?")
            # the attribute is left out where no flag is set (vlan_fill_info, net/8021q/vlan_netlink.c)
            flags_set, _ = _VLAN_FLAG_BITS.unpack(data.get(_VLAN_FLAGS, bytes(8)))
            reorder_hdr = bool(flags_set & _VLAN_FLAG_REORDER_HDR)
        elif kind == "bridge":
            vlan_filtering = any(attributes(info[_INFO_DATA]).get(_BR_VLAN_FILTERING, b""))
    if _AF_SPEC in found:
        inet6 = attributes(found[_AF_SPEC]).get(socket.AF_INET6)
        if inet6:
            mode6 = attributes(inet6).get(_INET6_ADDR_GEN_MODE)
            addrgenmode = mode6[0] if mode6 else None
    counters = None
    if _STATS64 in found:
        numbers = _STATS.unpack_from(found[_STATS64])
        counters = Counters(
            rx_packets=numbers[0], tx_packets=numbers[1], rx_bytes=numbers[2], tx_bytes=numbers[3],
            rx_dropped=numbers[6], tx_dropped=numbers[7],
        )  # fmt: skip
    altnames: tuple[str, ...] = ()
    if _PROP_LIST in found:
        altnames = tuple(_text(value) for number, value in attribute_list(found[_PROP_LIST]) if number == _ALT_IFNAME)
    state = get(_OPERSTATE, b"\0")[0]
    return Link(
        index=index,
        name=_text(found[_IFNAME]),
        kind=kind,
        mac=get(_ADDRESS, b"").hex(":"),
        mtu=_number(get(_MTU)) or 0,
        up=bool(flags & _IFF_UP),
        carrier=bool(flags & _IFF_LOWER_UP),
        operstate=_OPERSTATES[state] if state < len(_OPERSTATES) else "unknown",
        loopback=bool(flags & _IFF_LOOPBACK),
        ethernet=hardware == _ARPHRD_ETHER,
        parent=_number(get(_LINK)),
        parent_netnsid=_number(get(_LINK_NETNSID)),
        master=_number(get(_MASTER)),
        port_kind=_text(info.get(_INFO_SLAVE_KIND)),
        group=_number(get(_GROUP)) or 0,
        alias=_text(get(_IFALIAS)),
        altnames=altnames,
        allmulti=_number(get(_ALLMULTI)) or int(bool(flags & _IFF_ALLMULTI)),
        promiscuity=_number(get(_PROMISCUITY)) or 0,
        txqueuelen=_number(get(_TXQLEN)) or 0,
        addrgenmode=addrgenmode,
        mode=mode,
        flags=macvlan_flags,
        bcqueuelen=bcqueuelen,
        source_macs=sources,
        vlan=vlan,
        vlan_protocol=protocol,
        reorder_hdr=reorder_hdr,
        vlan_filtering=vlan_filtering,
        counters=counters,
    )


def _text(value: bytes | None) -> str:
    return value.rstrip(b"\0").decode(errors="replace") if value else ""


def _number(value: bytes | None) -> int | None:
    return None if value is None else int(_U32.unpack(value)[0])
