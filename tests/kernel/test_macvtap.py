"""guestnet macvtap: links that ip(8) shows as its own, with our marks and without the host's IPv6."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestnet import hostlink, linklist
from guestnet.errors import GuestnetError
from guestnet.kernel import lock, tap
from guestnet.model import GROUP, HOST_ALIAS, Kind, Mac, Mode, Multicast, guest_alias
from guestnet.plan.hostlink import Change, Wanted

pytestmark = pytest.mark.root

MAC = "52:54:00:00:02:01"
OTHER = "52:54:00:00:02:02"
UUID = "01234567-89ab-cdef-0123-456789abcdef"
Run = Callable[..., Any]


@pytest.fixture
def guestnet(run_guestnet: Run, parent: Any) -> Run:
    """Runs the command line in the namespace ``parent`` and expects it to succeed."""

    def run(*words: str) -> Any:
        answer = run_guestnet(*words, netns=parent.name)
        assert answer.code == 0, answer
        return answer

    return run


def only(network: Any, name: str) -> dict[str, Any]:
    """What ip shows of one link."""
    (found,) = network.shown(f"dev {name}")
    return dict(found)


def plain(link: dict[str, Any]) -> dict[str, Any]:
    """What ip shows of a link, without what each link has of its own and without our marks and hygiene."""
    left_out = {"ifindex", "group", "ifalias", "allmulti", "inet6_addr_gen_mode"}
    shown = {key: value for key, value in link.items() if key not in left_out}
    return {**shown, "flags": sorted(set(link["flags"]) - {"ALLMULTI"})}


def ipv6(network: Any, name: str) -> list[str]:
    """The host's IPv6 on the link: disabled, router advertisements, autoconf, addrgenmode."""
    keys = ("disable_ipv6", "accept_ra", "autoconf")
    settings = [network.read(f"/proc/sys/net/ipv6/conf/{name}/{key}") for key in keys]
    return [*settings, only(network, name)["inet6_addr_gen_mode"]]


QUIET = ["1", "0", "0", "none"]


# What the notes say about ip, said to guestnet


def test_add_makes_what_ip_link_add_makes(guestnet: Run, parent: Any) -> None:
    parent.ip(f"link add link nic0 name macvtap0 address {MAC} type macvtap mode bridge")
    parent.ip("link set macvtap0 up")
    by_ip = plain(only(parent, "macvtap0"))
    parent.ip("link delete macvtap0")
    guestnet("macvtap", "add", "macvtap0", "--parent", "nic0", "--mac", MAC)
    assert plain(only(parent, "macvtap0")) == by_ip


def test_delete_deletes_what_ip_link_delete_deletes(guestnet: Run, parent: Any) -> None:
    before = [link["ifname"] for link in parent.shown()]
    guestnet("macvtap", "add", "macvtap0", "--parent", "nic0")
    nodes = set(os.listdir("/dev"))
    index = only(parent, "macvtap0")["ifindex"]
    assert f"tap{index}" in nodes
    guestnet("macvtap", "delete", "macvtap0")
    assert [link["ifname"] for link in parent.shown()] == before
    assert not os.path.exists(f"/dev/tap{index}")


def test_list_shows_what_ip_link_show_type_macvtap_shows(guestnet: Run, parent: Any) -> None:
    parent.ip("link add foreign0 link nic0 type macvtap mode vepa")
    parent.ip(f"link add guest0 link nic0 group {GROUP} type macvtap mode private")
    parent.ip("link set guest0 alias", guest_alias(UUID, "web"))
    guestnet("macvtap", "add", "host0", "--parent", "nic0")
    rows = guestnet("macvtap", "list", "--json").json
    shown = parent.shown("type macvtap")
    assert [row["name"] for row in rows] == [link["ifname"] for link in shown]
    for row, link in zip(rows, shown, strict=True):
        data = link["linkinfo"]["info_data"]
        assert (row["parent"], row["mode"], row["mac"], row["mtu"]) == (
            link["link"], data["mode"], link["address"], link["mtu"],
        )  # fmt: skip
        assert (row["up"], row["carrier"]) == ("UP" in link["flags"], "LOWER_UP" in link["flags"])
        assert (row["allmulti"], row["promiscuity"], row["bcqueuelen"], row["txqueuelen"]) == (
            link["allmulti"], link["promiscuity"], data["bcqueuelen"], link["txqlen"],
        )  # fmt: skip
        assert (row["ifindex"], row["addrgenmode"]) == (link["ifindex"], link["inet6_addr_gen_mode"])
    assert {row["name"]: (row["owner"], row["guest"]) for row in rows} == {
        "foreign0": ("foreign", ""), "guest0": ("guest", "web"), "host0": ("host", ""),
    }  # fmt: skip


