"""Domain, interface and network XML: built and read with lxml, never from strings, never with entities or network.

The elements are those of libvirt's formatdomain and formatnetwork pages. The element in <metadata> is ours:

    <guestnet:attachments xmlns:guestnet="urn:guestnet:domain:1">
      <guestnet:nic mac="…" parent="ens3.11" mode="bridge" ifname="gn…" backend="macvtap" multicast="all" mtu="1400"/>
    </guestnet:attachments>

``parent`` is the name a person gave it. ``outer`` is there where the VLAN on the NIC is not 802.1Q: outer="802.1ad".
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any

from lxml import etree

from guestnet.errors import ConflictError, UsageError
from guestnet.model import (
    Attachment,
    Backend,
    Bandwidth,
    LinkName,
    LinkState,
    Mac,
    Mode,
    Multicast,
    ParentName,
    VlanProtocol,
)

NAMESPACE = "urn:guestnet:domain:1"
"""The namespace of our element in a domain's <metadata>."""

PREFIX = "guestnet"

_HOTPLUG_PORTS = ("pcie-root-port", "pcie-switch-downstream-port")
_CONVENTIONAL_BRIDGES = ("pcie-to-pci-bridge", "pci-bridge")
CONVENTIONAL_MODELS = ("virtio-transitional", "e1000", "rtl8139", "vmxnet3")
"""The NIC models that libvirt puts behind a conventional PCI bridge on a PCI Express machine, others in a root port
(qemuDomainDeviceCalculatePCIConnectFlags, src/qemu/qemu_domain_address.c)."""

_NICS_LARGEST = 256
_MESSAGE_LONGEST = 200
_OURS = f"./metadata/{{{NAMESPACE}}}attachments"
_MTU = re.compile(r"[0-9]{1,5}")


def _parser() -> Any:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False, remove_blank_text=True
    )


def parse(text: str | bytes, what: str) -> Any:
    """The root element of ``text``. Raises UsageError, naming ``what``, for no XML and for XML with a DTD."""
    data = text.encode() if isinstance(text, str) else text
    try:
        root = etree.fromstring(data, _parser())
    except etree.XMLSyntaxError as error:
        raise UsageError(f"{what} is not XML: {error.msg}") from None
    except ValueError as error:
        raise UsageError(f"{what} is not XML: {error}") from None
    tree = root.getroottree()
    if tree.docinfo.doctype or tree.docinfo.internalDTD is not None:
        raise UsageError(f"{what} has a DTD", hint="take the <!DOCTYPE …> out; libvirt XML needs none")
    return root


def text_of(element: Any) -> str:
    """The element as indented text with a closing newline."""
    etree.indent(element, space="  ")
    return etree.tostring(element, encoding="unicode").strip() + "\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One <interface> of a domain, as libvirt wrote it; what is absent there is empty or None here."""

    type: str
    mac: str
    target: str = ""
    managed: bool = True
    source: str = ""
    source_mode: str = ""
    model: str = ""
    queues: int = 1
    mtu: int | None = None
    link: LinkState = LinkState.UP
    boot_order: int | None = None
    inbound: Bandwidth | None = None
    outbound: Bandwidth | None = None
    alias: str = ""
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What our metadata element keeps of one NIC: what its <interface> has no place for."""

    mac: Mac
    parent: str
    mode: Mode
    ifname: str
    backend: Backend
    multicast: Multicast
    mtu: int | None = None
    outer: VlanProtocol = VlanProtocol.DOT1Q


def record(wanted: Attachment) -> Record:
    """The part of an attachment that goes into the metadata."""
    return Record(
        mac=wanted.mac, parent=wanted.parent, mode=wanted.mode, ifname=wanted.ifname, backend=wanted.backend,
        multicast=wanted.multicast, mtu=wanted.mtu, outer=wanted.outer,
    )  # fmt: skip


def interfaces(domain: str) -> tuple[Interface, ...]:
    """The NICs of a domain XML, in their order."""
    root = parse(domain, "the domain XML")
    return tuple(read_interface(element) for element in root.findall("./devices/interface"))


def read_interface(element: Any) -> Interface:
    """What an <interface> element of libvirt's says."""

    def of(path: str, name: str) -> str:
        found = element.find(path)
        return "" if found is None else str(found.get(name) or "")

    address = element.find("address[@type='pci']")
    to_guest, from_guest = _directions(element)
    return Interface(
        type=element.get("type", ""),
        mac=of("mac", "address").lower(),
        target=of("target", "dev"),
        managed=of("target", "managed") != "no",
        source=of("source", "dev"),
        source_mode=of("source", "mode"),
        model=of("model", "type"),
        queues=int(of("driver", "queues") or 1),
        mtu=int(of("mtu", "size")) if of("mtu", "size") else None,
        link=LinkState.DOWN if of("link", "state") == "down" else LinkState.UP,
        boot_order=int(of("boot", "order")) if of("boot", "order") else None,
        inbound=_rate(element.find(f"bandwidth/{to_guest}")),
        outbound=_rate(element.find(f"bandwidth/{from_guest}")),
        alias=of("alias", "name"),
        address="" if address is None else _pci(address),
    )


