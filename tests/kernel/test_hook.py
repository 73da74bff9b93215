"""The hook on a kernel with 802.1Q: VLANs come with their first guest and go with their last."""

import itertools
import os
import signal
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestnet import apply
from guestnet import hook as program
from guestnet.errors import HOOK_REFUSED
from guestnet.kernel import lock
from guestnet.kernel.link import Links
from guestnet.plan.detach import delete_links
from guestnet.plan.host import Host
from guestnet.plan.orphans import Evidence, judge
from guestnet.undo import Undo
from tests.conftest import Answer, Namespace
from tests.unit.test_hook import BAD, GOOD, UUID, direct, domain, ifname, interface, record

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q")]

Hook = Callable[..., None]
OTHER = UUID.replace("0358686d", "11111111")
LONG = "enp94s0f0np0a"


@pytest.fixture
def hook(parent: Namespace) -> Hook:
    """Calls the hook in the namespace; it must be content. Within this process: Python starts slowly in a machine."""

    def call(operation: str, *parts: str, uuid: str = UUID, status: int = 0) -> None:
        with tempfile.TemporaryFile() as file:
            file.write(domain(*parts, uuid=uuid))
            file.seek(0)
            assert parent.call(lambda: program.main(["vm1", operation, "begin", "-"], file.fileno())) == status

    return call


def names(parent: Namespace) -> set[str]:
    return {link["ifname"] for link in parent.shown()} - {"lo", "nic0", "peer0"}


def on(name: str, mac: str = GOOD) -> tuple[str, str]:
    return record(mac, parent=name), interface(mac)


def test_guests_that_share_a_vlan_make_it_once_and_the_last_takes_it_along(parent: Namespace, hook: Hook) -> None:
    hook("prepare", *on("nic0.11"))
    index = parent.shown("nic0.11")[0]["ifindex"]
    hook("prepare", *on("nic0.11", BAD), uuid=OTHER)
    hook("prepare", *on("nic0.11"))
    assert names(parent) == {"nic0.11", ifname(GOOD), ifname(BAD)}
    hook("release", *on("nic0.11"))
    assert names(parent) == {"nic0.11", ifname(BAD)}
    assert parent.shown("nic0.11")[0]["ifindex"] == index
    hook("release", *on("nic0.11", BAD), uuid=OTHER)
    assert names(parent) == set()


def test_vlans_in_vlans_under_names_too_long_for_the_kernel_come_and_go(parent: Namespace, hook: Hook) -> None:
    parent.ip(
        "link set nic0 down",
    )
    parent.ip(f"link set nic0 name {LONG}")
    parent.ip(f"link set {LONG} up")
    hook("prepare", *on(f"{LONG}.11.12"))
    tower = parent.shown(ifname(GOOD))[0]["link"]
    assert parent.shown(tower)[0]["altnames"] == [f"{LONG}.11.12"]
    hook("prepare", *on(f"{LONG}.11.12"))
    assert len(parent.shown()) == 6
    hook("release", *on(f"{LONG}.11.12"))
    assert len(parent.shown()) == 3


@pytest.mark.parametrize("use", ["address", "link", "host"])
def test_a_vlan_that_is_used_otherwise_stays(
    parent: Namespace, hook: Hook, use: str, run_guestnet: Callable[..., Answer]
) -> None:
    if use == "host":
        assert run_guestnet("vlan", "add", "nic0.11", netns=parent.name).code == 0
    hook("prepare", *on("nic0.11"))
    if use == "address":
        parent.ip("address add 192.0.2.1/24 dev nic0.11")
    if use == "link":
        parent.ip("link add link nic0.11 name mv0 type macvlan")
    hook("release", *on("nic0.11"))
    assert names(parent) == {"nic0.11", *(("mv0",) if use == "link" else ())}


def test_the_vlan_of_a_macvtap_that_libvirt_makes_comes_and_goes(parent: Namespace, hook: Hook) -> None:
    nic = (record(parent="nic0.11", ifname=None, backend="direct"), direct(source="nic0.11"))
    hook("prepare", *nic)
    assert names(parent) == {"nic0.11"}
    hook("release", *nic)
    assert names(parent) == set()


