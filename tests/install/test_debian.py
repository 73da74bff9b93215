"""The Debian package in a system that has never seen guestnet: installed, used, replaced by a later one and removed,
while a guest runs with a NIC of guestnet's."""

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import guestnet
from docs import commands
from guestnet.lab import cache
from guestnet.lab.image import image
from guestnet.lab.node import LIBVIRT_URI, Node
from tests.conftest import REPO
from tests.docs.blocks import blocks
from tests.install import debian
from tests.install.conftest import Packages
from tests.install.debian import System

pytestmark = [pytest.mark.root, pytest.mark.guest_runs_on]

HOOK = "/etc/libvirt/hooks/qemu.d/guestnet"
MAC = "52:54:00:00:f0:0d"
IFNAME = "gn52540000f00d"
UNIT = "guestnet-host-shim\\x2dnic0.service"


@pytest.fixture(scope="module")
def clean(packages: Packages, tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """A Debian with the package installed, and the lab's kernel beside it, which else would be downloaded."""
    image()
    with debian.system(tmp_path_factory.mktemp("debian")) as system:
        assert system.run("which", "python3").returncode != 0
        debian.install(system, packages.deb)
        kept = system.root / "var/cache/guestnet/lab"
        shutil.copytree(cache.directory("lab"), kept)
        yield system


def lines(text: str) -> dict[str, str]:
    """A table of two columns."""
    return {name: value.strip() for name, value in (line.split(None, 1) for line in text.splitlines())}


def test_guestnet_runs_where_nothing_but_the_package_was_installed(clean: System, packages: Packages) -> None:
    told = lines(clean.must("guestnet", "--version"))
    assert told["guestnet"] == guestnet.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+ \(no daemon answers\)", told["libvirt"])
    assert re.fullmatch(r"\d+\.\d+\.\d+", told["QEMU"])
    assert clean.must("readlink", "-f", "/usr/bin/guestnet").strip() == "/usr/lib/guestnet/bin/guestnet"
    assert clean.must("guestnet", "xml", "domain", "vm1").startswith("<domain")
    assert clean.run("dpkg", "--verify", "guestnet").stdout == ""


def test_using_it_leaves_no_file_in_the_system_that_is_not_the_packages(clean: System) -> None:
    code = "import libvirt, libvirt_qemu, libvirtaio, guestnet.attachment; from guestnet import attach, detach, nic"
    clean.must("/usr/lib/guestnet/bin/python", "-c", code)
    found = set(clean.must("find", "/usr/lib/guestnet", "-not", "-type", "d").split())
    assert found == {path for path in clean.must("dpkg", "-L", "guestnet").split() if path in found}


def test_each_command_has_its_man_page(clean: System) -> None:
    found = clean.must("dpkg", "-L", "guestnet").split()
    pages = {path for path in found if path.startswith("/usr/share/man/man1/")}
    assert pages == {f"/usr/share/man/man1/{name}.1.gz" for name in commands.titles()}


def test_no_package_is_built_without_man_pages(tmp_path: Path) -> None:
    words = [REPO / "packaging/deb.py", "--man", tmp_path, "guestnet-1-py3.whl", tmp_path]
    done = subprocess.run([sys.executable, *map(str, words)], check=False, capture_output=True, text=True)
    assert (done.returncode, f"there are no man pages in {tmp_path}" in done.stderr) == (1, True), done
    assert list(tmp_path.iterdir()) == []


def test_the_documentation_is_there_and_what_is_copied_from(clean: System) -> None:
    documents = clean.root / "usr/share/doc/guestnet"
    pages = {str(path.relative_to(documents)): path for path in documents.rglob("*.md")}
    shipped = [REPO / "README.md", *(REPO / "docs").rglob("*.md")]
    assert {str(path.relative_to(REPO)) for path in shipped} <= pages.keys()
    links = [
        path.parent / target
        for path in pages.values()
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    ]
    assert links
    assert [path for path in links if not path.is_file()] == []
    assert (documents / "vagrant/testbed/Vagrantfile").is_file()
    schemas = {path.name for path in (REPO / "docs/schema").iterdir()}
    for directory in ("/usr/share/guestnet/schema", "/usr/share/doc/guestnet/docs/schema/"):
        assert set(clean.must("ls", directory).split()) == schemas
    systemd = clean.must("ls", "/usr/share/guestnet/templates/systemd").split()
    assert systemd == ["guestnet-host.service", "guestnet-topology.service"]


def test_each_shell_finds_its_completion(clean: System) -> None:
    debian.install(clean, "fish")
    bash = ". /usr/share/bash-completion/bash_completion; _completion_loader guestnet; complete -p guestnet"
    assert clean.must("bash", "-c", bash) == "complete -F _guestnet guestnet\n"
    assert clean.must("fish", "-c", "complete -C 'guestnet macvt'").split()[0] == "macvtap"
    assert "--parent" in clean.must("fish", "-c", "complete -C 'guestnet attach vm1 --pa'")
    zsh = "autoload -U compinit; compinit -u -D; print -r -- ${_comps[guestnet]}"
    assert clean.must("zsh", "-c", zsh) == "_guestnet\n"
    # as zsh calls it, but that what it offers is printed
    zsh = "compdef() { : }; compadd() { print -rl -- $said }; . /usr/share/zsh/vendor-completions/_guestnet; "
    zsh += "words=(guestnet xml domain vm\\ 1 --backend ''); CURRENT=6; _guestnet"
    assert clean.must("zsh", "-c", zsh).split() == ["macvtap", "direct"]


def test_where_a_person_writes_them_the_shells_find_them_too(clean: System) -> None:
    page = (REPO / "docs/install.md").read_text(encoding="utf-8")
    script, rc = (block.text for block in blocks(page) if re.search("guestnet completion|compinit", block.text))
    clean.must("bash", "-e", "-c", script)
    bash = ". /usr/share/bash-completion/bash_completion; _completion_loader guestnet; shopt -s extdebug; declare -F "
    place = "/root/.local/share/bash-completion/completions/guestnet"
    assert clean.must("bash", "-c", f"{bash} _guestnet").split()[-1] == place
    zsh = f"{rc}\nautoload +X _guestnet; print -r -- ${{_comps[guestnet]}} ${{functions_source[_guestnet]}}"
    assert clean.must("zsh", "-c", zsh) == "_guestnet /root/.zfunc/_guestnet\n"
    fish = "/root/.config/fish/completions/guestnet.fish"
    clean.must("cmp", fish, "/usr/share/fish/vendor_completions.d/guestnet.fish")


@dataclass(frozen=True)
class Host:
    """A host of the lab that runs in the system, reached without any of guestnet's programs there."""

    system: System
    node: Node

    def must(self, *words: str) -> str:
        """What a command says on it that has to succeed."""
        return self.system.must(*self._inside(words))

    def refused(self, *words: str) -> str:
        """The error of a command on it that has to fail."""
        done = self.system.run(*self._inside(words))
        assert done.returncode != 0, done
        return done.stderr

    def _inside(self, words: tuple[str, ...]) -> tuple[str, ...]:
        return (*self.node.enter_argv(), "env", f"LIBVIRT_DEFAULT_URI={LIBVIRT_URI}", *words)

    def in_guest(self, command: str) -> str:
        """What a command says in its guest that has to succeed."""
        seen = replace(self.node, state=Path(f"/proc/{self.system.pid}/root") / self.node.state.relative_to("/"))
        status, output = seen.guests[0].run(command)
        assert status == 0, output
        return output

    def attach(self, mac: str, address: str) -> None:
        """Give its guest a NIC, and that an address."""
        self.must("guestnet", "attach", f"{self.node.name}g1", "--parent", "nic0", "--mac", mac)
        find = f"cd /sys/class/net; for d in *; do grep -q {mac} $d/address && echo $d; done"
        nic = self.in_guest(f"for i in 1 2 3 4 5 6 7 8 9; do {find} | grep . && exit; sleep 1; done; exit 1").split()[0]
        self.in_guest(f"ip link set {nic} up && ip addr add {address}/24 dev {nic}")

    def state(self) -> dict[str, str]:
        """What shall not change: the guest's process and XML, and its link."""
        link = json.loads(self.must("ip", "-d", "-j", "link", "show", IFNAME))
        return {
            "process": self.must("cat", "/run/libvirt/qemu/n1g1.pid"), "xml": self.must("virsh", "dumpxml", "n1g1"),
            "link": json.dumps(link),
        }  # fmt: skip


def test_guest_and_nic_stay_through_an_upgrade_and_the_removal(clean: System, packages: Packages) -> None:
    shutil.copy(packages.later(), clean.root / "root/later.deb")
    clean.must("guestnet", "lab", "up", "--nodes", "2", timeout=300)
    state = Path("/run/guestnet/lab/lab")
    host, other = (
        Host(clean, Node(lab="lab", number=number, node_count=2, guest_count=1, nic_count=1, state=state))
        for number in (1, 2)
    )
    host.attach(MAC, "203.0.113.1")
    other.attach("52:54:00:00:f0:0e", "203.0.113.2")
    host.in_guest("n=9; while ! ping -c 1 -W 1 203.0.113.2; do n=$((n-1)); [ $n -gt 0 ] || exit 1; done")
    host.in_guest("ping 203.0.113.2 >/tmp/answers 2>&1 &")
    host.must("ln", "-s", "/bin/true", "/usr/local/bin/systemctl")  # as where systemd is and does not run
    host.must("guestnet", "host", "add", "nic0", "--address", "203.0.113.9/32", "--persist")
    begun = time.monotonic()
    before, hook = host.state(), host.must("cat", HOOK)
    assert "\npython='/usr/lib/guestnet/bin/python'\n" in hook

    host.must("dpkg", "-i", "/root/later.deb")
    later = host.must("cat", HOOK)
    assert later.splitlines()[-1] == "# a later version"
    assert json.loads(host.must("guestnet", "hook", "status", "--json"))["ready"]
    assert host.state() == before

    said = host.must("dpkg", "--remove", "guestnet")
    assert "guests that run keep their NICs" in said
    assert f"guestnet: {UNIT} fails at boot from now on" in said
    host.refused("guestnet", "--version")
    assert host.must("cat", HOOK) == later
    assert host.state() == before
    answers = host.in_guest("sleep 2; kill -INT $(pidof ping); sleep 1; cat /tmp/answers").splitlines()
    sent, back = re.findall(r"(\d+) packets", " ".join(answers[-3:]))
    assert int(sent) - int(back) <= 1  # the last may be on its way
    assert int(sent) >= time.monotonic() - begun - 4  # a packet a second, until after the removal

    # a guest that starts now finds its link, or fails with the reason
    for words in (("virsh", "destroy", "n1g1"), ("virsh", "start", "n1g1"), ("virsh", "destroy", "n1g1")):
        host.must(*words)
    host.must("ip", "link", "delete", IFNAME)
    said = host.refused("virsh", "start", "n1g1")
    assert "n1g1: prepare was passed over, /usr/lib/guestnet/bin/python is gone: run guestnet hook install" in said
    assert f"there is no link {IFNAME}\n" in said

    # purged: its units go with it, and the hook, if nobody changed it
    units = "/etc/systemd/system"
    host.must("sh", "-c", f"sed 1d '{units}/{UNIT}' >{units}/guestnet-mine.service")
    host.must("sh", "-c", f"echo '# mine' >>{HOOK}; dpkg --purge guestnet; tail -n 1 {HOOK} | grep -q mine")
    left = host.must("find", units, "-name", "guestnet-*").split()
    assert left == [f"{units}/guestnet-mine.service"]
    host.must("dpkg", "-i", "/root/later.deb")
    host.must("sh", "-c", f"rm {HOOK}; guestnet hook install; test -x {HOOK}; dpkg --purge guestnet; test ! -e {HOOK}")

    debian.install(clean, packages.deb, "--reinstall")
    clean.must("guestnet", "lab", "down")
