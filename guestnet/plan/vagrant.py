"""The lines of a Vagrantfile by which vagrant-libvirt itself gives a machine a NIC on a parent."""

import re
import shlex
from dataclasses import dataclass
from enum import StrEnum

from guestnet.errors import ConflictError, UsageError
from guestnet.model import Mac, Mode, VlanProtocol
from guestnet.plan.host import Host
from guestnet.plan.nic import check_model
from guestnet.plan.parent import Parent, check_guest_mode, check_mac, check_parent, describe, resolve_parent

_MACHINE = re.compile(r"[A-Za-z0-9_.-]+")
"""What vagrant-libvirt keeps of a name when it names the domain (build_domain_name, set_name_of_domain.rb)."""

_LEFT_OUT = ("docker", "macvtap", "virbr", "vnet")
"""Beginnings of names of devices that vagrant-libvirt leaves out (host_device_exclude_prefixes, config.rb)."""


class Type(StrEnum):
    """What vagrant-libvirt makes of a public_network: a macvtap of libvirt's, or a port of a bridge."""

    DIRECT = "direct"
    BRIDGE = "bridge"


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A NIC as a person asks for it: what was not said is None and takes its default."""

    machine: str
    parent: str
    vlan: int | None = None
    outer: VlanProtocol | None = None
    mode: Mode | None = None
    mac: Mac | None = None
    type: Type = Type.DIRECT
    model: str | None = None
    trusted: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """A NIC as the Vagrantfile says it; ``mode`` is in libvirt's word, and empty for a port of a bridge.

    ``device`` is the parent's name in the kernel, the only one that vagrant-libvirt finds. ``first`` are the commands
    that make what is not there yet, ``notes`` what else a person should be told.
    """

    machine: str
    device: str
    type: Type
    mode: str
    mac: Mac
    model: str
    trusted: bool
    first: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def ruby(self) -> str:
        """The lines, for the inside of a ``Vagrant.configure`` block; a machine that is defined there is added to."""
        options = [("dev", quoted(self.device)), ("type", quoted(self.type))]
        if self.mode:
            options.append(("mode", quoted(self.mode)))
        options.append(("mac", quoted(self.mac)))
        if self.model != "virtio":
            options.append(("model_type", quoted(self.model)))
        if self.type is Type.DIRECT:
            options.append(("trust_guest_rx_filters", str(self.trusted).lower()))
        lines = ",\n".join(f"    {name}: {value}" for name, value in options)
        return (
            f"config.vm.define {quoted(self.machine)} do |machine|\n"
            f"  machine.vm.network :public_network,\n{lines}\nend\n"
        )


def snippet(wanted: Wanted, host: Host, machine_id: str) -> Snippet:
    """The lines for a NIC of that machine on this host.

    Raises what an attach would for a parent that no macvtap can be made on, and UsageError for what vagrant-libvirt
    cannot say.
    """
    if not _MACHINE.fullmatch(wanted.machine):
        raise UsageError(
            f"{wanted.machine!r} is not the name of a machine that vagrant-libvirt keeps",
            hint="use letters, digits, '.', '-' and '_'",
        )
    check_guest_mode(wanted.mode)
    model = wanted.model or "virtio"
    check_model(model, None)
    parent = resolve_parent(wanted.parent, wanted.vlan, host, wanted.outer)
    if wanted.type is Type.BRIDGE:
        _check_bridge(wanted, parent, host)
    else:
        check_parent(parent, host, mode=wanted.mode or Mode.BRIDGE)
    mac = wanted.mac or Mac.derive(machine_id, wanted.machine, parent.name, 0)
    check_mac(mac, parent, Host(links=()))  # what stands on the parent now may be this very machine's
    virtio = model.startswith("virtio")
    if wanted.trusted and (wanted.type is Type.BRIDGE or not virtio):
        raise UsageError(
            "the guest's receive filter is followed for a virtio NIC on a macvtap only",
            hint="leave --trust-guest-rx-filters out",
        )
    trusted = wanted.type is Type.DIRECT and virtio and wanted.trusted is not False
    return Snippet(
        machine=wanted.machine, device=parent.device, type=wanted.type, mac=mac, model=model, trusted=trusted,
        mode=(wanted.mode or Mode.BRIDGE).libvirt if wanted.type is Type.DIRECT else "",
        first=tuple(_make(parent)), notes=tuple(_notes(wanted, parent, trusted=trusted)),
    )  # fmt: skip


def _check_bridge(wanted: Wanted, parent: Parent, host: Host) -> None:
    """Raise unless a NIC can be a port of that parent."""
    if wanted.mode is not None:
        raise UsageError("a port of a bridge has no mode", hint="leave --mode out, or --type bridge")
    if parent.vlans or parent.base.kind != "bridge":
        what = f"VLAN {parent.vlans[-1].vlan}, to be made" if parent.vlans else describe(parent.base, host)
        raise ConflictError(
            f"{parent.name} is no bridge, it is {what}", hint="leave --type bridge out, and the NIC is a macvtap on it"
        )


def _make(parent: Parent) -> list[str]:
    """The commands that make the VLANs of a parent, lowest first."""
    commands = []
    for vlan in parent.vlans:
        words = ["guestnet", "vlan", "add", vlan.name, "--parent", vlan.parent, "--vlan", str(vlan.vlan)]
        if vlan.protocol is not VlanProtocol.DOT1Q:
            words += ["--protocol", vlan.protocol]
        commands.append(shlex.join(words))
    return commands


def _notes(wanted: Wanted, parent: Parent, *, trusted: bool) -> list[str]:
    notes = []
    for vlan in parent.vlans:
        notes.append(f"there is no VLAN {vlan.vlan} on {vlan.parent} yet, and vagrant-libvirt makes none")
    begins = next((prefix for prefix in _LEFT_OUT if parent.device.startswith(prefix)), None)
    if begins is not None:
        notes.append(
            f"vagrant-libvirt takes no device whose name begins with {begins}, unless the Vagrantfile says otherwise: "
            "libvirt.host_device_exclude_prefixes = []"
        )
    if wanted.type is Type.DIRECT and not trusted:
        notes.append("IPv6 and other multicast reach the guest only with trust_guest_rx_filters and a virtio NIC")
    return notes


def quoted(text: str) -> str:
    """The text as a Ruby string literal in which nothing is interpolated: ``#{…}``, ``#@x`` and ``#$x`` are not."""
    plain = (f"\\{one}" if one in '"\\#' else one if one.isprintable() else f"\\u{{{ord(one):x}}}" for one in text)
    return f'"{"".join(plain)}"'
