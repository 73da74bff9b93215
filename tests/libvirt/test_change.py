"""guestnet set, on a guest that runs."""

from collections.abc import Callable

import pytest

from tests.libvirt.conftest import Host, address, ping

pytestmark = [pytest.mark.root, pytest.mark.guest]


def attached(host: Host, *words: str) -> dict[str, str]:
    nic: dict[str, str] = host.json("attach", "n1g1", "--parent", "nic0", *words)["nics"][0]
    return nic


def test_the_mode_changes_while_the_guest_runs_and_its_connection_stands(n1: Host) -> None:
    nic = attached(n1)
    guest = n1.guest("n1g1")
    address(guest, nic["mac"], "198.51.100.80/24")
    assert ping(guest, "198.51.100.2")
    for mode in ("vepa", "private", "bridge"):
        done = n1.json("set", "n1g1", nic["ifname"], "--mode", mode)
        assert done["changed"]
        assert n1.links()[nic["ifname"]]["linkinfo"]["info_data"]["mode"] == mode
        assert n1.json("show", "n1g1", nic["mac"])[0]["mode"] == mode
        assert f'mode="{mode}"' in n1.config("n1g1")
        assert ping(guest, "198.51.100.2")
        assert n1.json("set", "n1g1", nic["mac"], "--mode", mode)["steps"] == []
    assert n1.json("show", "n1g1")[0]["problems"] == []


def test_the_link_state_is_the_carrier_the_guest_sees(n1: Host) -> None:
    nic = attached(n1)
    guest = n1.guest("n1g1")
    name = address(guest, nic["mac"])
    for state, carrier in (("down", "0"), ("up", "1")):
        n1.json("set", "n1g1", nic["ifname"], "--link", state)
        assert n1.json("show", "n1g1")[0]["link"] == state
        look = f"[ $(cat /sys/class/net/{name}/carrier) = {carrier} ] && exit 0; usleep 100000"
        assert guest.run(f"for i in 1 2 3 4 5 6 7 8 9 10; do {look}; done; exit 1")[0] == 0
        assert f"<link state='{state}'/>" in n1.config("n1g1")


def test_the_mtu_goes_down_live_and_up_only_for_the_next_start(n1: Host) -> None:
    nic = attached(n1)
    done = n1.guestnet("set", "n1g1", nic["ifname"], "--mtu", "1400", check=True)
    assert "lower it there too" in done.out
    assert n1.links()[nic["ifname"]]["mtu"] == 1400
    assert "<mtu size='1400'/>" in n1.config("n1g1")
    assert n1.json("show", "n1g1")[0]["problems"] == []
    before = n1.state()
    refused = n1.guestnet("set", "n1g1", nic["ifname"], "--mtu", "1450")
    assert (refused.code, n1.state()) == (5, before)
    assert "cannot be raised to 1450 now" in refused.err


def test_a_stopped_guest_is_changed_without_its_macvtap(n1: Host, bare_domain: Callable[..., str]) -> None:
    name = bare_domain(start=False)
    nic = n1.json("attach", name, "--parent", "nic0")["nics"][0]
    n1.run("ip", "link", "delete", nic["ifname"])  # as a reboot of the host does
    n1.json("set", name, nic["mac"], "--link", "down")
    assert "<link state='down'/>" in n1.config(name)


def test_a_nic_whose_macvtap_is_gone_is_not_changed_live(n1: Host) -> None:
    nic = attached(n1)
    n1.run("ip", "link", "delete", nic["ifname"])
    before = n1.state()
    done = n1.guestnet("set", "n1g1", nic["mac"], "--link", "down")
    assert (done.code, n1.state()) == (5, before)
    assert "is gone, its NIC is dead" in done.err


def test_a_rate_that_this_kernel_cannot_do_leaves_no_trace(n1: Host) -> None:
    """libvirt needs sch_sfq and act_police; it leaves half a queueing discipline where one is missing."""
    nic = attached(n1)
    before = n1.state()
    done = n1.guestnet("set", "n1g1", nic["ifname"], "--outbound", "1024,2048,512")
    if done.code == 0:  # a kernel that has them
        assert "<inbound average='1024' peak='2048' burst='512'/>" in n1.live("n1g1")
        n1.json("set", "n1g1", nic["ifname"], "--outbound", "0")
    else:
        assert done.code == 1
    queues = n1.run("tc", "qdisc", "show", "dev", nic["ifname"])
    assert "htb" not in queues
    assert "ingress" not in queues
    after = n1.state()
    for state in (before, after):  # a device that had a queueing discipline once gets the default one, no more none
        for link in state["links"]:
            link.pop("qdisc")
    assert after == before


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("--mode", "passthru"), 5, "changes no macvtap from mode bridge to passthru"),
        (("--mode", "source"), 2, "mode source is for a macvlan"),
        (("--mode", "brigde"), 2, "is not a mode"),
        (("--mtu", "9000"), 5, "more than that of nic0"),
        (("--mtu", "20"), 2, "is not an MTU"),
        (("--link", "sideways"), 2, "is not possible here"),
        (("--inbound", "fast"), 2, "is not a rate"),
        ((), 2, "there is nothing to set"),
        (("--mode", "vepa", "--live", "--config", "--mtu", "1501"), 5, "more than that of nic0"),
    ],
)
def test_what_cannot_be_changed_is_refused_with_the_reason(
    n1: Host, words: tuple[str, ...], code: int, message: str
) -> None:
    nic = attached(n1)
    before = n1.state()
    done = n1.guestnet("set", "n1g1", nic["ifname"], *words)
    assert (done.code, message in done.err, "hint: " in done.err) == (code, True, True), done
    assert n1.state() == before


def test_a_nic_of_libvirts_own_changes_what_libvirt_can_change(n1: Host) -> None:
    nic = attached(n1, "--backend", "direct")
    before = n1.state()
    for words, message in (
        (("--mode", "vepa"), "changes no mode of a NIC in use"),
        (("--mtu", "1400"), "takes no MTU"),
    ):
        done = n1.guestnet("set", "n1g1", nic["mac"], *words)
        assert (done.code, message in done.err) == (5, True)
        assert n1.state() == before
    n1.json("set", "n1g1", nic["mac"], "--link", "down")
    assert "<link state='down'/>" in n1.live("n1g1")
    n1.json("set", "n1g1", nic["mac"], "--mode", "vepa", "--config")
    assert "mode='vepa'" in n1.config("n1g1")
    assert "mode='vepa'" not in n1.live("n1g1")
