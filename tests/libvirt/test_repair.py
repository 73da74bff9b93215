"""guestnet repair: what list says is not right is put right, and only that."""

from collections.abc import Callable, Iterator

import pytest

from guestnet.model import GROUP
from tests.libvirt.conftest import Host, address, ping
from tests.libvirt.test_concurrency import until
from tests.libvirt.test_inventory import forget

pytestmark = [pytest.mark.root, pytest.mark.guest]

PEER = "192.0.2.2"


@pytest.fixture
def cable(n1: Host) -> Iterator[Callable[[], None]]:
    """Plugs a cable into the host: a parent ``up0``, and behind it something that answers."""

    def plug() -> None:
        n1.run("ip", "link", "add", "up0", "type", "veth", "peer", "name", "far0")
        n1.run("ip", "address", "add", f"{PEER}/24", "dev", "far0")
        for name in ("up0", "far0"):
            n1.run("ip", "link", "set", name, "up")

    plug()
    yield plug
    if "up0" in n1.links():
        n1.run("ip", "link", "delete", "up0")


def attached(host: Host, *words: str, guest: str = "n1g1") -> dict[str, str]:
    nic: dict[str, str] = host.json("attach", guest, *(words or ("--parent", "nic0")))["nics"][0]
    return nic


def problems(host: Host, guest: str = "n1g1") -> list[str]:
    return [problem for row in host.json("list", guest) for problem in row["problems"]]


def verbs(host: Host, *words: str, guest: str = "n1g1") -> list[str]:
    """The first word of each step that a repair takes; after it nothing is out of line, and there is none to take."""
    steps = [step.split()[0] for step in host.json("repair", guest, *words)["steps"]]
    assert problems(host, guest) == []
    assert host.json("repair", guest, *words)["steps"] == []
    return steps


def test_where_nothing_is_amiss_there_is_no_step(n1: Host) -> None:
    assert n1.guestnet("repair", "n1g1", check=True).out == "n1g1: unchanged, it is so already\n"
    attached(n1, "--parent", "nic0", "--parent", "nic1")
    attached(n1, "--parent", "nic1", "--backend", "direct", "--mac", "52:54:00:00:00:31")
    before = n1.state()
    assert verbs(n1) == []
    assert n1.state() == before


def test_a_nic_whose_parent_was_deleted_and_is_back_answers_again(n1: Host, cable: Callable[[], None]) -> None:
    nic = attached(n1, "--parent", "up0")
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "192.0.2.1/24")
    assert ping(guest, PEER)
    n1.run("ip", "link", "delete", "up0")
    assert "its macvtap is gone, the NIC is dead: guestnet repair n1g1" in problems(n1)
    done = n1.guestnet("repair", "n1g1")
    assert (done.code, "there is no interface up0" in done.err) == (3, True)
    cable()
    dry = n1.guestnet("repair", "n1g1", "--dry-run", check=True).out.splitlines()
    assert [line.split()[1] for line in dry] == ["unplug", "make", "check", "mark", "keep", "let", "bring", "plug"]
    done = n1.json("repair", "n1g1")
    assert [f"would {step}" for step in done["steps"]] == dry
    [after] = done["nics"]
    assert {key: after[key] for key in ("mac", "ifname", "parent", "pci")} == {
        key: nic[key] for key in ("mac", "ifname", "parent", "pci")
    }
    assert problems(n1) == []
    address(guest, nic["mac"], "192.0.2.1/24")
    assert ping(guest, PEER)


def test_a_nic_whose_macvtap_was_deleted_answers_again(n1: Host) -> None:
    nic = attached(n1, "--parent", "nic0", "--queues", "2", "--mtu", "1400")
    n1.run("ip", "link", "delete", nic["ifname"])
    assert verbs(n1)[-1] == "plug"
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.90/24")
    assert ping(guest, "198.51.100.2")
    row = n1.json("show", "n1g1")[0]
    assert (row["pci"], row["queues"], row["mtu"], row["live"], row["config"]) == (nic["pci"], 2, 1400, True, True)


def test_a_link_that_somebody_renamed_is_told_with_the_way_back(n1: Host) -> None:
    nic = attached(n1)
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.94/24")
    n1.run("ip", "link", "set", nic["ifname"], "down")
    n1.run("ip", "link", "set", nic["ifname"], "name", "foo0")
    n1.run("ip", "link", "set", "foo0", "up")
    [said] = problems(n1)
    done = n1.guestnet("repair", "n1g1")
    assert (done.code, f"{nic['ifname']}, the NIC {nic['mac']} of n1g1, is called foo0 now" in done.err) == (5, True)
    what, _, back = said.partition(": ")
    assert what == f"{nic['ifname']} is called foo0 now"
    assert f"hint: {back}" in done.err
    n1.run("sh", "-c", back)
    assert verbs(n1) == []
    assert ping(guest, "198.51.100.2")


