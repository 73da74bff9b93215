"""guestnet macvlan: links of the host's own, which keep the host's IPv6."""

from collections.abc import Callable
from typing import Any

import pytest

from guestnet.model import GROUP, HOST_ALIAS

pytestmark = pytest.mark.root

MAC, OTHER, THIRD = "52:54:00:00:02:01", "52:54:00:00:02:02", "52:54:00:00:02:03"
Run = Callable[..., Any]


@pytest.fixture
def guestnet(run_guestnet: Run, parent: Any) -> Run:
    """Runs the command line in the namespace ``parent`` and expects it to succeed."""

    def run(*words: str) -> Any:
        answer = run_guestnet(*words, netns=parent.name)
        assert answer.code == 0, answer
        return answer

    return run


def only(network: Any, name: str) -> dict[str, Any]:
    (found,) = network.shown(f"dev {name}")
    return dict(found)


def sources(network: Any, name: str) -> set[str]:
    data = only(network, name)["linkinfo"]["info_data"]
    return {one["addr"] if isinstance(one, dict) else one for one in data.get("macaddr_data", [])}


@pytest.mark.parametrize("mode", ["bridge", "vepa", "private", "passthru"])
def test_add_makes_what_ip_link_add_makes(guestnet: Run, parent: Any, mode: str) -> None:
    left_out = {"ifindex", "group", "ifalias"}
    mac = "" if mode == "passthru" else f"address {MAC}"
    parent.ip(f"link add link nic0 name lan0 {mac} type macvlan mode {mode}")
    parent.ip("link set lan0 up")
    by_ip = only(parent, "lan0")
    parent.ip("link delete lan0")
    guestnet("macvlan", "add", "lan0", "--parent", "nic0", "--mode", mode, *(["--mac", MAC] if mac else []))
    by_us = only(parent, "lan0")
    assert (by_us["group"], by_us["ifalias"]) == (str(GROUP), HOST_ALIAS)
    assert {key: by_us.get(key) for key in by_us if key not in left_out} == {
        key: by_ip.get(key) for key in by_ip if key not in left_out
    }


def test_the_hosts_ipv6_stays_on_a_macvlan(guestnet: Run, parent: Any) -> None:
    guestnet("macvlan", "add", "lan0", "--parent", "nic0")
    assert parent.read("/proc/sys/net/ipv6/conf/lan0/disable_ipv6") == "0"
    assert "inet6 fe80:" in parent.ip("addr show dev lan0")


def test_mode_source_has_its_list_of_addresses_and_gets_another(guestnet: Run, run_guestnet: Run, parent: Any) -> None:
    both = ("--source-mac", MAC, "--source-mac", OTHER)
    guestnet("macvlan", "add", "lan0", "--parent", "nic0", "--mode", "source", *both)
    assert sources(parent, "lan0") == {MAC, OTHER}
    (row,) = guestnet("macvlan", "list", "--json").json
    assert (row["mode"], set(row["source_macs"])) == ("source", {MAC, OTHER})
    assert guestnet("macvlan", "set", "lan0", *both, "--json").json["changed"] is False
    again = ("macvlan", "add", "lan0", "--parent", "nic0", "--mode", "source", "--json")
    assert guestnet(*again, "--source-mac", OTHER, "--source-mac", MAC).json["changed"] is False
    assert run_guestnet(*again, "--source-mac", MAC, netns=parent.name).code == 5
    guestnet("macvlan", "set", "lan0", "--source-mac", THIRD)
    assert sources(parent, "lan0") == {THIRD}


def test_mode_source_comes_and_goes_while_the_link_is_up(guestnet: Run, parent: Any) -> None:
    guestnet("macvlan", "add", "lan0", "--parent", "nic0")
    guestnet("macvlan", "set", "lan0", "--mode", "source", "--source-mac", MAC)
    assert only(parent, "lan0")["linkinfo"]["info_data"]["mode"] == "source"
    guestnet("macvlan", "set", "lan0", "--mode", "bridge")
    assert only(parent, "lan0")["linkinfo"]["info_data"]["mode"] == "bridge"
    assert "UP" in only(parent, "lan0")["flags"]


def test_a_macvlan_that_is_moved_keeps_marks_state_and_ipv6(
    guestnet: Run, parent: Any, namespace: Callable[[], Any]
) -> None:
    far = namespace()
    guestnet("macvlan", "add", "lan0", "--parent", "nic0", "--mode", "source", "--source-mac", MAC)
    guestnet("macvlan", "set", "lan0", "--netns", far.name)
    link = only(far, "lan0")
    assert (link["group"], link["ifalias"], sources(far, "lan0")) == (str(GROUP), HOST_ALIAS, {MAC})
    assert "UP" in link["flags"]
    assert far.read("/proc/sys/net/ipv6/conf/lan0/disable_ipv6") == "0"


def test_the_lists_of_macvtap_and_macvlan_are_each_their_own(guestnet: Run) -> None:
    guestnet("macvlan", "add", "lan0", "--parent", "nic0")
    guestnet("macvtap", "add", "mt0", "--parent", "nic0")
    assert [row["name"] for row in guestnet("macvlan", "list", "--json").json] == ["lan0"]
    assert [row["name"] for row in guestnet("macvtap", "list", "--json").json] == ["mt0"]
    guestnet("macvlan", "delete", "lan0")
    assert guestnet("macvlan", "list", "--json").json == []
