"""Pings between the endpoints of a topology, from those that are on this node, beside what the file says will come."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from guestnet.kernel import echo, netns
from guestnet.plan.layout import Node, Topology, Where
from guestnet.plan.reach import Pair, Reach

TIMEOUT = 3.0
"""Seconds that an answer is waited for: an address may be in its duplicate address detection."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What came of one ping: ``ttl`` of the answer on arrival, None where none came.

    ``expected`` is the TTL that the file's routes give it, None where they give it no way; ``why`` says what the file
    knows about that. ``wrong`` where the two are not the same.
    """

    source: str
    target: str
    address: str
    ttl: int | None
    milliseconds: float | None
    expected: int | None
    why: str

    @property
    def wrong(self) -> bool:
        """Whether it is not as the file has it."""
        return self.ttl != self.expected


def ping(topology: Topology, node: Node, *, timeout: float = TIMEOUT) -> tuple[Answer, ...]:
    """Pings from each endpoint of this node that has an IP stack here to all others, on whatever node.

    From a guest the host cannot ping. Raises NotPermittedError without root.
    """
    sources = [one for one in node.endpoints if one.kind in (Where.NETNS, Where.HOST)]
    pairs = [pair for pair in Reach(topology=topology).pairs() if pair.source in sources]
    probes: dict[int, echo.Probe] = {}
    with ExitStack() as stack:
        fds: dict[str, int | None] = {"": None}
        for name in dict.fromkeys(one.inside for one in sources if one.kind is Where.NETNS):
            if netns.exists(name):
                fds[name] = stack.enter_context(netns.opened(name))
        for number, pair in enumerate(pairs):
            if pair.source.inside in fds:
                probes[number] = echo.Probe(source=pair.own, target=pair.address, namespace=fds[pair.source.inside])
        heard = echo.ping(probes, timeout=timeout) if probes else {}
    return tuple(answer(pair, heard.get(number)) for number, pair in enumerate(pairs))


def answer(pair: Pair, heard: echo.Echo | None) -> Answer:
    """What came of a ping, beside what the file says."""
    hairpin = f"only if the switch sends frames back, between {' and '.join(pair.hairpin)}" if pair.hairpin else ""
    return Answer(
        source=pair.source.title, target=pair.target.title, address=str(pair.address),
        ttl=heard.ttl if heard is not None else None,
        milliseconds=round(heard.seconds * 1000, 3) if heard is not None else None,
        expected=None if pair.problem or (hairpin and heard is None) else pair.back.ttl, why=pair.problem or hairpin,
    )  # fmt: skip


def told(answers: Iterable[Answer], *, only: Callable[[Answer], bool] = lambda one: one.ttl is None) -> tuple[str, ...]:
    """One line for each pair that is not reached, with the addresses together."""
    lines: dict[tuple[str, str], list[Answer]] = {}
    for one in answers:
        if only(one):
            lines.setdefault((one.source, one.target), []).append(one)
    return tuple(
        f"x {source} does not reach {target} ({', '.join(one.address for one in found)})"
        + (f": {found[0].why}" if found[0].why else "")
        for (source, target), found in lines.items()
    )
