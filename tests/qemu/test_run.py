"""guestnet qemu run and args, guestnet exec: a QEMU with NICs, and nothing of them when it has ended."""

import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from guestnet.kernel import tap
from guestnet.lab.image import Image
from guestnet.model import GROUP, HOST_ALIAS, Mac
from guestnet.qemu.run import Passed, filled
from tests.conftest import REPO, Namespace, as_user
from tests.qemu.conftest import GUESTNET, Bare, Host, until, wired

pytestmark = pytest.mark.root

MAC = "52:54:00:00:e1:01"
OTHER = "52:54:00:00:e1:02"
RUN = ("qemu", "run", "--parent", "nic0", "--mac", MAC)
Started = list[subprocess.Popen[str]]


# Guests that answer


@pytest.mark.guest
def test_a_guest_answers_and_its_macvtap_goes_when_qemu_is_killed(
    host: Host, guest_image: Image, tmp_path: Path, processes: Started
) -> None:
    guest = Bare.at(tmp_path, guest_image)
    run = host.start(*GUESTNET, *RUN, "--", *guest.words)
    processes.append(run)
    guest.booted(run)
    guest.answers(MAC, "nic0", host)
    (name,) = host.ours()
    (qemu,) = host.holders(name)
    os.kill(qemu, signal.SIGKILL)
    assert run.wait(30) == 128 + signal.SIGKILL
    assert host.ours() == {}


@pytest.mark.guest
def test_four_queues_on_two_parents_beside_a_link_of_the_same_ifindex_outlive_a_run_that_is_killed(
    namespace: Callable[[], Namespace], guest_image: Image, tmp_path: Path, processes: Started
) -> None:
    rival, host = wired(namespace()), wired(namespace())
    index = max(link.index for link in host.links.all()) + 1  # what the next one gets there
    rival.ip(f"link add link nic0 name mt0 index {index} type macvtap mode bridge")  # and has the node
    guest = Bare.at(tmp_path, guest_image, cpus=4)
    words = ("qemu", "run", "--parent", "nic0", "--mac", MAC, "--parent", "nic1", "--mac", OTHER, "--queues", "4")
    run = host.start(*GUESTNET, *words, "--", *guest.words)
    processes.append(run)
    guest.booted(run)
    assert os.path.exists(tap.device("mt0", namespace=rival.fd).path)
    # the first one was given that number too, and was made again under one whose node is free
    assert max(link.index for link in host.ours().values()) >= 1 << 24
    for mac, nic in ((MAC, "nic0"), (OTHER, "nic1")):
        name = guest.wait_nic(mac)
        assert guest.run(f"ls -d /sys/class/net/{name}/queues/rx-* | wc -l")[1].strip() == "4"
        guest.answers(mac, nic, host)
    first, second = host.ours()
    (qemu,) = host.holders(first)
    run.kill()
    run.wait(30)
    assert host.ping("198.51.100.1", "peer0").returncode == 0
    assert host.holders(second) == [qemu]
    host.guestnet("qemu", "run", "--parent", "nic0", "--", "true", check=True)
    assert set(host.ours()) == {first, second}
    os.kill(qemu, signal.SIGKILL)
    until(lambda: host.holders(first) == host.holders(second) == [])
    host.guestnet("qemu", "run", "--parent", "nic0", "--", "true", check=True)
    assert host.ours() == {}


@pytest.mark.guest
def test_a_guest_answers_on_the_fds_that_exec_passes(
    two: Host, guest_image: Image, tmp_path: Path, processes: Started
) -> None:
    """Four queues of one macvtap, and after them, by a second exec that was passed them, one of another."""
    guest = Bare.at(tmp_path, guest_image, cpus=4)
    nic = ("-netdev", "tap,id=n0,fds={fds}", "-device", "virtio-net-pci,netdev=n0,mac={mac},mq=on,vectors=10")
    other = ("-netdev", "tap,id=n1,fd=7", "-device", f"virtio-net-pci,netdev=n1,mac={OTHER}")
    both = (*GUESTNET, "exec", "mt0", "--queues", "4", "--", *GUESTNET, "exec", "mt1", "--")
    qemu = two.start(*both, *guest.words, *nic, *other)
    processes.append(qemu)
    guest.booted(qemu)
    guest.answers(MAC, "nic0", two)
    guest.answers(OTHER, "nic1", two)
    assert two.holders("mt0") == two.holders("mt1") == [qemu.pid]


