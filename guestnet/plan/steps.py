"""Steps: frozen values that say themselves in words. guestnet.apply carries them out."""

from dataclasses import dataclass

from guestnet.model import Kind, Mac, Mode, NewLink, VlanProtocol


@dataclass(frozen=True, slots=True, kw_only=True)
class AddLink:
    """Make a link, down and marked with our group."""

    new: NewLink

    def __str__(self) -> str:
        new = self.new
        if new.kind is Kind.VLAN:
            protocol = "" if new.protocol is VlanProtocol.DOT1Q else f" ({new.protocol})"
            return f"make VLAN {new.vlan}{protocol} on {new.parent}: {new.name}"
        return f"make {new.kind} {new.name} on {new.parent}, mode {new.mode}" + (f", MAC {new.mac}" if new.mac else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveNode:
    """See to it that /dev/tapN is this macvtap's own."""

    name: str

    def __str__(self) -> str:
        return f"check the device node of {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Say in the link's alias whose it is."""

    name: str
    alias: str

    def __str__(self) -> str:
        return f"mark {self.name} as {self.alias}"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallAlso:
    """Give a link an alternative name: that of a VLAN which is too long for the kernel."""

    name: str
    altname: str

    def __str__(self) -> str:
        return f"call {self.name} {self.altname} too"


@dataclass(frozen=True, slots=True, kw_only=True)
class Quiet:
    """Keep the host's own IPv6 off the link."""

    name: str

    def __str__(self) -> str:
        return f"keep the host's IPv6 off {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowMulticast:
    """Let all multicast frames through, so that IPv6 and mDNS reach the guest."""

    name: str

    def __str__(self) -> str:
        return f"let all multicast through {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetUp:
    """Bring a link up or down."""

    name: str
    up: bool = True

    def __str__(self) -> str:
        return f"bring {self.name} {'up' if self.up else 'down'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMode:
    """Change the mode of a macvtap or macvlan in use."""

    name: str
    mode: Mode
    source_macs: tuple[Mac, ...] = ()

    def __str__(self) -> str:
        return f"change {self.name} to mode {self.mode}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMtu:
    """Change a link's MTU."""

    name: str
    mtu: int

    def __str__(self) -> str:
        return f"set the MTU of {self.name} to {self.mtu}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SetMac:
    """Change a link's Ethernet address."""

    name: str
    mac: Mac

    def __str__(self) -> str:
        return f"set the MAC of {self.name} to {self.mac}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """Move a link into another network namespace, dressed there as it was here."""

    name: str
    netns: str

    def __str__(self) -> str:
        return f"move {self.name} to network namespace {self.netns}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteLink:
    """Delete a link: the one that had this ifindex when the plan was made, if it is said. A VLAN stays where something
    has come to stand on it since."""

    name: str
    index: int | None = None

    def __str__(self) -> str:
        return f"delete {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Remember:
    """Write the metadata element of the guest; None takes it out. A field that is not asked for is left alone."""

    guest: str
    live: bool
    config: bool
    live_text: str | None = None
    config_text: str | None = None

    def __str__(self) -> str:
        return f"write the metadata of {self.guest} ({_where(self.live, self.config)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plug:
    """Plug an <interface> into the guest."""

    guest: str
    mac: Mac
    xml: str
    live: bool
    config: bool

    def __str__(self) -> str:
        return f"plug NIC {self.mac} into {self.guest} ({_where(self.live, self.config)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """Change an <interface> of the guest."""

    guest: str
    mac: Mac
    xml: str
    live: bool
    config: bool

    def __str__(self) -> str:
        return f"change NIC {self.mac} of {self.guest} ({_where(self.live, self.config)})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Unplug:
    """Ask the running guest to let go of a NIC, and wait until it has."""

    guest: str
    mac: str

    def __str__(self) -> str:
        return f"unplug NIC {self.mac} from {self.guest} (live)"


@dataclass(frozen=True, slots=True, kw_only=True)
class UnplugConfig:
    """Take a NIC out of the guest's configuration."""

    guest: str
    mac: str

    def __str__(self) -> str:
        return f"take NIC {self.mac} out of {self.guest} (config)"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallHook:
    """Put the hook there that libvirt calls when a guest starts and stops, and let libvirt look for it."""

    path: str

    def __str__(self) -> str:
        return f"install libvirt's hook {self.path}, which makes the links of guests when they start"


LinkStep = (
    AddLink
    | GiveNode
    | Mark
    | CallAlso
    | Quiet
    | AllowMulticast
    | SetUp
    | SetMode
    | SetMtu
    | SetMac
    | Move
    | DeleteLink
)
GuestStep = Remember | Plug | Update | Unplug | UnplugConfig
Step = LinkStep | GuestStep | InstallHook


def _where(live: bool, config: bool) -> str:
    return "live, config" if live and config else "live" if live else "config"
