"""What is read by netlink is what ip(8) reads, and attributes come out as they went in."""

import errno
import json
import os
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError
from guestnet.kernel.link import Links
from guestnet.kernel.netlink import NetlinkError, Rtnl, attribute, attribute_list, attributes, nested
from guestnet.model import GROUP, Kind, Link, Mac, Mode, NewLink, guest_alias

ATTRIBUTES = st.lists(st.tuples(st.integers(0, 0x3FFF), st.binary(max_size=300)), max_size=40)
GET_LINK, NEW_LINK = 18, 16
NOT_FLAGS = {"NO-CARRIER", "M-DOWN"}  # of ip's own making


# Attributes, without a kernel


@given(ATTRIBUTES)
@settings(database=None)
def test_attributes_come_out_as_they_went_in(pairs: list[tuple[int, bytes]]) -> None:
    data = b"".join(attribute(kind, value) for kind, value in pairs)
    assert len(data) % 4 == 0
    assert list(attribute_list(data)) == pairs
    assert attributes(data) == dict(pairs)
    assert attributes(b"head" + data, 4) == dict(pairs)


@given(ATTRIBUTES, st.integers(0, 0x3FFF))
@settings(database=None)
def test_nested_attributes_come_out_as_they_went_in(pairs: list[tuple[int, bytes]], kind: int) -> None:
    data = nested(kind, *(attribute(*pair) for pair in pairs))
    assert list(attribute_list(attributes(data)[kind])) == pairs


