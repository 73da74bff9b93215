"""Bad input to attach: a clear error with a hint and the right exit code, host and guests exactly as before."""

import sys
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import as_user
from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest]

MAC = "52:54:00:00:00:31"


@pytest.fixture
def crowded(n1: Host, bare_domain: Callable[..., str]) -> Iterator[Host]:
    """A host on which much is taken: ports of a bridge, a macvtap of another guest's, guests in odd states."""
    commands = """
        link add br0 type bridge
        link add p0 type veth peer name p1
        link set p0 master br0
        link add sib link nic0 address 52:54:00:00:00:41 type macvtap mode bridge
        link add ens3.12 type veth peer name q1
        link add ens3 type veth peer name q2
    """
    n1.run("sh", "-c", 'printf %s "$0" | ip -batch -', commands.strip())
    n1.json("attach", "n1g2", "--parent", "nic1", "--mac", "52:54:00:00:00:42")
    yield n1
    n1.json("detach", "n1g2", "--all")
    for name in ("br0", "p0", "sib", "ens3.12", "ens3"):
        n1.run("ip", "link", "delete", name)


@pytest.mark.parametrize(
    ("words", "code", "message", "hint"),
    [
        ("n1g7 --parent nic0", 3, "there is no guest n1g7", "did you mean n1g"),
        ("n1g1 --parent nic7", 3, "there is no interface nic7", "did you mean nic"),
        ("n1g1 --parent nic7.11", 3, "there is no interface nic7", "nic"),
        ("n1g1", 2, "--parent", "--help"),
        ("n1g1 --parent lo", 5, "lo is the loopback interface", "name the NIC"),
        ("n1g1 --parent p0", 5, "p0 is a port of br0 (bridge)", "--parent br0"),
        ("n1g1 --parent sib", 5, "sib is a macvtap itself", "--parent nic0"),
        ("n1g1 --parent nic0 --ifname sixteencharacter", 2, "has 16 characters, the kernel takes 15", "shorter"),
        ("n1g1 --parent nic0 --ifname a/b", 2, "'a/b' is not an interface name", "letters"),
        ("n1g1 --parent nic0 --ifname sib", 5, "sib is taken by a macvtap on nic0", "--ifname"),
        ("n1g1 --parent nic0 --vlan 0", 2, "'0' is not a VLAN ID", "1 to 4094"),
        ("n1g1 --parent nic0 --vlan 4095", 2, "'4095' is not a VLAN ID", "1 to 4094"),
        ("n1g1 --parent nic0 --vlan x", 2, "'x' is not a VLAN ID", "1 to 4094"),
        ("n1g1 --parent nic0.0", 2, "'0' is not a VLAN ID", "1 to 4094"),
        ("n1g1 --parent nic0.011", 2, "'011' is not a VLAN ID", "1 to 4094"),
        ("n1g1 --parent ens3.12", 5, "ens3.12 is not VLAN 12 (802.1Q) on ens3: it is a veth", "--vlan"),
        ("n1g1 --parent nic0 --mac 33:33:00:00:00:01", 2, "is a multicast address", "even"),
        ("n1g1 --parent nic0 --mac 00:00:00:00:00:00", 2, "is nobody's", "--mac"),
        ("n1g1 --parent nic0 --mac 52:54:00:1:2:3", 2, "is not a MAC address", "six bytes"),
        ("n1g1 --parent nic0 --mac 02:6c:61:62:01:00", 5, "is the MAC of nic0 itself", "--mac"),
        ("n1g1 --parent nic0 --mac 52:54:00:00:00:41", 5, "is the MAC of sib on nic0", "--mac"),
        ("n1g1 --parent nic0 --mac 52:54:00:00:00:42", 5, "is a MAC of the guest n1g2", "--mac"),
        ("n1g1 --parent nic0 --mode passthru", 5, "takes nic0 whole, and it is used by sib", "bridge"),
        ("n1g1 --parent nic0 --mode source", 2, "mode source is for a macvlan", "bridge, vepa"),
        ("n1g1 --parent nic0 --mode hub", 2, "'hub' is not a mode", "bridge, vepa"),
        ("n1g1 --parent nic0 --mtu 1501", 5, "more than that of nic0, 1500", "ip link set nic0 mtu 1501"),
        ("n1g1 --parent nic0 --mtu 67", 2, "67 is not an MTU", "68"),
        ("n1g1 --parent nic0 --mtu big", 2, "'big' is not an MTU", "whole number"),
        ("n1g1 --parent nic0 --queues 0", 2, "0 queues are not possible", "1 to 256"),
        ("n1g1 --parent nic0 --queues 257", 2, "257 queues are not possible", "1 to 256"),
        ("n1g1 --parent nic0 --queues 2 --model e1000e", 2, "the model e1000e has one queue", "virtio"),
        ("n1g1 --parent nic0 --model virtoi", 2, "'virtoi' is not a NIC model", "virtio"),
        ("n1g1 --parent nic0 --model e1000", 5, "no free PCI slot", "--config"),
        ("n1g1 --parent nic0 --boot-order 0", 2, "0 is not a boot order", "from 1"),
        ("n1g1 --parent nic0 --boot-order 1", 5, "boots by <os><boot dev=", "virsh edit n1g1"),
        ("n1g1 --parent nic0 --inbound much", 2, "'much' is not a rate", "KiB/s"),
        ("n1g1 --parent nic0 --parent nic1 --mac 52:54:00:00:00:31", 2, "given 1 times for 2 parents", "--mac"),
        ("n1g1 --parent nic0 --parent nic0 --mac 52:54:00:00:00:31 --mac 52:54:00:00:00:31", 2, "twice", "own"),
        ("n1g1 --parent nic0 --backend direct --mtu 1400", 2, "libvirt takes no MTU", "--backend"),
        ("n1g1 --parent nic0 --backend direct --ifname x", 2, "libvirt names the macvtap itself", "--ifname"),
        ("n1g1 --parent nic0 --backend direct --multicast all", 2, "trustGuestRxFilters", "--multicast"),
        ("n1g1 --parent nic0 --backend qemu", 2, "'qemu' is not possible here", "macvtap, direct"),
        ("n1g1 --parent nic0 --template /nosuch.xml", 3, "there is no template /nosuch.xml", "copy one from"),
        ("n1g1 --parent 188.23.512.129/26", 3, "there is no interface 188.23.512.129/26", "ip link"),
        ("n1g1 --parent nic0 --mac 188.23.512.129/26", 2, "is not a MAC address", "six bytes"),
        ("n1g1 --parent nic0 --connect qemu+ssh://far/system", 2, "is another host's", "ssh far guestnet"),
        ("n1g1 --parent nic0 --connect qemu:///session", 2, "is a user's own libvirt", "qemu:///system"),
        ("n1g1 --parent nic0 --connect test:///default", 2, "is not a QEMU system libvirt", "qemu:///system"),
        ("n1g1 --parent nic0 --connect lxc:///system", 2, "is not a QEMU system libvirt", "qemu:///system"),
        ("n1g1 --parent nic0 --connect qemu+unix:///system?socket=/nosuch", 1, "cannot be reached", "start"),
        ("n1g1 --parent nic0 --live --wrong", 2, "--wrong", "--help"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    crowded: Host, words: str, code: int, message: str, hint: str
) -> None:
    before = crowded.state()
    done = crowded.guestnet("attach", *words.split())
    assert done.code == code, done
    first, *rest = done.err.splitlines()
    assert message in first
    assert hint in " ".join(rest)
    assert not done.out
    told = crowded.guestnet("attach", *words.split(), "--json")
    assert (told.code, told.json["error"]["code"]) == (code, code)
    assert "guestnet: " + told.json["error"]["message"] == first
    assert crowded.state() == before


@pytest.mark.kernel_without("8021q")
@pytest.mark.parametrize("backend", ["macvtap", "direct"])
def test_without_8021q_a_vlan_is_refused_and_nothing_changes(n1: Host, backend: str) -> None:
    before = n1.state()
    words = ("attach", "n1g1", "--parent", "nic0.11", "--backend", backend)
    done = n1.guestnet(*words)
    assert (done.code, n1.state()) == (1, before)
    error = "this kernel has no 802.1Q VLAN support (CONFIG_VLAN_8021Q)"
    assert done.err.startswith(f"guestnet: {error}\nhint: install a kernel that has the module 8021q")
    told = n1.guestnet(*words, "--json")
    assert (told.code, told.json["error"]["message"]) == (1, error)


def test_a_guest_without_a_free_root_port_is_told_so(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(ports=2)
    n1.json("attach", name, "--parent", "nic0")
    before = n1.state()
    done = n1.guestnet(
        "attach", name, "--parent", "nic1", "--parent", "nic0", "--mac", MAC, "--mac", "52:54:00:00:00:32"
    )
    assert (done.code, n1.state()) == (5, before)
    assert "2 are needed, 1 free" in done.err
    assert n1.json("attach", name, "--parent", "nic1", "--config")["changed"]


def test_a_transient_guest_has_no_configuration(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(ports=2, transient=True)
    before = n1.state()
    done = n1.guestnet("attach", name, "--parent", "nic0", "--config")
    assert (done.code, n1.state()) == (5, before)
    assert f"{name} is transient" in done.err
    assert n1.json("attach", name, "--parent", "nic0")["config"] is False


def test_a_stopped_guest_takes_nothing_live(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    before = n1.state()
    done = n1.guestnet("attach", name, "--parent", "nic0", "--live")
    assert (done.code, n1.state()) == (5, before)
    assert f"{name} does not run" in done.err


def test_a_guest_that_an_io_error_paused_takes_nothing_live(n1: Host, bare_domain: Callable[..., str]) -> None:
    """Its firmware reads a disk that answers with an error, which QEMU is told to stop on."""
    run = n1.node.own / "run"
    (run / "broken.conf").write_text('[inject-error]\nevent = "read_aio"\nerrno = "5"\n')
    (run / "broken.img").write_bytes(bytes(1 << 20))
    disk = "if=none,id=d0,format=raw,rerror=stop,file=blkdebug:/run/broken.conf:/run/broken.img"
    name = bare_domain(qemu=("-device", "virtio-blk-pci,drive=d0,addr=0x1e,bootindex=1", "-drive", disk))
    wait = f"for i in $(seq 100); do virsh domstate --reason {name} | grep -q paused && exit 0; sleep 0.1; done; exit 1"
    n1.run("sh", "-c", wait)
    before = n1.state()
    for words in (("attach", name, "--parent", "nic0"), ("detach", name, "--all")):
        done = n1.guestnet(*words)
        assert (done.code, n1.state()) == (5, before)
        assert f"{name} is paused by an I/O error" in done.err
    assert n1.json("attach", name, "--parent", "nic0", "--config")["live"] is False


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("<interface type='ethernet'>", "is not XML"),
        (
            "<!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><interface type='ethernet'>&e;</interface>",
            "has a DTD",
        ),
        ("<interface type='network'/>", "does not begin with <interface type='ethernet'>"),
        ("<domain/>", "does not begin with <interface type='ethernet'>"),
    ],
)
def test_a_template_that_is_none_is_refused(n1: Host, text: str, message: str) -> None:
    before = n1.state()
    own = n1.node.own / "run" / "bad.xml"
    own.write_text(text)
    try:
        done = n1.guestnet("attach", "n1g1", "--parent", "nic0", "--template", "/run/bad.xml")
    finally:
        own.unlink()
    assert (done.code, message in done.err, n1.state()) == (2, True, before)


@pytest.mark.parametrize(
    "words", [("attach", "n1g1", "--parent", "nic0"), ("detach", "n1g1", "--all"), ("set", "n1g1", "x", "--link", "up")]
)
def test_who_is_not_root_is_told_so(n1: Host, words: tuple[str, ...]) -> None:
    before = n1.state()
    done = n1.node.run([*as_user(65534), sys.executable, "-m", "guestnet", *words])
    assert (done.returncode, n1.state()) == (4, before), done
    assert "needs root" in done.stderr
    assert "hint: run this with sudo" in done.stderr
