"""The plan of links of the host's own, beyond what the golden files have."""

import pytest

from guestnet.model import GROUP, HOST_ALIAS, Kind, Link
from guestnet.plan import hostlink
from guestnet.plan.host import Host

NIC = Link(index=2, name="ens3", mac="52:54:00:00:00:02", mtu=1500, up=True)
OUTER = Link(index=3, name="ens3.100", kind=Kind.VLAN, vlan=100, parent=2, alias=HOST_ALIAS, group=GROUP)
INNER = Link(index=4, name="ens3.100.11", kind=Kind.VLAN, vlan=11, parent=3, alias=HOST_ALIAS, group=GROUP)
FOREIGN = Link(index=5, name="mv0", kind=Kind.MACVLAN, parent=4)


@pytest.mark.parametrize("order", [("ens3.100", "ens3.100.11"), ("ens3.100.11", "ens3.100")])
def test_what_a_link_that_stays_stands_on_stays_and_each_is_told(order: tuple[str, str]) -> None:
    host = Host(links=(NIC, OUTER, INNER, FOREIGN))
    plan = hostlink.delete(Kind.VLAN, order, host, foreign=False)
    assert plan.there == ()
    assert [failure.message for failure in plan.failures] == [
        "ens3.100.11 has mv0 on it", "ens3.100 has ens3.100.11 on it",
    ]  # fmt: skip
    free = hostlink.delete(Kind.VLAN, order, Host(links=(NIC, OUTER, INNER)), foreign=False)
    assert [step.name for step in free.there] == ["ens3.100.11", "ens3.100"]  # type: ignore[union-attr]
