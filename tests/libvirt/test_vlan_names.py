"""A guest on a VLAN whose name is too long for the kernel: what it is called where."""

import pytest

from tests.libvirt.conftest import Host

pytestmark = [pytest.mark.root, pytest.mark.guest, pytest.mark.kernel("8021q")]

READABLE = "nic0.1001.1002.1003"


@pytest.mark.parametrize("backend", ["macvtap", "direct"])
def test_a_parent_has_its_readable_name_for_a_person_and_another_one_in_the_kernel(n1: Host, backend: str) -> None:
    attach = ("attach", "n1g1", "--parent", READABLE, "--outer-protocol", "802.1ad", "--backend", backend)
    (nic,) = n1.json(*attach)["nics"]
    assert nic["parent"] == READABLE
    links = n1.links()
    lower = links[links[nic["ifname"]]["link"]]
    assert (lower["ifname"][:2], lower["altnames"]) == ("gv", [READABLE])
    data = {name: link["linkinfo"]["info_data"] for name, link in links.items() if name.startswith(("nic0.", "gv"))}
    assert {(one["id"], one["protocol"]) for one in data.values()} == {
        (1001, "802.1ad"), (1002, "802.1Q"), (1003, "802.1Q"),
    }  # fmt: skip
    (row,) = n1.json("list", "n1g1")
    assert (row["parent"], row["vlan"], row["problems"]) == (READABLE, 1003, [])
    assert n1.json(*attach)["steps"] == []
    n1.json("detach", "n1g1", "--all")
    assert not any(name.startswith(("nic0.", "gv")) for name in n1.links())