@pytest.mark.guest
@pytest.mark.parametrize(("shell", "queues"), [("dash", "1"), ("bash", "4")])
def test_a_guest_answers_on_what_args_gives_a_shell(
    shell: str, queues: str, host: Host, guest_image: Image, tmp_path: Path, processes: Started
) -> None:
    guest = Bare.at(tmp_path, guest_image, cpus=int(queues))
    nics = {MAC: "nic0"} if queues == "4" else {MAC: "nic0", OTHER: "nic1"}
    words = [word for mac, nic in nics.items() for word in ("--parent", nic, "--mac", mac)]
    args = ("qemu", "args", *words, "--queues", queues)
    script = f'nic=$({shlex.join([*GUESTNET, *args])}) && eval "exec $1 $nic"'
    qemu = host.start(shell, "-c", script, shell, shlex.join(guest.words))
    processes.append(qemu)
    guest.booted(qemu)
    for mac, nic in nics.items():
        guest.answers(mac, nic, host)
    again = host.guestnet(*args)
    assert again.code == 5
    assert "has it open" in again.err
    qemu.kill()
    qemu.wait(30)
    said = host.guestnet(*args, "--json", check=True)
    assert said.json["steps"] == []
    assert host.guestnet(*shlex.split(said.json["delete"])[1:]).code == 0
    assert not [link for link in host.links.all() if link.kind == "macvtap"]


# run, of whatever program


def test_the_status_of_the_program_is_that_of_run(host: Host) -> None:
    assert host.guestnet(*RUN, "--", "sh", "-c", "exit 7").code == 7
    assert host.guestnet(*RUN, "--", "sh", "-c", "kill -USR1 $$").code == 128 + signal.SIGUSR1
    assert host.ours() == {}


def test_the_program_is_waited_for_where_the_caller_ignores_the_end_of_its_children(
    host: Host, processes: list[subprocess.Popen[str]]
) -> None:
    processes.append(host.start("env", "--ignore-signal=CHLD", *GUESTNET, *RUN, "--", "sh", "-c", "exit 7"))
    assert processes[0].wait(timeout=20) == 7
    assert host.ours() == {}


def test_the_program_gets_the_options_and_the_fds_and_no_other(host: Host) -> None:
    program = (sys.executable, "-c", SHOW, "its", "own")
    done = host.guestnet(*RUN, "--queues", "2", "--vhost", "off", "--", *program, check=True)
    words, _, _, fds = json.loads(done.out)
    name = "gn" + MAC.replace(":", "")
    numbers = sorted(fds, key=int)
    assert words == [
        "its", "own", "-netdev", f"tap,id={name},fds={numbers[0]}:{numbers[1]}",
        "-device", f"virtio-net-pci,id={name},netdev={name},mac={MAC},mq=on,vectors=6",
    ]  # fmt: skip
    assert len(fds) == 2
    assert all(re.fullmatch(r"/dev/tap[0-9]+", path) for path in fds.values())


