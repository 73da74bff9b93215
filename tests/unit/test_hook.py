"""What the hook makes of the XML it is handed, and what it plans, on values."""

import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guestnet import launcher
from guestnet.errors import GuestnetError, UsageError
from guestnet.guest import handed
from guestnet.guest.handed import Handed
from guestnet.model import GROUP, VLAN_ALIAS, Link, Mode, guest_alias
from guestnet.parents import Parents, read
from guestnet.plan import hook as plan
from guestnet.plan.host import Host
from guestnet.plan.steps import AddLink, DeleteLink, SetUp

NAME, UUID = "vm1", "0358686d-8322-4602-9c28-95173f6bc52c"
ALIAS = guest_alias(UUID, NAME)
GOOD = "52:54:00:00:00:01"
BAD = "52:54:00:00:00:02"


def ifname(mac: str) -> str:
    return "gn" + mac.replace(":", "")


def record(mac: str = GOOD, /, **said: str | None) -> str:
    """A record as guestnet writes it, but for what is said; None leaves an attribute out."""
    words: dict[str, str | None] = {
        "mac": mac, "parent": "ens3", "mode": "bridge", "ifname": ifname(mac), "backend": "macvtap", "multicast": "all"
    }  # fmt: skip
    words |= said
    return "<g:nic " + " ".join(f"{key}={quoteattr(value)}" for key, value in words.items() if value is not None) + "/>"


def interface(mac: str = GOOD, target: str | None = None) -> str:
    name = ifname(mac) if target is None else target
    return f"<interface type='ethernet'><mac address='{mac}'/><target dev='{name}' managed='no'/></interface>"


def direct(mac: str = GOOD, source: str = "ens3") -> str:
    return f"<interface type='direct'><mac address='{mac}'/><source dev='{source}' mode='bridge'/></interface>"


def domain(*parts: str, uuid: str = UUID, head: str = "") -> bytes:
    """A domain with these records and interfaces."""
    records = "".join(part for part in parts if part.startswith("<g:"))
    devices = "".join(part for part in parts if not part.startswith("<g:"))
    ours = f'<g:attachments xmlns:g="urn:guestnet:domain:1">{records}</g:attachments>'
    text = f"{head}<domain><name>{NAME}</name><uuid>{uuid}</uuid><metadata>{ours}</metadata>"
    return f"{text}<devices>{devices}</devices></domain>".encode(errors="surrogatepass")


NIC = Link(index=2, name="ens3", mac="52:54:00:aa:00:01", mtu=1500, up=True)
HOST = Host(links=(Link(index=1, name="lo", loopback=True, up=True, mtu=65536), NIC))


def macvtap(mac: str = GOOD, **said: Any) -> Link:
    """A macvtap of this guest as an attach makes it, but for what is said."""
    words: dict[str, Any] = {
        "index": 9, "name": ifname(mac), "kind": "macvtap", "mac": mac, "mtu": 1500, "up": True, "parent": 2,
        "group": GROUP, "alias": ALIAS, "allmulti": 1, "mode": Mode.BRIDGE,
    }  # fmt: skip
    return Link(**{**words, **said})


def host(*links: Link, **said: Any) -> Host:
    return Host(links=(*HOST.links, *links), **said)


def read_one(data: bytes) -> Handed:
    return handed.read(data, NAME)


def names(made: plan.Preparing) -> list[str]:
    """The links that a plan makes."""
    return [step.new.name for work in made.works for step in work.steps if isinstance(step, AddLink)]