@given(st.integers(0, 2**32 - 1), st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
@settings(database=None)
def test_numbers_and_texts_come_out_as_they_went_in(number: int, text: str) -> None:
    found = attributes(attribute(1, number) + attribute(2, text))
    assert struct.unpack("=I", found[1]) == (number,)
    assert found[2] == text.encode() + b"\0"


@given(st.binary(max_size=200))
@settings(database=None)
def test_bytes_that_are_no_attributes_end_the_reading_and_raise_nothing(data: bytes) -> None:
    assert set(attributes(data)) == {kind for kind, _ in attribute_list(data)}


# Links, beside ip(8)


@pytest.fixture
def zoo(namespace: Callable[[], Any]) -> tuple[Any, Any]:
    """Two namespaces with links of every sort this kernel makes."""
    one, two = namespace(), namespace()
    for line in (
        "link add nic0 type veth peer name peer0",
        "link set nic0 up mtu 1400 alias the_cable",
        "link set peer0 up",
        "link property add dev nic0 altname the-first-card altname enp1s0",
        "link add nic1 type veth peer name peer1",
        "link add br0 type bridge",
        "link set nic1 master br0",
        "link set br0 up",
        "link add t0 link nic0 type macvtap mode bridge",
        "link add t1 link nic0 mtu 1300 type macvtap mode vepa",
        "link add t2 link nic0 group 7 type macvtap mode private",
        "link add t3 link peer1 type macvtap mode passthru nopromisc",
        "link add v0 link nic0 type macvlan mode source macaddr set 52:54:00:00:00:05 52:54:00:00:00:06",
        "link add v1 link nic0 type macvlan mode bridge bcqueuelen 77",
        "link set t0 up allmulticast on addrgenmode none",
        "link set t1 addrgenmode random txqueuelen 333",
        "link set v1 up promisc on",
    ):
        one.ip(line)
    one.ip(f"link add far link nic0 netns {two.name} type macvtap mode bridge")
    two.ip("link set far up")
    return one, two


def as_ip_shows(link: Link, names: dict[int, str]) -> dict[str, Any]:
    """Our view of a link in the words of `ip -d -j link`."""
    modes = {None: None, 0: "eui64", 1: "none", 2: "stable_secret", 3: "random"}
    return {
        "ifindex": link.index,
        "ifname": link.name,
        "kind": link.kind,
        "address": link.mac,
        "mtu": link.mtu,
        "up": link.up,
        "carrier": link.carrier,
        "operstate": link.operstate,
        "loopback": link.loopback,
        "ethernet": link.ethernet,
        "parent": names.get(link.parent or -1) if link.parent_netnsid is None else link.parent,
        "netnsid": link.parent_netnsid,
        "master": names.get(link.master or -1),
        "port": link.port_kind,
        "group": link.group,
        "alias": link.alias,
        "altnames": list(link.altnames),
        "allmulti": link.allmulti,
        "promiscuity": link.promiscuity,
        "addrgenmode": modes[link.addrgenmode],
        "txqlen": link.txqueuelen,
        "mode": link.mode,
        "nopromisc": bool(link.flags & 1),
        "bcqueuelen": link.bcqueuelen,
        "sources": sorted(link.source_macs),
    }


def as_we_show(link: dict[str, Any]) -> dict[str, Any]:
    """ip's view of a link in the same words."""
    info = link.get("linkinfo", {})
    data = info.get("info_data", {}) if info.get("info_kind") in ("macvtap", "macvlan") else {}
    mode = data.get("mode")
    group = link.get("group", "default")
    return {
        "ifindex": link["ifindex"],
        "ifname": link["ifname"],
        "kind": info.get("info_kind", ""),
        "address": link["address"],
        "mtu": link["mtu"],
        "up": "UP" in link["flags"],
        "carrier": "LOWER_UP" in link["flags"],
        "operstate": link["operstate"].lower(),
        "loopback": "LOOPBACK" in link["flags"],
        "ethernet": link["link_type"] == "ether",
        "parent": link.get("link", link.get("link_index")),
        "netnsid": link.get("link_netnsid"),
        "master": link.get("master"),
        "port": info.get("info_slave_kind", ""),
        "group": 0 if group == "default" else int(group),
        "alias": link.get("ifalias", ""),
        "altnames": link.get("altnames", []),
        "allmulti": link.get("allmulti", 0),
        "promiscuity": link["promiscuity"],
        "addrgenmode": link.get("inet6_addr_gen_mode"),
        "txqlen": link.get("txqlen", 0),
        "mode": mode,
        "nopromisc": data.get("nopromisc", False) is not False,
        "bcqueuelen": data.get("bcqueuelen"),
        "sources": sorted(one["addr"] if isinstance(one, dict) else one for one in data.get("macaddr_data", [])),
    }


@pytest.mark.root
@pytest.mark.parametrize("number", [0, 1])
def test_every_field_of_every_link_is_as_ip_shows_it(zoo: tuple[Any, Any], number: int) -> None:
    network = zoo[number]
    ours = network.links.all()
    names = {link.index: link.name for link in ours}
    assert [as_ip_shows(link, names) for link in sorted(ours, key=lambda link: link.index)] == [
        as_we_show(link) for link in network.shown()
    ]


@pytest.mark.root
def test_one_link_that_is_looked_up_is_the_one_of_the_dump(zoo: tuple[Any, Any]) -> None:
    network, _ = zoo
    for link in network.links.all(counters=True):
        found = network.links.find(link.name)
        assert found is not None
        assert found.counters is not None
        # carrier and counters of a bridge may change between the two
        assert (found.index, found.mode, found.source_macs, found.alias) == (
            link.index, link.mode, link.source_macs, link.alias,
        )  # fmt: skip
    assert network.links.find("enp1s0").name == "nic0"
    assert network.links.find("nic9") is None


@pytest.mark.root
def test_the_links_used_by_other_namespaces_are_known(zoo: tuple[Any, Any]) -> None:
    one, two = zoo
    assert one.links.used_elsewhere() == {one.links.find("nic0").index}
    assert two.links.used_elsewhere() == set()
    stale = Path(f"/run/netns/{one.name}-stale")
    stale.touch()
    try:
        assert one.links.used_elsewhere() == {one.links.find("nic0").index}
    finally:
        stale.unlink()


def _used_elsewhere() -> frozenset[int]:
    with Links() as links:
        return links.used_elsewhere()


@pytest.mark.root
def test_a_link_of_a_namespace_without_a_name_is_known(parent: Any) -> None:
    line = ["nsenter", f"--net=/run/netns/{parent.name}", "unshare", "--net", "sleep", "60"]
    with subprocess.Popen(line) as process:
        try:
            home, there = os.stat(f"/run/netns/{parent.name}").st_ino, f"/proc/{process.pid}/ns/net"
            own = os.stat("/proc/self/ns/net").st_ino
            deadline = time.monotonic() + 20
            while os.stat(there).st_ino in (home, own) and time.monotonic() < deadline:
                threading.Event().wait(0.01)
            assert parent.links.used_elsewhere() == set()
            parent.ip(f"link add far0 link nic0 netns {process.pid} type macvlan mode bridge")
            assert parent.links.used_elsewhere() == {parent.links.find("nic0").index}
            assert parent.call(_used_elsewhere) == {parent.links.find("nic0").index}
        finally:
            process.kill()


@pytest.mark.root
def test_a_link_with_an_address_that_somebody_gave_it_is_known(parent: Any) -> None:
    cable = {parent.links.find(name).index for name in ("nic0", "peer0")}
    assert not cable & parent.links.addressed()
    parent.ip("address add 192.0.2.1/24 dev nic0")
    parent.ip("address add 2001:db8::1/64 dev peer0 nodad")
    assert cable <= parent.links.addressed()


@pytest.mark.root
def test_an_alias_may_be_as_long_as_the_kernel_takes(parent: Any) -> None:
    parent.links.add(NewLink(kind=Kind.MACVLAN, name="mv0", parent="nic0", alias=""), parent.links.find("nic0").index)
    for alias in (guest_alias("1" * 36, "x" * 300), ""):
        parent.links.mark(parent.links.find("mv0"), alias)
        assert parent.links.find("mv0").alias == alias


@pytest.mark.root
def test_the_counters_are_those_of_ip(parent: Any) -> None:
    parent.call(lambda: _ping("peer0"))
    for name in ("nic0", "peer0"):
        parent.ip(f"link set {name} down")  # and nothing more is counted
    shown = {link["ifname"]: link["stats64"] for link in json.loads(parent.ip("-s -j link show"))}
    found = {link.name: link.counters for link in parent.links.all(counters=True)}
    assert found["nic0"].rx_packets > 0
    for name, stats in shown.items():
        for way in ("rx", "tx"):
            for what in ("packets", "bytes", "dropped"):
                assert getattr(found[name], f"{way}_{what}") == stats[way][what]


def _ping(name: str) -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as packet:
        packet.bind((name, 0))
        packet.send(b"\xff" * 6 + b"\x52\x54\0\xaa\0\2" + b"\x88\xb5" + b"\0" * 46)


@pytest.mark.root
def test_a_refused_request_leaves_the_socket_usable(parent: Any) -> None:
    nic = parent.links.find("nic0")
    new = NewLink(kind=Kind.MACVTAP, name="nic0", parent="nic0", alias="", mode=Mode.BRIDGE)
    for _ in range(3):
        with pytest.raises(ConflictError):
            parent.links.add(new, nic.index)
        assert parent.links.find("nic0") == parent.links.find("nic0")


@pytest.mark.root
def test_the_kernels_own_sentence_reaches_the_user(parent: Any) -> None:
    request = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(3, "x" * 16)

    def ask() -> str:
        with Rtnl() as rtnl, pytest.raises(NetlinkError) as caught:
            rtnl.get(GET_LINK, request)
        assert caught.value.errno in (errno.ERANGE, errno.EINVAL)
        return str(caught.value.strerror)

    assert parent.call(ask) not in ("", os.strerror(errno.ERANGE), os.strerror(errno.EINVAL))


@pytest.mark.root
def test_who_may_not_make_links_is_told_so(parent: Any) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with Links() as links:
                links.set_up(links.all()[0])
        except NotPermittedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.root
def test_a_kind_that_the_kernel_has_not_is_known_and_makes_no_link(parent: Any) -> None:
    before = parent.shown()
    assert parent.links.supports(Kind.MACVTAP)
    assert parent.links.supports(Kind.MACVLAN)
    if not parent.links.supports(Kind.VLAN):
        new, nic = NewLink(kind=Kind.VLAN, name="v", parent="nic0", alias="", vlan=1), parent.links.find("nic0")
        with pytest.raises(GuestnetError) as caught:
            parent.links.add(new, nic.index)
        assert caught.value.message == "this kernel has no 802.1Q VLAN support (CONFIG_VLAN_8021Q)"
    assert parent.shown() == before


@pytest.mark.root
def test_a_link_is_ours_from_birth_on(parent: Any) -> None:
    new = NewLink(kind=Kind.MACVTAP, name="t0", parent="nic0", alias="", mode=Mode.BRIDGE, mac=Mac("52:54:00:00:02:01"))
    parent.links.add(new, parent.links.find("nic0").index)
    made = parent.links.find("t0")
    assert (made.group, made.alias, made.up, made.ours) == (GROUP, "", False, True)


@pytest.mark.root
def test_a_link_that_was_deleted_is_deleted_without_a_word_and_changed_with_an_error(parent: Any) -> None:
    parent.ip("link add t0 link nic0 type macvtap")
    link = parent.links.find("t0")
    parent.links.delete(link)
    parent.links.delete(link)
    with pytest.raises(NotFoundError):
        parent.links.set_up(link)


@pytest.mark.root
def test_another_link_that_got_the_name_is_not_deleted(parent: Any) -> None:
    parent.ip("link add t0 link nic0 type macvtap")
    link = parent.links.find("t0")
    parent.ip("link delete t0")
    parent.ip("link add t0 index 4711 link nic0 type macvtap")
    parent.links.delete(link)
    assert parent.links.find("t0").index == 4711