def test_the_program_begins_with_no_signal_blocked_or_ignored(host: Host) -> None:
    done = host.guestnet(*RUN, "--", "sh", "-c", "exec cat /proc/self/status", check=True)
    status = dict(line.split(":\t") for line in done.out.splitlines())
    assert int(status["SigBlk"], 16) == 0
    assert int(status["SigIgn"], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


def test_signals_that_others_send_reach_the_program(host: Host, processes: Started) -> None:
    script = "trap 'echo hup' HUP; trap 'echo term; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    run = host.start(*GUESTNET, *RUN, "--", "sh", "-c", script)
    processes.append(run)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    run.send_signal(signal.SIGHUP)
    assert run.stdout.readline() == "hup\n"
    run.send_signal(signal.SIGTERM)
    assert run.wait(30) == 3
    assert run.stdout.readline() == "term\n"
    assert host.ours() == {}


SHOW = """
import json, os, sys
fds = [n for n in os.listdir("/proc/self/fd") if int(n) > 2 and os.path.exists(f"/proc/self/fd/{n}")]
passed = {n: os.readlink(f"/proc/self/fd/{n}") for n in fds}
listen = {name: value for name, value in os.environ.items() if name.startswith("LISTEN")}
print(json.dumps([sys.argv[1:], listen, os.getpid(), passed]))
"""

IDENTITY = """
import json, re, sys
from guestnet.kernel import tap
(number,) = re.findall("[,]fd=([0-9]+)", " ".join(sys.argv))
print(json.dumps(tap.identity(int(number))))
"""

COUNTS = """
import signal, sys
seen = []
signal.signal(signal.SIGINT, lambda *_: (seen.append(1), print("interrupted", flush=True)))
signal.signal(signal.SIGTERM, lambda *_: seen.append(0))
print("ready", flush=True)
while 0 not in seen:
    signal.pause()
sys.exit(len(seen))
"""


class Terminal:
    """A terminal with a program in its foreground."""

    def __init__(self, host: Host, *words: str) -> None:
        self.fd, slave = pty.openpty()
        # setsid makes it the session's own terminal
        self.process = host.start("setsid", "--wait", "--ctty", *words, stdin=slave, stdout=slave, stderr=slave)
        os.close(slave)
        self.seen = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while text not in self.seen:
            assert select.select([self.fd], [], [], max(0, deadline - time.monotonic()))[0], self.seen
            self.seen += os.read(self.fd, 4096).decode(errors="replace")


def test_the_terminals_interrupt_reaches_the_program_once(host: Host) -> None:
    terminal = Terminal(host, *GUESTNET, *RUN, "--", sys.executable, "-c", COUNTS)
    try:
        terminal.wait_for("ready")
        terminal.type("\x03")
        terminal.wait_for("interrupted")
        terminal.process.send_signal(signal.SIGTERM)  # what comes of the interrupt comes before it
        assert terminal.process.wait(30) == 2
    finally:
        os.close(terminal.fd)
        terminal.process.kill()
        terminal.process.wait(30)


def test_a_qemu_in_a_terminal_is_in_its_foreground(host: Host) -> None:
    qemu = ("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-S", "-display", "none", "-monitor", "stdio")
    terminal = Terminal(host, *GUESTNET, *RUN, "--", *qemu)
    try:
        terminal.wait_for("(qemu)")
        terminal.type("quit\n")
        assert terminal.process.wait(30) == 0
    finally:
        os.close(terminal.fd)
        terminal.process.kill()
        terminal.process.wait(30)
    assert host.ours() == {}


def test_a_qemu_in_the_background_keeps_its_macvtap_and_takes_it_along(host: Host, tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    qemu = ("qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-S", "-display", "none", "-daemonize")
    done = host.guestnet(*RUN, "--", *qemu, "-pidfile", str(pidfile), check=True)
    pid = int(pidfile.read_text(encoding="ascii"))
    try:
        (name,) = host.ours()
        assert f"{name} stays while process {pid}" in done.err
        assert host.holders(name) == [pid]
    finally:
        os.kill(pid, signal.SIGKILL)
    until(lambda: host.ours() == {})


def test_a_run_that_is_ended_while_it_waits_leaves_nothing(host: Host, processes: Started) -> None:
    from guestnet.kernel import lock

    with lock.held():
        run = host.start(*GUESTNET, *RUN, "--", "true")
        processes.append(run)
        assert run.stderr is not None
        assert "waiting for another guestnet" in run.stderr.readline()
        run.send_signal(signal.SIGTERM)
        assert run.wait(30) == 128 + signal.SIGTERM
    assert host.ours() == {}


NO_LIBVIRT = 'mount -t tmpfs none /run && { [ ! -d /etc/libvirt ] || mount -t tmpfs none /etc/libvirt; } && exec "$@"'
"""For a shell in a mount namespace of its own: neither a socket of libvirt's nor a guest on record."""


def test_what_a_killed_run_left_is_collected_on_a_host_without_libvirt(host: Host, processes: Started) -> None:
    held = host.start(*GUESTNET, "qemu", "run", "--parent", "nic1", "--mac", OTHER, "--", "sh", "-c", "exec sleep 60")
    processes.append(held)
    until(lambda: len(host.ours()) == 1)
    (kept,) = host.ours()
    with host.start(*GUESTNET, *RUN, "--", "sh", "-c", "kill -9 $PPID") as run:
        assert run.wait(30) == -signal.SIGKILL
    left = f"gn{MAC.replace(':', '')}"
    host.ip(f"link add link nic1 name unmarked group {GROUP} type macvtap mode bridge")
    until(lambda: host.holders(left) == [] and host.holders(kept) != [])
    without = ("unshare", "--mount", "sh", "-c", NO_LIBVIRT, "sh")
    with host.start(*without, *GUESTNET, "gc", "--json") as gc:
        out, err = gc.communicate(timeout=60)
    assert gc.returncode == 0, out + err
    verdicts = {row["name"]: (row["orphan"], row["why"]) for row in json.loads(out)["links"]}
    assert verdicts.pop("unmarked")[0]
    assert verdicts.pop(left) == (True, "no process holds it open any more")
    assert verdicts[kept][1].startswith("held open by process ")
    assert {link.name for link in host.links.all() if link.kind == "macvtap"} == {kept}


def test_a_macvtap_that_somebody_deleted_is_no_error_at_the_end(host: Host) -> None:
    delete = f"ip link delete gn{MAC.replace(':', '')}; exit 4"
    assert host.guestnet(*RUN, "--", "sh", "-c", delete).code == 4


@pytest.mark.parametrize(("model", "flags"), [("virtio", 0x5002), ("e1000", 0x1002), ("rtl8139", 0x1002)])
def test_the_tap_has_the_header_that_its_model_wants(model: str, flags: int, host: Host) -> None:
    done = host.guestnet(*RUN, "--model", model, "--", sys.executable, "-c", IDENTITY, check=True)
    name, mac, found = json.loads(done.out)
    assert (name, mac, found & 0x5002) == (f"gn{MAC.replace(':', '')}", MAC, flags)


def test_two_runs_at_once_have_macs_of_their_own_and_the_same_ones_again(host: Host, processes: Started) -> None:
    run = ("qemu", "run", "--parent", "nic0", "--", "sh", "-c", "cat")
    seen = []
    for _ in range(2):
        both = [host.start(*GUESTNET, *run, stdin=subprocess.PIPE) for _ in range(2)]
        processes += both
        until(lambda: len(host.ours()) == 2)
        seen.append(sorted(link.mac for link in host.ours().values()))
        for one in both:
            one.communicate(timeout=30)
    assert len(set(seen[0])) == 2
    assert seen[0] == seen[1]


def test_qemus_name_of_the_guest_makes_its_mac(host: Host) -> None:
    show = ("sh", "-c", 'ip -br link show | grep gn; echo "$@"', "qemu")
    plain = host.guestnet("qemu", "run", "--parent", "nic0", "--", *show).out.split()
    web = host.guestnet("qemu", "run", "--parent", "nic0", "--", *show, "-name", "guest=web,debug-threads=on").out
    named = host.guestnet("qemu", "run", "--parent", "nic0", "--name", "web", "--", *show).out
    assert plain[0] != web.split()[0]
    assert web.split()[0] == named.split()[0]


def test_dry_run_says_the_steps_and_takes_none(host: Host) -> None:
    done = host.guestnet(*RUN, "--dry-run", "--", "qemu-system-x86_64", check=True)
    assert "would make macvtap" in done.out
    assert "would run qemu-system-x86_64 with 1 more NIC" in done.out
    assert host.ours() == {}


# Bad input


def refused(host: Host, code: int, *words: str) -> str:
    """What a call says that must fail with that exit status and leave nothing."""
    links = {link.name for link in host.links.all()}
    answer = host.guestnet(*words)
    assert answer.code == code, answer
    assert {link.name for link in host.links.all()} == links
    return answer.err


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ("--parent", "nic0"), "say which program, after --"),
        (2, ("--parent", "nic0", "--"), "say which program"),
        (3, ("--parent", "nic0", "--", "no-such-qemu"), "there is no program no-such-qemu"),
        (4, ("--parent", "nic0", "--", "/etc/passwd"), "cannot be executed"),
        (3, ("--parent", "nic7", "--", "true"), "there is no interface nic7"),
        (5, ("--parent", "lo", "--", "true"), "loopback"),
        (2, ("--parent", "nic0", "--model", "e1001", "--", "true"), "did you mean e1000"),
        (2, ("--parent", "nic0", "--queues", "0", "--", "true"), "0 queues"),
        (2, ("--parent", "nic0", "--queues", "2", "--model", "e1000", "--", "true"), "has one queue"),
        (2, ("--parent", "nic0", "--vhost", "on", "--model", "e1000", "--", "true"), "vhost-net is for virtio"),
        (2, ("--parent", "nic0", "--vhost", "maybe", "--", "true"), "one of auto, on, off"),
        (2, ("--parent", "nic0", "--mode", "source", "--", "true"), "mode source"),
        (2, ("--parent", "nic0", "--parent", "nic1", "--mac", MAC, "--", "true"), "1 times for 2 parents"),
        (2, ("--parent", "nic0", "--parent", "nic1", "--mac", MAC, "--mac", MAC, "--", "true"), "asked for twice"),
        (5, ("--parent", "nic0", "--mac", "52:54:00:aa:00:01", "--", "true"), "is the MAC of nic0 itself"),
        (5, ("--parent", "nic0", "--ifname", "peer0", "--", "true"), "taken by a veth"),
        (5, ("--parent", "nic0", "--mtu", "9000", "--", "true"), "more than that of nic0"),
        (5, ("--parent", "nic0", "--parent", "nic0", "--mode", "passthru", "--", "true"), "for one NIC"),
    ],
)
def test_what_cannot_be_run_is_refused(code: int, words: tuple[str, ...], said: str, host: Host) -> None:
    assert said in refused(host, code, "qemu", "run", *words)