# What is handed over


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"mode": "bogus"}, "'bogus' is not a mode"),
        ({"parent": "/etc/passwd"}, "not the name of a parent"),
        ({"parent": "../ens3"}, "not the name of a parent"),
        ({"parent": "x" * 300}, "has 300 characters"),
        ({"parent": ""}, "not the name of a parent"),
        ({"parent": "ens3 "}, "not the name of a parent"),
        ({"parent": "en\ts3"}, "not the name of a parent"),
        ({"parent": None}, "has no parent"),
        ({"mode": None}, "has no mode"),
        ({"mac": None}, "has no mac"),
        ({"mac": "zz"}, "not a MAC address"),
        ({"mac": "01:00:5e:00:00:01"}, "multicast address"),
        ({"mac": "00:00:00:00:00:00"}, "nobody's"),
        ({"mac": "x" * 1000}, "not a MAC address"),
        ({"ifname": "a/b"}, "not an interface name"),
        ({"ifname": "x" * 16}, "the kernel takes 15"),
        ({"ifname": ".."}, "not an interface name"),
        ({"ifname": "ens3"}, "its <interface> is of type ethernet"),
        ({"ifname": None}, "names no macvtap"),
        ({"backend": "direct"}, "the record says direct"),
        ({"backend": "tap"}, "'tap' is not a valid Backend"),
        ({"multicast": "some"}, "'some' is not a valid Multicast"),
        ({"mtu": "99999999"}, "not an MTU"),
        ({"mtu": "-1"}, "not an MTU"),
        ({"outer": "q-in-q"}, "is not a valid VlanProtocol"),
    ],
)
def test_a_record_that_guestnet_did_not_write_is_refused_and_the_other_nics_count(
    said: dict[str, str | None], why: str
) -> None:
    found = read_one(domain(record(BAD, **said), record(GOOD), interface(BAD), interface(GOOD)))
    assert [nic.record.mac for nic in found.nics] == [GOOD]
    [refused] = found.refused
    assert why in refused.why
    assert len(refused.nic) < 300 > len(refused.why)
    assert refused.device == ifname(BAD)  # libvirt will look for it


def test_a_record_whose_nic_was_taken_away_is_passed_over() -> None:
    found = read_one(domain(record(BAD), record(GOOD), interface(GOOD)))
    assert ([nic.record.mac for nic in found.nics], found.refused) == ([GOOD], ())


def test_of_two_records_of_one_nic_the_second_is_refused() -> None:
    found = read_one(domain(record(GOOD), record(GOOD, parent="ens4"), interface(GOOD)))
    assert [nic.record.parent for nic in found.nics] == ["ens3"]
    assert [one.why for one in found.refused] == ["another record is about the same NIC"]


def test_a_nic_named_by_us_without_a_record_is_told() -> None:
    found = read_one(domain(interface(GOOD), interface(BAD, target="mine0")))
    assert [(one.nic, one.device) for one in found.refused] == [(f"NIC {GOOD}", ifname(GOOD))]


def test_more_records_than_a_guest_has_nics_are_refused_in_one_line() -> None:
    found = read_one(domain(*[record()] * 257, interface(BAD, target="mine0")))
    assert (found.nics, [one.why for one in found.refused]) == ((), ["it names 257 NICs"])


