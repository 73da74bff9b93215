"""How many NICs a guest takes by hot-plug. The XML in tests/unit/golden/domain/ was written by libvirt 9.0."""

from typing import Any

import pytest
from lxml import etree

from guestnet.guest import xml
from guestnet.model import MODELS
from tests.unit import golden

DOMAINS = golden.DIRECTORY / "domain"
EXPRESS = tuple(model for model in MODELS if model not in xml.CONVENTIONAL_MODELS)


def free(name: str, model: str = "virtio") -> int | None:
    """What is free in the domain of that file."""
    return xml.free_slots((DOMAINS / f"{name}.xml").read_text(), model)


def machine(*controllers: tuple[str, str], used: tuple[tuple[int, int], ...] = ()) -> str:
    """A domain of these controllers (index, model), with a device in each of these places (bus, slot)."""
    root = etree.Element("domain")
    devices = etree.SubElement(root, "devices")
    for index, model in controllers:
        etree.SubElement(devices, "controller", type="pci", index=index, model=model)
    for bus, slot in used:
        device = etree.SubElement(devices, "rng", model="virtio")
        etree.SubElement(device, "address", type="pci", domain="0x0000", bus=f"0x{bus:02x}", slot=f"0x{slot:02x}")
    return str(etree.tostring(root, encoding="unicode"))


def ports(count: int) -> tuple[tuple[str, str], ...]:
    """A q35's controllers with this many root ports."""
    return (("0", "pcie-root"), *((str(index), "pcie-root-port") for index in range(1, count + 1)))


@pytest.mark.parametrize("count", [0, 1, 2, 17])
@pytest.mark.parametrize("model", EXPRESS)
def test_on_q35_each_root_port_without_a_device_takes_a_nic(count: int, model: str) -> None:
    assert xml.free_slots(machine(*ports(count)), model) == count
    # the devices on the root bus itself take none
    assert xml.free_slots(machine(*ports(count), used=((0, 1), (0, 0x1F))), model) == count
    taken = tuple((bus, 0) for bus in range(1, count + 1))
    assert xml.free_slots(machine(*ports(count), used=taken), model) == 0


@pytest.mark.parametrize("model", xml.CONVENTIONAL_MODELS)
def test_on_q35_a_conventional_nic_needs_a_slot_behind_a_bridge(model: str) -> None:
    assert xml.free_slots(machine(*ports(4)), model) == 0
    bridged = (*ports(4), ("5", "pcie-to-pci-bridge"))
    assert xml.free_slots(machine(*bridged, used=((1, 0),)), model) == 31
    assert xml.free_slots(machine(*bridged, used=((1, 0), (5, 1), (5, 2))), model) == 29
    assert xml.free_slots(machine(*bridged, used=((1, 0), (5, 1), (5, 2))), "virtio") == 3


@pytest.mark.parametrize("model", MODELS)
def test_on_i440fx_all_share_the_root_bus_and_its_bridges(model: str) -> None:
    assert xml.free_slots(machine(("0", "pci-root"), used=((0, 1), (0, 2))), model) == 29
    assert xml.free_slots(machine(("0", "pci-root"), ("1", "pci-bridge"), used=((0, 1),)), model) == 61
    every = tuple((0, slot) for slot in range(1, 32))
    assert xml.free_slots(machine(("0", "pci-root"), used=every), model) == 0


@pytest.mark.parametrize("model", MODELS)
def test_a_machine_without_pci_has_nothing_to_count(model: str) -> None:
    s390x = "<domain><os><type arch='s390x' machine='s390-ccw-virtio'>hvm</type></os><devices>{}</devices></domain>"
    disk = "<disk><address type='ccw' cssid='0xfe' ssid='0x0' devno='0x0000'/></disk>"
    assert xml.free_slots(s390x.format(disk), model) is None
    assert xml.free_slots(s390x.format(""), model) is None


def test_a_running_q35_guest_of_libvirts_takes_as_many_as_it_took() -> None:
    # eight were plugged in there, and the ninth was refused by libvirt
    assert free("q35-running") == 7
    assert free("q35-full") == 0
    assert len(xml.interfaces((DOMAINS / "q35-full.xml").read_text())) == 8


def test_devices_other_than_nics_take_root_ports_as_well() -> None:
    # USB, balloon, random numbers, disk, NIC: five of eight
    assert free("q35") == 3


def test_slots_behind_a_bridge_are_counted_for_conventional_nics() -> None:
    assert (free("q35-with-bridge"), free("q35-with-bridge", "e1000")) == (3, 30)


@pytest.mark.parametrize("model", MODELS)
def test_an_i440fx_guest_of_libvirts_has_one_bus_for_all(model: str) -> None:
    assert free("i440fx", model) == 27


def test_libvirt_puts_each_model_where_we_count_it() -> None:
    root: Any = etree.parse(DOMAINS / "q35-models.xml").getroot()
    controllers = {one.get("index"): one.get("model") for one in root.findall(".//controller[@type='pci']")}
    where = {
        nic.find("model").get("type"): controllers[str(int(nic.find("address").get("bus"), 16))]
        for nic in root.findall(".//interface")
    }
    assert {*MODELS} - {*where} == {"igb"}  # younger than that libvirt
    assert {model for model, place in where.items() if place != "pcie-root-port"} == {*xml.CONVENTIONAL_MODELS}