def _rate(element: Any) -> Bandwidth | None:
    if element is None:
        return None
    peak, burst = element.get("peak"), element.get("burst")
    return Bandwidth(
        average=int(element.get("average", "0")), peak=int(peak) if peak else None, burst=int(burst) if burst else None
    )


def _pci(address: Any) -> str:
    domain, bus, slot, function = (int(address.get(key, "0"), 16) for key in ("domain", "bus", "slot", "function"))
    return f"{domain:04x}:{bus:02x}:{slot:02x}.{function}"


def build_interface(wanted: Attachment, template: bytes) -> Any:
    """The <interface> element of an attachment, from a template whose other elements are kept.

    Raises UsageError for a template that is not XML, has a DTD, is no <interface> or is of another type than the
    attachment's backend needs.
    """
    root = parse(template, "the interface template")
    needed = "direct" if wanted.backend is Backend.DIRECT else "ethernet"
    if root.tag != "interface" or root.get("type") != needed:
        raise UsageError(
            f"the interface template does not begin with <interface type='{needed}'>",
            hint=f"copy interface-{needed}.xml and change that",
        )
    _child(root, "mac").set("address", wanted.mac)
    if wanted.backend is Backend.DIRECT:
        source = _child(root, "source")
        source.set("dev", wanted.device or wanted.parent)
        source.set("mode", wanted.mode.libvirt)
    else:
        target = _child(root, "target")
        target.set("dev", wanted.ifname)
        target.set("managed", "no")
    _child(root, "model").set("type", wanted.model)
    if wanted.queues > 1:
        _child(root, "driver").set("queues", str(wanted.queues))
    if wanted.mtu is not None and wanted.backend is Backend.MACVTAP:
        set_mtu(root, wanted.mtu)
    if wanted.link is LinkState.DOWN or root.find("link") is not None:
        set_link(root, wanted.link)
    if wanted.boot_order is not None:
        _child(root, "boot").set("order", str(wanted.boot_order))
    if wanted.inbound is not None or wanted.outbound is not None:
        set_bandwidth(root, wanted.inbound, wanted.outbound)
    return root


def set_link(interface: Any, state: LinkState) -> None:
    """Write the carrier the guest shall see."""
    _child(interface, "link").set("state", state.value)


def set_mtu(interface: Any, mtu: int) -> None:
    """Write the MTU the guest is told (virtio's host_mtu)."""
    _child(interface, "mtu").set("size", str(mtu))


def set_source_mode(interface: Any, mode: Mode) -> None:
    """Write the mode in which libvirt makes the macvtap of a type='direct' NIC."""
    _child(interface, "source").set("mode", mode.libvirt)


