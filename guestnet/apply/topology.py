"""Effects of a topology: namespaces, links in them, addresses, routes, sysctls."""

from collections.abc import Callable, Iterable, Sequence

from guestnet.apply import in_order, links
from guestnet.apply.doors import Doors
from guestnet.errors import NotFoundError
from guestnet.kernel import netns, sysctl
from guestnet.kernel.link import Links
from guestnet.kernel.place import Place, Places
from guestnet.model import Link
from guestnet.plan import topology as plan
from guestnet.plan.steps import AddLink, DeleteLink
from guestnet.undo import Undo

Watch = Callable[[str, plan.Step], None]
"""Called with "begin" and "end" around each step; what it raises ends the work like a failed step."""


class Ground:
    """Where the steps of a topology go: the namespaces, and the doors of the steps on links in each.

    ``leftovers`` are names of namespaces whose maker was killed before they were one: an empty file is all there is.
    """

    def __init__(self, places: Places, leftovers: Iterable[str] = ()) -> None:
        self.places = places
        self.leftovers = frozenset(leftovers)
        self._doors: dict[str, Doors] = {}

    def doors(self, name: str) -> Doors:
        """The doors of that namespace, which are the same ones each time."""
        if name not in self._doors:
            place = self.places.at(name)
            self._doors[name] = Doors(links=self.places.here.links, target=place.links, into=place.fd)
        return self._doors[name]

    def link(self, name: str, link: str) -> tuple[Place, Link]:
        """A link, and the namespace it is in."""
        place = self.places.at(name)
        found = place.links.find(link)
        if found is None:
            raise NotFoundError(f"the interface {link} is gone" + (f" from {name}" if name else ""))
        return place, found

    def forget(self, name: str) -> None:
        """Let go of a namespace."""
        self._doors.pop(name, None)
        self.places.forget(name)


def run(steps: Sequence[plan.Step], ground: Ground, undo: Undo, watch: Watch | None = None) -> None:
    """Carry out the steps in their order.

    What fails raises, and ``undo`` takes back what was done. A deletion of a link or of a namespace has no way back, as
    in ``guestnet.apply.run``.
    """

    def do(step: plan.Step) -> None:
        _carry_out(step, ground, undo)

    in_order(steps, undo, watch, deletes=_deletes, do=do)


def _deletes(step: plan.Step) -> bool:
    return isinstance(step, plan.DeleteNamespace) or (
        isinstance(step, plan.Within) and isinstance(step.step, DeleteLink)
    )


def _carry_out(step: plan.Step, ground: Ground, undo: Undo) -> None:
    match step:
        case plan.AddNamespace():
            undo.push(str(step), _take_back_namespace, step, ground)
            netns.make(step.name, lambda: _furnish(step.mark), over_leftover=step.name in ground.leftovers)
        case plan.DeleteNamespace():
            ground.forget(step.name)
            netns.remove(step.name)
        case plan.Within():
            doors = ground.doors(step.netns)
            if isinstance(step.step, AddLink):
                doors.parents.clear()  # the parent may have been made in another namespace's turn
            links.carry_out(step.step, doors, undo)
        case plan.SetAddress():
            undo.push(str(step), _address, step, ground, back=True)
            _address(step, ground)
        case plan.SetRoute():
            undo.push(str(step), _route, step, ground, back=True)
            _route(step, ground)
        case plan.SetSysctl():
            undo.push(str(step), restore, step.before)
            sysctl.write(step.name, step.value, namespace=ground.places.at(step.netns).fd)


def restore(values: Iterable[tuple[str, str]]) -> None:
    """Set sysctls of this namespace to what they were, in this order. One that is gone is no error."""
    for name, value in values:
        if sysctl.read([name])[name] not in (None, value):
            sysctl.write(name, value)


def _furnish(mark: str) -> None:
    """What a namespace has before it gets its name: the mark, and lo up."""
    with Links() as inside:
        loopback = next(link for link in inside.all() if link.loopback)
        inside.mark(loopback, mark)
        inside.set_up(loopback)


def _take_back_namespace(step: plan.AddNamespace, ground: Ground) -> None:
    if not netns.exists(step.name):
        return
    loopback = next((link for link in ground.places.at(step.name).links.all() if link.loopback), None)
    if loopback is not None and loopback.alias == step.mark:
        ground.forget(step.name)
        netns.remove(step.name)


def _address(step: plan.SetAddress, ground: Ground, *, back: bool = False) -> None:
    if back and ground.places.at(step.netns).links.find(step.link) is None:
        return  # it went with its link
    place, link = ground.link(step.netns, step.link)
    if step.there is not back:
        place.addresses.add(link.index, step.address, step.link)
    else:
        place.addresses.delete(link.index, step.address, step.link)


def _route(step: plan.SetRoute, ground: Ground, *, back: bool = False) -> None:
    if back and ground.places.at(step.netns).links.find(step.link) is None:
        return
    place, link = ground.link(step.netns, step.link)
    if step.there is not back:
        place.routes.add(link.index, step.route, step.link)
    else:
        place.routes.delete(link.index, step.route, step.link)
