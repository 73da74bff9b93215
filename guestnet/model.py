"""The words of the field as frozen values: parsed once at the edge, carried everywhere, changed nowhere."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Self, TypeVar

from guestnet.errors import UsageError

GROUP = 1735292019
"""The link group that marks a link as made by guestnet from its first moment (IFLA_GROUP is taken at creation)."""

_Word = TypeVar("_Word", bound=StrEnum)

ALIAS_PREFIX = "guestnet:1:"
"""What the ifalias of a link of ours begins with; what follows says whose it is."""

NAME_MAX = 15
"""Bytes in a link name: IFNAMSIZ without the closing zero (include/uapi/linux/if.h)."""

ALTNAME_MAX = 127
"""Bytes in an alternative name of a link: ALTIFNAMSIZ without the closing zero (include/uapi/linux/if.h)."""

ADDR_GEN_MODE_NONE = 1
"""Link.addrgenmode of a link to which the kernel gives no IPv6 address by itself (enum in6_addr_gen_mode)."""

QUEUES_MAX = 256
"""MAX_TAP_QUEUES of drivers/net/tap.c: what one macvtap takes before it answers EBUSY."""

MODELS = (
    "virtio", "virtio-transitional", "virtio-non-transitional",
    "e1000", "e1000e", "igb", "rtl8139", "vmxnet3", "ne2k_pci", "pcnet",
)  # fmt: skip
"""The NIC models of QEMU that libvirt hands on for PCI machines (formatdomain, "Setting the NIC model")."""

_NAME = re.compile(r"[^\s/:%]+")
_SHORT_VLAN = re.compile(r"gv[0-9a-f]{8}\.[0-9]+")
_MAC = re.compile(r"[0-9a-f]{2}(?:([:-])[0-9a-f]{2})(?:\1[0-9a-f]{2}){4}", re.IGNORECASE)
_RATE = re.compile(r"([0-9]{1,10})(?:,([0-9]{1,10})?)?(?:,([0-9]{1,10})?)?")


class Mac(str):
    """A unicast Ethernet address, in lower case with colons.

    Raises UsageError for text that is no address, and for the addresses that no NIC may have: all zero, and those
    with the group bit set (is_valid_ether_addr, include/linux/etherdevice.h).
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not _MAC.fullmatch(text):
            raise UsageError(f"{text!r} is not a MAC address", hint="write six bytes, as in 52:54:00:12:34:56")
        value = text.lower().replace("-", ":")
        if value == "00:00:00:00:00:00":
            raise UsageError("the MAC address 00:00:00:00:00:00 is nobody's", hint="give another, or leave --mac out")
        if int(value[:2], 16) & 1:
            raise UsageError(
                f"{value} is a multicast address, a NIC needs a unicast one",
                hint="make the second hex digit even, as in 52:54:00:12:34:56",
            )
        return super().__new__(cls, value)

    @classmethod
    def derive(cls, machine_id: str, guest: str, parent: str, ordinal: int) -> Self:
        """The address of a guest's NIC number ``ordinal`` on ``parent``: the same each time, so that a guest that is
        made anew gets its DHCP lease back. In 52:54:00, the prefix QEMU and libvirt use."""
        import hashlib  # 2 ms, which commands on links do without

        seed = "\0".join((machine_id, guest, parent, str(ordinal))).encode(errors="surrogatepass")
        tail = hashlib.sha256(seed).digest()[:3]
        return cls("52:54:00:" + tail.hex(":"))

    @property
    def ifname(self) -> str:
        """The name of the macvtap with this address: ``gn`` and the twelve digits, 14 characters."""
        return "gn" + self.replace(":", "")


