"""The character device of a macvtap: the right one, in any namespace, or none."""

import fcntl
import os
import select
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from guestnet.errors import ConflictError, NotFoundError, UsageError
from guestnet.kernel import tap
from guestnet.kernel.tap import Node, Tap
from guestnet.model import Kind, Mac, Mode, NewLink

pytestmark = pytest.mark.root

MAC = "52:54:00:00:02:01"
OTHER = "52:54:00:00:02:02"
SENDER = bytes.fromhex("525400aa0002")
QUEUE_COUNTS = (1, 4, 256)
HOLD_FUSE = """
import ctypes, os, sys
directory, user, state = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0  # CLONE_NEWNS
assert libc.mount(b"none", b"/", None, 0x44000, None) == 0  # MS_REC | MS_PRIVATE
daemon = os.open("/dev/fuse", os.O_RDWR)
options = f"fd={daemon},rootmode=40000,user_id={user},group_id=0"
assert libc.mount(b"none", directory.encode(), b"fuse", 0, options.encode()) == 0, ctypes.get_errno()
os.open(directory, os.O_PATH)
if state == "dead":
    os.close(daemon)
print("held", flush=True)
sys.stdin.read()
"""
TAP_NO_PI, VNET_HDR, MULTI_QUEUE = 0x1002, 0x4000, 0x100


def add(network: Any, name: str = "mt0", mac: str = MAC, index: int | None = None) -> None:
    """A macvtap in mode bridge on nic0, up."""
    new = NewLink(kind=Kind.MACVTAP, name=name, parent="nic0", alias="", mode=Mode.BRIDGE, mac=Mac(mac))
    network.links.add(new, network.links.find("nic0").index, index=index)
    network.links.set_up(network.links.find(name))


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@contextmanager
def no_fd_leaks() -> Iterator[None]:
    before = open_fds()
    yield
    assert open_fds() == before


def send(network: Any, to: str, payload: bytes) -> bytes:
    """Send a frame from peer0 and give it."""
    frame = bytes.fromhex(to.replace(":", "")) + SENDER + b"\x88\xb5" + payload.ljust(46, b"\0")

    def put() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC) as packet:
            packet.bind(("peer0", 0))
            packet.send(frame)

    network.call(put)
    return frame


def received(fd: int, seconds: float) -> list[bytes]:
    """The frames with our ethertype that come out of a tap fd until ``seconds`` pass without any; no vnet header."""
    frames = []
    while select.select([fd], [], [], seconds)[0]:
        frame = os.read(fd, 65536)
        if frame[12:14] == b"\x88\xb5":
            frames.append(frame)
    return frames


@pytest.mark.parametrize("queues", QUEUE_COUNTS)
def test_as_many_queues_as_asked_for_are_opened_and_are_the_links_own(parent: Any, queues: int) -> None:
    add(parent)
    with Tap.open("mt0", namespace=parent.fd, queues=queues) as opened:
        assert len(set(opened.fds)) == queues
        for fd in opened.fds:
            assert os.fstat(fd).st_rdev == opened.device.rdev
            assert tap.identity(fd)[:2] == ("mt0", MAC)
            assert fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK
            assert fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC


@pytest.mark.parametrize("queues", [0, -1, 257])
def test_a_count_of_queues_the_kernel_has_not_is_refused_before_anything_is_opened(parent: Any, queues: int) -> None:
    add(parent)
    with no_fd_leaks(), pytest.raises(UsageError):
        Tap.open("mt0", namespace=parent.fd, queues=queues)


def test_a_queue_more_than_the_kernel_has_left_is_a_conflict_and_leaves_no_fd_open(parent: Any) -> None:
    add(parent)
    with Tap.open("mt0", namespace=parent.fd, queues=255), no_fd_leaks(), pytest.raises(ConflictError) as caught:
        Tap.open("mt0", namespace=parent.fd, queues=2)
    assert "mt0 has no free queue" in caught.value.message


@pytest.mark.parametrize("vnet_header", [True, False])
@pytest.mark.parametrize("queues", [1, 2])
def test_the_flags_are_those_the_model_needs(parent: Any, vnet_header: bool, queues: int) -> None:
    add(parent)
    wanted = TAP_NO_PI | (VNET_HDR if vnet_header else 0) | (MULTI_QUEUE if queues > 1 else 0)
    with Tap.open("mt0", namespace=parent.fd, queues=queues, vnet_header=vnet_header) as opened:
        assert {tap.identity(fd)[2] for fd in opened.fds} == {wanted}


