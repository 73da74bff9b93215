"""A topology on the lab's nodes: each brings its own part up, and the guests get what a file says of their inside."""

import json
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from guestnet.errors import GuestnetError, UsageError
from guestnet.inet import Ip
from guestnet.kernel.echo import Echo
from guestnet.lab.guest import Guest
from guestnet.lab.lab import Lab
from guestnet.lab.node import Node
from guestnet.lab.programs import Progress, quiet
from guestnet.plan.layout import Endpoint, Topology, Where
from guestnet.plan.reach import Reach
from guestnet.topology import document
from guestnet.topology.check import Answer, answer

_NODE = re.compile(r"n([1-9][0-9]?)")
_GUEST = re.compile(r"(n[1-9][0-9]?)g([1-9][0-9]?)")
_TRIES = 3
_SECONDS = 120.0


def sizes(topology: Topology) -> tuple[int, int]:
    """How many nodes, and guests on each, a lab needs for it. Raises UsageError where its names are not a lab's."""
    nodes, guests = 1, 0
    for node in topology.nodes:
        match = _NODE.fullmatch(node.name)
        if match is None:
            raise UsageError(f"the lab has no node {node.name}", hint="its nodes are n1, n2, …")
        nodes = max(nodes, int(match[1]))
        for endpoint in node.endpoints:
            if endpoint.kind is not Where.GUEST:
                continue
            inside = _GUEST.fullmatch(endpoint.inside)
            if inside is None or inside[1] != node.name:
                raise UsageError(
                    f"the lab has no guest {endpoint.inside} on {node.name}",
                    hint=f"its guests there are {node.name}g1, {node.name}g2, …",
                )
            guests = max(guests, int(inside[2]))
    return nodes, guests


def up(
    lab: Lab, topology: Topology, file: str, progress: Progress = quiet, *, parents: Mapping[str, str] | None = None
) -> None:
    """Bring a topology up on the lab's nodes; ``file`` is what the nodes know it by, ``parents`` are links that stand
    in for those of the file.

    Raises GuestnetError with a node's own words; what the other nodes did stays then, for `guestnet topology down`.
    """
    nodes = {node.name: node for node in lab.nodes()}

    def bring(name: str) -> dict[str, Any]:
        done: dict[str, Any] = _guestnet(nodes[name], "topology", "up", *_words(file, name, parents))
        progress(f"{topology.name} is up on {name}")
        return done

    with ThreadPoolExecutor(max_workers=8) as pool:
        made = dict(zip([node.name for node in topology.nodes], pool.map(bring, _names(topology)), strict=True))
    for endpoint in _guests(topology):
        macs = {row["name"]: row["mac"] for row in made[endpoint.node]["rows"]}
        _furnish(nodes[endpoint.node].guest(endpoint.inside), endpoint, macs[endpoint.name])
        progress(f"{endpoint.inside} has its addresses")


def check(lab: Lab, topology: Topology, file: str, *, parents: Mapping[str, str] | None = None) -> tuple[Answer, ...]:
    """Pings between all endpoints, from wherever there is something to ping from: the hosts, namespaces and guests."""
    nodes = {node.name: node for node in lab.nodes()}

    def ask(name: str) -> list[Answer]:
        words = _words(file, name, parents)
        shown = _guestnet(nodes[name], "topology", "status", *words, "--check", fails=True)
        return [Answer(**one) for one in shown["pings"]]

    with ThreadPoolExecutor(max_workers=8) as pool:
        found = [answer for answers in pool.map(ask, _names(topology)) for answer in answers]
    for pair in Reach(topology=topology).pairs():
        if pair.source.kind is Where.GUEST:
            guest = nodes[pair.source.node].guest(pair.source.inside)
            found.append(answer(pair, _ping(guest, pair.address)))
    return tuple(found)


def _names(topology: Topology) -> list[str]:
    return [node.name for node in topology.nodes]


def _guests(topology: Topology) -> Iterator[Endpoint]:
    return (endpoint for endpoint in topology.endpoints if endpoint.kind is Where.GUEST)


def _words(file: str, node: str, parents: Mapping[str, str] | None) -> list[str]:
    """What a node is told: the file by a path that it finds it by, whatever directory its commands run in, or a shipped
    one by its name; which node it is; and the links that stand in."""
    words = [document.from_anywhere(file), "--node", node]
    return words + [word for name, link in (parents or {}).items() for word in ("--parent", f"{name}={link}")]


def _guestnet(node: Node, *words: str, fails: bool = False) -> Any:
    done = node.run([sys.executable, "-m", "guestnet", *words, "--json"], timeout=_SECONDS)
    try:
        answered: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        answered = {"error": {"message": " ".join(done.stderr.split()), "hint": ""}}
    if "error" in answered or (done.returncode != 0 and not fails):
        error = answered.get("error", {"message": f"exit status {done.returncode}", "hint": ""})
        raise GuestnetError(f"{node.name}: {error['message']}", hint=error["hint"])
    return answered


def _furnish(guest: Guest, endpoint: Endpoint, mac: str) -> None:
    """Give the guest's NIC what the file says: a real guest gets it from its own configuration."""
    name = guest.wait_nic(mac)
    commands = [f"echo 0 >/proc/sys/net/ipv6/conf/{name}/accept_dad", f"ip link set {name} up"]
    commands += [
        f"echo {shlex.quote(value)} >{shlex.quote(f'/proc/sys/{key}')}"
        for key, value in endpoint.sysctls_of(name, name).items()
    ]
    commands += [f"ip addr replace {address} dev {name}" for address in endpoint.addresses]
    for route in sorted(endpoint.routes, key=lambda route: route.via is not None):
        via = f"via {route.via} " if route.via is not None else ""
        commands.append(f"ip -{route.to.version} route replace {route.to} {via}dev {name}")
    _run(guest, commands)


def _run(guest: Guest, commands: Iterable[str]) -> None:
    status, output = guest.run(" && ".join(commands))
    if status != 0:
        raise GuestnetError(f"{guest.name} did not take its addresses: {' '.join(output.split())}")


def _ping(guest: Guest, address: Ip) -> Echo | None:
    word = "ping6" if address.version == 6 else "ping"
    status, output = guest.run(
        f"n={_TRIES}; while [ $n -gt 0 ]; do {word} -c 1 -W 1 {address} && exit 0; n=$((n-1)); done; exit 1",
        timeout=_TRIES * 5.0,
    )
    match = re.search(r"ttl=(\d+) time=([\d.]+) ms", output)
    if status != 0 or match is None:
        return None
    return Echo(ttl=int(match[1]), seconds=float(match[2]) / 1000)