@pytest.mark.kernel_without("vhost_net")
def test_vhost_is_refused_where_there_is_none_before_qemu_could_abort(host: Host) -> None:
    assert "no /dev/vhost-net" in refused(host, 3, *RUN, "--vhost", "on", "--", "true")
    assert "no /dev/vhost-net" in refused(host, 3, "qemu", "args", *RUN[2:], "--vhost", "on")
    host.guestnet("macvtap", "add", "mt0", "--parent", "nic0", check=True)
    assert "no /dev/vhost-net" in refused(host, 3, "exec", "mt0", "--vhost", "on", "--", "true")


def test_a_program_that_the_kernel_does_not_run_leaves_nothing(host: Host, tmp_path: Path) -> None:
    broken = tmp_path / "qemu"
    broken.write_bytes(b"\x7fELF and no more")
    broken.chmod(0o755)
    assert "does not start" in refused(host, 1, *RUN, "--", str(broken))


def test_more_queues_than_files_may_be_open_are_refused_before_anything_is_made(host: Host) -> None:
    limited = ("prlimit", "--nofile=64:512", *GUESTNET, *RUN, "--queues", "100", "--", "true")
    with host.start(*limited) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "the queues need" in err
    assert "hint: ulimit -n" in err
    assert host.ours() == {}


