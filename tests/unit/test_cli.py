"""The command line as a process: help, errors, exit status."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from guestnet import __version__, attachment, cli, inventory, report, templates
from guestnet.errors import ExitCode, GuestnetError
from guestnet.model import Mac
from guestnet.plan.steps import Plug, SetUp, Step
from guestnet.topology import state
from tests.unit.conftest import Guestnet

REPO = Path(__file__).resolve().parents[2]
COMMANDS = sorted(cli._COMMANDS)


def run(*words: str) -> subprocess.CompletedProcess[str]:
    """``guestnet`` with these words, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "guestnet", *words], capture_output=True, text=True, cwd=REPO, timeout=60, check=False
    )


@pytest.mark.parametrize(
    "words", [(), *((name,) for name in COMMANDS)], ids=lambda words: " ".join(words) or "guestnet"
)
def test_help_says_what_a_command_does_and_what_it_takes(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(" ".join(("Usage: guestnet", *words)))
    assert done.stderr == ""


@pytest.mark.parametrize("words", [("xml", "interface"), ("xml", "domain"), ("xml", "network")], ids=" ".join)
def test_help_of_a_command_below_a_command(words: tuple[str, ...]) -> None:
    done = run(*words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(" ".join(("Usage: guestnet", *words)))


def test_help_names_every_command() -> None:
    shown = run("--help").stdout
    assert [name for name in COMMANDS if f"  {name} " not in shown] == []


def test_the_version_is_told_with_those_of_what_it_works_with() -> None:
    done = run("--version")
    names = [line.split()[0] for line in done.stdout.splitlines()]
    assert (done.returncode, names, done.stderr) == (0, ["guestnet", "Linux", "libvirt", "QEMU"], "")
    assert done.stdout.startswith(f"guestnet {__version__}\nLinux    {os.uname().release}\nlibvirt  ")
    told = json.loads(run("--version", "--json").stdout)
    assert (told["guestnet"], told["kernel"]) == (__version__, os.uname().release)
    assert done.stdout.splitlines()[3] == f"QEMU     {told['qemu'] or 'not found'}"


def test_the_version_is_told_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch, guestnet: Guestnet) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("LIBVIRT_DEFAULT_URI", "nothing:///x")
    monkeypatch.setitem(sys.modules, "libvirt", None)
    answer = guestnet("--version")
    assert answer.out.splitlines()[2:] == ["libvirt  not found (no daemon answers)", "QEMU     not found"]
    assert (answer.status, answer.err) == (0, "")
    assert guestnet("--json", "list").status == ExitCode.USAGE


@pytest.mark.parametrize("words", [("--quiet", "set", "vm1", "gn0"), ("set", "vm1", "gn0", "--quiet")], ids=" ".join)
def test_quiet_is_what_was_asked_for_and_errors_alone(
    words: tuple[str, ...], guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "change", lambda *_, **__: outcome(PLUG))
    assert guestnet(*words, "--mtu", "1400").text == ""
    monkeypatch.setattr(attachment, "change", lambda *_, **__: outcome(PLUG, dry_run=True))
    assert guestnet(*words, "--dry-run").out.splitlines() == [f"would {PLUG}"]
    assert guestnet("xml", "network", "lab", "--parent", "ens3", "--quiet").out.startswith("<network")
    assert guestnet("attach", "vm1", "--quiet").err.startswith("guestnet: Missing option '--parent'.\nhint: ")
    assert guestnet("set", "vm1", "gn0").text != ""  # only for as long as it is asked for


def test_verbose_tells_each_step_and_what_is_taken_back_on_stderr(
    guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(*_: object, **__: object) -> None:
        from guestnet import apply
        from guestnet.kernel.link import Links
        from guestnet.undo import Undo

        with Links() as links, Undo() as undo:
            assert links.find("nothing0") is None
            undo.push("this", lambda: None)
            apply.run([SetUp(name="nothing0")], apply.Doors(links=links, target=links), undo)

    monkeypatch.setattr(attachment, "change", change)
    answer = guestnet("set", "vm1", "gn0", "--mtu", "1400", "--verbose")
    said = [re.sub(r"^ +\d+\.\d{3} s  ", "", line) for line in answer.err.splitlines()]
    assert (answer.out, said[0]) == ("", "netlink: RTM_GETLINK")
    assert ("bring nothing0 up" in said, "take back: this" in said) == (True, True)
    assert said[-1].startswith(("guestnet: ", "hint: "))
    assert "netlink" not in guestnet("set", "vm1", "gn0", "--mtu", "1400").err


def on_a_terminal(code: str, **environment: str) -> bytes:
    """What a Python process writes to stderr where that is a terminal."""
    inside, outside = os.openpty()
    with open(inside, "rb", buffering=0) as shown:
        try:
            done = subprocess.run(
                [sys.executable, "-c", code], stderr=outside, cwd=REPO, timeout=60, check=True,
                env={**os.environ, "TERM": "xterm-256color", **environment},
            )  # fmt: skip
            assert done.returncode == 0
        finally:
            os.close(outside)
        return shown.read(1 << 16)


WAITING = "from guestnet import report\nwith report.progress('detaching') as waiting: waiting(2.0)"


def test_there_is_no_colour_where_nobody_wants_it_or_nobody_sees_it() -> None:
    assert b"waiting for the guest" in on_a_terminal(WAITING)
    assert b"\x1b[32m" in on_a_terminal(WAITING)
    plain = on_a_terminal(WAITING, NO_COLOR="1")
    assert re.findall(rb"\x1b\[[\d;]*m", plain) == []
    assert b"waiting for the guest" in plain
    off = subprocess.run([sys.executable, "-c", WAITING], capture_output=True, cwd=REPO, timeout=60, check=True)
    assert (off.stdout, off.stderr) == (b"", b"")
    assert (
        b"\x1b"
        not in subprocess.run(
            [sys.executable, "-m", "guestnet", "--help"],
            capture_output=True,
            cwd=REPO,
            env={**os.environ, "FORCE_COLOR": "1"},
            check=True,
        ).stdout
    )


@pytest.mark.parametrize(
    ("words", "message", "hint"),
    [
        (("atach",), "there is no command 'atach'", "did you mean attach"),
        (("qqq",), "there is no command 'qqq'", "guestnet --help lists the commands"),
        (("--nosuch",), "No such option", "guestnet --help"),
        (("attach", "vm1", "--parnt", "ens3"), "No such option", "guestnet attach --help"),
        (("attach", "vm1"), "Missing option '--parent'", "guestnet attach --help"),
        (("attach", "vm1", "ens3"), "Missing option '--parent'", "did you mean --parent ens3?"),
        (("attach", "vm1", "--parent", "ens3", "--mode", "brige"), "'brige' is not a mode", "did you mean bridge?"),
        (("attach", "vm1", "--parent", "ens3", "--mode", "sorce"), "'sorce' is not a mode", "private, passthru"),
        (("macvlan", "add", "m0", "--parent", "ens3", "--mode", "sorce"), "'sorce' is not a mode", "source?"),
        (("exec", "tap0", "ls", "-l", "/"), "No such option: -l", "put `--` before the command: guestnet exec … -- "),
        (("qemu", "run", "--parent", "ens3", "kvm"), "unexpected extra argument(s) (kvm)", "put `--` before"),
        (("exec", "tap0", "-l", "--", "ls"), "No such option: -l", "guestnet exec --help"),
        (("qemu", "run", "kvm"), "Missing option '--parent'", "guestnet qemu run --help"),
        (("topology", "plan", "-"), "read from a file, not from stdin", "FILE.yaml"),
        (("attach",), "Missing", "guestnet attach --help"),
        (("xml", "intrface"), "No such command", "guestnet xml --help"),
        (("xml", "interface", "vm1", "--parent"), "requires an argument", "guestnet --help"),
        (("attach", "vm1", "--parent", "ens3", "--mac", "x"), "'x' is not a MAC address", "write six bytes"),
        (
            ("attach", "vm1", "--parent", "ens3", "--timeout", "0"),
            "'0' is not a time limit",
            "0.1 to 3600",
        ),
        (("attach", "vm1", "--parent", "ens3", "--timeout", "nan"), "'nan' is not a time limit", "0.1 to 3600"),
        (("detach", "vm1", "--all", "--timeout", "inf"), "'inf' is not a time limit", "0.1 to 3600"),
        (("detach", "vm1", "--all", "--timeout", "soon"), "'soon' is not a time limit", "0.1 to 3600"),
        (("detach", "vm1", "web0", "--all"), "a NIC and --all are both given", "--all alone"),
        (("detach", "vm1"), "say which NIC, or --all", "guestnet list vm1"),
        (("xml", "domain", "q", "--disk", ""), "the name of the file is empty", "leave the option out"),
        (("xml", "domain", "q", "--template="), "the name of the file is empty", "leave the option out"),
        (("attach", "vm1", "--parent", "ens3", "--template="), "the name of the file is empty", "leave the option out"),
        (("attach", "vm1", "--parent", "ens3", "--model="), "the NIC model is empty", "leave the option out"),
        (("macvtap", "set", "t0", "--up", "--down"), "--up and --down are both given", "one of them"),
        (("xml", "interface", "vm1", "--parent", "a\udcffb"), "is not an interface name", "use letters"),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode() if isinstance(value, tuple) else "",
)
def test_words_that_are_wrong_end_with_status_2_and_the_next_thing_to_do(
    words: tuple[str, ...], message: str, hint: str
) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    first, last = done.stderr.splitlines()
    assert first.startswith("guestnet: ")
    assert message in first
    assert last.startswith("hint: ")
    assert hint in last


@pytest.mark.parametrize(
    "words",
    [("atach", "--json"), ("attach", "vm1", "--json"), ("xml", "interface", "vm1", "--parent", "lo", "--json")],
    ids=" ".join,
)
def test_with_json_an_error_is_an_object_on_stdout(words: tuple[str, ...]) -> None:
    done = run(*words)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == done.returncode != 0
    assert error["message"]
    assert error["hint"]
    assert error["notes"] == []
    assert done.stderr == ""


def test_a_reader_that_goes_away_is_no_error_worth_words() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "guestnet", "xml", "domain", "vm1"],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()


@pytest.mark.parametrize("words", [("macvtap", "list"), ("xml", "domain", "q"), ("--help",), ("atach", "--json")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_answer_that_cannot_be_written_is_told_in_one_line(words: tuple[str, ...], unbuffered: str) -> None:
    line = [sys.executable, "-m", "guestnet", *words]
    with open("/dev/full", "w", encoding="utf-8") as full:
        done = subprocess.run(
            line, stdout=full, stderr=subprocess.PIPE, text=True, cwd=REPO, timeout=60, check=False,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        )  # fmt: skip
    assert done.stderr == "guestnet: the answer could not be written: No space left on device\n"
    assert done.returncode == ExitCode.FAILED


@pytest.mark.parametrize("closed", [">&-", ">&- 2>&-"])
def test_a_command_whose_stdout_is_closed_does_nothing_and_says_so(closed: str) -> None:
    line = ["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-m", "guestnet", "list"]
    done = subprocess.run(line, capture_output=True, text=True, cwd=REPO, timeout=60, check=False)
    told = "guestnet: the answer could not be written: stdout is closed\n"
    assert (done.returncode, done.stdout, done.stderr) == (ExitCode.FAILED, "", "" if "2" in closed else told)


@pytest.mark.parametrize("words", [(), ("vlan",), ("macvtap",), ("lab",), ("xml",)], ids=" ".join)
@pytest.mark.root
def test_a_group_without_a_command_shows_its_help(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (ExitCode.USAGE, "")
    assert done.stdout == run(*words, "--help").stdout


@pytest.mark.parametrize(
    "words",
    [("attach",), ("detach",), ("set",), ("xml", "domain"), ("lab", "up"), ("macvtap", "add"), ("macvlan", "set")],
    ids=" ".join,
)
def test_help_names_values_in_words(words: tuple[str, ...], guestnet: Guestnet) -> None:
    shown = guestnet(*words, "--help").out.replace("<domain>", "")
    assert "<" not in shown.replace("<=", "")


@pytest.mark.parametrize(
    ("kind", "modes"), [("macvtap", "bridge, vepa or private."), ("macvlan", "bridge, vepa, private or source.")]
)
def test_help_of_set_says_the_modes_a_link_can_be_set_to(kind: str, modes: str, guestnet: Guestnet) -> None:
    [line] = [line for line in guestnet(kind, "set", "--help").out.splitlines() if "--mode" in line]
    assert line.split(None, 2)[2] == modes


def test_a_table_is_not_cut_and_has_no_blanks_at_its_ends(capsys: pytest.CaptureFixture[str]) -> None:
    report.table(("NAME", "WIDE"), [("x" * 200, ""), ("名前", "y")])
    assert capsys.readouterr().out.splitlines() == [
        "NAME" + " " * 198 + "WIDE", "x" * 200 + "  -", "名前" + " " * 198 + "y",
    ]  # fmt: skip


def outcome(*steps: Step, dry_run: bool = False) -> attachment.Outcome:
    nic = attachment.Nic(
        mac="52:54:00:00:00:01", ifname="gn0", parent="ens3", mode="bridge", model="virtio", backend="macvtap",
        live=True, config=True, pci="", carrier=True,
    )  # fmt: skip
    return attachment.Outcome(
        guest="vm1", nics=(nic,), steps=steps, notes=("this",), live=True, config=True, seconds=0.006, dry_run=dry_run
    )


PLUG = Plug(guest="vm1", mac=Mac("52:54:00:00:00:01"), xml="", live=True, config=True)
NIC_LINE = "  gn0, on ens3, mode bridge, MAC 52:54:00:00:00:01"


@pytest.mark.parametrize(
    ("done", "lines"),
    [
        (outcome(PLUG), ["note: this", "vm1: attached (live and config) in 6 ms", NIC_LINE]),
        (outcome(SetUp(name="ens3")), ["note: this", "vm1: mended in 6 ms", NIC_LINE]),
        (outcome(), ["note: this", "vm1: unchanged, it is so already", NIC_LINE]),
        (outcome(SetUp(name="ens3"), dry_run=True), ["would bring ens3 up", "note: this"]),
        (outcome(dry_run=True), ["note: this", "vm1: nothing to do, it is so already"]),
    ],
    ids=["attached", "mended", "unchanged", "dry run", "dry run of nothing"],
)
def test_an_attach_is_told_as_what_it_was(
    done: attachment.Outcome, lines: list[str], guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attachment, "attach", lambda *_, **__: done)
    assert guestnet("attach", "vm1", "--parent", "ens3").out.splitlines() == lines


def test_a_set_says_to_what(guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attachment, "change", lambda *_, **__: outcome(PLUG))
    words = ("--mode", "vepa", "--link", "down", "--mtu", "1400", "--inbound", "0", "--outbound", "100,200")
    assert guestnet("set", "vm1", "gn0", *words).out.splitlines()[1] == (
        "vm1: changed to mode vepa, link down, MTU 1400, inbound without limit, outbound 100,200"
        " (live and config) in 6 ms"
    )


def test_the_list_tells_a_link_that_is_set_down_and_who_made_it(
    guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = inventory._row(
        guest="vm1", state="running", problems=(), interface="macvtap0", parent="ens3", mode="bridge", mac="m",
        model="virtio", backend="direct", live=True, link="down",
    )  # fmt: skip
    monkeypatch.setattr(inventory, "rows", lambda *_: (row,))
    shown = " ".join(guestnet("list").out.splitlines()[1].split())
    assert shown == "vm1 macvtap0 ens3 - bridge (libvirt) m virtio live no (set down) - -"


def test_a_domain_with_parents_says_what_makes_its_macvtaps(guestnet: Guestnet) -> None:
    answer = guestnet("xml", "domain", "q", "--parent", "ens3", "--parent", "ens4")
    assert answer.err == (
        "its macvtaps are made by: guestnet attach q --parent ens3 --parent ens4, after virsh define\n"
    )
    assert guestnet("xml", "domain", "q", "--parent", "ens3", "--backend", "direct").err == ""
    assert guestnet("xml", "domain", "q").err == ""


@pytest.mark.root
def test_taking_down_a_lab_that_is_not_there_says_so_and_which_are(
    guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("guestnet.lab.lab.STATE_DIRECTORY", tmp_path / "labs")
    assert guestnet("lab", "down", "--name", "nope").text == "there is no lab nope\n"
    (tmp_path / "labs/trial").mkdir(parents=True)
    assert guestnet("lab", "down", "--name", "nope").text == "there is no lab nope (up: trial)\n"


def test_a_topology_that_is_up_under_a_name_is_said_to_need_its_file(
    guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(state, "directory", lambda: tmp_path)
    state.write(state.State(name="mine", source="/srv/mine.yaml"))
    for word in ("status", "plan", "graph"):
        answer = guestnet("topology", word, "mine")
        first, last = answer.err.splitlines()
        assert first == "guestnet: mine is up here, but only its file says what belongs to it"
        assert (answer.status, last) == (ExitCode.NOT_FOUND, "hint: name the file: /srv/mine.yaml")
    assert "no topology other came with guestnet" in guestnet("topology", "status", "other").err


@pytest.mark.parametrize("words", [(), ("attach",), ("qemu", "run")], ids=" ".join)
def test_the_help_has_a_short_name(words: tuple[str, ...], guestnet: Guestnet) -> None:
    short = guestnet(*words, "-h")
    assert (short.status, short.out) == (0, guestnet(*words, "--help").out)
    assert "  -h, --help  " in short.out


@pytest.mark.root
def test_a_command_in_a_lab_has_its_own_h() -> None:
    done = run("lab", "exec", "--name", "nope", "n1", "df", "-h")
    assert (done.returncode, done.stdout) == (ExitCode.NOT_FOUND, ""), done.stderr


def test_what_a_terminal_would_obey_is_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    report.line("vm\x1b[2J\x9b1m é\nnext")
    report.error(GuestnetError("no guest \udcff\r"), json_wanted=False)
    shown = capsys.readouterr()
    assert shown.out == "vm\\x1b[2J\\x9b1m é\nnext\n"
    assert shown.err == "guestnet: no guest \\udcff\\r\n"


def test_a_signal_is_told_with_what_could_not_be_undone(monkeypatch: pytest.MonkeyPatch, guestnet: Guestnet) -> None:
    def ended(*_: object) -> None:
        try:
            signal.raise_signal(signal.SIGHUP)
        except BaseException as error:
            error.add_note("not undone: this")
            raise

    monkeypatch.setattr(templates, "read", ended)
    answer = guestnet("xml", "network", "lab", "--parent", "ens3")
    assert (answer.status, answer.err.splitlines()[1]) == (128 + signal.SIGHUP, "  not undone: this")


def test_a_connection_that_is_no_uri_is_a_usage_error(guestnet: Guestnet) -> None:
    assert guestnet("list", "--connect", "qemu://[x").status == ExitCode.USAGE
