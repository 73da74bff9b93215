"""NICs whose frames have no virtio-net header before them: the flags of their taps, and a guest that answers."""

import ctypes
import hashlib
import os
import shlex
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestnet.kernel import tap
from tests.qemu import generic
from tests.qemu.conftest import GUESTNET, NETWORKS, Bare, Host

pytestmark = [pytest.mark.root, pytest.mark.guest]

E1000 = "52:54:00:00:e4:01"
RTL8139 = "52:54:00:00:e4:02"
BY_ARGS = "52:54:00:00:e4:03"
BY_HELPER = "52:54:00:00:e4:04"
TAP_NO_PI, VNET_HEADER = 0x1002, 0x4000
PAYLOAD = bytes(range(256)) * 800
PIDFD_GETFD = 438  # the same on every architecture
LIBC = ctypes.CDLL(None, use_errno=True)


class Answer(socketserver.StreamRequestHandler):
    """Answers a request for whatever file with the payload."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(b"HTTP/1.0 200 OK\r\n\r\n" + PAYLOAD)


@contextmanager
def payload(host: Host) -> Iterator[int]:
    """A web server at the far end; gives its port. It sends large segments whose checksum the NIC is to fill in."""
    with host.call(lambda: socketserver.TCPServer(("", 0), Answer)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def flags_of(pid: int, name: str, host: Host) -> list[int]:
    """The flags of a macvtap's queues in that process."""
    device = tap.device(name, namespace=host.fd)
    process = os.pidfd_open(pid)
    found = []
    try:
        for entry in os.listdir(f"/proc/{pid}/fd"):
            if os.stat(f"/proc/{pid}/fd/{entry}").st_rdev == device.rdev:
                copy = LIBC.syscall(ctypes.c_long(PIDFD_GETFD), process, int(entry), 0)
                try:
                    found.append(tap.identity(copy)[2] & 0x5002)
                finally:
                    os.close(copy)
    finally:
        os.close(process)
    return found


def test_a_guest_with_e1000_and_rtl8139_answers_by_run_attach_args_and_helper(
    host: Host, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """run and attach leave the header out; args and helper, which cannot, leave it to QEMU to take it off."""
    guest = Bare.at(tmp_path, generic.image())
    run = (*GUESTNET, "qemu", "run", "--parent", "nic0", "--mac", E1000, "--model", "e1000", "--")
    args = (*GUESTNET, "qemu", "args", "--parent", "nic0", "--mac", BY_ARGS, "--model", "e1000")
    helper = f"tap,id=n0,helper={shlex.join([*GUESTNET, 'qemu', 'helper'])} --parent nic1"
    asked = ("-netdev", helper, "-device", f"rtl8139,netdev=n0,mac={BY_HELPER}")
    script = f'nic=$({shlex.join(args)}) && eval "exec $1 $nic"'
    started = host.start("sh", "-c", script, "sh", shlex.join([*run, *guest.words, *asked]))
    processes.append(started)
    guest.booted(started)
    words = ("--qmp", str(guest.qmp), "--parent", "nic1", "--mac", RTL8139, "--model", "rtl8139")
    (nic,) = host.guestnet("qemu", "attach", *words, "--json", check=True).json["nics"]
    assert nic["model"] == "rtl8139"
    (qemu,) = host.holders(f"gn{E1000.replace(':', '')}")
    with payload(host) as port:
        for mac, cable, flags in (
            (E1000, "nic0", TAP_NO_PI),
            (BY_ARGS, "nic0", TAP_NO_PI | VNET_HEADER),
            (RTL8139, "nic1", TAP_NO_PI),
            (BY_HELPER, "nic1", TAP_NO_PI | VNET_HEADER),
        ):
            guest.answers(mac, cable, host)
            assert flags_of(qemu, f"gn{mac.replace(':', '')}", host) == [flags]
            status, said = guest.run(f"wget -q -O - http://{NETWORKS[cable]}.2:{port}/ | sha256sum")
            assert (status, said.split()[0]) == (0, hashlib.sha256(PAYLOAD).hexdigest())
            name = guest.wait_nic(mac)
            guest.run(f"ip addr flush dev {name}; ip link set {name} down")  # the next one speaks for itself
    host.guestnet("qemu", "detach", RTL8139, "--qmp", str(guest.qmp), check=True)
    assert guest.run("cat /sys/class/net/*/address")[1].count("52:54:00") == 3
