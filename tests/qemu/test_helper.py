"""guestnet qemu helper: QEMU, or libvirt for an ordinary user, asks for a tap, and it goes when it is closed."""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from guestnet.guest.qmp import Monitor, RefusedError
from guestnet.kernel import lock, tap
from guestnet.lab.image import COMMAND_LINE, Image
from guestnet.model import Owner
from tests.conftest import REPO, as_user
from tests.qemu.conftest import GUESTNET, Bare, Host, listens, until

pytestmark = pytest.mark.root

MAC = "52:54:00:00:e3:01"
LEARNED = "52:54:00:00:e3:02"
OWN = "52:54:00:00:e3:03"
HELPER = shlex.join([*GUESTNET, "qemu", "helper"])


def netdev(helper: str = f"{HELPER} --parent nic0", name: str = "n0") -> str:
    """The -netdev option of a helper."""
    return f"tap,id={name},helper={helper}"


@pytest.fixture(scope="module")
def guest(shared_host: Host, guest_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A guest that was started with a NIC whose tap a helper made."""
    made = Bare.at(tmp_path_factory.mktemp("bare"), guest_image)
    device = ("-netdev", netdev(), "-device", f"virtio-net-pci,netdev=n0,mac={MAC},bus=pcie.0")
    with shared_host.start(*made.words, *device) as qemu:
        try:
            made.booted(qemu)
            yield made
        finally:
            qemu.kill()
    until(lambda: not shared_host.ours())


def watchers(name: str) -> list[int]:
    """The processes that watch over a link."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"guestnet.watcher" in words and name.encode() in words:
                found.append(int(entry.name))
    return found


# Guests that answer


@pytest.mark.guest
def test_a_guest_answers_with_the_mac_that_qemus_own_words_give_it(shared_host: Host, guest: Bare) -> None:
    (link,) = (link for link in shared_host.ours().values() if link.mac == MAC)
    assert (link.name, link.alias) == (f"gn{MAC.replace(':', '')}", "guestnet:1:qemu:bare")
    guest.answers(MAC, "nic0", shared_host)


@pytest.mark.guest
def test_a_guest_whose_mac_nobody_could_say_answers_with_what_it_sends(shared_host: Host, guest: Bare) -> None:
    host = shared_host
    with Monitor(str(guest.qmp)) as qemu:
        helper = f"{HELPER} --parent nic1"
        qemu.execute("netdev_add", type="tap", id="n1", helper=helper)
        qemu.execute("device_add", driver="virtio-net-pci", id="d1", netdev="n1", mac=LEARNED, bus="rp1")
        (name,) = (link.name for link in host.ours().values() if link.mac != MAC)
        guest.answers(LEARNED, "nic1", host)
        assert host.ours()[name].mac == LEARNED
        guest.answers(LEARNED, "nic1", host, host=3)
        qemu.unplug("d1", 30)
        qemu.execute("netdev_del", id="n1")
    until(lambda: name not in host.ours())


@pytest.mark.guest
def test_a_watcher_that_is_killed_leaves_its_link_to_the_next_call(shared_host: Host, guest: Bare) -> None:
    host = shared_host
    helper = f"{HELPER} --parent nic1 --mac {LEARNED}"
    name = f"gn{LEARNED.replace(':', '')}"
    with Monitor(str(guest.qmp)) as qemu:
        qemu.execute("netdev_add", type="tap", id="n1", helper=helper)
        (watcher,) = watchers(name)
        os.kill(watcher, signal.SIGKILL)
        until(lambda: not watchers(name))
        qemu.execute("netdev_del", id="n1")
    assert name in host.ours()
    host.guestnet("qemu", "run", "--parent", "nic1", "--", "true", check=True)
    assert name not in host.ours()


@pytest.mark.guest
def test_a_macvtap_that_is_deleted_under_its_guest_ends_its_watcher(shared_host: Host, guest: Bare) -> None:
    name = f"gn{LEARNED.replace(':', '')}"
    with Monitor(str(guest.qmp)) as qemu:
        qemu.execute("netdev_add", type="tap", id="n1", helper=f"{HELPER} --parent nic1 --mac {LEARNED}")
        assert watchers(name)
        shared_host.ip(f"link delete {name}")
        until(lambda: not watchers(name))
        qemu.execute("netdev_del", id="n1")


# A libvirt of an ordinary user


WRAPPER = """
#define _GNU_SOURCE
#include <stdlib.h>
#include <unistd.h>

int main(int count, char **words)
{
    static char *line[64] = { HELPER };
    int end = 0;
    while (line[end]) end++;
    for (int i = 1; i < count && end < 63; i++) line[end++] = words[i];
    if (setresgid(0, 0, 0) || setresuid(0, 0, 0) || setenv("PYTHONPATH", REPO, 1)) return 1;
    execv(line[0], line);
    return 1;
}
"""

DOMAIN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>128</memory>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <kernel>{kernel}</kernel>
    <initrd>{initramfs}</initrd>
    <cmdline>{line}</cmdline>
  </os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <interface type='bridge'>
      <mac address='{mac}'/><source bridge='nic0'/><model type='virtio'/>
    </interface>
    <serial type='file'><source path='{console}'/><target type='isa-serial' port='0'/></serial>
    <serial type='unix'><source mode='bind' path='{port}'/><target type='isa-serial' port='1'/></serial>
  </devices>
</domain>
"""


@pytest.fixture
def own() -> Iterator[Path]:
    """A directory that every user may go into: pytest closes those above tmp_path whenever it starts."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.mark.guest
def test_a_guest_of_an_ordinary_users_libvirt_answers(
    host: Host, guest_image: Image, own: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """The bridge's name is the parent; what a setuid program does here, a rule for sudo does elsewhere."""
    if shutil.which("gcc") is None:
        pytest.fail("gcc is needed to make a setuid program")
    words = ", ".join(f'"{word}"' for word in shlex.split(HELPER))
    helper = own / "helper"
    compile_it = ["gcc", "-x", "c", "-", "-o", str(helper), f"-DHELPER={words}", f'-DREPO="{REPO}"']
    subprocess.run(compile_it, input=WRAPPER, text=True, check=True, timeout=60)
    helper.chmod(0o4755)
    places = {f"XDG_{name}": own / name.lower() for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME")}
    guest = Bare.at(own / "guest", guest_image, name="s1")
    for place in (*places.values(), own / "config_home/libvirt", *guest.own.rglob("*"), guest.own):
        place.mkdir(exist_ok=True)
        os.chown(place, 65534, 65534)
    (own / "config_home/libvirt/qemu.conf").write_text(f'bridge_helper = "{helper}"\n', encoding="utf-8")
    os.chown(own / "config_home/libvirt", 65534, 65534)
    environment = {name: str(place) for name, place in places.items()} | {"HOME": str(own)}
    user = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--")

    daemon = host.start(*user, "libvirtd", env=environment, stderr=subprocess.DEVNULL)
    processes.append(daemon)
    sockets = own / "runtime_dir/libvirt/libvirt-sock"
    until(sockets.exists)

    def virsh(*words: str) -> None:
        line = (*user, "virsh", "-q", "-c", "qemu:///session", *words)
        with host.start(*line, env=environment) as process:
            _, err = process.communicate(timeout=90)
        assert process.returncode == 0, err

    xml = DOMAIN.format(
        name="s1", mac=LEARNED, kernel=guest_image.kernel, initramfs=guest_image.initramfs, line=COMMAND_LINE,
        console=guest.console, port=guest.port,
    )  # fmt: skip
    (own / "s1.xml").write_text(xml, encoding="utf-8")
    virsh("create", str(own / "s1.xml"))
    try:
        guest.booted()
        guest.answers(LEARNED, "nic0", host)
        (link,) = host.ours().values()
        assert link.mac == LEARNED
        (monitor,) = own.rglob("monitor.sock")
        elsewhere = own / "qmp"
        elsewhere.hardlink_to(monitor)
        for path in (monitor, elsewhere):
            answer = host.guestnet("qemu", "attach", "--qmp", str(path), "--parent", "nic1")
            assert (answer.code, "is a monitor of a libvirt guest" in answer.err) == (5, True), answer
    finally:
        virsh("destroy", "s1")
    until(lambda: not host.ours())


# The protocol itself


@pytest.fixture
def ask(host: Host, processes: list[subprocess.Popen[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts the helper as QEMU would; what is sent comes out of ``ours``."""

    def start(*words: str, fd: int, program: tuple[str, ...] = (*GUESTNET, "qemu", "helper")) -> subprocess.Popen[str]:
        line = (*program, *words, "--use-vnet", f"--fd={fd}", "--br=nic0")
        processes.append(host.start(*line, pass_fds=(fd,)))
        return processes[-1]

    return start


Ask = Callable[..., subprocess.Popen[str]]


def test_what_is_sent_is_one_tap_with_a_header_and_the_bridge_is_the_parent(host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper = ask("--mac", OWN, fd=theirs.fileno())
        _, fds, _, _ = socket.recv_fds(ours, 1, 4)
        assert helper.wait(30) == 0
    (fd,) = fds
    name, mac, flags = tap.identity(fd)
    assert (name, mac, flags & 0x5002) == (f"gn{OWN.replace(':', '')}", OWN, 0x5002)
    assert host.ours()[name].parent == next(link.index for link in host.links.all() if link.name == "nic0")
    (watcher,) = watchers(name)
    assert not [entry for entry in os.listdir(f"/proc/{watcher}/fd") if is_tap(watcher, entry)]
    os.close(fd)
    until(lambda: not host.ours())
    until(lambda: not watchers(name))


def is_tap(pid: int, fd: str) -> bool:
    with suppress(FileNotFoundError):  # closed meanwhile: it looks around
        return bool(re.search("/tap[0-9]", os.readlink(f"/proc/{pid}/fd/{fd}")))
    return False


def test_an_fd_that_lives_on_in_another_process_keeps_the_link(host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ask("--mac", OWN, fd=theirs.fileno())
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 4)
    heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(fd,))
    name, _, _ = tap.identity(fd)
    os.close(fd)
    try:
        until(lambda: host.holders(name) == [heir.pid])
        assert name in host.ours()
    finally:
        heir.communicate(timeout=30)
    until(lambda: not host.ours())


def test_who_hangs_up_gets_no_tap_and_no_link_is_left(host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.close()
        helper = ask("--mac", OWN, fd=theirs.fileno())
        _, err = helper.communicate(timeout=30)
    assert (helper.returncode, "does not take the tap" in err) == (1, True), err
    assert not host.ours()


@pytest.mark.parametrize("moment", ["_watch", "socket.send_fds", "was_taken"])
def test_a_helper_that_is_killed_leaves_nothing_that_the_next_call_does_not_take(
    moment: str, host: Host, ask: Ask
) -> None:
    code = (
        "import os, signal; from guestnet.qemu import helper; "
        f"helper.{moment} = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL); "
        "from guestnet.cli import main; main()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper = ask("--mac", OWN, fd=theirs.fileno(), program=(sys.executable, "-c", code, "qemu", "helper"))
        assert helper.wait(30) == -signal.SIGKILL
    if moment == "_watch":
        assert host.ours()
        host.guestnet("qemu", "run", "--parent", "nic1", "--", "true", check=True)
    until(lambda: not host.ours())


def test_a_helper_that_is_killed_while_it_waits_leaves_nothing(host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, lock.held():
        helper = ask("--mac", OWN, fd=theirs.fileno())
        assert helper.stderr is not None
        assert "waiting for another guestnet" in helper.stderr.readline()
        helper.kill()
        helper.wait(30)
    assert not host.ours()


def test_qemu_is_told_when_the_helper_fails(host: Host, tmp_path: Path, processes: list[subprocess.Popen[str]]) -> None:
    path = tmp_path / "qmp"
    listen = ("-qmp", f"unix:{path},server=on,wait=off")
    processes.append(host.start("qemu-system-x86_64", "-machine", "none", "-display", "none", *listen))
    until(lambda: listens(path))
    with Monitor(str(path)) as qemu, pytest.raises(RefusedError, match="helper failed"):
        qemu.execute("netdev_add", type="tap", id="n0", helper=f"{HELPER} --parent nic7")
    assert not host.ours()


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, (), "this is for QEMU to call"),
        (2, ("--fd=77",), "fd 77 is not open"),
        (2, ("--fd=0",), "fd 0 is no unix socket"),
        (2, ("--fd=x",), "is not an fd"),
        (2, ("--fd=0", "--queues", "4"), "--queues"),
    ],
)
def test_a_call_that_is_not_qemus_is_refused(code: int, words: tuple[str, ...], said: str, host: Host) -> None:
    answer = host.guestnet("qemu", "helper", "--parent", "nic0", *words)
    assert answer.code == code
    assert said in answer.err


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (3, ("--parent", "nic7"), "there is no interface nic7"),
        (5, ("--mac", "52:54:00:aa:00:01"), "is the MAC of nic0 itself"),
        (2, ("--mode", "source"), "mode source"),
    ],
)
def test_what_cannot_be_made_is_refused(code: int, words: tuple[str, ...], said: str, host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper = ask(*words, fd=theirs.fileno())
        _, err = helper.communicate(timeout=30)
    assert (helper.returncode, said in err) == (code, True), err
    assert not host.ours()


def test_an_ordinary_user_is_told_what_an_administrator_can_do(host: Host, ask: Ask) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        program = (*as_user(65534), *GUESTNET, "qemu", "helper")
        helper = ask("--mac", OWN, fd=theirs.fileno(), program=program)
        _, err = helper.communicate(timeout=30)
    assert (helper.returncode, "As an ordinary user" in err) == (4, True), err


def test_a_link_that_no_watcher_can_watch_is_made_all_the_same(host: Host, ask: Ask) -> None:
    code = (
        "from guestnet.kernel.handover import LastClose; from guestnet.errors import GuestnetError\n"
        "def full(*_): raise GuestnetError('too many')\n"
        "LastClose.of = full\n"
        "from guestnet.cli import main; main()"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        helper = ask("--mac", OWN, fd=theirs.fileno(), program=(sys.executable, "-c", code, "qemu", "helper"))
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 4)
        _, err = helper.communicate(timeout=30)
    os.close(fd)
    assert helper.returncode == 0
    assert "will be left when QEMU ends" in err
    assert [link.owner for link in host.ours().values()] == [Owner.QEMU]
    host.guestnet("qemu", "run", "--parent", "nic1", "--", "true", check=True)
    assert not host.ours()