def _directions(interface: Any) -> tuple[str, str]:
    """What libvirt calls the traffic to the guest and from it in <bandwidth>.

    It takes the device of a type='ethernet' for a tap, whose egress goes to the guest, and shapes egress for
    <inbound>. A macvtap's egress goes to the wire. For type='direct' it knows and swaps by itself
    (virDomainNetTypeSharesHostView).
    """
    return ("outbound", "inbound") if interface.get("type") == "ethernet" else ("inbound", "outbound")


def set_bandwidth(interface: Any, inbound: Bandwidth | None, outbound: Bandwidth | None) -> None:
    """Write the rate limits of an <interface>, to the guest and from it; None in both takes the element out."""
    old = interface.find("bandwidth")
    if old is not None:
        interface.remove(old)
    if inbound is None and outbound is None:
        return
    element = etree.SubElement(interface, "bandwidth")
    for name, rate in zip(_directions(interface), (inbound, outbound), strict=True):
        if rate is not None:
            values = {"average": rate.average, "peak": rate.peak, "burst": rate.burst}
            etree.SubElement(element, name, {key: str(value) for key, value in values.items() if value is not None})


def _child(parent: Any, name: str) -> Any:
    found = parent.find(name)
    return etree.SubElement(parent, name) if found is None else found


def interface_element(domain: str, mac: str) -> Any:
    """A copy of the <interface> with that MAC in a domain XML; None where there is none."""
    root = parse(domain, "the domain XML")
    for element in root.findall("./devices/interface"):
        address = element.find("mac")
        if address is not None and address.get("address", "").lower() == mac:
            return element
    return None


def interface_again(domain: str, mac: str) -> str:
    """The <interface> with that MAC as text, to be plugged in once more: in the slot it had, and on the same link,
    unless libvirt makes that itself. UsageError where there is none."""
    element = interface_element(domain, mac)
    if element is None:
        raise UsageError(f"the domain XML has no NIC {mac}")
    target = element.find("target")
    if element.get("type") == "direct" and target is not None:
        element.remove(target)
    return text_of(element)


def records(domain: str, guest: str) -> tuple[Record, ...]:
    """The NICs our metadata element in a domain XML speaks of; none where there is no such element.

    Raises ConflictError, naming the guest, when the element is not what we write.
    """
    try:
        return tuple(read_record(nic) for nic in record_elements(parse(domain, f"the XML of {guest}")))
    except (UsageError, ValueError) as error:
        raise ConflictError(
            f"the guestnet metadata of {guest} is damaged: {str(error)[:_MESSAGE_LONGEST]}",
            hint=f"virsh metadata {guest} {NAMESPACE} --remove takes it away",
        ) from None


def record_elements(domain: Any) -> list[Any]:
    """Our <guestnet:nic> elements in a <domain>. Raises UsageError for more than any guest has NICs."""
    element = domain.find(_OURS)
    nics: list[Any] = [] if element is None else element.findall(f"{{{NAMESPACE}}}nic")
    if len(nics) > _NICS_LARGEST:
        raise UsageError(f"it names {len(nics)} NICs")
    return nics


def read_record(nic: Any) -> Record:
    """The record that a <guestnet:nic> element is. Raises UsageError or ValueError for what we never write."""
    for name in ("mac", "parent", "mode", "backend", "multicast"):
        if name not in nic.attrib:
            raise UsageError(f"a NIC in it has no {name}")
    mtu = nic.get("mtu")
    if mtu is not None and not _MTU.fullmatch(mtu):
        raise UsageError(f"{mtu!r} is not an MTU")
    ifname = nic.attrib.get("ifname", "")
    return Record(
        mac=Mac(nic.attrib["mac"]),
        parent=str(ParentName(nic.attrib["parent"])),
        mode=Mode.parse(nic.attrib["mode"]),
        ifname=str(LinkName(ifname)) if ifname else "",
        backend=Backend(nic.attrib["backend"]),
        multicast=Multicast(nic.attrib["multicast"]),
        mtu=int(mtu) if mtu is not None else None,
        outer=VlanProtocol(nic.get("outer", VlanProtocol.DOT1Q)),
    )


