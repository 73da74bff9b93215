"""guestnet qemu helper: QEMU, or libvirt for an ordinary user, asks for a tap, and it goes when it is closed."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from guestnet.guest.qmp import Monitor, RefusedError
from guestnet.kernel import lock, tap
from guestnet.lab.image import COMMAND_LINE, Image
from guestnet.model import Mac, Mode, Owner
from tests.conftest import REPO, as_user
from tests.qemu.conftest import GUESTNET, Bare, Host, bare, until

pytestmark = pytest.mark.root

MAC = "52:54:00:00:e3:01"
LEARNED = "52:54:00:00:e3:02"
OWN = "52:54:00:00:e3:03"
HELPER = shlex.join([*GUESTNET, "qemu", "helper"])


def nic(mac: str, name: str = "n0", helper: str = f"{HELPER} --parent nic0") -> tuple[str, ...]:
    """QEMU's options for a NIC whose tap a helper makes."""
    return ("-netdev", f"tap,id={name},helper={helper}", "-device", f"virtio-net-pci,netdev={name},mac={mac}")


@pytest.fixture(scope="module")
def guest(shared_host: Host, guest_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bare]:
    """A guest that was started with a NIC whose tap a helper made."""
    made = Bare.at(tmp_path_factory.mktemp("bare"), guest_image)
    with shared_host.start(*made.words, *nic(MAC)) as qemu:
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


# Several NICs


def test_nics_whose_helpers_have_the_same_words_get_a_macvtap_each_and_a_rival_gets_none(
    host: Host, processes: list[subprocess.Popen[str]]
) -> None:
    qemu = host.start(*bare("-S", *nic(OWN, "n0"), *nic(LEARNED, "n1")))
    processes.append(qemu)
    until(lambda: is_open(host, OWN, qemu) and is_open(host, LEARNED, qemu))
    both = set(host.ours())
    host.guestnet("macvtap", "add", "mt0", "--parent", "nic1", "--mac", MAC, check=True)
    for mac, taken in ((LEARNED, Mac(LEARNED).ifname), (MAC, "mt0")):
        rival = host.start(*bare("-S", *nic(mac)))
        processes.append(rival)
        _, err = rival.communicate(timeout=30)
        assert (rival.returncode, f"{mac} is the MAC of {taken} already" in err) == (1, True), err
    assert set(host.ours()) == both
    qemu.kill()
    until(lambda: not host.ours())


# An ordinary user


PAGE = (REPO / "docs/qemu.md").read_text(encoding="utf-8")
RULES = "\n".join(re.findall(r"^ *((?:Defaults!|%kvm ).*)$", PAGE, re.MULTILINE)) + "\n"
(HELPER_BY_SUDO,) = re.findall(r"helper=(sudo [^']*)'", PAGE)
(SCRIPT,) = re.findall(r"^```sh\n(#!/bin/sh\nexec sudo .*\n)```", PAGE, re.MULTILINE)
USER = ("setpriv", "--reuid=65534", "--regid=65534", "--groups=65534", "--")
WITH_RULES = 'mount --bind "$0" /etc/sudoers && exec "$@"'
"""For a shell in a mount namespace of its own: the machine's own rules have no say."""


@dataclass(frozen=True)
class Member:
    """An ordinary user for whom root has set up what docs/qemu.md says, with names of this machine."""

    own: Path

    def named(self, text: str, *, parent: str = "nic0") -> str:
        """The words of the page as they are here."""
        text = text.replace("/usr/bin/guestnet", str(self.own / "guestnet")).replace("%kvm", "%nogroup")
        return text.replace(r"ens3\.11", parent).replace("ens3.11", parent) if parent else text

    def words(self, *command: str, rules: str = "sudoers") -> list[str]:
        """The command line with which the user runs a command."""
        return ["unshare", "--mount", "sh", "-c", WITH_RULES, str(self.own / rules), *USER, *command]


@pytest.fixture
def member() -> Iterator[Member]:
    """The user, with a directory that every user may go into: pytest closes those above tmp_path."""
    with tempfile.TemporaryDirectory() as made:
        user = Member(Path(made))
        files = {
            "guestnet": (0o755, f'#!/bin/sh\nPYTHONPATH={REPO} exec {shlex.join(GUESTNET)} "$@"\n'),
            "helper": (0o755, user.named(SCRIPT)),
            "sudoers": (0o440, "Defaults use_pty\n" + user.named(RULES)),  # as Debian has it
            "sudoers-of-the-page": (0o440, user.named(RULES, parent="")),
        }
        for name, (mode, text) in files.items():
            (user.own / name).write_text(text, encoding="utf-8")
            (user.own / name).chmod(mode)
        user.own.chmod(0o755)
        yield user


ASKED = (  # by QEMU 7.2 (net_bridge_run_helper), and by libvirt 9.0 for a model with a header and one without
    "qemu helper --parent ens3.11 --use-vnet --fd=24 --br=br0",
    "qemu helper --use-vnet --br=ens3.11 --fd=24",
    "qemu helper --br=ens3.11 --fd=24",
)
TRY = 'while read -r line; do sudo -n -l "$0" $line >/dev/null 2>&1 && printf "%s\n" "$line"; done'


