"""`guestnet qemu attach` against the same by scripts of thirty lines, and where its time goes.

Runs a guest under a bare QEMU in a network namespace of its own: python tests/bench/hotplug.py
"""

import os
import secrets
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from guestnet.lab.image import image
from tests.bench.run import GUESTNET, ROUNDS, behind, in_turn, table
from tests.qemu.conftest import Bare, until, watchers_in

MAC = "52:54:00:be:4d:01"

BY_HAND = """
import json, os, socket, subprocess, sys
path, mac = sys.argv[1:]
run = subprocess.check_call
run(["ip", "link", "add", "link", "nic0", "name", "hand0", "address", mac, "type", "macvtap", "mode", "bridge"])
run(["ip", "link", "set", "hand0", "up"])
with open("/sys/class/net/hand0/ifindex") as file:
    tap = os.open(f"/dev/tap{int(file.read())}", os.O_RDWR)
qmp = socket.socket(socket.AF_UNIX)
qmp.connect(path)
answers = qmp.makefile()

def say(command, fds=(), **arguments):
    data = json.dumps({"execute": command, "arguments": arguments}).encode()
    socket.send_fds(qmp, [data], list(fds))
    while True:
        answer = json.loads(answers.readline())
        if "error" in answer:
            sys.exit(answer["error"]["desc"])
        if "return" in answer:
            return answer["return"]

answers.readline()
say("qmp_capabilities")
say("getfd", [tap], fdname="hand0")
say("netdev_add", type="tap", id="gnhand0", fd="hand0")
say("device_add", driver="virtio-net-pci", id="gnhand0", netdev="gnhand0", mac=mac, bus="rp1")
"""

BY_LIBRARY = """
import asyncio, os, subprocess, sys
from qemu.qmp import QMPClient
path, mac = sys.argv[1:]

async def main():
    run = subprocess.check_call
    run(["ip", "link", "add", "link", "nic0", "name", "hand0", "address", mac, "type", "macvtap", "mode", "bridge"])
    run(["ip", "link", "set", "hand0", "up"])
    with open("/sys/class/net/hand0/ifindex") as file:
        tap = os.open(f"/dev/tap{int(file.read())}", os.O_RDWR)
    qmp = QMPClient("hand")
    await qmp.connect(path)
    qmp.send_fd_scm(tap)
    await qmp.execute("getfd", {"fdname": "hand0"})
    await qmp.execute("netdev_add", {"type": "tap", "id": "gnhand0", "fd": "hand0"})
    nic = {"driver": "virtio-net-pci", "id": "gnhand0", "netdev": "gnhand0", "mac": mac, "bus": "rp1"}
    await qmp.execute("device_add", nic)
    await qmp.disconnect()

asyncio.run(main())
"""

DETACH_BY_HAND = """
import subprocess, sys
from guestnet.guest.qmp import Monitor
with Monitor(sys.argv[1]) as qemu:
    qemu.unplug("gnhand0", 30)
    qemu.execute("netdev_del", id="gnhand0")
subprocess.check_call(["ip", "link", "delete", "hand0"])
"""


def main() -> None:
    """Make the namespace, and measure in it."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    name = f"gnbench-{secrets.token_hex(3)}"
    ip = ("ip", "-n", name)
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run([*ip, "link", "add", "nic0", "type", "veth", "peer", "name", "peer0"], check=True)
        for link in ("nic0", "peer0"):
            subprocess.run([*ip, "link", "set", link, "up"], check=True)
        # with the namespace's own /sys, which the script looks into
        subprocess.run(["ip", "netns", "exec", name, sys.executable, __file__, "--inside"], check=True)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def inside() -> None:
    """Boot the guest, and measure."""
    with tempfile.TemporaryDirectory() as own:
        guest = Bare.at(Path(own), image())
        with subprocess.Popen(guest.words, stdin=subprocess.DEVNULL, text=True) as qemu:
            try:
                guest.booted(qemu)
                attach(str(guest.qmp))
            finally:
                qemu.kill()


def attach(path: str) -> None:
    """One NIC of one queue, plugged in by either and taken away again, unmeasured."""
    by_hand, by_library = "a script of 30 lines: ip, a socket, JSON", "the same by qemu.qmp"
    by_us = "guestnet qemu attach"
    medians = in_turn(
        {
            by_hand: [sys.executable, "-c", BY_HAND, path, MAC],
            by_library: [sys.executable, "-c", BY_LIBRARY, path, MAC],
            by_us: [*GUESTNET, "qemu", "attach", "--qmp", path, "--parent", "nic0", "--mac", MAC],
        },
        {
            by_hand: [sys.executable, "-c", DETACH_BY_HAND, path],
            by_library: [sys.executable, "-c", DETACH_BY_HAND, path],
            by_us: [sys.executable, __file__, "--detach", path],
        },
    )
    table("attach to a running QEMU", medians, by_hand, "guestnet at most 3x")
    imports = {
        "interpreter": "pass",
        "+ command line (typer)": "import guestnet.cli, guestnet.cli.qemu",
        "+ plans, netlink": "import guestnet.cli, guestnet.cli.qemu, guestnet.qemu, guestnet.apply.links",
        "+ asyncio, qemu.qmp": "import guestnet.cli, guestnet.cli.qemu, guestnet.apply.links, guestnet.qemu.hotplug",
    }
    alike = "import gc; gc.disable(); "  # as the program does
    starts = in_turn({name: [sys.executable, "-c", alike + code] for name, code in imports.items()})
    parts = [work(path) for _ in range(ROUNDS)]
    print("  where it goes:")
    before = 0.0
    for name, ms in starts.items():
        print(f"    {name:<56} {ms - before:8.1f} ms")
        before = ms
    for name in parts[0]:
        print(f"    {name:<56} {statistics.median(part[name] for part in parts):8.1f} ms")


def detach(path: str) -> None:
    """Take away what guestnet plugged in, and wait for the end of its watcher: the next one's time is not to pay it."""
    from guestnet.qemu import hotplug

    hotplug.detach(path, (), hotplug.How(), everything=True)
    here = os.open("/proc/self/ns/net", os.O_RDONLY)
    until(lambda: not watchers_in(here))


def work(path: str) -> dict[str, float]:
    """One attach within this process: the ms spent behind each door."""
    from guestnet.guest.qmp import Monitor
    from guestnet.kernel import link, tap
    from guestnet.model import Mac, Request
    from guestnet.qemu import Options, hotplug

    wanted = (Request(parent="nic0", mac=Mac(MAC)),)
    doors = (
        ("netlink, /sys, /dev", link.Links, ("__init__", "all", "find", "add", "_change", "quiet", "wireless")),
        ("netlink, /sys, /dev", tap, ("device", "device_of", "_open", "_set_flags")),
        ("who has the tap open (/proc)", tap, ("holders",)),
        ("the watcher, started", hotplug, ("_watch",)),
        ("QMP", Monitor, ("__init__", "execute", "several", "give_fd", "close")),
    )
    spent_at = behind(doors, lambda: hotplug.attach(path, wanted, Options(), hotplug.How()), rest="plan, the rest")
    detach(path)
    return spent_at


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["--inside"]:
            inside()
        case ["--detach", socket]:
            detach(socket)
        case _:
            main()
