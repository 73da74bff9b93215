"""docs/troubleshooting.md has a place for each thing that is known to go wrong with macvtap, and says how to see it."""

import re

import pytest

from tests.docs.blocks import REPO

PAGE = REPO / "docs" / "troubleshooting.md"

PLACES = {
    # what goes wrong: where it stands, and what makes it seen
    "the guest does not reach its own host": ("host-and-guest-do-not-reach-each-other", "ip route get"),
    "the parent is a port of a bridge": ("the-parent-is-a-port-device-or-resource-busy", "ip -brief link show master"),
    "multicast is filtered": ("ipv6-or-mdns-never-arrives", "ip -6 neigh"),
    "a MAC is taken since a crash": ("address-already-in-use", "guestnet gc --dry-run"),
    "the node is root's": ("devtapn-permission-denied-or-the-wrong-one", "mode 0600"),
    "a device cgroup says no": (
        "operation-not-permitted-though-the-node-is-there-and-root-asks", "grep macvtap /proc/devices",
    ),
    "the node is opened before udev has done with it": ("it-can-be-opened-a-moment-later", "udevadm monitor"),
    "the node is another namespace's, or missing": ("devtapn-permission-denied-or-the-wrong-one", "ls -l /dev/tap7"),
    "AppArmor cuts the NIC off": ("the-nic-stops-after-a-snapshot-or-a-block-job", "grep DENIED"),
    "the guest's address is unknown": ("the-guests-address-is-not-known", "ip neigh"),
    "the MTU is refused or not handed on": ("the-mtu-is-refused-or-large-packets-are-lost", "ping -M do"),
    "a migration loses traffic or finds no parent": ("after-a-migration", "tcpdump -e -n -i ens3 ether host"),
    "the VLAN is missing, or goes under another user": (
        "the-vlan-is-missing-or-belongs-to-somebody-else", "No such device",
    ),
    "the macvtap goes with its parent": ("the-nic-is-there-and-dead", "guestnet list"),
    "Wi-Fi is silent": ("it-sends-and-nothing-comes-back", "phy80211"),
    "eth0 is no NIC here": ("the-nic-has-another-name-than-eth0", "ip route show default"),
    "a user's own libvirt may make no macvtap": ("operation-not-permitted", "qemu:///session"),
    "the guest's MAC is another than the link's": ("the-guests-mac-is-not-the-macvtaps", "query-rx-filter"),
    "LACP and LLDP": ("lacp-or-lldp-does-not-come-through", "tcpdump -p"),
    "vepa is the default elsewhere": ("two-guests-of-one-host-do-not-reach-each-other", "ip -d link show"),
    "filters of libvirt's do not count": ("a-filter-of-libvirts-has-no-effect", "grep -E 'source dev|filterref'"),
    "the parent's MAC changes": ("the-parent-has-another-mac-than-before", "/sys/class/net/ens4/address"),
    "links of containers are left over": ("links-are-left-over", "guestnet gc --dry-run"),
    "Vagrant stumbles over a network without a bridge": (
        "vagrant-up-the-network-does-not-have-a-bridge-name", "virsh net-info",
    ),
    "the host's own link is gone after a reboot": ("they-did-until-the-host-was-rebooted", "guestnet host list"),
    "a driver keeps too few addresses": ("it-sends-and-nothing-comes-back", "promisc on"),
}  # fmt: skip


def sections(text: str) -> dict[str, str]:
    """The text below each heading by the heading's anchor, as browsers of repositories and Sphinx make it."""
    prompts = re.compile(r"^```\w.*?^```$", re.MULTILINE | re.DOTALL)
    parts = re.split(
        r"^#{2,3} (.*)$", prompts.sub(lambda block: block[0].replace("\n#", "\n #"), text), flags=re.MULTILINE
    )
    anchors = [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in parts[1::2]]
    assert len(set(anchors)) == len(anchors)
    return dict(zip(anchors, parts[2::2], strict=True))


@pytest.mark.parametrize("what", PLACES)
def test_what_goes_wrong_has_its_place_where_it_is_said_how_to_see_it(what: str) -> None:
    anchor, seen_by = PLACES[what]
    assert seen_by in sections(PAGE.read_text(encoding="utf-8"))[anchor]