def test_a_link_that_somebody_made_anew_under_the_guest_is_plugged_in_again(n1: Host) -> None:
    """The name, the MAC and the mark are right, but the guest's QEMU holds the one that is gone."""
    nic = attached(n1)
    alias = n1.links()[nic["ifname"]]["ifalias"]
    n1.run("ip", "link", "delete", nic["ifname"])
    make_by_hand(n1, nic, "nic0", alias)
    assert problems(n1) == [f"no process has {nic['ifname']} open, the NIC is dead: guestnet repair n1g1"]
    assert verbs(n1) == ["unplug", "plug"]
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.91/24")
    assert ping(guest, "198.51.100.2")


def make_by_hand(host: Host, nic: dict[str, str], parent: str, alias: str, *, group: int = GROUP) -> None:
    words = ("link", parent, "name", nic["ifname"], "address", nic["mac"], "group", str(group))
    host.run("ip", "link", "add", *words, "type", "macvtap", "mode", "bridge")
    host.run("ip", "link", "set", nic["ifname"], "up", "allmulticast", "on", "alias", alias)


def test_a_nic_of_libvirts_own_that_is_on_record_is_mended_too(n1: Host) -> None:
    nic = attached(n1, "--parent", "nic0", "--backend", "direct")
    n1.run("ip", "link", "delete", nic["ifname"])
    assert verbs(n1) == ["unplug", "plug"]
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.92/24")
    assert ping(guest, "198.51.100.2")
    forget(n1, "n1g1")
    n1.run("ip", "link", "delete", n1.json("list", "n1g1")[0]["interface"])
    assert n1.json("repair", "n1g1")["steps"] == []  # not on record: libvirt's own
    for verb in (("attach", "n1g1", "--parent", "nic0"), ("detach", "n1g1", "--all")):
        done = n1.json(*verb)
        assert (done["steps"], len(done["notes"])) == ([], 1)
        assert f"guestnet detach n1g1 {nic['mac']}" in done["notes"][0]
    n1.guestnet("detach", "n1g1", nic["mac"], check=True)