ENTITY = '<!DOCTYPE domain [<!ENTITY x "y">]>'
LAUGHS = (
    "<!DOCTYPE d [" + "".join(f'<!ENTITY a{n + 1} "{f"&a{n};" * 10}">' for n in range(9)).replace("&a0;", "ha") + "]>"
)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is not XML"),
        (b"\0" * 100, "is not XML"),
        (b"<domain>", "is not XML"),
        (b"<domain/>", "has no UUID"),
        (domain(uuid=""), "has no UUID"),
        (domain(uuid="x" * 36), "has no UUID"),
        (domain(head=ENTITY), "has a DTD"),
        (domain(record(parent="ens3"), interface(), head=LAUGHS).replace(b"ens3", b"&a9;"), "has a DTD|not XML"),
        (domain(head='<!DOCTYPE d SYSTEM "file:///etc/passwd">'), "has a DTD"),
        (domain(record(parent="ens3")).replace(b"ens3", b"&x;"), "is not XML"),
        (domain("<g:nic>" * 300 + "</g:nic>" * 300), "is not XML"),
        (domain(record(parent="x" * 11_000_000)), "is not XML"),
        (b" " * (handed.LARGEST + 1), "is larger than 16 MiB"),
    ],
    ids=lambda value: value[:24] if isinstance(value, bytes) else value,
)
def test_xml_that_libvirt_does_not_write_is_refused_as_a_whole(data: bytes, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        read_one(data)


@given(st.binary(max_size=200), st.integers(0, 400))
def test_whatever_is_handed_over_is_read_or_refused(noise: bytes, at: int) -> None:
    data = domain(record(), interface())
    with suppress(GuestnetError):
        read_one(data[:at] + noise + data[at:])


def test_parents_are_rewritten_in_the_record_and_where_libvirt_makes_the_macvtap() -> None:
    data = domain(
        record(GOOD, parent="ens3.11"), interface(GOOD), record(BAD, parent="ens3", ifname=None, backend="direct"),
        direct(BAD), "<interface type='bridge'><source bridge='ens3'/></interface>",
    )  # fmt: skip
    here = Parents(parents={"ens3": "enp1s0"}).here
    text, changes = handed.rewrite(data, NAME, lambda record: (here(record.parent), here(record.parent)))
    assert changes == [f"NIC {GOOD}: ens3.11 is enp1s0.11 here", f"NIC {BAD}: ens3 is enp1s0 here"]
    assert text.count(b'parent="enp1s0.11"') == 1
    assert text.count(b'<source dev="enp1s0"') == 1
    assert text.count(b'bridge="ens3"') == 1
    again = handed.read(text, NAME)
    assert [nic.record.parent for nic in again.nics] == ["enp1s0.11", "enp1s0"]
    assert handed.rewrite(text, NAME, lambda record: (here(record.parent), ""))[1] == []


def test_the_other_nic_of_a_teaming_pair_and_one_without_a_source_stay_as_they_are() -> None:
    twin = f"<interface type='hostdev'><mac address='{GOOD}'/><source><address type='pci'/></source></interface>"
    other = f"<interface type='direct'><mac address='{BAD}'/></interface>"
    records = [record(mac, ifname=None, backend="direct") for mac in (BAD, GOOD)]
    data = domain(*records, twin, direct(), other)
    text, changes = handed.rewrite(data, NAME, lambda _: ("enp1s0", "enp1s0"))
    assert len(changes) == 2
    assert text.count(b'dev="enp1s0"') == 1
    assert b'<source><address type="pci"/></source>' in text
    assert b'<interface type="direct"><mac address="%b"/></interface>' % BAD.encode() in text


def test_a_record_that_is_refused_is_not_rewritten() -> None:
    data = domain(record(BAD, mode="bogus"), interface(BAD))
    assert handed.rewrite(data, NAME, lambda _: ("eth0", ""))[1] == []


# The plan for a start


def test_what_stands_and_is_right_is_no_step() -> None:
    made = plan.prepare(read_one(domain(record(), interface())), host(macvtap()))
    assert (made.works, made.refused) == ((), ())


@pytest.mark.parametrize(
    "link",
    [
        macvtap(alias=""),
        macvtap(up=False),
        macvtap(mode=Mode.VEPA),
        macvtap(BAD, name=ifname(GOOD)),
        macvtap(parent=1),
        macvtap(allmulti=0),
        macvtap(kind="macvlan"),
    ],
    ids=["unmarked", "down", "mode", "MAC", "parent", "multicast", "kind"],
)
def test_a_link_of_this_guest_that_is_not_right_is_made_anew(link: Link) -> None:
    guest = read_one(domain(record(), interface()))
    [work] = plan.prepare(guest, host(link)).works
    assert work.steps[0] == DeleteLink(name=link.name, index=link.index)
    assert names(plan.prepare(guest, host(link))) == [link.name]
    stands = link in (macvtap(up=False), macvtap(allmulti=0))
    assert work.stands is stands  # libvirt could start on it
    refused = plan.prepare(guest, host(link), held={9: "process 7 (x)"}).refused
    assert [(one.why, one.fatal) for one in refused] == [(f"process 7 (x) has {link.name} open already", True)]


def test_a_link_whose_node_is_anothers_is_made_anew() -> None:
    guest = read_one(domain(record(), interface()))
    [work] = plan.prepare(guest, host(macvtap()), strange=frozenset({9})).works
    assert (work.steps[1].new.name, work.stands) == (ifname(GOOD), False)  # type: ignore[union-attr]


def test_a_nic_stands_whose_parent_somebody_keeps_taking_down() -> None:
    guest, down = read_one(domain(record(), interface())), replace(NIC, up=False)
    [work] = plan.prepare(guest, Host(links=(down, macvtap()))).works
    assert (work.steps, work.stands) == ((SetUp(name="ens3"),), True)


@pytest.mark.parametrize(
    ("link", "why"),
    [
        (macvtap(group=0, alias="", mode=Mode.VEPA), "which is not guestnet's"),
        (macvtap(group=0, alias="", kind="dummy", mode=None, parent=None), "which is not guestnet's"),
        (macvtap(alias=guest_alias("0" * 36, "vm2")), "of the guest vm2"),
        (macvtap(alias="guestnet:1:host"), "is taken by"),
        (macvtap(alias="guestnet:1:qemu:x"), "is taken by"),
    ],
    ids=["mode", "kind", "guest", "host", "qemu"],
)
def test_a_link_that_is_not_this_guests_is_not_touched_and_the_guest_does_not_start_on_it(link: Link, why: str) -> None:
    made = plan.prepare(read_one(domain(record(), interface())), host(link))
    assert (made.works, [one.fatal for one in made.refused]) == ((), [True])
    assert why in made.refused[0].why


def test_a_macvtap_made_by_hand_that_is_what_the_record_says_is_used_as_it_is() -> None:
    link = macvtap(group=0, alias="", allmulti=0)
    made = plan.prepare(read_one(domain(record(), interface())), host(link))
    assert (made.works, made.refused) == ((), ())


@pytest.mark.parametrize(
    ("said", "links", "why"),
    [
        ({"parent": "lo"}, (), "loopback"),
        ({"parent": "mv0"}, (macvtap("52:54:00:00:00:03", name="mv0", group=0, alias=""),), "is a macvtap itself"),
        ({"parent": "ens9"}, (), "there is no interface ens9"),
        ({"parent": "ens3.4095"}, (), "not a VLAN ID"),
        (
            {"parent": "port0"},
            (Link(index=5, name="port0", master=6, up=True), Link(index=6, name="br0", kind="bridge")),
            "is a port of br0",
        ),
        ({"mode": "source"}, (), "mode source"),
        ({"mode": "passthru"}, (), "it would have the MAC of ens3"),
        ({"mtu": "9000"}, (), "more than that of ens3"),
        ({}, (macvtap(name="other", index=8),), "is the MAC of other"),
    ],
    ids=lambda value: " ".join(map(str, value.items())) if isinstance(value, dict) else None,
)
def test_a_nic_that_cannot_be_made_is_refused_and_the_others_are_made(
    said: dict[str, str], links: tuple[Link, ...], why: str
) -> None:
    guest = read_one(domain(record(**said), record(BAD), interface(), interface(BAD)))
    made = plan.prepare(guest, host(*links))
    assert [(one.nic, one.fatal) for one in made.refused] == [(f"NIC {GOOD}", True)]
    assert why in made.refused[0].why
    assert names(made) == [ifname(BAD)]


def test_two_nics_on_a_vlan_that_is_missing_make_it_once() -> None:
    guest = read_one(domain(record(parent="ens3.11"), record(BAD, parent="ens3.11"), interface(), interface(BAD)))
    assert names(plan.prepare(guest, HOST)) == ["ens3.11", ifname(GOOD), ifname(BAD)]


def test_the_vlan_of_a_nic_that_libvirt_makes_itself_is_made() -> None:
    guest = read_one(domain(record(parent="ens3.11", ifname=None, backend="direct"), direct(source="ens3.11")))
    assert names(plan.prepare(guest, HOST)) == ["ens3.11"]
    other = read_one(domain(record(parent="ens3", ifname=None, backend="direct"), direct(source="ens4")))
    [refused] = plan.prepare(other, HOST).refused
    assert (refused.why, refused.device, refused.fatal) == (
        "its <interface> is on ens4, the record says ens3", "ens4", False,
    )  # fmt: skip


def test_a_parent_of_another_host_is_looked_up_only_where_there_is_none_of_its_name() -> None:
    here = Parents(parents={"ens3": "ens9", "eno1": "ens3"}).here
    guest = read_one(domain(record(parent="ens3"), record(BAD, parent="eno1.7"), interface(), interface(BAD)))
    made = plan.prepare(guest, HOST, here=here)
    assert names(made) == [ifname(GOOD), "ens3.7", ifname(BAD)]
    assert made.works[0].steps[0].new.parent == "ens3"  # type: ignore[union-attr]


# The plan for a stop


VLAN = Link(
    index=5, name="ens3.11", kind="vlan", vlan=11, vlan_protocol="802.1Q", parent=2, group=GROUP, alias=VLAN_ALIAS,
    up=True,
)  # fmt: skip


def released(*links: Link, held: dict[int, str] | None = None, **said: Any) -> tuple[list[str], tuple[str, ...]]:
    guest = read_one(domain(record(BAD, parent="ens3.11", ifname=None, backend="direct"), direct(BAD, "ens3.11")))
    made = plan.release(guest, host(*links, **said), held=held or {})
    return [step.name for step in made.steps], made.kept


def test_the_guests_links_go_and_the_vlan_with_its_last_user() -> None:
    mine, other = macvtap(parent=5), macvtap(BAD, index=10, parent=5, alias=guest_alias("0" * 36, "vm2"))
    assert released(VLAN, mine) == ([mine.name, "ens3.11"], ())
    assert released(VLAN, mine, other) == ([mine.name], ())
    assert released(VLAN, mine, held={9: "process 7 (qemu)"}) == (
        [],
        (f"{mine.name} is kept, process 7 (qemu) has it open",),
    )
    assert released(VLAN, mine, addressed=frozenset({5})) == ([mine.name], ())
    assert released(VLAN) == (["ens3.11"], ())  # libvirt's own macvtap is gone by then


def test_what_is_not_the_guests_stays() -> None:
    assert released(macvtap(group=0), macvtap(BAD, index=10, alias=""), NIC) == ([], ())


# Whoever runs it


def test_the_hook_imports_neither_libvirt_nor_what_it_does_not_need() -> None:
    code = (
        "import sys, runpy; sys.argv = ['hook', 'vm1', 'started', 'begin', '-']\n"
        "try: runpy.run_module('guestnet.hook', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], input="", capture_output=True, text=True, check=True)
    there = {name.split(".")[0] for name in done.stdout.split()}
    assert there & {"libvirt", "libvirtmod", "typer", "rich", "pydantic", "ruamel", "asyncio"} == set()
    assert "guestnet.guest.domain" not in done.stdout.split()
    assert "guestnet.plan.hook" in done.stdout.split()


@pytest.mark.root
def test_what_others_may_change_is_found_in_the_file_or_above_it(tmp_path: Path) -> None:
    place = tmp_path / "venv"
    place.mkdir()
    file = place / "python"
    file.touch(0o755)
    tmp_path.chmod(0o755)
    assert launcher.exposed(file) == ""
    for path in (file, place):
        for owner, group, mode in ((65534, 0, 0o755), (0, 0, 0o757), (0, 65534, 0o775)):
            os.chown(path, owner, group)
            path.chmod(mode)
            assert launcher.exposed(file) == str(path)
            os.chown(path, 0, 0)
            path.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(file)
    file.chmod(0o757)
    assert launcher.exposed(link, Path("/usr/bin/env")) == str(file)
    file.chmod(0o755)
    assert launcher.exposed(link / "inside") == ""
    theirs = place / "theirs"  # a Python of root's, by a symbolic link in somebody's directory
    theirs.mkdir(0o755)
    (theirs / "python").symlink_to("/usr/bin/env")
    os.chown(theirs, 65534, 65534)
    assert launcher.exposed(theirs / "python") == str(theirs)
    link.unlink()
    link.symlink_to(theirs / "python")
    assert launcher.exposed(link) == str(theirs)
    (tmp_path / "loop").symlink_to("loop")
    assert launcher.exposed(tmp_path / "loop") == ""


def test_the_hook_is_the_same_by_whatever_name_its_python_was_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("python", "python3"):
        (tmp_path / "bin" / name).symlink_to("/usr/bin/python3")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    found = set()
    for name in ("python", "python3"):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / name))
        found.add(launcher.python())
    assert found == {str(tmp_path / "bin/python")}
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    assert launcher.python() == sys.executable  # a system may have no `python`, or another one


