"""The recipes of docs/provisioning.md and the example of docs/python.md, as they stand there."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]

HERE = {"ens3": "nic0", "ens4": "nic1", "vm1": "n1g1"}
"""What a node of the lab has in the place of what the pages speak of."""

NETPLAN = "/usr/sbin/netplan"


def recipes(page: str, title: str, kind: str) -> list[str]:
    """The blocks of that kind in the part of the page with that title, in words of the lab."""
    text = (REPO / "docs" / page).read_text(encoding="utf-8")
    [part] = re.findall(rf"^##? {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    found = re.findall(rf"^```{kind}\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    return [re.sub("|".join(HERE), lambda name: HERE[name[0]], block) for block in found]


def run(host: Host, directory: Path, *command: str) -> str:
    """What a command says, run there with guestnet in the PATH."""
    path = f"PATH={Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin"
    return host.run("env", path, "bash", "-ec", 'cd "$0"; exec "$@"', str(directory), *command)


def shell(host: Host, directory: Path, script: str) -> str:
    return run(host, directory, "bash", "-e", "-o", "pipefail", "-c", script)


def nic_of(host: Host, guest: str) -> dict[str, object]:
    [row] = host.json("list", guest)
    assert row["problems"] == []
    return row  # type: ignore[no-any-return]


@pytest.fixture
def made_guests(n1: Host) -> Iterator[tuple[str, ...]]:
    """The guests that a recipe makes, with libvirt's hook for their starts; none of it is there afterwards."""
    yield ("web", "db")
    for name in ("web", "db"):
        n1.node.run(["virsh", "destroy", name])
        n1.guestnet("detach", name, "--all")
        n1.node.run(["virsh", "undefine", name])
    n1.guestnet("hook", "uninstall", check=True)


Rendered = Callable[..., str]