def test_the_missing_link_of_a_stopped_guest_is_made(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    nic = attached(n1, guest=name)
    n1.run("ip", "link", "delete", nic["ifname"])  # as a reboot of the host does
    assert problems(n1, name) == [f"there is no {nic['ifname']}, the guest cannot start: guestnet repair {name}"]
    assert verbs(n1, guest=name) == ["make", "check", "mark", "keep", "let", "bring"]
    n1.virsh("start", name)
    assert problems(n1, name) == []


@pytest.mark.parametrize(
    ("commands", "steps"),
    [
        (["{if} down"], ["check", "mark", "keep", "let", "bring"]),
        (["{if} down", "{if} address 52:54:00:66:66:66", "{if} up"], ["set"]),
        (["{if} type macvtap mode private"], ["change"]),
        (["{if} allmulticast off"], ["let"]),
        (["{if} mtu 1300"], ["set"]),
        (["{if} alias mine"], ["mark"]),
        (["nic0 down"], ["bring"]),
        (["{if} alias mine", "{if} allmulticast off", "{if} mtu 1300", "nic0 down"], ["bring", "set", "mark", "let"]),
    ],
    ids=lambda value: "-".join(value).replace(" ", "-"),
)
def test_what_somebody_changed_is_changed_back_while_the_guest_runs(
    n1: Host, commands: list[str], steps: list[str]
) -> None:
    nic = attached(n1, "--parent", "nic0", "--mtu", "1500")
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.93/24")
    before = n1.state()
    for command in commands:
        n1.run("ip", "link", "set", *command.replace("{if}", nic["ifname"]).split())
    try:
        assert problems(n1) != []
        assert verbs(n1) == steps
        assert n1.state() == before
        assert ping(guest, "198.51.100.2")
    finally:
        n1.run("ip", "link", "set", "nic0", "up")


def test_a_link_that_was_made_anew_on_another_parent_is_brought_back(n1: Host) -> None:
    nic = attached(n1)
    alias = n1.links()[nic["ifname"]]["ifalias"]
    n1.run("ip", "link", "delete", nic["ifname"])
    make_by_hand(n1, nic, "nic1", alias)
    assert verbs(n1)[:3] == ["unplug", "delete", "make"]
    assert n1.links()[nic["ifname"]]["link"] == "nic0"


@pytest.mark.parametrize("alias", ["", "guestnet:1:host", "somebody's"])
def test_a_link_of_somebody_elses_under_the_name_is_not_touched(n1: Host, alias: str) -> None:
    nic = attached(n1)
    n1.run("ip", "link", "delete", nic["ifname"])
    make_by_hand(n1, nic, "nic0", alias, group=GROUP if alias.startswith("guestnet") else 0)
    before = n1.state()
    done = n1.guestnet("repair", "n1g1")
    assert (done.code, f"{nic['ifname']} is a macvtap on nic0, and not the NIC of n1g1" in done.err) == (5, True), done
    assert n1.state() == before
    n1.run("ip", "link", "delete", nic["ifname"])


def test_one_nic_that_cannot_be_mended_stops_no_other(n1: Host, cable: Callable[[], None]) -> None:
    first = attached(n1, "--parent", "up0")
    second = attached(n1, "--parent", "nic0")
    n1.run("ip", "link", "delete", "up0")
    n1.run("ip", "link", "delete", second["ifname"])
    done = n1.guestnet("repair", "n1g1")
    assert done.code == 3
    assert "there is no interface up0" in done.err
    assert f"mended: unplug NIC {second['mac']}" in done.err
    rows = {row["mac"]: row["problems"] for row in n1.json("list", "n1g1")}
    assert rows[second["mac"]] == []
    assert rows[first["mac"]] != []


@pytest.mark.parametrize("places", [("--live",), ("--config",), ("--live", "--config")], ids="".join)
def test_a_record_that_is_lost_is_written_again(n1: Host, places: tuple[str, ...]) -> None:
    attached(n1, "--parent", "nic0", "--mode", "vepa")
    before = n1.state()
    for place in places:
        n1.virsh("metadata", "n1g1", "urn:guestnet:domain:1", "--remove", place)
    assert len(problems(n1)) == 1
    assert verbs(n1) == ["write"]
    assert n1.state() == before


def test_a_redefine_with_an_old_xml_loses_the_record_of_what_runs_only(n1: Host) -> None:
    old = n1.config("n1g1")
    nic = attached(n1)
    n1.virsh("define", "/dev/stdin", input=old)
    row = n1.json("list", "n1g1")[0]
    assert (row["live"], row["config"], row["problems"]) == (True, False, [])
    assert verbs(n1) == []
    assert nic["ifname"] in n1.links()


def test_a_record_whose_interface_virsh_took_is_dropped_and_its_link_goes(n1: Host) -> None:
    before = n1.state()
    nic = attached(n1)
    n1.virsh("detach-interface", "n1g1", "ethernet", "--mac", nic["mac"], "--live", "--config")
    n1.guest("n1g1").wait_no_nic(nic["mac"])
    assert verbs(n1) == ["write", "delete"]
    assert n1.state() == before


def test_a_record_whose_interface_is_gone_from_one_place_is_dropped_there(n1: Host) -> None:
    nic = attached(n1)
    n1.virsh("detach-interface", "n1g1", "ethernet", "--mac", nic["mac"], "--config")
    assert problems(n1) == ["on record, but its <interface> is gone from the configuration: guestnet repair n1g1"]
    assert verbs(n1) == ["write"]
    assert nic["mac"] not in n1.config("n1g1")
    assert f'mac="{nic["mac"]}"' in n1.live("n1g1")


def test_a_mac_that_virsh_edit_changed_is_given_to_the_link(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    nic = attached(n1, guest=name)
    text = n1.config(name).replace(f"<mac address='{nic['mac']}'/>", "<mac address='52:54:00:77:77:77'/>")
    n1.virsh("define", "/dev/stdin", input=text)
    assert any("nothing reaches it" in problem for problem in problems(n1, name))
    assert verbs(n1, guest=name) == ["set", "write"]
    row = n1.json("list", name)[0]
    assert (row["mac"], row["interface"]) == ("52:54:00:77:77:77", nic["ifname"])


def test_a_guest_that_does_not_let_go_of_its_dead_nic_keeps_it_and_is_mended_later(n1: Host) -> None:
    nic = attached(n1)
    n1.run("ip", "link", "delete", nic["ifname"])
    n1.virsh("suspend", "n1g1")
    try:
        before = n1.state()
        done = n1.guestnet("repair", "n1g1", "--timeout", "1")
        assert (done.code, "did not let go" in done.err) == (6, True), done
        assert n1.state() == before
    finally:
        n1.virsh("resume", "n1g1")
    n1.guest("n1g1").wait_no_nic(nic["mac"])  # the guest answers the request that stands
    until(lambda: not n1.json("list", "n1g1")[0]["live"])
    assert "on record, but its <interface> is gone from what runs: guestnet repair n1g1" in problems(n1)
    assert verbs(n1) == ["make", "check", "mark", "keep", "let", "bring", "write"]
    attached(n1)
    assert problems(n1) == []


def test_a_guest_that_is_not_there_is_not_found(n1: Host) -> None:
    assert n1.guestnet("repair", "n1g7").code == 3