@pytest.mark.parametrize(("model", "has"), [("virtio", True), ("e1000e", True), ("vmxnet3", True), ("e1000", False)])
def test_the_models_with_a_virtio_net_header_are_known(model: str, has: bool) -> None:
    assert tap.has_vnet_header(model) is has


def test_a_released_fd_is_the_callers_and_the_rest_is_closed(parent: Any) -> None:
    add(parent)
    with no_fd_leaks():
        with Tap.open("mt0", namespace=parent.fd) as opened:
            (fd,) = opened.release()
        assert tap.identity(fd)[0] == "mt0"
        os.close(fd)


def test_a_frame_for_the_macvtap_comes_out_of_its_fd(parent: Any) -> None:
    add(parent)
    with Tap.open("mt0", namespace=parent.fd, vnet_header=False) as opened:
        frame = send(parent, MAC, b"hello")
        assert received(opened.fds[0], 0.5) == [frame]


def collide(namespace: Callable[[], Any]) -> tuple[Any, Any]:
    """Two namespaces, in each a macvtap mt0 of one and the same ifindex; the first has the node in /dev."""
    pair = (namespace(), namespace())
    index = tap.free_index(frozenset())
    for network, mac in zip(pair, (MAC, OTHER), strict=True):
        network.ip("link add nic0 type veth peer name peer0")
        network.ip("link set nic0 up")
        network.ip("link set peer0 up")
        add(network, mac=mac, index=index)
    return pair


def test_the_node_of_another_namespaces_link_is_seen_to_be_foreign(namespace: Callable[[], Any]) -> None:
    first, second = collide(namespace)
    one, two = tap.device("mt0", namespace=first.fd), tap.device("mt0", namespace=second.fd)
    assert one.path == two.path
    assert (one.node(), two.node()) == (Node.RIGHT, Node.FOREIGN)


@pytest.mark.parametrize("meant", [0, 1])
def test_of_two_links_with_one_node_name_the_one_meant_is_opened_and_gets_the_frame(
    namespace: Callable[[], Any], meant: int
) -> None:
    pair = collide(namespace)
    macs = (MAC, OTHER)
    with (
        Tap.open("mt0", namespace=pair[0].fd, vnet_header=False) as first,
        Tap.open("mt0", namespace=pair[1].fd, vnet_header=False) as second,
    ):
        opened = (first, second)
        assert [tap.identity(one.fds[0])[1] for one in opened] == [MAC, OTHER]
        frame = send(pair[meant], macs[meant], b"for one of them")
        assert received(opened[meant].fds[0], 0.5) == [frame]
        assert received(opened[1 - meant].fds[0], 0.1) == []


def test_the_private_node_is_gone_when_the_fd_is_open(namespace: Callable[[], Any]) -> None:
    _, second = collide(namespace)
    before = set(os.listdir("/dev"))
    with Tap.open("mt0", namespace=second.fd):
        assert set(os.listdir("/dev")) == before


def test_an_fd_of_another_link_is_told_from_the_one_that_is_meant(namespace: Callable[[], Any]) -> None:
    first, second = collide(namespace)
    with Tap.open("mt0", namespace=first.fd) as opened, pytest.raises(ConflictError) as caught:
        tap.check(opened.fds[0], tap.device("mt0", namespace=second.fd))
    assert MAC in caught.value.message
    assert OTHER in caught.value.message


def test_an_fd_whose_link_got_another_mac_is_refused(parent: Any) -> None:
    add(parent)
    meant = tap.device("mt0", namespace=parent.fd)
    parent.links.set_mac(parent.links.find("mt0"), Mac(OTHER))
    with Tap.open("mt0", namespace=parent.fd) as opened, pytest.raises(ConflictError):
        tap.check(opened.fds[0], meant)


def test_an_fd_whose_link_was_deleted_is_not_found(parent: Any) -> None:
    add(parent)
    with Tap.open("mt0", namespace=parent.fd) as opened:
        parent.links.delete(parent.links.find("mt0"))
        with pytest.raises(NotFoundError):
            tap.check(opened.fds[0], opened.device)