@pytest.mark.parametrize("words", [(*RUN, "--", "true"), ("qemu", "args", *RUN[2:])])
def test_an_ordinary_user_is_told_what_an_administrator_can_do(words: tuple[str, ...], host: Host) -> None:
    with host.start(*as_user(65534), *GUESTNET, *words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert "needs root" in err
    assert "As an ordinary user" in err


# args


def test_the_words_of_args_are_quoted_and_say_how_to_delete(host: Host) -> None:
    words = ("--parent", "nic0", "--mac", MAC, "--ifname", "a$b'c", "--queues", "2", "--vhost", "off")
    done = host.guestnet("qemu", "args", *words, "--first-fd", "8", check=True)
    try:
        index = next(link.index for link in host.links.all() if link.name == "a$b'c")
        name = "gn" + MAC.replace(":", "")
        assert shlex.split(done.out) == [
            "-netdev", f"tap,id={name},fds=8:9", "-device",
            f"virtio-net-pci,id={name},netdev={name},mac={MAC},mq=on,vectors=6",
            f"8<>/dev/tap{index}", f"9<>/dev/tap{index}",
        ]  # fmt: skip
        delete = re.findall("to delete it: (.*)", done.err)[0]
        assert shlex.split(delete) == ["guestnet", "macvtap", "delete", "a$b'c"]
    finally:
        host.guestnet("macvtap", "delete", "a$b'c", check=True)


def test_args_of_more_than_one_digit_are_told_to_be_for_bash(host: Host) -> None:
    done = host.guestnet("qemu", "args", "--parent", "nic0", "--mac", MAC, "--queues", "8", "--vhost", "off")
    assert "bash" in done.err


def test_args_in_a_dry_run_make_nothing(host: Host) -> None:
    done = host.guestnet("qemu", "args", "--parent", "nic0", "--mac", MAC, "--dry-run", "--vhost", "off", check=True)
    assert "would print -netdev tap,id=gn525400" in done.out
    assert not [link for link in host.links.all() if link.kind == "macvtap"]


# exec


@pytest.fixture
def two(host: Host) -> Host:
    """The host with two macvtaps of its own, mt0 and mt1."""
    for number, name in enumerate(("mt0", "mt1")):
        host.guestnet("macvtap", "add", name, "--parent", f"nic{number}", "--mac", (MAC, OTHER)[number], check=True)
    return host


def test_exec_fills_in_the_placeholders_and_passes_fds_as_systemd_does(two: Host) -> None:
    words = (
        "{fd}",
        "a{fds}b",
        "{fds,}",
        "{ifname}/{mac}",
        "{fd2}:{fds2}",
        "{ifname2} {mac2}",
        "{fd,}",
        "{}",
        "{other}",
    )
    done = two.guestnet("exec", "mt0", "mt1", "--queues", "2", "--", sys.executable, "-c", SHOW, *words, check=True)
    argv, environment, pid, fds = json.loads(done.out)
    assert argv == ["3", "a3:4b", "3,4", f"mt0/{MAC}", "5:5:6", f"mt1 {OTHER}", "{fd,}", "{}", "{other}"]
    assert environment == {"LISTEN_PID": str(pid), "LISTEN_FDS": "4", "LISTEN_FDNAMES": "mt0:mt0:mt1:mt1"}
    indexes = {link.name: link.index for link in two.links.all()}
    assert [fds[str(n)] for n in range(3, 7)] == [f"/dev/tap{indexes[name]}" for name in ("mt0", "mt0", "mt1", "mt1")]


def test_the_forms_for_other_vmms_in_the_documentation_say_what_these_take() -> None:
    text = (REPO / "docs/qemu.md").read_text(encoding="utf-8")
    lines = [shlex.split(line) for line in re.findall(r"^    guestnet exec (tap0 .*{.*)$", text, re.MULTILINE)]
    two = Passed(ifname="tap0", mac=MAC, fds=(3, 4))
    said = {line[line.index("--") + 1]: filled(line, [two])[-1] for line in lines}
    assert said == {
        "qemu-system-x86_64": f"virtio-net-pci,netdev=n0,mac={MAC}",
        "cloud-hypervisor": f"fd=[3,4],mac={MAC},num_queues=4",  # a queue for each direction of each fd
        "crosvm": f"tap-fd=3,mac={MAC}",
    }


def test_of_two_macvtaps_with_one_number_exec_opens_the_one_it_is_told_and_args_refuses(
    namespace: Callable[[], Namespace],
) -> None:
    rival, host = wired(namespace()), wired(namespace())
    name = Mac(MAC).ifname
    for one, mac in ((rival, OTHER), (host, MAC)):
        one.ip(f"link add link nic0 name {name} index 471147 address {mac} group {GROUP} type macvtap mode bridge")
        one.ip(f"link set {name} up alias {HOST_ALIAS}")
    devices = [tap.device(name, namespace=one.fd) for one in (rival, host)]
    assert [(one.path, one.node()) for one in devices] == [
        ("/dev/tap471147", tap.Node.RIGHT),
        ("/dev/tap471147", tap.Node.FOREIGN),
    ]
    done = host.guestnet("exec", name, "--", sys.executable, "-c", IDENTITY, ",fd={fd}", check=True)
    assert json.loads(done.out)[1] == MAC
    assert "/dev/tap471147 is not the node of" in refused(host, 5, "qemu", "args", *RUN[2:])


def test_exec_puts_its_fds_after_those_it_was_passed(two: Host, tmp_path: Path) -> None:
    passed = 'exec env LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=api "$@" 3<"$0"'
    words = (*GUESTNET, "exec", "mt0", "--", sys.executable, "-c", SHOW, "{fd}")
    with two.start("sh", "-c", passed, __file__, *words) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    argv, environment, _, fds = json.loads(out)
    assert (argv, environment["LISTEN_FDS"], environment["LISTEN_FDNAMES"]) == (["4"], "2", "api:mt0")
    assert fds["3"] == __file__


def test_exec_does_not_take_an_fd_that_the_program_was_to_have(two: Host) -> None:
    words = (*GUESTNET, "exec", "mt0", "--", "true")
    with two.start("sh", "-c", 'exec "$@" 3<"$0"', __file__, *words) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 5
    assert "fd 3 is open already" in err


@pytest.mark.parametrize(("words", "flags"), [((), 0x5002), (("--no-vnet-header",), 0x1002)])
def test_exec_leaves_the_header_out_where_it_is_told_to(words: tuple[str, ...], flags: int, two: Host) -> None:
    done = two.guestnet("exec", "mt0", *words, "--", sys.executable, "-c", IDENTITY, ",fd={fd}", check=True)
    name, mac, found = json.loads(done.out)
    assert (name, mac, found & 0x5002) == ("mt0", MAC, flags)


def test_exec_leaves_signals_as_a_program_expects_them(two: Host) -> None:
    done = two.guestnet("exec", "mt0", "--", "grep", "SigIgn", "/proc/self/status", check=True)
    assert int(done.out.split()[1], 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


@pytest.mark.parametrize(
    ("code", "words", "said"),
    [
        (2, ("mt0",), "say which program, after --"),
        (2, ("--", "true"), "IFNAME"),
        (3, ("mt7", "--", "true"), "there is no interface mt7"),
        (5, ("nic0", "--", "true"), "no macvtap"),
        (3, ("mt0", "--", "no-such-program"), "there is no program"),
        (2, ("mt0", "--", "echo", "{fd2}"), "macvtap number 2, and 1 are named"),
        (2, ("mt0", "--", "echo", "{vhostfds}"), "vhost-net, which is not open"),
        (2, ("mt0", "--queues", "257", "--", "true"), "257 queues"),
        (2, ("a/b", "--", "true"), "not an interface name"),
    ],
)
def test_what_cannot_be_executed_is_refused(code: int, words: tuple[str, ...], said: str, two: Host) -> None:
    assert said in refused(two, code, "exec", *words)


def test_more_queues_to_execute_with_than_files_may_be_open_are_refused(two: Host) -> None:
    with two.start("prlimit", "--nofile=64:64", *GUESTNET, "exec", "mt0", "--queues", "30", "--", "true") as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, "its hard limit is 64" in err) == (5, True), err


def test_a_macvtap_that_is_full_is_refused_with_the_reason(two: Host) -> None:
    with tap.Tap.open("mt0", namespace=two.fd, queues=256):
        assert "256 are open" in refused(two, 5, "exec", "mt0", "--", "true")


def test_an_ordinary_user_who_may_open_the_node_executes_with_it(two: Host) -> None:
    device = tap.device("mt0", namespace=two.fd)
    # `ip netns exec` shows the namespace's own /sys, which an ordinary user cannot mount
    words = ("ip", "netns", "exec", two.name, *as_user(65534), *GUESTNET, "exec", "mt0", "--", "echo", "{fd}", "{mac}")
    denied = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert denied.returncode == 4, denied
    assert "udev" in denied.stderr
    os.chown(device.path, 65534, -1)
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"3 {MAC}\n"), done
