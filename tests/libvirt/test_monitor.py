"""guestnet qemu and the monitor of a guest of libvirt: hands off."""

from collections.abc import Callable

import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest]


@pytest.mark.parametrize("verb", ["list", "attach --parent nic0", "detach --all"])
def test_libvirts_monitor_is_refused_by_who_listens_there(verb: str, n1: Host) -> None:
    # libvirt may have left the directory of an earlier run of the guest
    socket = f"/var/lib/libvirt/qemu/domain-{n1.virsh('domid', 'n1g1').strip()}-n1g1/monitor.sock"
    elsewhere = "/run/a-monitor"
    n1.run("ln", "-s", socket, elsewhere)
    try:
        for path in (socket, elsewhere):
            answer = n1.guestnet("qemu", *verb.split(), "--qmp", path)
            assert answer.code == 5
            assert "is a monitor of a libvirt guest" in answer.err
            assert "guestnet attach" in answer.err
        assert n1.virsh("domstate", "n1g1").strip() == "running"
    finally:
        n1.run("rm", elsewhere)


def test_a_second_monitor_of_a_libvirt_guest_is_refused(n1: Host, bare_domain: Callable[..., str]) -> None:
    bare_domain(qemu=("-qmp", "unix:/run/second.qmp,server=on,wait=off"))
    answer = n1.guestnet("qemu", "list", "--qmp", "/run/second.qmp")
    assert (answer.code, "is a monitor of a libvirt guest" in answer.err) == (5, True)