def test_the_rules_for_sudo_let_in_the_words_of_qemu_and_of_libvirt_and_no_other(member: Member) -> None:
    more = ("--parent ens4", "--parent=ens4", "--mode passthru", "--vlan 12", "*")
    words = [line.split() for line in ASKED]
    lines = {" ".join((*line[:at], one, *line[at:])) for line in words for at in range(len(line) + 1) for one in more}
    lines |= {line.replace("ens3.11", other) for line in ASKED for other in ("ens4", "ens3", "ens3x11", "ens3.112")}
    lines |= {line.replace("=24", other) for line in ASKED for other in ("=", "=x", "=2 4", "=24 --mode=vepa", " 24")}
    lines |= {line.replace("helper", other) for line in ASKED for other in ("run", "args", "")} | {"", "qemu"}
    command = member.words("sh", "-c", TRY, str(member.own / "guestnet"), rules="sudoers-of-the-page")
    done = subprocess.run(
        command, input="\n".join((*ASKED, *sorted(lines))), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.splitlines(), done.stderr) == ([*ASKED], "")


def test_a_qemu_of_an_ordinary_user_gets_its_tap_by_sudo(
    host: Host, member: Member, processes: list[subprocess.Popen[str]]
) -> None:
    by_sudo = member.named(HELPER_BY_SUDO)
    qemu = host.start(*member.words(*bare("-S", *nic(OWN, helper=by_sudo))))
    processes.append(qemu)
    until(lambda: is_open(host, OWN, qemu))
    more = host.start(*member.words(*bare("-S", *nic(LEARNED, helper=f"{by_sudo} --mode passthru"))))
    processes.append(more)
    assert "a password is required" in more.communicate(timeout=30)[1]
    assert [(link.mac, link.mode) for link in host.ours().values()] == [(OWN, Mode.BRIDGE)]
    qemu.kill()
    until(lambda: not host.ours())


def is_open(host: Host, mac: str, qemu: subprocess.Popen[str]) -> bool:
    """Whether that QEMU has the macvtap of that MAC open, and nobody else."""
    assert qemu.poll() is None, qemu.communicate()
    names = [link.name for link in host.ours().values() if link.mac == mac]
    return bool(names) and host.holders(names[0]) == [qemu.pid]


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


@pytest.mark.guest
def test_a_guest_of_an_ordinary_users_libvirt_answers(
    host: Host, guest_image: Image, member: Member, processes: list[subprocess.Popen[str]]
) -> None:
    own = member.own
    places = {f"XDG_{name}": own / name.lower() for name in ("RUNTIME_DIR", "CONFIG_HOME", "CACHE_HOME", "DATA_HOME")}
    guest = Bare.at(own / "guest", guest_image, name="s1")
    for place in (*places.values(), own / "config_home/libvirt", *guest.own.rglob("*"), guest.own):
        place.mkdir(exist_ok=True)
        os.chown(place, 65534, 65534)
    (own / "config_home/libvirt/qemu.conf").write_text(f'bridge_helper = "{own}/helper"\n', encoding="utf-8")
    os.chown(own / "config_home/libvirt", 65534, 65534)
    environment = {name: str(place) for name, place in places.items()} | {"HOME": str(own)}
    daemon = host.start(*member.words("libvirtd"), env=environment, stderr=subprocess.DEVNULL)
    processes.append(daemon)
    sockets = own / "runtime_dir/libvirt/libvirt-sock"
    until(sockets.exists)

    def virsh(*words: str) -> None:
        line = (*USER, "virsh", "-q", "-c", "qemu:///session", *words)
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


@pytest.mark.parametrize(
    ("words", "made"),
    [
        (("--mac", OWN, "--mode", "vepa"), (OWN, Mode.VEPA, 1500)),
        (("--mode", "passthru"), ("52:54:00:aa:00:01", Mode.PASSTHRU, 1500)),
        (("--mac", OWN, "--mtu", "1400"), (OWN, Mode.BRIDGE, 1400)),
    ],
)
def test_the_helpers_own_words_say_what_is_made(
    words: tuple[str, ...], made: tuple[str, Mode, int], host: Host, ask: Ask
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ask(*words, fd=theirs.fileno())
        _, (fd,), _, _ = socket.recv_fds(ours, 1, 4)
    (link,) = host.ours().values()
    assert (link.mac, link.mode, link.mtu) == made
    assert tap.identity(fd)[:2] == (link.name, link.mac)
    os.close(fd)
    until(lambda: not host.ours())


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


@pytest.mark.parametrize("moment", ["watching.watch", "socket.send_fds", "was_taken"])
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
    if moment == "watching.watch":
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


def test_qemu_is_told_when_the_helper_fails(host: Host, qemu: Callable[..., Path]) -> None:
    with Monitor(str(qemu())) as monitor, pytest.raises(RefusedError, match="helper failed"):
        monitor.execute("netdev_add", type="tap", id="n0", helper=f"{HELPER} --parent nic7")
    assert not host.ours()


def test_a_qemu_that_may_open_no_more_files_leaves_no_link(
    host: Host, qemu: Callable[..., Path], processes: list[subprocess.Popen[str]]
) -> None:
    path = qemu()
    full = f"prlimit --pid {processes[0].pid} --nofile=3 && {HELPER} --parent nic0 --mac {OWN}"
    with Monitor(str(path)) as monitor, pytest.raises(RefusedError, match="TUNGETIFF"):  # of an fd that is none
        monitor.execute("netdev_add", type="tap", id="n0", helper=full)
    until(lambda: not host.ours())


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
