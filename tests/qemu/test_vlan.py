"""QEMUs on VLANs, served by vhost-net: the VLANs are made for them and go with the last of them."""

import os
import shlex
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from guestnet.kernel import vhost
from guestnet.lab.image import Image
from guestnet.model import VLAN_ALIAS, Mac, Request
from guestnet.plan.qemu import Vhost
from guestnet.qemu import Options, hotplug, opened
from guestnet.qemu.hotplug import How
from guestnet.qemu.run import arguments
from tests.qemu.conftest import GUESTNET, NETWORKS, Bare, Host, until

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q", "vhost_net", "macvtap", "veth")]

MAC = "52:54:00:00:e5:01"
OTHER = "52:54:00:00:e5:02"
ONE = "52:54:00:00:e5:03"
ASKED = "52:54:00:00:e5:04"


def vlans(host: Host) -> set[str]:
    """The VLANs of the near ends."""
    return {link.name for link in host.links.all() if link.kind == "vlan" and link.name.startswith("nic")}


def tag(host: Host, nic: str, vid: int) -> None:
    """Move the address of a cable's far end into a VLAN."""
    far, network = nic.replace("nic", "peer"), NETWORKS[nic]
    host.ip(f"addr del {network}.2/24 dev {far}")
    host.ip(f"link add link {far} name {far}.{vid} type vlan id {vid}")
    host.ip(f"addr add {network}.2/24 dev {far}.{vid}")
    host.ip(f"link set {far}.{vid} up")


@pytest.mark.guest
def test_a_guest_on_vlans_answers_through_vhost_and_leaves_none_of_them(
    host: Host, guest_image: Image, tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    """Four queues by run, one by fds that are passed on, one by a helper, two by attach."""
    tag(host, "nic0", 11)
    tag(host, "nic1", 12)
    guest = Bare.at(tmp_path, guest_image)  # of one processor: guests of more end now and then in the test machine
    words = ("qemu", "run", "--parent", "nic0.11", "--mac", MAC, "--queues", "4", "--vhost", "on")
    helper = f"tap,id=n0,vhost=on,helper={shlex.join([*GUESTNET, 'qemu', 'helper'])} --parent nic0.11"
    asked = ("-netdev", helper, "-device", f"virtio-net-pci,netdev=n0,mac={ASKED}")
    one = host.call(lambda: opened((Request(parent="nic0.11", mac=Mac(ONE)),), Options(vhost=Vhost.ON)))
    own = (*guest.words, *one.nics[0].arguments, *asked)
    run = host.start(*GUESTNET, *words, "--", *own, pass_fds=one.nics[0].pass_fds)
    processes.append(run)
    one.close_fds()
    guest.booted(run)
    for number, mac in enumerate((MAC, ONE, ASKED)):
        guest.answers(mac, "nic0", host, host=2 * number + 1, by="peer0.11")
        guest.run(f"ip link set {guest.wait_nic(mac)} down")  # the next one speaks for itself
    (qemu,) = host.holders(f"gn{MAC.replace(':', '')}")
    assert kernel_queues(qemu) == 6
    requests = (Request(parent="nic1.12", mac=Mac(OTHER), queues=2),)
    how = Options(vhost=Vhost.AUTO)
    (nic,) = host.call(lambda: hotplug.attach(str(guest.qmp), requests, how, How())).nics
    assert (nic.parent, kernel_queues(qemu)) == ("nic1.12", 8)
    guest.answers(OTHER, "nic1", host, by="peer1.12")
    assert vlans(host) == {"nic0.11", "nic1.12"}
    host.call(lambda: hotplug.detach(str(guest.qmp), (OTHER,), How()))
    assert (vlans(host), kernel_queues(qemu)) == ({"nic0.11"}, 6)
    os.kill(qemu, signal.SIGKILL)
    assert run.wait(60) == 128 + signal.SIGKILL
    host.call(one.close)
    until(lambda: (vlans(host), host.ours()) == (set(), {}))


def kernel_queues(pid: int) -> int:
    """How often a process has vhost-net open."""
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}") == vhost.PATH for fd in os.listdir(f"/proc/{pid}/fd"))