class LinkName(str):
    """A name the kernel takes for a link (dev_valid_name, net/core/dev.c) and a shell can print. Else UsageError."""

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not (_NAME.fullmatch(text) and text.isprintable()) or text in {".", ".."}:
            raise UsageError(
                f"{text!r} is not an interface name",
                hint="use letters, digits, '.', '-' and '_'; no '/', ':', '%' or white space",
            )
        if len(text.encode()) > NAME_MAX:
            raise UsageError(
                f"the interface name {text!r} has {len(text.encode())} characters, the kernel takes {NAME_MAX}",
                hint="choose a shorter name",
            )
        return super().__new__(cls, text)


class ParentName(str):
    """A name for a parent: a link's, an alternative one (127 bytes at most), or either with VLAN IDs.

    Raises UsageError.
    """

    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        if not (_NAME.fullmatch(text) and text.isprintable()) or text in {".", ".."}:
            raise UsageError(f"{text!r} is not the name of a parent", hint="`ip link` shows the interfaces there are")
        if len(text.encode()) > ALTNAME_MAX:
            raise UsageError(
                f"the name of the parent has {len(text.encode())} characters, the kernel takes {ALTNAME_MAX}",
                hint="`ip link` shows the interfaces there are",
            )
        return super().__new__(cls, text)


class Mode(StrEnum):
    """How a macvlan or macvtap treats its siblings and its parent (ip-link(8))."""

    BRIDGE = "bridge"
    VEPA = "vepa"
    PRIVATE = "private"
    PASSTHRU = "passthru"
    SOURCE = "source"

    @classmethod
    def parse(cls, text: str, *, of_guest: bool = False) -> Self:
        """The mode of that name; libvirt's spelling ``passthrough`` is taken too.

        Raises UsageError for any other text, with the near word; ``of_guest``: among those that a guest can have.
        """
        word = text.lower()
        try:
            return cls("passthru" if word == "passthrough" else word)
        except ValueError:
            from difflib import get_close_matches  # 2 ms, which the right words do without

            known = [one.value for one in cls if not (of_guest and one is cls.SOURCE)]
            near = get_close_matches(word, known, n=1)
            hint = "one of bridge, vepa, private, passthru" + ("" if of_guest else "; for a macvlan also source")
            raise UsageError(f"{text!r} is not a mode", hint=f"did you mean {near[0]}?" if near else hint) from None

    @property
    def libvirt(self) -> str:
        """The same word as libvirt spells it in <source mode=…>."""
        return "passthrough" if self is Mode.PASSTHRU else self.value


LIVE_MODES = frozenset({Mode.BRIDGE, Mode.VEPA, Mode.PRIVATE})
"""Between these the kernel changes a link in use; never to or from passthru (macvlan_changelink)."""


class Kind(StrEnum):
    """The kinds of link guestnet makes."""

    MACVTAP = "macvtap"
    MACVLAN = "macvlan"
    VLAN = "vlan"


class VlanProtocol(StrEnum):
    """The tag of a VLAN on the wire: that of every switch (ethertype 0x8100), or a provider's outer one (0x88a8)."""

    DOT1Q = "802.1Q"
    DOT1AD = "802.1ad"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The protocol of that name, in capitals or not, as ip-link(8) takes it. Raises UsageError."""
        for protocol in cls:
            if protocol.lower() == text.lower():
                return protocol
        raise UsageError(f"{text!r} is not a VLAN protocol", hint=f"one of {', '.join(cls)}")


class Backend(StrEnum):
    """Who makes the macvtap of a guest: guestnet (type='ethernet') or libvirt (type='direct')."""

    MACVTAP = "macvtap"
    DIRECT = "direct"


class Multicast(StrEnum):
    """Which multicast frames reach the guest: all on the wire, or only what the macvtap's own filter knows."""

    ALL = "all"
    FILTERED = "filtered"


class Owner(StrEnum):
    """Whose a link is: a libvirt guest's attachment of ours, that of a program which was handed its tap (a QEMU without
    libvirt), the host's own made by us, or somebody else's."""

    GUEST = "guest"
    QEMU = "qemu"
    HOST = "host"
    FOREIGN = "foreign"