def test_a_link_that_goes_while_it_is_opened_leaves_no_fd_open(parent: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    add(parent)
    real = tap.check

    def check(fd: int, device: tap.TapDevice) -> None:
        parent.links.delete(parent.links.find("mt0") or pytest.fail("it was checked twice"))
        real(fd, device)

    monkeypatch.setattr(tap, "check", check)
    with no_fd_leaks(), pytest.raises(NotFoundError):
        Tap.open("mt0", namespace=parent.fd, queues=4)


def test_a_link_that_is_no_macvtap_has_no_device(parent: Any) -> None:
    with pytest.raises(ConflictError) as caught:
        tap.device("nic0", namespace=parent.fd)
    assert "nic0 is no macvtap" in caught.value.message


@pytest.mark.parametrize("name", ["mt9", "../../block", "a" * 16])
def test_a_link_that_is_not_there_has_no_device(parent: Any, name: str) -> None:
    with no_fd_leaks(), pytest.raises((NotFoundError, UsageError)):
        Tap.open(name, namespace=parent.fd)


def test_a_node_is_made_where_there_is_none_and_only_the_links_own_is_removed(
    parent: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(parent)
    monkeypatch.setattr(tap, "DEV", str(tmp_path))
    device = tap.device("mt0", namespace=parent.fd)
    assert device.node() is Node.MISSING
    tap.make_node(device)
    made = os.stat(device.path)
    assert (stat.S_ISCHR(made.st_mode), stat.S_IMODE(made.st_mode), made.st_rdev) == (True, 0o600, device.rdev)
    assert device.node() is Node.RIGHT
    tap.make_node(device)
    tap.remove_node(device)
    assert device.node() is Node.MISSING
    os.symlink("/dev/null", device.path)
    assert device.node() is Node.FOREIGN
    with pytest.raises(ConflictError):
        tap.make_node(device)
    tap.remove_node(device)
    assert os.path.islink(device.path)


def test_a_free_ifindex_is_neither_taken_nor_named_by_a_node() -> None:
    for _ in range(20):
        index = tap.free_index(frozenset())
        assert 1 << 24 <= index < 1 << 25
        assert not os.path.exists(f"/dev/tap{index}")


def test_a_process_that_has_a_macvtap_open_is_found_by_name(parent: Any) -> None:
    add(parent)
    add(parent, "mt1", OTHER)
    first, second = (tap.device(name, namespace=parent.fd) for name in ("mt0", "mt1"))
    assert tap.holders(first, second) == {}
    with Tap.open("mt0", namespace=parent.fd, queues=2):
        [holder] = tap.holders(first, second)[first.rdev]
        assert (holder.pid, list(tap.holders(first, second))) == (os.getpid(), [first.rdev])
        assert str(holder) == f"process {os.getpid()} ({Path('/proc/self/comm').read_text().strip()})"
    assert tap.holders(first) == {}
    assert tap.holders() == {}


def test_who_holds_a_macvtap_that_was_deleted_does_not_hold_the_next_one_of_its_number(parent: Any) -> None:
    add(parent)
    before = tap.device("mt0", namespace=parent.fd)
    with Tap.open("mt0", namespace=parent.fd):
        parent.links.delete(parent.links.find("mt0"))
        add(parent)
        after = tap.device("mt0", namespace=parent.fd)
        if after.rdev != before.rdev:  # another test run took the number
            pytest.skip("the number is somebody else's")
        assert tap.holders(after) == {}
        with Tap.open("mt0", namespace=parent.fd):
            assert [holder.pid for holder in tap.holders(after)[after.rdev]] == [os.getpid()]


@pytest.mark.parametrize(("user", "state"), [("0", "dead"), ("1", "alive"), ("0", "silent")])
def test_an_open_file_of_a_fuse_mount_stops_no_search_for_holders(
    parent: Any, tmp_path: Path, user: str, state: str
) -> None:
    """One whose daemon is dead, is another user's, or does not answer."""
    add(parent)
    device = tap.device("mt0", namespace=parent.fd)
    command = (sys.executable, "-c", HOLD_FUSE, str(tmp_path), user, state)
    with (
        Tap.open("mt0", namespace=parent.fd),
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder,
    ):
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            assert [one.pid for one in tap.holders(device)[device.rdev]] == [os.getpid()]
        finally:
            holder.communicate()