def test_set_changes_what_ip_link_set_changes(guestnet: Run, parent: Any) -> None:
    for name in ("by_ip", "by_us"):
        parent.ip(f"link add link nic0 name {name} type macvtap mode bridge")
    parent.ip("link set by_ip address 1a:46:0b:ca:bc:7b up")
    by_ip = {**plain(only(parent, "by_ip")), "ifname": "by_us"}
    parent.ip("link delete by_ip")
    guestnet("macvtap", "set", "by_us", "--mac", "1a:46:0b:ca:bc:7b", "--up", "--foreign")
    assert plain(only(parent, "by_us")) == by_ip


# add


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru", "passthrough"])
def test_every_mode_is_made(guestnet: Run, parent: Any, mode: str) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mode", mode)
    assert only(parent, "mt0")["linkinfo"]["info_data"]["mode"] == mode.replace("passthrough", "passthru")


def test_a_macvtap_is_marked_and_the_hosts_ipv6_is_off_it(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mtu", "1400")
    link = only(parent, "mt0")
    assert (link["group"], link["ifalias"], link["allmulti"], link["mtu"]) == (str(GROUP), HOST_ALIAS, 1, 1400)
    assert {"UP", "LOWER_UP", "ALLMULTI"} <= set(link["flags"])
    assert ipv6(parent, "mt0") == QUIET
    assert "inet6" not in parent.ip("addr show dev mt0")


def test_a_macvtap_too_small_for_ipv6_is_made_and_gets_none_when_it_grows(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mtu", "1200")
    guestnet("macvtap", "set", "mt0", "--mtu", "1500")
    assert ipv6(parent, "mt0") == QUIET
    assert "inet6" not in parent.ip("addr show dev mt0")


def test_multicast_can_be_left_filtered_and_the_link_down(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--multicast", "filtered", "--down")
    link = only(parent, "mt0")
    assert link["allmulti"] == 0
    assert "UP" not in link["flags"]


def test_several_names_are_made_at_once(guestnet: Run, parent: Any) -> None:
    names = [f"mt{number}" for number in range(5)]
    answer = guestnet("macvtap", "add", *names, "--parent", "nic0", "--json").json
    assert [row["name"] for row in answer["links"]] == names
    assert answer["changed"] is True
    assert {link["ifname"] for link in parent.shown("type macvtap")} == set(names)


@pytest.mark.parametrize("at", ["AddLink", "GiveNode", "Mark", "Quiet", "AllowMulticast", "SetUp"])
@pytest.mark.parametrize("when", ["begin", "end"])
def test_of_several_links_none_stays_when_one_step_fails(parent: Any, at: str, when: str) -> None:
    before = parent.shown()
    count = 0

    def watch(word: str, step: Any) -> None:
        nonlocal count
        count += (type(step).__name__, word) == (at, when)
        if count == 2:
            raise GuestnetError("stop here")

    wanted = Wanted(kind=Kind.MACVTAP, names=("mt0", "mt1", "mt2"), parent="nic0")
    with pytest.raises(GuestnetError, match="stop here"):
        parent.call(lambda: hostlink.add(wanted, hostlink.Options(watch=watch)))
    assert [link["ifname"] for link in parent.shown()] == [link["ifname"] for link in before]


def test_what_the_kernel_refuses_at_the_last_link_takes_back_the_others(parent: Any, run_guestnet: Run) -> None:
    """A MAC in use is refused by the kernel at link-up, and this one is in a namespace the plan does not see."""
    parent.ip(f"netns exec {parent.name} true")
    names = [f"mt{number}" for number in range(3)]

    def watch(word: str, step: Any) -> None:
        if word == "begin" and str(step) == "bring mt2 up":
            mac = only(parent, "mt2")["address"]
            parent.ip(f"link add thief link nic0 address {mac} type macvtap mode bridge")
            parent.ip("link set thief up")

    wanted = Wanted(kind=Kind.MACVTAP, names=tuple(names), parent="nic0")
    with pytest.raises(GuestnetError, match="MAC address is in use"):
        parent.call(lambda: hostlink.add(wanted, hostlink.Options(watch=watch)))
    assert [link["ifname"] for link in parent.shown("type macvtap")] == ["thief"]


def test_a_foreign_link_that_takes_the_name_meanwhile_is_left_alone(parent: Any) -> None:
    def watch(word: str, step: Any) -> None:
        if (word, str(step)[:14]) == ("begin", "make macvtap m"):
            parent.ip(f"link add mt0 index 4711 link nic0 group {GROUP} type macvtap mode vepa")

    wanted = Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0")
    with pytest.raises(GuestnetError):
        parent.call(lambda: hostlink.add(wanted, hostlink.Options(watch=watch)))
    assert only(parent, "mt0")["ifindex"] == 4711


def test_an_add_that_fails_takes_back_the_link_it_made_and_not_another_of_its_name(parent: Any) -> None:
    def watch(word: str, step: Any) -> None:
        if (word, str(step)[:14]) == ("end", "make macvtap m"):
            parent.ip("link delete mt0")
            parent.ip(f"link add mt0 index 4711 link nic0 group {GROUP} type macvtap mode vepa")
            raise GuestnetError("enough")

    wanted = Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0")
    with pytest.raises(GuestnetError, match="enough"):
        parent.call(lambda: hostlink.add(wanted, hostlink.Options(watch=watch)))
    assert only(parent, "mt0")["ifindex"] == 4711


def test_an_add_that_is_terminated_leaves_nothing(parent: Any) -> None:
    before = [link["ifname"] for link in parent.shown()]
    names = [f"mt{number}" for number in range(400)]
    line = ["nsenter", f"--net=/run/netns/{parent.name}", sys.executable, "-m", "guestnet", "macvtap", "add", *names]
    with subprocess.Popen([*line, "--parent", "nic0"], cwd=Path(hostlink.__file__).parents[1]) as process:
        deadline, never = time.monotonic() + 20, threading.Event()
        while parent.links.find("mt5") is None and time.monotonic() < deadline:
            never.wait(0.002)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    assert [link["ifname"] for link in parent.shown()] == before


def test_a_parent_that_is_down_stays_down_and_is_spoken_of(guestnet: Run, parent: Any) -> None:
    parent.ip("link set nic0 down")
    answer = guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    assert "nic0 is down" in answer.out
    assert "UP" not in only(parent, "nic0")["flags"]
    assert "UP" in only(parent, "mt0")["flags"]


def test_a_link_is_made_in_the_namespace_that_is_named(
    guestnet: Run, run_guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    far = namespace()
    guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0", "--mode", "vepa", "--netns", far.name)
    assert parent.shown("type macvtap") == []
    nic = only(parent, "nic0")["ifindex"]
    rows = guestnet("macvtap", "list", "--netns", far.name, "--json").json
    assert [(row["name"], row["parent"], row["mode"], row["owner"]) for row in rows] == [
        ("mt0", "nic0", "vepa", "host"), ("mt1", "nic0", "vepa", "host"),
    ]  # fmt: skip
    shown = run_guestnet("macvtap", "list", "--json", netns=far.name).json
    assert [row["parent"] for row in shown] == [f"if{nic}"] * 2
    assert ipv6(far, "mt0") == QUIET
    assert "UP" in only(far, "mt0")["flags"]
    guestnet("macvtap", "delete", "mt0", "mt1", "--netns", far.name)
    assert far.shown("type macvtap") == []


def test_a_link_whose_node_another_namespace_has_gets_a_node_of_its_own(
    guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    far = namespace()
    far.ip("link add nic0 type veth peer name peer0")
    parent.ip("link add first link nic0 type macvtap")
    coming = only(parent, "first")["ifindex"] + 1  # ifindexes are given out in their order
    parent.ip("link delete first")
    far.ip(f"link add mt0 index {coming} link nic0 type macvtap")
    body = guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mac", MAC, "--mode", "vepa", "--json").json
    (row,) = body["links"]
    assert row["ifindex"] >= 1 << 24, "the collision did not come about"
    assert (row["mode"], row["mac"], row["alias"], row["allmulti"]) == ("vepa", MAC, HOST_ALIAS, 1)
    assert ipv6(parent, "mt0") == QUIET
    assert tap.device("mt0", namespace=parent.fd).node() is tap.Node.RIGHT
    with tap.Tap.open("mt0", namespace=parent.fd) as opened:
        assert tap.identity(opened.fds[0])[1] == MAC


def test_in_a_private_dev_the_node_is_made_and_taken_away(
    parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "DEV", str(tmp_path))
    wanted = Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0")
    (row,) = parent.call(lambda: hostlink.add(wanted, hostlink.Options())).links
    assert os.listdir(tmp_path) == [f"tap{row.ifindex}"]
    parent.call(lambda: hostlink.delete(Kind.MACVTAP, ("mt0",), hostlink.Options()))
    assert os.listdir(tmp_path) == []


def test_a_dry_run_says_the_steps_and_takes_none(guestnet: Run, parent: Any) -> None:
    before = parent.shown()
    out = guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0", "--dry-run").out
    assert "would make macvtap mt0 on nic0, mode bridge" in out
    body = guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--dry-run", "--json").json
    assert (body["dry_run"], body["changed"], body["links"]) == (True, False, [])
    assert [link["ifname"] for link in parent.shown()] == [link["ifname"] for link in before]


def test_a_dry_run_needs_no_root_and_the_real_one_says_that_it_does(run_guestnet: Run) -> None:
    names = json.loads(subprocess.run(["ip", "-j", "link"], capture_output=True, check=True, timeout=20).stdout)
    nic = next(link["ifname"] for link in names if link["link_type"] == "ether")
    words = ("macvtap", "add", f"x{secrets.token_hex(4)}", "--parent", nic)
    assert run_guestnet(*words, "--dry-run", user=65534).code == 0
    answer = run_guestnet(*words, user=65534)
    assert (answer.code, "needs root" in answer.err) == (4, True)
    assert run_guestnet("macvtap", "list", user=65534).code == 0


def test_the_same_add_again_changes_nothing_and_says_so(
    guestnet: Run, run_guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    far = namespace()
    for place in ((), ("--netns", far.name)):
        words = ("macvtap", "add", "mt0", "--parent", "nic0", "--mode", "vepa", "--mtu", "1400", *place)
        first = guestnet(*words, "--json").json["links"]
        assert (guestnet(*words).out, first[0]["parent"]) == ("mt0: unchanged, it is so already\n", "nic0")
        assert guestnet("macvtap", "add", "mt0", "--parent", "nic0", *place).out.endswith("it is so already\n")
        assert guestnet(*words, "--dry-run").out == "mt0: nothing to do, it is so already\n"
        again = guestnet(*words, "--json").json
        assert (again["changed"], again["steps"], again["links"]) == (False, [], first)
        for other in (
            ("--parent", "peer0"), ("--parent", "nic0", "--mode", "bridge"), ("--parent", "nic0", "--mtu", "1300"),
            ("--parent", "nic0", "--mac", MAC), ("--parent", "nic0", "--multicast", "filtered"),
            ("--parent", "nic0", "--down"),
        ):  # fmt: skip
            answer = run_guestnet("macvtap", "add", "mt0", *other, *place, netns=parent.name)
            assert (answer.code, "the interface name mt0 is taken" in answer.err) == (5, True), answer
            assert " ".join(("guestnet macvtap set mt0", *place, "changes")) in answer.err
        assert run_guestnet("macvlan", "add", "mt0", "--parent", "nic0", *place, netns=parent.name).code == 5


def test_of_several_links_those_that_are_missing_are_made(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    first, second = guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0").out.splitlines()
    assert (first, second[:20]) == ("mt0: unchanged, it is so already", "mt1: made, on nic0, ")


def test_a_link_in_mode_passthru_or_of_somebody_elses_parent_is_told_apart(
    guestnet: Run, run_guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mode", "passthru")
    assert "it is so already" in guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mode", "passthru").out
    far, third = namespace(), namespace()
    third.ip(f"link add nic0 index {only(parent, 'peer0')['ifindex']} type veth peer name peer0 index 500")
    assert run_guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--netns", far.name, netns=third.name).code == 0
    assert run_guestnet("macvtap", "add", "mt0", "--parent", "peer0", "--netns", far.name, netns=parent.name).code == 5


def test_a_dry_run_of_a_deletion_does_not_say_that_it_is_done(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    assert guestnet("macvtap", "delete", "mt0", "--dry-run").out == "would delete mt0\n"
    assert guestnet("macvtap", "delete", "mt0").out == "mt0: deleted\n"


# set


def test_a_set_says_what_it_changed(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    words = ("macvtap", "set", "mt0", "--mode", "vepa", "--mtu", "1400", "--down")
    assert guestnet(*words).out == "mt0: changed: mode vepa, MTU 1400, down\n"
    assert guestnet(*words).out == "mt0: unchanged, it is so already\n"


def test_the_mode_changes_while_the_link_is_open(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    with tap.Tap.open("mt0", namespace=parent.fd) as opened:
        for mode in ("vepa", "private", "bridge"):
            guestnet("macvtap", "set", "mt0", "--mode", mode)
            assert only(parent, "mt0")["linkinfo"]["info_data"]["mode"] == mode
        assert tap.identity(opened.fds[0])[0] == "mt0"


def test_all_that_can_be_set_is_set_at_once_and_the_same_again_takes_no_steps(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    words = ("macvtap", "set", "mt0", "--mode", "vepa", "--mac", MAC, "--mtu", "1400", "--down", "--json")
    assert guestnet(*words).json["changed"] is True
    link = only(parent, "mt0")
    assert (link["address"], link["mtu"], link["linkinfo"]["info_data"]["mode"]) == (MAC, 1400, "vepa")
    assert "UP" not in link["flags"]
    again = guestnet(*words).json
    assert (again["changed"], again["steps"]) == (False, [])


def test_a_change_that_fails_in_its_middle_is_taken_back(parent: Any) -> None:
    parent.call(lambda: hostlink.add(Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0"), hostlink.Options()))
    before = plain(only(parent, "mt0"))

    def watch(word: str, step: Any) -> None:
        if (word, type(step).__name__) == ("end", "SetUp"):
            raise GuestnetError("stop here")

    change = Change(mode=Mode.VEPA, mac=Mac(MAC), mtu=1400, up=False)
    with pytest.raises(GuestnetError, match="stop here"):
        parent.call(lambda: hostlink.change(Kind.MACVTAP, "mt0", change, hostlink.Options(watch=watch)))
    assert plain(only(parent, "mt0")) == before


@pytest.mark.parametrize("state", ["up", "down"])
@pytest.mark.parametrize("multicast", list(Multicast))
def test_a_link_that_is_moved_keeps_marks_hygiene_and_state(
    guestnet: Run, parent: Any, namespace: Callable[[], Any], state: str, multicast: Multicast
) -> None:
    far = namespace()
    down = ["--down"] if state == "down" else []
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--mac", MAC, "--multicast", multicast, *down)
    guestnet("macvtap", "set", "mt0", "--netns", far.name)
    assert parent.shown("type macvtap") == []
    link = only(far, "mt0")
    assert (link["group"], link["ifalias"], link["address"]) == (str(GROUP), HOST_ALIAS, MAC)
    assert ipv6(far, "mt0") == QUIET
    assert link["allmulti"] == (multicast is Multicast.ALL)
    assert ("UP" in link["flags"]) is (state == "up")
    assert tap.device("mt0", namespace=far.fd).node() is tap.Node.RIGHT
    again = guestnet("macvtap", "set", "mt0", "--netns", far.name, "--json").json
    assert again["changed"] is False
    guestnet("macvtap", "set", "mt0", "--netns", far.name, "--mode", "vepa")
    assert only(far, "mt0")["linkinfo"]["info_data"]["mode"] == "vepa"


def test_a_link_whose_ifindex_is_taken_where_it_goes_has_a_node_there(
    guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    far, third = namespace(), namespace()
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    index = only(parent, "mt0")["ifindex"]
    far.ip(f"link add index {index} name taken type veth peer name other")
    # whatever ifindex the kernel would give it, its node is another's
    third.ip("link add nic0 index 5000 type veth peer name peer0 index 5001")
    for number in range(2, index + 20):
        third.ip(f"link add mt{number} index {number} link nic0 type macvtap mode bridge")
    with tap.Tap.open("mt0", namespace=parent.fd) as opened:
        guestnet("macvtap", "set", "mt0", "--netns", far.name)
        assert tap.identity(opened.fds[0])[0] == "mt0"
    device = tap.device("mt0", namespace=far.fd)
    assert device.ifindex >= 1 << 24
    assert device.node() is tap.Node.RIGHT
    guestnet("macvtap", "delete", "mt0", "--netns", far.name)
    assert not os.path.exists(device.path)


def test_in_a_private_dev_a_moved_link_has_its_node_under_its_new_ifindex_and_back(
    parent: Any, namespace: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tap, "DEV", str(tmp_path))
    far = namespace()
    (row,) = parent.call(
        lambda: hostlink.add(Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0"), hostlink.Options())
    ).links
    far.ip(f"link add index {row.ifindex} name taken type veth peer name other")

    def move(watch: Any = None) -> Any:
        options = hostlink.Options(netns=far.name, watch=watch)
        return parent.call(lambda: hostlink.change(Kind.MACVTAP, "mt0", Change(netns=far.name), options))

    def stop(word: str, step: Any) -> None:
        if (word, type(step).__name__) == ("end", "SetUp"):
            raise GuestnetError("stop here")

    with pytest.raises(GuestnetError, match="stop here"):
        move(stop)
    assert os.listdir(tmp_path) == [f"tap{row.ifindex}"]
    (moved,) = move().links
    assert moved.ifindex != row.ifindex
    assert os.listdir(tmp_path) == [f"tap{moved.ifindex}"]


def test_a_move_that_fails_after_it_is_taken_back(parent: Any, namespace: Callable[[], Any]) -> None:
    far = namespace()
    parent.call(lambda: hostlink.add(Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0"), hostlink.Options()))
    before = only(parent, "mt0")

    def watch(word: str, step: Any) -> None:
        if (word, type(step).__name__) == ("end", "SetUp"):
            raise GuestnetError("stop here")

    options = hostlink.Options(netns=far.name, watch=watch)
    with pytest.raises(GuestnetError, match="stop here") as caught:
        parent.call(lambda: hostlink.change(Kind.MACVTAP, "mt0", Change(netns=far.name), options))
    assert getattr(caught.value, "__notes__", []) == []
    assert only(parent, "mt0") == before
    assert ipv6(parent, "mt0") == QUIET
    assert far.shown("type macvtap") == []


def test_a_namespace_that_is_ones_own_is_no_move(guestnet: Run, parent: Any) -> None:
    guestnet("macvtap", "add", "mt0", "--parent", "nic0", "--netns", parent.name)
    body = guestnet("macvtap", "set", "mt0", "--netns", parent.name, "--json").json
    assert (body["changed"], body["links"][0]["parent"]) == (False, "nic0")


# list and delete


def test_a_list_of_nothing_is_an_empty_list(guestnet: Run) -> None:
    assert guestnet("macvtap", "list", "--json").json == []


def test_a_list_of_nothing_says_so(guestnet: Run, namespace: Callable[[], Any]) -> None:
    far = namespace()
    assert guestnet("macvtap", "list").out == "there is no macvtap\n"
    assert guestnet("vlan", "list", "--netns", far.name).out == (
        f"there is no vlan in the network namespace {far.name}\n"
    )


def test_one_link_can_be_listed(guestnet: Run) -> None:
    guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0")
    assert [row["name"] for row in guestnet("macvtap", "list", "mt1", "--json").json] == ["mt1"]
    table = guestnet("macvtap", "list").out.splitlines()
    assert table[0].split()[:4] == ["NAME", "PARENT", "MODE", "MAC"]
    assert [line.split()[0] for line in table[1:]] == ["mt0", "mt1"]


def test_the_list_is_made_without_the_slow_libraries(parent: Any) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "guestnet", "macvtap", "list", "--json"],
        capture_output=True, text=True, check=True, timeout=60, cwd=Path(linklist.__file__).parents[1],
    )  # fmt: skip
    found = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "guestnet.linklist" in found
    assert {name.split(".")[0] for name in found} & {"libvirt", "lxml", "pyroute2", "rich"} == set()
    assert not {"guestnet.apply", "guestnet.guest.xml", "guestnet.plan.steps"} & found


def test_making_links_needs_neither_libvirt_nor_lxml(parent: Any) -> None:
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{parent.name}", sys.executable, "-X", "importtime",
         "-m", "guestnet", "macvtap", "add", "mt0", "--parent", "nic0"],
        capture_output=True, text=True, check=True, timeout=60, cwd=Path(linklist.__file__).parents[1],
    )  # fmt: skip
    found = {line.rsplit("|", 1)[1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "guestnet.apply" in found
    assert {name.split(".")[0] for name in found} & {"libvirt", "lxml", "pyroute2", "rich"} == set()


def test_a_deletion_goes_on_past_what_must_stay_and_tells_all_of_it(run_guestnet: Run, parent: Any) -> None:
    parent.ip("link add foreign0 link nic0 type macvtap")
    parent.ip("link add lan0 link nic0 type macvlan")
    assert run_guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0", netns=parent.name).code == 0
    answer = run_guestnet("macvtap", "delete", "mt0", "mt9", "foreign0", "lan0", "mt1", netns=parent.name)
    assert answer.code == 3
    for text in ("there is no macvtap mt9", "foreign0 was not made by guestnet", "lan0 is no macvtap", "mt0, mt1"):
        assert text in answer.err
    assert [link["ifname"] for link in parent.shown("type macvtap")] == ["foreign0"]
    assert run_guestnet("macvtap", "delete", "foreign0", "--foreign", netns=parent.name).code == 0
    assert parent.shown("type macvtap") == []


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_macvtap_that_a_process_holds_open_is_deleted_by_force_alone(
    where: str, run_guestnet: Run, parent: Any
) -> None:
    assert run_guestnet("macvtap", "add", "mt0", "mt1", "--parent", "nic0", netns=parent.name).code == 0

    def delete(*words: str) -> Any:
        place = () if where == "here" else ("--netns", parent.name)
        return run_guestnet("macvtap", "delete", *words, *place, netns=parent.name if where == "here" else None)

    with tap.Tap.open("mt0", namespace=parent.fd):
        for answer in (delete("mt0", "--dry-run"), delete("mt0", "mt1")):
            assert answer.code == 5
            assert f"mt0 is held open by process {os.getpid()} (" in answer.err
            assert "--force" in answer.err
        assert [link["ifname"] for link in parent.shown("type macvtap")] == ["mt0"]
        assert delete("mt0", "--force").code == 0
    assert parent.shown("type macvtap") == []


def test_who_changes_links_waits_for_whoever_else_does(
    parent: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    monkeypatch.setattr(lock, "PATH", tmp_path / "lock")
    real = lock.held

    def held(*args: Any, **kwargs: Any) -> Any:
        entered.append(True)
        return real(*args, **kwargs)

    monkeypatch.setattr(lock, "held", held)
    wanted = Wanted(kind=Kind.MACVTAP, names=("mt0",), parent="nic0")
    parent.call(lambda: hostlink.add(wanted, hostlink.Options(dry_run=True)))
    assert entered == []
    parent.call(lambda: hostlink.add(wanted, hostlink.Options()))
    assert entered == [True]
