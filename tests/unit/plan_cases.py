"""The situations that the golden plans start from, as lines of words.

    link NAME [down] [loopback] [wireless] [not-ethernet] [kind=…] [on=LINK] [port-of=LINK] [mode=…] [vlan=…] [mac=…]
         [mtu=…] [protocol=…] [altname=…] [netnsid=…] [of=GUEST|host|vlan|nobody] [used-elsewhere]
         [addressed] [filtered] [reorder-hdr-off] [filters-vlans]
    guest NAME running|stopped|transient [unfit=…] [ports=N] [machine=q35|i440fx|s390x] [boot=hd]
    nic MAC [on=LINK] [outer=…] [device=…] [mode=…] [ifname=…] [backend=…] [model=…] [queues=…] [mtu=…] [link=…]
        [boot-order=…] [inbound=…] [outbound=…] [in=live|config] [unrecorded | lost] [type=bridge [twin]]
    record KEY=VALUE…      a line of the metadata with just these attributes
    other GUEST MAC        a NIC of another guest
    hook ready|missing     libvirt's hook is in use, or is to be installed
    show xml               write the XML below each step

``of`` says whose a link is. A guest's links are there only where a ``link`` line says so. ``#`` begins a comment.
"""

import shlex
from typing import Any

from lxml import etree

from guestnet import templates
from guestnet.guest import xml
from guestnet.model import (
    GROUP,
    HOST_ALIAS,
    VLAN_ALIAS,
    Attachment,
    Backend,
    Bandwidth,
    Guest,
    Link,
    LinkState,
    Mac,
    Mode,
    VlanProtocol,
    guest_alias,
)
from guestnet.plan.host import Host
from guestnet.plan.situation import Situation
from tests.unit.conftest import MACHINE_ID

UUIDS = {"vm1": "11111111-1111-4111-8111-111111111111", "vm2": "22222222-2222-4222-8222-222222222222"}


def read(head: str) -> tuple[Situation, bool]:
    """The situation that these lines describe, and whether XML is to be shown."""
    links: dict[str, Link] = {}
    wireless: set[str] = set()
    elsewhere: set[int] = set()
    addressed: set[int] = set()
    others: dict[str, str] = {}
    guest: dict[str, Any] = {}
    nics: list[dict[str, str]] = []
    raw: list[dict[str, str]] = []
    hook = ""
    show = False
    for line in head.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        noun, *rest = words
        facts = dict(word.partition("=")[::2] for word in rest)
        match noun:
            case "link":
                name = rest[0]
                links[name] = _link(name, facts, links)
                if "used-elsewhere" in facts:
                    elsewhere.add(links[name].index)
                if "addressed" in facts:
                    addressed.add(links[name].index)
                if "wireless" in facts:
                    wireless.add(name)
            case "guest":
                guest = {**facts, "name": rest[0], "state": rest[1]}
            case "nic":
                nics.append({**facts, "mac": rest[0]})
            case "record":
                raw.append(facts)
            case "other":
                others[rest[1]] = rest[0]
            case "hook":
                hook = rest[0]
            case "show":
                show = True
            case _:
                raise AssertionError(f"what is {noun!r}?")
    host = Host(
        links=tuple(links.values()), wireless=frozenset(wireless), used_elsewhere=frozenset(elsewhere),
        addressed=frozenset(addressed),
    )  # fmt: skip
    now = Situation(
        host=host, guest=_guest(guest, nics, raw), machine_id=MACHINE_ID, other_macs=others, hook=hook == "ready",
        no_hook="/etc/libvirt/hooks/qemu.d/guestnet" if hook == "missing" else "",
    )  # fmt: skip
    return now, show


def _link(name: str, facts: dict[str, str], links: dict[str, Link]) -> Link:
    index = len(links) + 1
    lower = links[facts["on"]] if "on" in facts else None
    master = links[facts["port-of"]] if "port-of" in facts else None
    owner = facts.get("of", "")
    alias = {"": "", "host": HOST_ALIAS, "vlan": VLAN_ALIAS, "nobody": ""}.get(owner)
    is_vlan = "vlan" in facts
    return Link(
        index=index,
        name=name,
        kind=facts.get("kind", "vlan" if is_vlan else "macvtap" if "mode" in facts else ""),
        mac=facts.get("mac", lower.mac if lower is not None and is_vlan else f"52:54:00:ff:00:{index:02x}"),
        mtu=int(facts.get("mtu", lower.mtu if lower is not None else 1500)),
        up="down" not in facts,
        loopback="loopback" in facts,
        ethernet="not-ethernet" not in facts,
        parent=lower.index if lower is not None else int(facts["netnsid"]) if "netnsid" in facts else None,
        parent_netnsid=int(facts["netnsid"]) if "netnsid" in facts else None,
        master=master.index if master is not None else None,
        port_kind=master.kind if master is not None else "",
        group=GROUP if owner else 0,
        alias=guest_alias(UUIDS[owner], owner) if alias is None else alias,
        altnames=(facts["altname"],) if "altname" in facts else (),
        allmulti=int(owner in UUIDS and "filtered" not in facts),
        mode=Mode(facts["mode"]) if "mode" in facts else None,
        vlan=int(facts["vlan"]) if is_vlan else None,
        vlan_protocol=facts.get("protocol", "802.1Q") if is_vlan else "",
        reorder_hdr="reorder-hdr-off" not in facts,
        vlan_filtering="filters-vlans" in facts,
    )