def metadata(nics: Iterable[Record]) -> str | None:
    """Our metadata element for these NICs as text, without prefixes as virDomainSetMetadata wants it; None for none."""
    rows = list(nics)
    if not rows:
        return None
    root = etree.Element("attachments")
    for nic in rows:
        element = etree.SubElement(root, "nic", mac=nic.mac, parent=nic.parent, mode=nic.mode.value)
        if nic.ifname:
            element.set("ifname", nic.ifname)
        element.set("backend", nic.backend.value)
        element.set("multicast", nic.multicast.value)
        if nic.mtu is not None:
            element.set("mtu", str(nic.mtu))
        if nic.outer is not VlanProtocol.DOT1Q:
            element.set("outer", nic.outer.value)
    return etree.tostring(root, encoding="unicode")


def free_slots(domain: str, model: str) -> int | None:
    """How many more NICs of that model can be hot-plugged; None where the machine has no PCI to count.

    On PCI Express (q35, virt) each device takes a root port of its own and a conventional device a slot behind a
    bridge; on i440fx all share the 31 slots of the root bus (docs/pci-hotplug.rst of libvirt).
    """
    root = parse(domain, "the domain XML")
    controllers = root.findall("./devices/controller[@type='pci']")
    models = {element.get("index", ""): element.get("model", "") for element in controllers}
    if not models:
        return None
    used: dict[int, set[int]] = {}
    for address in root.iterfind("./devices//address[@type='pci']"):
        used.setdefault(int(address.get("bus", "0"), 16), set()).add(int(address.get("slot", "0"), 16))
    free = 0
    express = "pcie-root" in models.values()
    for index, kind in models.items():
        taken = len(used.get(int(index), ()))
        if express and model not in CONVENTIONAL_MODELS:
            free += kind in _HOTPLUG_PORTS and not taken
        elif kind in _CONVENTIONAL_BRIDGES or (kind == "pci-root" and not express):
            free += 31 - taken
    return free


def adds_only_controllers(before: str, after: str) -> bool:
    """Whether ``after`` is ``before`` but for controllers that libvirt added."""
    old, new = parse(before, "the domain XML"), parse(after, "the domain XML")
    known = {etree.tostring(element) for element in old.findall("./devices/controller")}
    devices = new.find("devices")
    for element in new.findall("./devices/controller"):
        if etree.tostring(element) not in known:
            devices.remove(element)
    return etree.tostring(old) == etree.tostring(new)


def boots_by_list(domain: str) -> bool:
    """Whether the domain has <os><boot dev=…>, which libvirt does not take together with a device's boot order."""
    return parse(domain, "the domain XML").find("./os/boot") is not None


def build_domain(
    template: bytes, *, name: str, memory: int | None, vcpus: int | None, disk: str | None, virt_type: str | None,
    interfaces: Iterable[Any], nics: Iterable[Record],
) -> Any:  # fmt: skip
    """A <domain> from a template: its name, memory in MiB and virtual CPUs set, a disk image and NICs added.

    What else the template has is kept, records of NICs in it as well. Raises UsageError for a template that is not
    XML, has a DTD, is no <domain> or has no <devices>, and for a name libvirt does not take; ConflictError where the
    template has a NIC of the same MAC, or a boot list and a NIC comes with a boot order.
    """
    root = parse(template, "the domain template")
    if root.tag != "domain":
        raise UsageError("the domain template does not begin with <domain>", hint="copy domain.xml and change that")
    devices = root.find("devices")
    if devices is None:
        raise UsageError("the domain template has no <devices>", hint="copy domain.xml and change that")
    check_name(name, "guest")
    _child(root, "name").text = name
    if virt_type is not None:
        root.set("type", virt_type)
    if memory is not None:
        element = _child(root, "memory")
        element.set("unit", "MiB")
        element.text = str(memory)
        for stale in root.findall("currentMemory"):
            root.remove(stale)
    if vcpus is not None:
        element = _child(root, "vcpu")
        element.text = str(vcpus)
        element.attrib.pop("current", None)
    if disk is not None:
        _add_disk(devices, disk)
    for interface in interfaces:
        _check_beside(interface, root)
        devices.append(interface)
    _remember(root, nics, name)
    return root


