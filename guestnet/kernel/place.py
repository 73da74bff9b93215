"""One network namespace with all that is asked for and changed in it: links, addresses, routes, sysctls."""

from contextlib import ExitStack
from dataclasses import dataclass

from guestnet.closes import Closes
from guestnet.kernel import netns
from guestnet.kernel.address import Addresses
from guestnet.kernel.link import Links
from guestnet.kernel.route import Routes


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A network namespace: its name and fd, which are empty and None for the caller's own, and the doors to it."""

    name: str
    fd: int | None
    links: Links
    addresses: Addresses
    routes: Routes


class Places(Closes):
    """The caller's network namespace, and named ones as they are asked for; all are let go at the end of the block."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Place, ExitStack]] = {}
        self.here = self.at("")

    def close(self) -> None:
        """Let go of all namespaces."""
        for name in list(self._open):
            self.forget(name)

    def at(self, name: str) -> Place:
        """The namespace of that name, or the caller's own for an empty one. Raises NotFoundError."""
        if name not in self._open:
            with ExitStack() as stack:
                fd = stack.enter_context(netns.opened(name)) if name else None
                place = Place(
                    name=name, fd=fd, links=stack.enter_context(Links(fd)),
                    addresses=stack.enter_context(Addresses(fd)), routes=stack.enter_context(Routes(fd)),
                )  # fmt: skip
                self._open[name] = place, stack.pop_all()
        return self._open[name][0]

    def forget(self, name: str) -> None:
        """Let go of a namespace, so that nothing keeps it when its name goes."""
        if name in self._open:
            self._open.pop(name)[1].close()