# The map of parents


@pytest.fixture
def yaml(tmp_path: Path) -> Any:
    def write(text: str, mode: int = 0o644) -> Path:
        path = tmp_path / "parents.yaml"
        path.write_text(text)
        path.chmod(mode)
        return path

    return write


@pytest.mark.root
def test_names_of_other_hosts_are_found_whole_or_by_their_nic(yaml: Any) -> None:
    there = read(yaml("parents:\n  ens3: enp1s0\n  ens4.100: storage\n"))
    asked = ("ens3", "ens3.100", "ens3.100.11", "ens4.100", "ens4.100.11", "ens4.200", "eth0", "ens3.x")
    assert [there.here(name) for name in asked] == [
        "enp1s0", "enp1s0.100", "enp1s0.100.11", "storage", "storage.11", "ens4.200", "eth0", "ens3.x",
    ]  # fmt: skip
    for nothing in ("", "# none yet\n", "{}", "parents: {}"):
        if nothing != "{}":
            assert read(yaml(nothing)).here("ens3") == "ens3"
    assert read(Path("/nonexistent/parents.yaml")).here("ens3") == "ens3"


@pytest.mark.root
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("parents: {ens3: 1}", "parents.ens3: Input should be a valid string"),
        ("parents: [a]", "parents: Input should be a valid dictionary"),
        ("names: {a: b}", "names: Unexpected keyword argument"),
        ("parents: {a: b}\nmore: 1", "more: Unexpected keyword argument"),
        ("parents: {a: 'b c'}", "'b c' is not the name of a parent"),
        ("parents: {a: b", "line 1: not YAML"),
        ("parents: {a: b, a: c}", "found duplicate key"),
        ("!!python/object/apply:os.system [true]", "could not determine a constructor"),
        ("parents: &a {b: *a}", "parents.b: Input should be a valid string"),
        ("parents: " + "[" * 60_000, "not YAML"),
        ("parents: {a: 2026-99-99}", "not YAML"),
        ("parents: {a: b}\n" + "#" * 70_000, "larger than 64 KiB"),
    ],
)
def test_a_map_that_is_not_its_form_says_where(yaml: Any, text: str, why: str) -> None:
    with pytest.raises(GuestnetError, match=re.escape(why)):
        read(yaml(text))


