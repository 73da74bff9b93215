"""VLANs on a kernel that has them: what is made, what is found and left alone, what goes and when."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError
from guestnet.hostlink import Options, change
from guestnet.kernel import netlink
from guestnet.kernel.link import Links
from guestnet.linklist import listed
from guestnet.model import GROUP, HOST_ALIAS, VLAN_ALIAS, Kind, Mac, Mode, NewLink, VlanProtocol
from guestnet.plan import hostlink as plan
from guestnet.plan.steps import AddLink, LinkStep
from guestnet.undo import Undo
from tests.conftest import Answer, Namespace
from tests.kernel.vlans import LONG, NIC_MAC, Site, facts, shown, site

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q", "macvtap", "veth")]

AD = VlanProtocol.DOT1AD
_FACTORY = Callable[[], Namespace]


@pytest.fixture
def host(namespace: _FACTORY) -> Site:
    return site(namespace)


def short(lower: str, vid: int) -> str:
    """The name of a VLAN whose readable one is too long."""
    return f"gv{hashlib.sha256(lower.encode()).hexdigest()[:8]}.{vid}"


def ipv6(place: Namespace, name: str) -> list[str]:
    return [place.read(f"/proc/sys/net/ipv6/conf/{name}/{key}") for key in ("disable_ipv6", "accept_ra", "autoconf")]


# What is made


def test_a_vlan_made_for_a_guest_is_marked_and_the_host_stays_out_of_it(host: Site) -> None:
    made = host.attach("nic0.11")
    vlan = shown(host.here, "nic0.11")
    assert vlan["linkinfo"] == {
        "info_kind": "vlan", "info_data": {"protocol": "802.1Q", "id": 11, "flags": ["REORDER_HDR"]},
    }  # fmt: skip
    assert (vlan["link"], vlan["mtu"], vlan["address"]) == ("nic0", 1500, NIC_MAC)
    assert (vlan["group"], vlan["ifalias"], vlan["inet6_addr_gen_mode"]) == (str(GROUP), VLAN_ALIAS, "none")
    assert "UP" in vlan["flags"]
    assert ipv6(host.here, "nic0.11") == ["1", "0", "0"]
    (nic,) = made.nics
    assert host.link(nic.ifname).parent == host.link("nic0.11").index
    assert (host.link(nic.ifname).mtu, made.notes) == (1500, ("VLAN 11 on nic0 is made: nic0.11",))


def test_a_vlan_that_the_host_asked_for_has_the_hosts_ipv6(host: Site) -> None:
    host.add(Kind.VLAN, "nic0.11", parent="nic0", vlan=11)
    vlan = shown(host.here, "nic0.11")
    assert (vlan["ifalias"], vlan["inet6_addr_gen_mode"]) == (HOST_ALIAS, "eui64")
    assert ipv6(host.here, "nic0.11")[0] == "0"


def test_the_same_attach_again_takes_no_step_for_the_parent(host: Site) -> None:
    host.attach("nic0.11", guest="vm1")
    said = [str(step) for step in host.planned("nic0.11", guest="vm2").steps if "nic0.11" in str(step)]
    assert [text.split()[:2] for text in said] == [["make", "macvtap"]]


def test_vlans_within_a_providers_vlan_are_made_and_known_again(host: Site) -> None:
    host.attach("nic0.100.11", outer=AD)
    assert {name: shown(host.here, name)["linkinfo"]["info_data"]["protocol"] for name in host.vlans()} == {
        "nic0.100": "802.1ad", "nic0.100.11": "802.1Q",
    }  # fmt: skip
    host.attach("nic0.100.11", "nic0.100.12", guest="vm2", outer=AD)
    with pytest.raises(ConflictError, match=r"802\.1ad") as refused:
        host.attach("nic0.100.11", guest="vm3")
    assert "--outer-protocol 802.1ad" in refused.value.hint
    # the same ID with the other protocol is another VLAN of the same NIC
    host.add(Kind.VLAN, "lab", parent="nic0", vlan=100)
    assert host.vlans() == {
        "nic0.100": (100, "nic0"), "nic0.100.11": (11, "nic0.100"), "nic0.100.12": (12, "nic0.100"),
        "lab": (100, "nic0"),
    }  # fmt: skip
    host.detach("vm1")
    assert set(host.vlans()) == {"nic0.100", "nic0.100.11", "nic0.100.12", "lab"}
    host.detach("vm2")
    assert set(host.vlans()) == {"lab"}


def test_a_vlan_of_the_hosts_own_has_the_protocol_asked_for(host: Site) -> None:
    host.add(Kind.VLAN, "nic0.100", parent="nic0", vlan=100, protocol=AD)
    made = host.add(Kind.VLAN, "nic0.100.11", parent="nic0.100", vlan=11, outer=AD)
    assert [row.vlan_protocol for row in host.call(lambda: listed(Kind.VLAN))] == ["802.1ad", "802.1Q"]
    assert (made.links[0].parent, made.links[0].reorder_hdr) == ("nic0.100", True)
    assert host.add(Kind.VLAN, "nic0.100", parent="nic0", vlan=100, protocol=AD).steps == ()
    with pytest.raises(ConflictError, match="taken"):
        host.add(Kind.VLAN, "nic0.100", parent="nic0", vlan=100)


def test_the_vlan_gets_the_mtu_of_what_it_stands_on_and_a_small_one_is_said(host: Site) -> None:
    host.here.ip("link set nic0 mtu 1450")
    made = host.attach("nic0.11.12")
    assert {host.link(name).mtu for name in (*host.vlans(), made.nics[0].ifname)} == {1450}
    assert made.nics[0].mtu == 1450
    assert "nic0 has the MTU 1450, and so has nic0.11.12" in facts(made)
    host.here.ip("link set nic0 mtu 9000")
    assert "1450" in facts(host.planned("nic0.11", guest="vm2"))
    assert "MTU" not in facts(host.planned("nic0.13", guest="vm2"))


def test_a_nic_that_is_down_is_brought_up_for_the_vlan_and_it_is_said(host: Site) -> None:
    host.here.ip("link set nic0 down")
    made = host.attach("nic0.100.11")
    assert made.notes[0] == "nic0 was down and is brought up"
    assert all(host.link(name).up and host.link(name).carrier for name in ("nic0", "nic0.100", "nic0.100.11"))


def test_as_many_vlans_as_the_kernel_stacks_are_made_and_more_are_refused_and_undone(host: Site) -> None:
    host.attach("nic0.1.2.3.4.5.6")
    before = host.names()
    with pytest.raises(ConflictError, match="too many links stand on one another"):
        host.attach("nic0.1.2.3.4.5.6.7", guest="vm2")
    assert host.names() == before
    with pytest.raises(ConflictError, match="too many"):
        host.attach("nic0.9.2.3.4.5.6.7.8", guest="vm2")
    assert host.names() == before


# Names


def test_a_name_too_long_for_the_kernel_becomes_a_short_one_and_the_readable_one_works_too(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    made = host.attach(f"{LONG}.4011")
    device = short(LONG, 4011)
    assert len(device) == 15
    assert shown(host.here, f"{LONG}.4011")["ifname"] == device
    assert (made.nics[0].parent, made.nics[0].device) == (f"{LONG}.4011", device)
    assert ipv6(host.here, device) == ["1", "0", "0"]
    again = host.planned(f"{LONG}.4011", guest="vm2")
    assert not any("VLAN" in str(step) for step in again.steps)
    assert host.detach() == [made.nics[0].ifname, device]


def test_a_vlan_within_one_of_a_short_name_is_named_from_the_readable_one(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    host.attach(f"{LONG}.100.11", outer=AD)
    assert host.vlans() == {short(LONG, 100): (100, LONG), short(f"{LONG}.100", 11): (11, short(LONG, 100))}
    host.attach(f"{LONG}.100.12", guest="vm2", outer=AD)
    assert shown(host.here, f"{LONG}.100.12")["link"] == short(LONG, 100)
    host.detach("vm1")
    host.detach("vm2")
    assert host.vlans() == {}


def test_a_short_name_that_is_taken_is_passed_over(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    host.here.ip(f"link add {short(LONG, 11)} type veth peer name other")
    host.attach(f"{LONG}.11")
    (name,) = host.vlans()
    assert name not in (short(LONG, 11), f"{LONG}.11")
    assert host.link(name).altnames == (f"{LONG}.11",)
    assert host.attach(f"{LONG}.11", guest="vm2").nics[0].device == name


def test_a_readable_name_that_is_taken_is_refused_before_anything_is_made(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    host.here.ip(f"link property add dev {LONG} altname {LONG}.11")
    before = host.names()
    with pytest.raises(ConflictError, match="is not VLAN 11"):
        host.attach(f"{LONG}.11")
    with pytest.raises(ConflictError, match="taken"):
        host.add(Kind.VLAN, f"{LONG}.11", parent=LONG, vlan=11)
    assert host.names() == before


def test_two_nics_with_long_names_never_share_a_vlan(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    other = LONG[:-1] + "2"
    host.here.ip(f"link add {other} type veth peer name other")
    host.attach(f"{LONG}.4011", f"{other}.4011")
    assert host.vlans() == {short(LONG, 4011): (4011, LONG), short(other, 4011): (4011, other)}


def test_a_long_name_is_readable_wherever_the_host_shows_or_takes_it(
    namespace: _FACTORY, run_guestnet: Callable[..., Answer]
) -> None:
    host = site(namespace, LONG)
    readable = f"{LONG}.4011"
    made = host.add(Kind.VLAN, readable, parent=LONG, vlan=4011)
    assert (made.names, made.links[0].name, made.links[0].device) == ((readable,), readable, short(LONG, 4011))
    assert host.add(Kind.VLAN, readable, parent=LONG, vlan=4011).steps == ()
    host.add(Kind.MACVTAP, "mt0", parent=readable)
    assert run_guestnet("vlan", "list", netns=host.here.name).out.split()[7:10] == [readable, LONG, "4011"]
    assert host.call(lambda: listed(Kind.MACVTAP))[0].parent == readable
    with pytest.raises(GuestnetError, match=f"{readable} has mt0 on it"):
        host.delete(Kind.VLAN, readable)
    host.call(lambda: change(Kind.VLAN, readable, plan.Change(mtu=1400), Options()))
    assert host.link(short(LONG, 4011)).mtu == 1400
    host.delete(Kind.MACVTAP, "mt0")
    assert host.delete(Kind.VLAN, readable).names == (readable,)
    assert host.vlans() == {}


def test_a_vlan_of_a_long_name_is_made_in_another_namespace(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    there = namespace()
    made = host.add(Kind.VLAN, f"{LONG}.11", parent=LONG, vlan=11, netns=there.name)
    assert (made.links[0].name, made.links[0].parent) == (f"{LONG}.11", LONG)
    assert shown(there, f"{LONG}.11")["ifname"] == short(LONG, 11)
    assert host.add(Kind.VLAN, f"{LONG}.11", parent=LONG, vlan=11, netns=there.name).steps == ()


@pytest.mark.parametrize("name", ["lan.1", "l\u00e4n"])
def test_a_nic_with_any_name_has_vlans(namespace: _FACTORY, name: str) -> None:
    host = site(namespace, name)
    host.attach(f"{name}.11")
    assert host.vlans() == {f"{name}.11": (11, name)}


def test_a_link_named_like_a_vlan_is_not_taken_for_it(host: Site) -> None:
    for line in (
        "link add nic0.11 type veth peer name other",
        "link add link nic0 name nic0.12 type vlan id 13",
        "link add link other name nic0.14 type vlan id 14",
    ):
        host.here.ip(line)
    before = host.names()
    for parent in ("nic0.11", "nic0.12", "nic0.14"):
        with pytest.raises(ConflictError, match=f"{parent} is not VLAN") as refused:
            host.attach(parent)
        assert refused.value.hint
    assert host.names() == before
    assert host.attach("nic0.13").nics[0].device == "nic0.12"


# What others made


OTHERS = {
    "vlan11": "", "nic0.12": "", "lab13": "egress-qos-map 0:3 1:4 ingress-qos-map 2:5", "eth14": "gvrp on",
    "vlan0015": "mvrp on", "nic0.0016": "loose_binding on",
}  # fmt: skip


def test_the_vlans_of_others_are_found_under_any_name_used_as_they_are_and_stay(host: Site) -> None:
    vids = {name: int(name[-2:]) for name in OTHERS}
    for name, extra in OTHERS.items():
        host.here.ip(f"link add link nic0 name {name} up type vlan id {vids[name]} {extra}")
    before = {name: shown(host.here, name) for name in OTHERS}
    made = host.attach(*(f"nic0.{vid}" for vid in vids.values()))
    assert [(nic.parent, nic.device) for nic in made.nics] == [(f"nic0.{vid}", name) for name, vid in vids.items()]
    assert made.notes == ()
    for nic in made.nics:
        assert host.link(nic.ifname).parent == before[nic.device]["ifindex"]
    assert host.detach() == [nic.ifname for nic in made.nics]
    assert {name: shown(host.here, name) for name in OTHERS} == before


def test_a_vlan_of_others_that_is_down_is_brought_up_and_it_is_said(host: Site) -> None:
    host.here.ip("link add link nic0 name vlan11 type vlan id 11")
    made = host.attach("nic0.11")
    assert made.notes == ("vlan11 was down and is brought up",)
    assert host.link("vlan11").up
    host.detach()
    assert host.vlans() == {"vlan11": (11, "nic0")}


def test_a_vlan_without_reorder_hdr_is_refused_with_the_command_that_mends_it(host: Site) -> None:
    host.here.ip("link add link nic0 name vlan11 type vlan id 11 reorder_hdr off")
    hints = set()
    for parent in ("nic0.11", "vlan11", "nic0.11.12"):
        with pytest.raises(ConflictError, match="vlan11 has REORDER_HDR off") as refused:
            host.attach(parent)
        hints.add(refused.value.hint)
    (hint,) = hints
    host.here.ip(hint.removeprefix("ip "))
    host.attach("nic0.11")


def test_a_vlan_found_by_an_alternative_name_of_its_nic_is_the_same(host: Site) -> None:
    host.here.ip("link property add dev nic0 altname enx525400aa0001")
    host.attach("nic0.11")
    assert host.attach("enx525400aa0001.11", guest="vm2").nics[0].device == "nic0.11"
    assert host.attach("enx525400aa0001.12", guest="vm3").nics[0].device == "nic0.12"


# Who uses a VLAN


def test_a_vlan_stays_while_anything_uses_it_and_goes_with_the_last_user(host: Site, namespace: _FACTORY) -> None:
    there = namespace()
    host.here.ip("link add br0 type bridge")
    host.attach(*(f"nic0.{vid}" for vid in range(11, 18)))
    host.attach("nic0.17", guest="vm2")
    host.detach("vm1")
    assert host.vlans() == {"nic0.17": (17, "nic0")}
    host.attach(*(f"nic0.{vid}" for vid in range(11, 18)))
    uses = {
        11: ("link add mt0 link nic0.11 type macvtap mode bridge", "link del mt0"),
        12: ("link add mv0 link nic0.12 type macvlan mode bridge", "link del mv0"),
        13: ("link add link nic0.13 name v type vlan id 12", "link del v"),
        14: (f"link add mv1 link nic0.14 netns {there.name} type macvlan mode bridge", ""),
        15: ("address add 203.0.113.1/24 dev nic0.15", "address del 203.0.113.1/24 dev nic0.15"),
        16: ("address add 2001:db8::1/64 dev nic0.16", "address del 2001:db8::1/64 dev nic0.16"),
    }
    host.call(lambda: Path("/proc/sys/net/ipv6/conf/nic0.16/disable_ipv6").write_text("0"))
    for use, _ in uses.values():
        host.here.ip(use)
    host.detach("vm1")
    assert {vid for vid, _ in host.vlans().values()} == {*range(11, 18), 12}
    host.detach("vm2")
    assert {name for name in host.vlans() if name.startswith("nic0")} == {f"nic0.{vid}" for vid in uses}
    for _, let_go in uses.values():
        host.here.ip(let_go) if let_go else there.ip("link del mv1")
    host.attach(*(f"nic0.{vid}" for vid in uses))
    host.detach("vm1")
    assert host.vlans() == {}


def test_a_vlan_that_was_made_a_port_of_a_bridge_meanwhile_stays(host: Site) -> None:
    host.attach("nic0.100.11")
    host.here.ip("link add br0 type bridge")
    host.here.ip("link set nic0.100 master br0")
    host.detach()
    assert host.vlans() == {"nic0.100": (100, "nic0")}


def test_two_nics_of_one_guest_share_a_vlan(host: Site) -> None:
    made = host.attach("nic0.11", "nic0.11")
    assert [host.link(nic.ifname).parent for nic in made.nics] == [host.link("nic0.11").index] * 2
    assert len({nic.mac for nic in made.nics}) == 2
    host.here.ip(f"link del {made.nics[0].ifname}")
    assert host.vlans() == {"nic0.11": (11, "nic0")}
    host.detach()
    assert host.vlans() == {}


def test_the_vlans_of_a_tower_go_from_the_top_and_as_far_as_they_are_unused(host: Site) -> None:
    host.attach("nic0.100.11")
    host.attach("nic0.100", guest="vm2")
    assert host.detach()[1:] == ["nic0.100.11"]
    assert host.detach("vm2")[1:] == ["nic0.100"]


# What is undone, what is finished


def test_a_vlan_below_a_link_that_must_stay_is_not_taken_back(host: Site) -> None:
    mac = Mac("52:54:00:00:02:01")
    new = (
        NewLink(kind=Kind.VLAN, name="nic0.11", parent="nic0", alias=VLAN_ALIAS, vlan=11),
        NewLink(kind=Kind.MACVLAN, name="mv0", parent="nic0.11", alias=HOST_ALIAS, mac=mac),
    )
    doors = apply.Doors(links=host.here.links, target=host.here.links, held={mac})
    undo = Undo()
    apply.run([AddLink(new=one) for one in new], doors, undo)
    assert undo.run() == [
        "not undone: macvlan mv0: mv0 is left, the guest still holds it",
        "not undone: vlan nic0.11: nic0.11 is left, mv0 stands on it",
    ]
    assert {"mv0", "nic0.11"} <= host.names()


def test_an_attach_that_fails_at_any_step_leaves_nothing(namespace: _FACTORY) -> None:
    nic = LONG
    host = site(namespace, nic)
    host.here.ip(f"link set {nic} down")

    def state() -> dict[str, tuple[int, bool]]:
        return {link.name: (link.index, link.up) for link in host.here.links.all()}

    before = state()
    steps = [step for step in host.planned(f"{nic}.100.11", outer=AD).steps if isinstance(step, LinkStep)]
    assert len(steps) > 10
    for number in range(2 * len(steps)):
        left = number

        def fail(_when: str, _step: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise GuestnetError("enough")

        with pytest.raises(GuestnetError, match="enough") as failure:
            host.attach(f"{nic}.100.11", outer=AD, watch=fail)
        assert (getattr(failure.value, "__notes__", []), state()) == ([], before), steps[number // 2]


def test_a_vlan_that_a_killed_attach_left_half_made_is_finished_by_the_next(namespace: _FACTORY) -> None:
    host = site(namespace, LONG)
    new = NewLink(kind=Kind.VLAN, name=short(LONG, 11), parent=LONG, alias=VLAN_ALIAS, vlan=11)
    host.here.links.add(new, host.link(LONG).index)
    made = host.attach(f"{LONG}.11")
    vlan = host.link(short(LONG, 11))
    assert (vlan.alias, vlan.altnames, vlan.up, vlan.addrgenmode) == (VLAN_ALIAS, (f"{LONG}.11",), True, 1)
    assert host.attach(f"{LONG}.11", guest="vm2").nics[0].device == made.nics[0].device
    host.detach("vm2")
    host.detach()
    assert host.vlans() == {}


def test_the_host_verbs_finish_a_half_made_vlan_too(host: Site) -> None:
    host.here.links.add(
        NewLink(kind=Kind.VLAN, name="nic0.11", parent="nic0", alias=VLAN_ALIAS, vlan=11), host.link("nic0").index
    )
    host.add(Kind.MACVTAP, "mt0", parent="nic0.11")
    assert (host.link("nic0.11").alias, host.link("nic0.11").up, host.link("mt0").carrier) == (VLAN_ALIAS, True, True)
    host.delete(Kind.MACVTAP, "mt0")
    assert host.vlans() == {}


# What cannot be


def test_what_the_kernel_refuses_as_a_parent_is_refused_before_it_is_asked(host: Site) -> None:
    host.here.ip("link add mt0 link nic0 type macvtap mode bridge")
    before = host.names()
    for parent in ("lo.11", "mt0.11"):
        with pytest.raises(ConflictError):
            host.attach(parent)
        with pytest.raises(ConflictError):
            host.add(Kind.VLAN, parent, parent=parent[:-3], vlan=11)
    assert host.names() == before


def test_a_nic_that_a_passthru_guest_has_whole_gets_no_vlan(host: Site) -> None:
    host.attach("nic0", mode=Mode.PASSTHRU)
    before = host.names()
    for parent in ("nic0.11", "nic0.100.11"):
        with pytest.raises(ConflictError, match="taken whole"):
            host.attach(parent, guest="vm2")
    with pytest.raises(ConflictError, match="taken whole"):
        host.add(Kind.VLAN, "nic0.11", parent="nic0", vlan=11)
    assert host.names() == before


def test_a_vlan_in_another_namespace_is_named_as_what_is_in_the_way(host: Site, namespace: _FACTORY) -> None:
    there = namespace()
    host.here.ip(f"link add link nic0 name nic0.11 netns {there.name} type vlan id 11")
    before = host.names()
    with pytest.raises(ConflictError, match="in another network namespace") as refused:
        host.attach("nic0.11")
    assert "ip -all netns" in refused.value.hint
    assert host.names() == before


def test_what_is_asked_of_the_kernel_does_not_grow_by_vlans(host: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0
    send = netlink.Rtnl._send

    def count(self: Any, kind: int, payload: bytes, flags: int) -> int:
        nonlocal asked
        asked += 1
        return send(self, kind, payload, flags)

    monkeypatch.setattr(netlink.Rtnl, "_send", count)

    def cost(parent: str) -> int:
        nonlocal asked
        asked = 0
        host.attach(parent)
        host_links = asked
        host.detach()
        return host_links

    plain = cost("nic0")
    host.here.ip("link add link nic0 name nic0.11 type vlan id 11")
    host.here.ip("link set nic0.11 up")
    assert cost("nic0.11") == plain
    # made, looked at, marked, kept quiet, brought up
    assert cost("nic0.12") == plain + 5


def test_links_are_read_with_the_flags_that_count(host: Site) -> None:
    host.here.ip("link add link nic0 name v11 type vlan id 11 reorder_hdr off")
    host.here.ip("link add link nic0 name v12 type vlan id 12 proto 802.1ad")
    host.here.ip("link add br0 type bridge vlan_filtering 1")
    host.here.ip("link add br1 type bridge")
    with host.call(Links) as links:
        found = {link.name: link for link in links.all()}
    assert [(found[name].reorder_hdr, found[name].vlan_protocol) for name in ("v11", "v12")] == [
        (False, "802.1Q"), (True, "802.1ad"),
    ]  # fmt: skip
    assert [found[name].vlan_filtering for name in ("br0", "br1", "nic0")] == [True, False, False]