class LinkState(StrEnum):
    """The carrier the guest sees on its NIC."""

    UP = "up"
    DOWN = "down"


def one_of(kind: type[_Word], text: str) -> _Word:
    """The word of that kind, in capitals or not. Raises UsageError that lists them."""
    try:
        return kind(text.lower())
    except ValueError:
        raise UsageError(f"{text!r} is not possible here", hint=f"one of {', '.join(kind)}") from None


def vlan_id(text: str | int) -> int:
    """The VLAN ID that ``text`` says, 1 to 4094; 0 and 4095 are reserved (IEEE 802.1Q, 9.6). Raises UsageError, also
    for leading zeros: one VLAN has one name."""
    word = str(text)
    if not (word.isascii() and word.isdigit() and len(word) <= 4 and word[0] != "0" and int(word) <= 4094):
        raise UsageError(f"{word!r} is not a VLAN ID", hint="VLAN IDs are whole numbers from 1 to 4094, as in 11")
    return int(word)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """One direction of a NIC's rate limit: average and peak in KiB/s, burst in KiB, as in libvirt's <bandwidth>."""

    average: int
    peak: int | None = None
    burst: int | None = None

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """``average[,peak[,burst]]`` as virsh takes it; ``0`` means no limit and gives None. Raises UsageError."""
        match = _RATE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is not a rate", hint="write average[,peak[,burst]] in KiB/s, as in 1024,2048,512"
            )
        average, peak, burst = (int(part) if part else None for part in match.groups())
        if not average:
            return None
        return cls(average=average, peak=peak or None, burst=burst or None)

    def __str__(self) -> str:
        parts = [str(self.average), str(self.peak or ""), str(self.burst or "")]
        return ",".join(parts).rstrip(",")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What passed a link since it was made; a macvtap's rx is what the guest was sent, its tx what the guest sent."""

    rx_bytes: int
    rx_packets: int
    rx_dropped: int
    tx_bytes: int
    tx_packets: int
    tx_dropped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One link as the kernel told it (RTM_NEWLINK, rtnetlink(7)).

    ``parent`` is the index of the lower link, ``parent_netnsid`` is set when that index counts in another network
    namespace. ``kind`` is empty for hardware. ``mac`` is as the kernel has it, for a non-Ethernet link of other length.
    ``reorder_hdr`` is a VLAN's flag of that name, ``vlan_filtering`` a bridge's.
    """

    index: int
    name: str
    kind: str = ""
    mac: str = ""
    mtu: int = 0
    up: bool = False
    carrier: bool = False
    operstate: str = "unknown"
    loopback: bool = False
    ethernet: bool = True
    parent: int | None = None
    parent_netnsid: int | None = None
    master: int | None = None
    port_kind: str = ""
    group: int = 0
    alias: str = ""
    altnames: tuple[str, ...] = ()
    allmulti: int = 0
    promiscuity: int = 0
    txqueuelen: int = 0
    addrgenmode: int | None = None
    mode: Mode | None = None
    flags: int = 0
    bcqueuelen: int | None = None
    source_macs: tuple[str, ...] = ()
    vlan: int | None = None
    vlan_protocol: str = ""
    reorder_hdr: bool = True
    vlan_filtering: bool = False
    wireless: bool = False
    counters: Counters | None = None

    @property
    def ours(self) -> bool:
        """Whether guestnet made it: it has our group from birth on."""
        return self.group == GROUP

    @property
    def readable(self) -> str:
        """The name for a person: that of a VLAN of ours whose name is too long for the kernel is an alternative one."""
        if self.kind == Kind.VLAN and self.altnames and _SHORT_VLAN.fullmatch(self.name):
            return next((name for name in self.altnames if name.endswith(f".{self.vlan}")), self.name)
        return self.name

    @property
    def owner(self) -> Owner:
        """Whose it is, by group and alias."""
        if not self.ours:
            return Owner.FOREIGN
        if self.alias.startswith(QEMU_ALIAS):
            return Owner.QEMU
        return Owner.GUEST if self.guest_uuid else Owner.HOST

    @property
    def guest_uuid(self) -> str:
        """The UUID of the domain whose attachment this is; empty for any other link."""
        if not (self.ours and self.alias.startswith(ALIAS_PREFIX)):
            return ""
        uuid = self.alias.removeprefix(ALIAS_PREFIX).partition(":")[0]
        return uuid if len(uuid) == 36 else ""

    @property
    def guest_name(self) -> str:
        """The name that domain had when the link was made, for a person to read; empty for any other link."""
        return self.alias.removeprefix(ALIAS_PREFIX).partition(":")[2] if self.guest_uuid else ""


def guest_alias(uuid: str, name: str) -> str:
    """The ifalias of a guest's link: our prefix, the domain's UUID, and its name as far as 255 bytes take it."""
    return (ALIAS_PREFIX + uuid + ":" + name).encode()[:255].decode(errors="ignore")


def qemu_alias(name: str) -> str:
    """The ifalias of a link whose tap a QEMU without libvirt holds: our prefix and a name for a person to read.

    It lives as long as some process holds its tap open.
    """
    return (QEMU_ALIAS + name).encode()[:255].decode(errors="ignore")


QEMU_ALIAS = ALIAS_PREFIX + "qemu:"
HOST_ALIAS = ALIAS_PREFIX + "host"
SHIM_ALIAS = ALIAS_PREFIX + "shim"
VLAN_ALIAS = ALIAS_PREFIX + "vlan"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewLink:
    """A link to be made. Without a MAC the kernel draws one; without an MTU it takes the parent's.

    ``parent`` is the lower link's name in the kernel. ``vlan``, ``protocol`` and ``altname`` are for a VLAN.
    """

    kind: Kind
    name: str
    parent: str
    alias: str
    mode: Mode | None = None
    mac: Mac | None = None
    mtu: int | None = None
    vlan: int | None = None
    protocol: VlanProtocol = VlanProtocol.DOT1Q
    altname: str = ""
    source_macs: tuple[Mac, ...] = ()
    multicast: Multicast = Multicast.ALL
    up: bool = True

    @property
    def readable(self) -> str:
        """The name for a person."""
        return self.altname or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Attachment:
    """One NIC of a guest on a parent: what the domain's metadata and its <interface> say together.

    ``parent`` is as a person said it, ``device`` the same link's name in the kernel, ``outer`` the protocol of its
    outermost VLAN. ``ifname`` is the macvtap; with the backend ``direct`` libvirt names the link itself and ``ifname``
    is empty. ``boot_order``, ``inbound``, ``outbound`` and ``link`` live in the <interface> alone.
    """

    parent: str
    mac: Mac
    mode: Mode = Mode.BRIDGE
    ifname: str = ""
    backend: Backend = Backend.MACVTAP
    model: str = "virtio"
    queues: int = 1
    mtu: int | None = None
    multicast: Multicast = Multicast.ALL
    link: LinkState = LinkState.UP
    boot_order: int | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None
    outer: VlanProtocol = VlanProtocol.DOT1Q
    device: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guest:
    """A domain as libvirt told it: ``live`` is the XML of what runs, ``config`` that of the next start.

    ``live`` is None when it does not run, ``config`` when it is transient. ``unfit`` says why a running guest takes
    no live change now ("is shutting down"), and is empty where it does.
    """

    name: str
    uuid: str
    state: str
    live: str | None
    config: str | None
    unfit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One NIC as a person asks for it: what was not said is None, and is then left as it is or takes its default."""

    parent: str
    vlan: int | None = None
    outer: VlanProtocol | None = None
    mac: Mac | None = None
    mode: Mode | None = None
    ifname: LinkName | None = None
    backend: Backend | None = None
    model: str | None = None
    queues: int | None = None
    mtu: int | None = None
    multicast: Multicast | None = None
    link: LinkState | None = None
    boot_order: int | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None
