"""vhost-net and the queues of a macvtap: opened, flagged, handed to QEMU, seen by the guest."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestnet.errors import NotFoundError, UsageError
from guestnet.kernel import vhost
from guestnet.kernel.tap import Tap
from guestnet.kernel.vhost import Vhost
from guestnet.lab.guest import Guest
from guestnet.lab.image import COMMAND_LINE, image, kvm_works
from tests.conftest import Namespace

QUEUES = 4
MAC = "52:54:00:00:44:01"
VIRTIO_F_VERSION_1 = 32

RunGuestnet = Callable[..., object]


@pytest.mark.parametrize("queues", [0, -1, 257])
def test_a_count_that_no_nic_has_is_refused(queues: int) -> None:
    with pytest.raises(UsageError):
        Vhost.open(queues)


@pytest.mark.root
@pytest.mark.kernel_without("vhost_net")
def test_a_host_without_vhost_net_is_told_what_to_do() -> None:
    with pytest.raises(NotFoundError, match="CONFIG_VHOST_NET") as caught:
        Vhost.open(2)
    assert "modprobe vhost_net" in (caught.value.hint or "")


@pytest.mark.root
@pytest.mark.kernel("vhost_net")
def test_vhost_fds_are_the_device_and_are_not_inherited() -> None:
    with Vhost.open(QUEUES) as opened:
        assert len(set(opened.fds)) == QUEUES
        for fd in opened.fds:
            assert vhost.features(fd) >> VIRTIO_F_VERSION_1 & 1
            assert not os.get_inheritable(fd)
            assert os.readlink(f"/proc/self/fd/{fd}") == vhost.PATH


@pytest.fixture
def on_vlan(parent: Namespace, run_guestnet: RunGuestnet) -> Namespace:
    """A macvtap on VLAN 11 of nic0, and 203.0.113.2 in that VLAN at the other end of the cable."""
    answer = run_guestnet("macvtap", "add", "mt0", "--parent", "nic0.11", "--mac", MAC, netns=parent.name)
    assert answer.code == 0, answer  # type: ignore[attr-defined]
    parent.ip("link add link peer0 name far type vlan id 11")
    parent.ip("address add 203.0.113.2/24 dev far")
    parent.ip("link set far up")
    return parent


@pytest.fixture
def boot(tmp_path: Path) -> Iterator[Callable[[Tap, Vhost], Guest]]:
    """Boots a guest under a bare QEMU with one NIC on these fds."""
    running: list[int] = []

    def start(taps: Tap, kernel: Vhost) -> Guest:
        (tmp_path / "run/lab").mkdir(parents=True)
        (tmp_path / "log-libvirt/qemu").mkdir(parents=True)
        guest = Guest(name="bare", node="none", own=tmp_path)
        made = image()
        fds, vhostfds = (":".join(map(str, opened)) for opened in (taps.fds, kernel.fds))
        pid = tmp_path / "pid"
        # fmt: off
        words = [
            "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35",
            "-accel", "kvm" if kvm_works(made) else "tcg", "-smp", str(QUEUES), "-m", "128",
            "-kernel", str(made.kernel), "-initrd", str(made.initramfs), "-append", COMMAND_LINE,
            "-serial", f"file:{guest.console}", "-serial", f"unix:{guest.port},server=on,wait=off",
            "-netdev", f"tap,id=n0,fds={fds},vhost=on,vhostfds={vhostfds}",
            "-daemonize", "-pidfile", str(pid),  # it returns when its sockets are there
            "-device", f"virtio-net-pci,netdev=n0,mac={MAC},mq=on,vectors={2 * QUEUES + 2}",
        ]
        # fmt: on
        subprocess.run(words, stdin=subprocess.DEVNULL, pass_fds=(*taps.fds, *kernel.fds), check=True, timeout=60)
        running.append(os.pidfd_open(int(pid.read_text())))
        return guest

    yield start
    for qemu in running:
        signal.pidfd_send_signal(qemu, signal.SIGKILL)
        select.select([qemu], [], [], 30)
        os.close(qemu)


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.kernel("8021q", "vhost_net")
def test_a_guest_on_a_vlan_has_its_queues_in_the_kernel(
    on_vlan: Namespace, boot: Callable[[Tap, Vhost], Guest]
) -> None:
    with ExitStack() as stack:
        taps = stack.enter_context(Tap.open("mt0", namespace=on_vlan.fd, queues=QUEUES))
        kernel = stack.enter_context(Vhost.open(QUEUES))
        guest = boot(taps, kernel)
    guest.wait_ready(timeout=240)
    name = guest.wait_nic(MAC)
    status, queues = guest.run(f"ls /sys/class/net/{name}/queues")
    assert status == 0, queues
    assert sorted(queues.split()) == sorted(f"{way}-{number}" for way in ("rx", "tx") for number in range(QUEUES))
    assert guest.run(f"ip link set {name} up && ip addr add 203.0.113.1/24 dev {name}")[0] == 0
    assert guest.run("ping -c 3 -W 5 203.0.113.2", timeout=60)[0] == 0