@pytest.fixture
def rendered(tmp_path: Path) -> Rendered:
    """``rendered(file, kind, mac)``: what Debian's cloud-init, unpacked here and not installed, makes of a
    network-config on a guest whose network is of that kind, all its files in one text."""
    packages = tmp_path / "packages"
    (packages / "partial").mkdir(parents=True)
    words = ["-q", "-y", "--no-install-recommends", "--download-only", "install", "cloud-init"]
    options = ("Debug::NoLocking=1", "APT::Sandbox::User=root", f"Dir::Cache::archives={packages}")
    got = subprocess.run(
        ["apt-get", *(word for option in options for word in ("-o", option)), *words],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    if got.returncode != 0:
        pytest.skip(f"apt cannot get cloud-init: {got.stderr}")
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg-deb", "-x", package, tmp_path / "cloud-init"], check=True, timeout=60)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "cloud-init/usr/lib/python3/dist-packages")}

    def render(file: Path, kind: str, mac: str) -> str:
        made = tmp_path / kind
        made.mkdir()
        convert = ["/usr/bin/python3", "-m", "cloudinit.cmd.main", "devel", "net-convert", "--distro", "debian"]
        words = ["-p", str(file), "-k", "yaml", "-d", str(made), "-m", f"lan0,{mac}", "-O", kind]
        subprocess.run([*convert, *words], check=True, capture_output=True, timeout=60, env=environment)
        return "\n".join(path.read_text(encoding="utf-8") for path in sorted(made.rglob("*")) if path.is_file())

    return render


def test_a_guest_of_virt_install_starts_on_the_nic_that_cloud_init_was_told_of(
    n1: Host, made_guests: tuple[str, ...], tmp_path: Path, rendered: Rendered
) -> None:
    for name in made_guests:
        run(n1, tmp_path, "qemu-img", "create", "-q", "-f", "qcow2", f"{name}.qcow2", "1G")
    config, _seed = recipes("provisioning.md", "An address by cloud-init", "sh")
    shell(n1, tmp_path, config)
    own, direct = recipes("provisioning.md", "virt-install", "sh")
    shell(n1, tmp_path, own)
    nic = nic_of(n1, "web")
    assert (nic["state"], nic["parent"], nic["live"], nic["config"]) == ("running", "nic0", True, True)

    netplan = tmp_path / "etc" / "netplan"
    netplan.mkdir(parents=True)
    told, mac = tmp_path / "network-config", str(nic["mac"])
    (netplan / "50-cloud-init.yaml").write_text(rendered(told, "netplan", mac), encoding="utf-8")
    run(n1, tmp_path, NETPLAN, "generate", "--root-dir", str(tmp_path))
    [network] = (tmp_path / "run" / "systemd" / "network").glob("*.network")
    said = network.read_text(encoding="utf-8").splitlines()
    assert {f"PermanentMACAddress={mac}", "Address=192.0.2.50/24", "Address=2001:db8::50/64"} <= set(said)
    said = rendered(told, "networkd", mac).splitlines()
    assert {f"MACAddress={mac}", "Address=192.0.2.50/24", "Address=2001:db8::50/64", "Gateway=192.0.2.1"} <= set(said)
    said = [line.strip() for line in rendered(told, "eni", mac).splitlines()]
    assert {"address 192.0.2.50/24", "address 2001:db8::50/64"} <= set(said)
    assert any(f'ATTR{{address}}=="{mac}", NAME="lan0"' in line for line in said)

    shell(n1, tmp_path, direct)
    nic = nic_of(n1, "db")
    assert (nic["backend"], nic["parent"], nic["mode"]) == ("direct", "nic0", "bridge")
    assert (nic["state"], nic["live"], nic["config"]) == ("running", True, True)


def test_a_guest_on_a_pool_of_libvirts_is_on_the_wire(n1: Host, n2: Host, tmp_path: Path) -> None:
    [pool] = recipes("provisioning.md", "A pool of parents", "sh")
    try:
        shell(n1, tmp_path, pool)
        nic = nic_of(n1, "n1g1")
        assert (nic["backend"], nic["live"], nic["config"]) == ("direct", True, True)
        guest = n1.guest("n1g1")
        address(guest, str(nic["mac"]), "198.51.100.82/24", "2001:db8:51::82/64")
        assert ping(guest, "198.51.100.2")
        n2.run("ping", "-c", "1", "-W", "5", "2001:db8:51::82")
        n1.guestnet("detach", "n1g1", str(nic["mac"]), check=True)
        assert n1.json("list") == []
    finally:
        for row in n1.json("list", "n1g1"):  # no NIC of guestnet's own, which is what --all is for
            n1.guestnet("detach", "n1g1", row["mac"])
        n1.node.run(["virsh", "net-destroy", "lab11"])
        n1.node.run(["virsh", "net-undefine", "lab11"])


def test_a_script_gives_guests_their_nics_all_or_none(n1: Host, tmp_path: Path) -> None:
    [script] = recipes("provisioning.md", "A script", "python")
    (tmp_path / "provision.py").write_text(script, encoding="utf-8")
    try:
        told = run(n1, tmp_path, sys.executable, "provision.py", "nic0", "n1g1")
        name, mac, ifname = told.split()
        assert (name, ifname) == ("n1g1", nic_of(n1, "n1g1")["interface"])
        guest = n1.guest("n1g1")
        address(guest, mac, "198.51.100.83/24")
        assert ping(guest, "198.51.100.2")
        assert run(n1, tmp_path, sys.executable, "provision.py", "nic0", "n1g1") == told

        n1.guestnet("detach", "n1g1", "--all", check=True)
        done = n1.node.run([sys.executable, str(tmp_path / "provision.py"), "nic0", "n1g1", "n1g9"])
        assert (done.returncode, "n1g9" in done.stderr) == (1, True)
        assert n1.json("list") == []
    finally:
        n1.guestnet("hook", "uninstall")


def test_the_python_pages_example_does_what_it_says(n1: Host, tmp_path: Path) -> None:
    [example] = recipes("python.md", "From Python", "python")
    [errors] = recipes("python.md", "Errors", "python")
    ask = (
        "import json; from guestnet import attach, mac_of; nic = attach('n1g1', 'nic0', dry_run=True)\n"
        "print(json.dumps([nic.mac, mac_of('n1g1', 'nic0'), nic.live, nic.changed, len(nic.steps) > 1]))"
    )
    try:
        before = n1.state()
        mac, *rest = json.loads(run(n1, tmp_path, sys.executable, "-c", ask))
        assert rest == [mac, False, False, True]
        assert n1.state() == before
        first, second = run(n1, tmp_path, sys.executable, "-c", example).splitlines()
        assert first.split() == ["n1g1", mac, f"gn{mac.replace(':', '')}", "True", "True"]
        assert second.split() == [first.split()[2], "vepa", "True", "()"]
        assert n1.state() == before
        n1.json("attach", "n1g2" if "n1g2" in n1.xml() else "n1g1", "--parent", "nic1", "--mac", "52:54:00:00:00:01")
        assert run(n1, tmp_path, sys.executable, "-c", errors).startswith("taken: ")
    finally:
        n1.guestnet("hook", "uninstall")