def check_name(name: str, what: str) -> None:
    """Raise UsageError for a name that libvirt, or XML itself, does not take."""
    if not name.strip() or "/" in name or not name.isprintable():
        raise UsageError(f"{name!r} is not a name for a {what}", hint="use printable characters, and no '/'")


def _add_disk(devices: Any, disk: str) -> None:
    if not disk.isprintable():
        raise UsageError(f"{disk!r} is not a file name for libvirt", hint="use printable characters")
    element = etree.SubElement(devices, "disk", type="file", device="disk")
    etree.SubElement(element, "driver", name="qemu", type="qcow2" if disk.endswith(".qcow2") else "raw")
    etree.SubElement(element, "source", file=disk)
    taken = {target.get("dev") for target in devices.findall("disk/target")}
    device = next(name for name in (f"vd{letter}" for letter in ascii_lowercase) if name not in taken)
    etree.SubElement(element, "target", dev=device, bus="virtio")


def _check_beside(interface: Any, domain: Any) -> None:
    mac = interface.find("mac").get("address")
    if any(other.get("address", "").lower() == mac for other in domain.findall("./devices/interface/mac")):
        raise ConflictError(f"the domain template has a NIC with the MAC {mac}", hint="give another with --mac")
    if interface.find("boot") is not None and domain.find("./os/boot") is not None:
        raise ConflictError(
            "the domain template has <os><boot dev=…>, which libvirt does not take together with --boot-order",
            hint="take it out, and give its devices a <boot order=…>",
        )


def _remember(root: Any, nics: Iterable[Record], name: str) -> None:
    rows = {old.mac: old for old in records(etree.tostring(root, encoding="unicode"), name)}
    rows |= {nic.mac: nic for nic in nics}
    kept = metadata(rows.values())
    if kept is None:
        return
    home = root.find("metadata")
    if home is None:
        home = etree.Element("metadata")
        root.find("name").addnext(home)
    for stale in root.findall(_OURS):
        home.remove(stale)
    element = etree.SubElement(home, f"{{{NAMESPACE}}}attachments", nsmap={PREFIX: NAMESPACE})
    for nic in parse(kept, "the metadata"):
        etree.SubElement(element, f"{{{NAMESPACE}}}nic", dict(nic.attrib))


def build_network(template: bytes, *, name: str, parents: Iterable[str], mode: Mode) -> Any:
    """A <network> whose <forward> pools the parents. Raises UsageError for a template that is no <network>, for a
    name libvirt does not take, and for the mode ``source``, which libvirt has not."""
    root = parse(template, "the network template")
    if root.tag != "network":
        raise UsageError("the network template does not begin with <network>", hint="copy network.xml and change that")
    if mode is Mode.SOURCE:
        raise UsageError("libvirt has no networks of mode source", hint="one of bridge, vepa, private, passthru")
    check_name(name, "network")
    _child(root, "name").text = name
    forward = _child(root, "forward")
    forward.set("mode", mode.libvirt)
    forward.attrib.pop("dev", None)  # libvirt writes the first one there as well
    for old in forward.findall("interface"):
        forward.remove(old)
    for parent in parents:
        etree.SubElement(forward, "interface", dev=parent)
    return root