def test_a_vlan_goes_with_its_last_nic_and_stays_where_the_host_uses_it(host: Host) -> None:
    def both() -> None:
        with ExitStack() as first:
            first.enter_context(opened((Request(parent="nic0.11"),), Options()))
            with opened((Request(parent="nic0.11"), Request(parent="nic0.12")), Options()):
                assert vlans(host) == {"nic0.11", "nic0.12"}
            assert vlans(host) == {"nic0.11"}
        assert vlans(host) == set()
        with opened((Request(parent="nic0.11"),), Options()):
            host.ip("addr add 192.0.2.1/24 dev nic0.11")
        assert vlans(host) == {"nic0.11"}
        host.ip("addr del 192.0.2.1/24 dev nic0.11")
        with opened((Request(parent="nic0.11"),), Options()):
            pass
        assert vlans(host) == set()

    host.call(both)


def test_a_vlan_of_the_hosts_own_stays(host: Host) -> None:
    host.ip("link add link nic0 name nic0.11 type vlan id 11")

    def use() -> None:
        with opened((Request(parent="nic0.11"),), Options()) as made:
            assert made.links[0].parent == next(link.index for link in host.links.all() if link.name == "nic0.11")

    host.call(use)
    assert vlans(host) == {"nic0.11"}


def test_what_fails_after_its_vlans_were_made_leaves_none(host: Host) -> None:
    requests = (Request(parent="nic0.11"), Request(parent="nic0.12.13"))
    host.call(lambda: opened(requests, Options()).close())
    assert vlans(host) == set()
    watched: list[str] = []

    def fail_at_the_end(moment: str, step: object) -> None:
        watched.append(f"{moment} {step}")
        if len(watched) == 30:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        host.call(lambda: opened(requests, Options(watch=fail_at_the_end)))
    assert (vlans(host), host.ours()) == (set(), {})


def test_vlans_are_marked_as_made_for_guests(host: Host) -> None:
    def use() -> None:
        with opened((Request(parent="nic0.11"),), Options()):
            aliases = {link.name: link.alias for link in host.links.all()}
            assert aliases["nic0.11"] == VLAN_ALIAS

    host.call(use)


def test_args_redirects_vhost_too(host: Host) -> None:
    words = ("qemu", "args", "--parent", "nic0", "--mac", MAC, "--vhost", "on")
    line = host.guestnet(*words, check=True).out
    assert "vhost=on,vhostfd=4" in line
    assert line.endswith("4<>/dev/vhost-net\n")
    wanted = (Request(parent="nic0", mac=Mac(MAC)),)
    auto = host.call(lambda: arguments(wanted, Options(vhost=Vhost.AUTO)))
    off = host.call(lambda: arguments(wanted, Options(vhost=Vhost.OFF)))
    assert (auto.line, "vhost" in off.line) == (line.removesuffix("\n"), False)
    host.guestnet("macvtap", "delete", f"gn{MAC.replace(':', '')}", check=True)


def test_exec_passes_vhost_too(host: Host) -> None:
    host.guestnet("macvtap", "add", "mt0", "--parent", "nic0", check=True)
    words = ("--queues", "2", "--vhost", "on", "--", "sh", "-c", "echo {fds} {vhostfds,}; readlink /proc/$$/fd/6")
    assert host.guestnet("exec", "mt0", *words, check=True).out == "3:4 5,6\n/dev/vhost-net\n"


def test_what_a_killed_run_left_goes_with_the_next_nic(host: Host) -> None:
    def leave_and_go_on() -> None:
        opened((Request(parent="nic0.11"),), Options()).hand_over()  # as its fds are closed, and nothing else is done
        assert vlans(host) == {"nic0.11"}
        with opened((Request(parent="nic1"),), Options()):
            assert (vlans(host), len(host.ours())) == (set(), 1)

    host.call(leave_and_go_on)