def test_a_vlan_that_a_configured_guest_needs_for_a_macvtap_of_libvirts_stays(
    parent: Namespace, hook: Hook, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(program, "CONFIGURED", tmp_path)
    (tmp_path / "web.xml").write_bytes(domain(direct(source="nic0.11"), uuid=OTHER))
    (tmp_path / "vm1.xml").write_bytes(domain(direct(source="nic0.12")))
    hook("prepare", *on("nic0.11"), *on("nic0.12", BAD))
    hook("release", *on("nic0.11"), *on("nic0.12", BAD))
    assert names(parent) == {"nic0.11"}


def test_a_vlan_that_another_namespace_uses_stays_though_a_process_holds_a_sibling(
    parent: Namespace, hook: Hook, namespace: Callable[[], Namespace]
) -> None:
    elsewhere = namespace()
    hook("prepare", *on("nic0.11"), *on("nic0.12", BAD))
    parent.ip(f"link add link nic0.11 name mv0 netns {elsewhere.name} type macvlan")
    index = parent.shown(ifname(BAD))[0]["ifindex"]
    fd = os.open(f"/dev/tap{index}", os.O_RDWR)
    hook("release", *on("nic0.11"), *on("nic0.12", BAD))
    os.close(fd)
    assert names(parent) == {"nic0.11", "nic0.12", ifname(BAD)}
    hook("release", *on("nic0.11"), *on("nic0.12", BAD))
    assert names(parent) == {"nic0.11"}


def test_a_link_of_that_name_that_is_another_vlan_is_refused(
    parent: Namespace, hook: Hook, capsys: pytest.CaptureFixture[str]
) -> None:
    parent.ip("link add link nic0 name nic0.11 type vlan id 12")
    hook("prepare", *on("nic0.11"), status=HOOK_REFUSED)
    assert "nic0.11 is not VLAN 11" in capsys.readouterr().err
    hook("release", *on("nic0.11"))
    assert names(parent) == {"nic0.11"}


def test_without_the_lock_a_vlan_that_somebody_may_be_about_to_use_stays(
    parent: Namespace, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program, "LOCK_SECONDS", 0.05)
    with lock.held():
        hook("prepare", *on("nic0.11"))
        hook("release", *on("nic0.11"))
    assert names(parent) == {"nic0.11"}
    hook("prepare", *on("nic0.11"))
    hook("release", *on("nic0.11"))
    assert names(parent) == set()


def test_guests_that_come_and_go_at_once_never_lose_their_vlan(parent: Namespace, hook: Hook) -> None:
    def come_and_go(number: int) -> None:
        mac, uuid = f"52:54:00:00:00:1{number}", UUID.replace("0358686d", str(number) * 8)
        for _ in range(5):
            hook("prepare", *on("nic0.11", mac), uuid=uuid)
            assert parent.shown(ifname(mac))[0]["link"] == "nic0.11"
            hook("release", *on("nic0.11", mac), uuid=uuid)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(come_and_go, range(1, 4)))
    assert names(parent) == set()


def killed(after: int, call: Callable[[], None]) -> bool:
    """Whether the call, made by a child of its own, was killed right after so many of its changes to links."""
    pid = os.fork()
    if pid == 0:
        try:
            count = itertools.count(1)
            for name in ("add", "_change", "delete"):
                setattr(Links, name, deadly(getattr(Links, name), lambda: next(count) == after))
            call()
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(pid, 0)[1]
    assert status in (0, signal.SIGKILL)
    return status != 0


def deadly(change: Callable[..., None], now: Callable[[], bool]) -> Callable[..., None]:
    """The change, after which whoever makes it is killed if it is time."""

    def made(*words: object, **more: object) -> None:
        change(*words, **more)
        if now():
            os.kill(os.getpid(), signal.SIGKILL)

    return made


def collect(parent: Namespace) -> None:
    """Delete what `guestnet gc` deletes where libvirt knows no guest of these."""

    def work() -> None:
        with Links() as links:
            host = Host(links=links.all(), used_elsewhere=links.used_elsewhere(), addressed=links.addressed())
            verdicts = judge(Evidence(host=host, before=host.links, guests=(), holders={}, busy={}))
            orphans = delete_links(verdict.link for verdict in verdicts if verdict.orphan)
            apply.run(orphans, apply.Doors(links=links, target=links), Undo())

    parent.call(work)


@pytest.mark.parametrize("mended_by", ["prepare", "release", "gc"])
def test_what_a_killed_hook_left_at_any_step_is_finished_released_or_collected(
    parent: Namespace, hook: Hook, mended_by: str
) -> None:
    nic = on("nic0.11")
    kills = {}

    def links() -> set[tuple[object, ...]]:
        there = {link.index: link for link in parent.links.all()}
        return {
            (link.name, there[link.parent or 0].name, link.vlan, link.mac, link.up, link.group, link.alias,
             link.allmulti, link.addrgenmode)
            for link in there.values() if link.ours
        }  # fmt: skip

    hook("prepare", *nic)
    whole = links()
    for operation in ("prepare", "release"):
        for number in itertools.count(1):
            before = whole if operation == "release" else set()
            if links() != before:
                hook("prepare" if before else "release", *nic)
            assert links() == before, (operation, number)
            if not killed(number, lambda: hook(operation, *nic)):  # noqa: B023
                break
            kills[operation] = number
            if mended_by == "prepare":
                hook("prepare", *nic)
            elif mended_by == "release":
                hook("release", *nic)
            else:
                collect(parent)
            assert links() == (whole if mended_by == "prepare" else set()), (operation, number)
    assert kills == {"prepare": 9, "release": 2}
    assert names(parent) == set()