@pytest.mark.root
def test_a_map_that_others_may_write_is_not_read(yaml: Any, tmp_path: Path) -> None:
    with pytest.raises(GuestnetError, match="can be written by others than root"):
        read(yaml("parents: {}", 0o666))
    with pytest.raises(GuestnetError, match="no plain file"):
        read(tmp_path)


# What has looked for the hook


@pytest.mark.root
def test_a_daemon_older_than_the_launcher_is_not_told_whatever_the_wall_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "qemu.d/guestnet"
    monkeypatch.setattr(launcher, "TOLD", tmp_path / "told")
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 86_400)
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert launcher._told(path)[0] > before  # nothing is there
    launcher._put(path)
    assert before <= launcher._told(path)[0] <= time.clock_gettime(time.CLOCK_BOOTTIME)
    path.chmod(0o700)
    assert launcher._told(path)[0] > before + 1000
    launcher._write_told(5.0, path, ["7 8"])
    assert launcher._told(path) == (5.0, frozenset({"7 8"}))
    launcher.TOLD.unlink()
    assert launcher._told(path)[0] < before  # whoever put it there


@pytest.mark.root
def test_a_libvirtd_that_hangs_or_cannot_be_run_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (
        ("hangs", "#!/bin/sh\nexec sleep 60\n"),
        ("bad", "#!/nowhere\n"),
        ("good", "#!/bin/sh\necho 9.8.7\n"),
    ):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(launcher, "TIMEOUT", 0.5)
    monkeypatch.setattr(launcher, "_running", dict)
    monkeypatch.setattr(launcher, "_DAEMONS", [f"../..{tmp_path}/{name}" for name in ("hangs", "bad", "good")])
    assert launcher.version() == "9.8.7"
