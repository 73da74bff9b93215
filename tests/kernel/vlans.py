"""A host and the other end of its cable, for the tests of VLANs; guests' macvtaps are made as attach makes them."""

import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from guestnet import apply, hostlink, templates
from guestnet.kernel.link import Links
from guestnet.model import Guest, Kind, Link, Request
from guestnet.plan import attach as attaching
from guestnet.plan import hostlink as plan
from guestnet.plan.host import Host
from guestnet.plan.situation import Situation
from guestnet.plan.steps import DeleteLink, LinkStep
from guestnet.undo import Undo
from tests.conftest import Namespace

NIC_MAC = "52:54:00:aa:00:01"
PEER_MAC = "52:54:00:aa:00:02"
LONG = "enp0s31f6np0d1"
"""The name of a NIC on which no VLAN has a name short enough for the kernel."""

_T = TypeVar("_T")


def uuid_of(guest: str) -> str:
    """The UUID of a guest of the tests."""
    return "11111111-1111-4111-8111-" + guest.encode().hex().rjust(12, "0")[-12:]


def plan_attach(parents: Iterable[str], links: Links, *, guest: str = "vm1", **words: Any) -> attaching.Attaching:
    """The plan that gives a stopped guest a NIC on each of these parents."""
    now = Situation(
        host=Host(links=links.all()),
        guest=Guest(name=guest, uuid=uuid_of(guest), state="shut off", live=None, config="<domain/>"),
        machine_id="m",
    )
    requests = tuple(Request(parent=parent, **words) for parent in parents)
    return attaching.attach(requests, now, live=False, config=True, templates=templates.interfaces({}))


def carry_out(made: attaching.Attaching, links: Links, watch: apply.Watch | None = None) -> None:
    """Take the steps on links of the plan; they are undone where one fails."""
    steps = [step for step in made.steps if isinstance(step, LinkStep)]
    with Undo() as undo:
        apply.run(steps, apply.Doors(links=links, target=links), undo, watch)


@dataclass(frozen=True)
class Site:
    """A host with ``nic0``, or whatever ``nic`` says, on a cable to ``peer0``, which may be in another namespace."""

    here: Namespace
    far: Namespace
    nic: str

    def planned(self, *parents: str, **words: Any) -> attaching.Attaching:
        """The plan that gives a guest a NIC on each parent."""
        return plan_attach(parents, self.here.links, **words)

    def attach(self, *parents: str, watch: apply.Watch | None = None, **words: Any) -> attaching.Attaching:
        """The links of a guest with a NIC on each parent are made; the plan."""

        def work() -> attaching.Attaching:
            with Links() as links:
                made = plan_attach(parents, links, **words)
                carry_out(made, links, watch)
                return made

        return self.call(work)

    def detach(self, guest: str = "vm1") -> list[str]:
        """The links of that guest are deleted and the VLANs left unused; the names of all."""

        def work() -> list[str]:
            with Links() as links:
                host = Host(links=links.all(), used_elsewhere=links.used_elsewhere(), addressed=links.addressed())
                going = [link for link in host.links if link.guest_uuid == uuid_of(guest)]
                doomed = [*going, *host.unused_vlans(going)]
                steps = [DeleteLink(name=link.name, index=link.index) for link in doomed]
                apply.run(steps, apply.Doors(links=links, target=links), Undo())
                return [link.name for link in doomed]

        return self.call(work)

    def add(self, kind: Kind, *names: str, parent: str, watch: apply.Watch | None = None, **words: Any) -> Any:
        """`guestnet KIND add`, in this process."""
        netns = words.pop("netns", None)
        wanted = plan.Wanted(kind=kind, names=names, parent=parent, **words)
        return self.call(lambda: hostlink.add(wanted, hostlink.Options(netns=netns, watch=watch)))

    def delete(self, kind: Kind, *names: str, foreign: bool = False) -> Any:
        """`guestnet KIND delete`, in this process."""
        return self.call(lambda: hostlink.delete(kind, names, hostlink.Options(), foreign=foreign))

    def call(self, function: Callable[[], _T]) -> _T:
        """What the function gives on this host."""
        found: _T = self.here.call(function)
        return found

    def bridge(self, words: str) -> None:
        """bridge(8) on this host."""
        subprocess.run(["bridge", "-n", self.here.name, *words.split()], check=True, timeout=20)

    def link(self, name: str) -> Link:
        """The link of that name; it has to be there."""
        found = self.here.links.find(name)
        assert found is not None, name
        return found

    def vlans(self) -> dict[str, tuple[int | None, str]]:
        """The VLANs of the host: their IDs and the names of their lower links."""
        links = self.here.links.all()
        names = {link.index: link.name for link in links}
        return {link.name: (link.vlan, names.get(link.parent or 0, "?")) for link in links if link.kind == "vlan"}

    def names(self) -> set[str]:
        """The names of all links."""
        return {link.name for link in self.here.links.all()}


def site(namespace: Callable[[], Namespace], nic: str = "nic0", *, far: bool = False) -> Site:
    """A new host whose NIC has that name; the other end is ``far`` away where frames are to be told apart.

    IPv6 is off at both ends, so that nothing is sent that no test sends.
    """
    here = namespace()
    there = namespace() if far else here
    here.ip(f"link add {nic} address {NIC_MAC} type veth peer name peer0 address {PEER_MAC} netns {there.name}")
    for place, name in ((here, nic), (there, "peer0")):
        place.ip(f"link set {name} addrgenmode none up")
    return Site(here, there, nic)


def shown(place: Namespace, name: str) -> dict[str, Any]:
    """`ip -d -j link show` of one link, without what changes by itself."""
    (found,) = place.shown("dev", name)
    return {key: value for key, value in found.items() if key not in ("stats", "stats64", "operstate")}


def facts(made: attaching.Attaching) -> str:
    """The notes of a plan, as one text."""
    return "\n".join(made.notes)
