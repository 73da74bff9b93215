"""NICs whose frames have no virtio-net header before them: flags cleared, and a guest that answers."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from guestnet.kernel import tap
from tests.qemu import generic
from tests.qemu.conftest import GUESTNET, Bare, Host

pytestmark = [pytest.mark.root, pytest.mark.guest]

E1000 = "52:54:00:00:e4:01"
RTL8139 = "52:54:00:00:e4:02"
TAP_NO_PI = 0x1002
PIDFD_GETFD = 438  # the same on every architecture
LIBC = ctypes.CDLL(None, use_errno=True)


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


def test_guests_with_e1000_and_rtl8139_answer_on_taps_without_header(
    host: Host, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    guest = Bare.at(tmp_path, generic.image())
    run = host.start(
        *GUESTNET, "qemu", "run", "--parent", "nic0", "--mac", E1000, "--model", "e1000", "--", *guest.words
    )
    processes.append(run)
    guest.booted(run)
    guest.answers(E1000, "nic0", host)
    words = ("--qmp", str(guest.qmp), "--parent", "nic1", "--mac", RTL8139, "--model", "rtl8139")
    (nic,) = host.guestnet("qemu", "attach", *words, "--json", check=True).json["nics"]
    assert nic["model"] == "rtl8139"
    guest.answers(RTL8139, "nic1", host)
    for mac in (E1000, RTL8139):
        name = f"gn{mac.replace(':', '')}"
        (qemu,) = host.holders(name)
        assert flags_of(qemu, name, host) == [TAP_NO_PI]
    host.guestnet("qemu", "detach", RTL8139, "--qmp", str(guest.qmp), check=True)
    assert guest.run("cat /sys/class/net/*/address")[1].count("52:54:00") == 1