def _guest(facts: dict[str, str], nics: list[dict[str, str]], raw: list[dict[str, str]]) -> Guest:
    if not facts:
        facts = {"name": "vm1", "state": "stopped"}
    name, state = facts["name"], facts["state"]
    live = _domain(facts, nics, raw, "live") if state in ("running", "transient") else None
    config = _domain(facts, nics, raw, "config") if state != "transient" else None
    return Guest(name=name, uuid=UUIDS[name], state=state, live=live, config=config, unfit=facts.get("unfit", ""))


def _domain(facts: dict[str, str], nics: list[dict[str, str]], raw: list[dict[str, str]], where: str) -> str:
    here = [nic for nic in nics if nic.get("in", where) == where]
    wanted = {nic["mac"]: _attachment(nic) for nic in here if "type" not in nic}
    elements = [
        (nic, _interface(nic, wanted, number, where)) for number, nic in enumerate(here, 1) if "lost" not in nic
    ]
    root = xml.build_domain(
        templates.read("domain.xml"), name=facts["name"], memory=None, vcpus=None, disk=None, virt_type=None,
        interfaces=[element for nic, element in elements if "twin" not in nic],
        nics=[xml.record(wanted[nic["mac"]]) for nic in here if nic["mac"] in wanted and "unrecorded" not in nic],
    )  # fmt: skip
    root.find("devices").extend([element for nic, element in elements if "twin" in nic])
    if "boot" in facts:
        etree.SubElement(root.find("os"), "boot", dev=facts["boot"])
    _machine(root, facts.get("machine", "q35"), int(facts.get("ports", "8")))
    if raw:
        home = root.find("metadata")
        home = etree.SubElement(root, "metadata") if home is None else home
        element = etree.SubElement(home, f"{{{xml.NAMESPACE}}}attachments")
        for line in raw:
            etree.SubElement(element, f"{{{xml.NAMESPACE}}}nic", line)
    return str(etree.tostring(root, encoding="unicode"))


def _machine(root: Any, machine: str, ports: int) -> None:
    root.find("os/type").set("machine", machine)
    devices = root.find("devices")
    for controller in devices.findall("controller"):
        devices.remove(controller)
    if machine == "i440fx":
        etree.SubElement(devices, "controller", type="pci", index="0", model="pci-root")
    elif machine == "q35":
        etree.SubElement(devices, "controller", type="pci", index="0", model="pcie-root")
        for index in range(1, ports + 1):
            etree.SubElement(devices, "controller", type="pci", index=str(index), model="pcie-root-port")


def _attachment(nic: dict[str, str]) -> Attachment:
    mac = Mac(nic["mac"])
    direct = nic.get("backend") == "direct"
    return Attachment(
        parent=nic.get("on", "ens3"), mac=mac, mode=Mode(nic.get("mode", "bridge")),
        ifname="" if direct else nic.get("ifname", mac.ifname), backend=Backend(nic.get("backend", "macvtap")),
        model=nic.get("model", "virtio"), queues=int(nic.get("queues", "1")),
        mtu=int(nic["mtu"]) if "mtu" in nic else None, link=LinkState(nic.get("link", "up")),
        boot_order=int(nic["boot-order"]) if "boot-order" in nic else None,
        inbound=Bandwidth.parse(nic.get("inbound", "0")), outbound=Bandwidth.parse(nic.get("outbound", "0")),
        outer=VlanProtocol(nic.get("outer", VlanProtocol.DOT1Q)), device=nic.get("device", ""),
    )  # fmt: skip


def _interface(nic: dict[str, str], wanted: dict[str, Attachment], number: int, where: str) -> Any:
    if "type" in nic:
        element = etree.Element("interface", type=nic["type"])
        etree.SubElement(element, "mac", address=nic["mac"])
        etree.SubElement(element, "source", {nic["type"]: nic.get("on", "br0")})
    else:
        attachment = wanted[nic["mac"]]
        element = xml.build_interface(attachment, templates.interfaces()[attachment.backend])
    if where == "live":
        etree.SubElement(element, "alias", name=f"net{number - 1}")
        etree.SubElement(
            element, "address", type="pci", domain="0x0000", bus=f"0x{number:02x}", slot="0x00", function="0x0"
        )
    return element
