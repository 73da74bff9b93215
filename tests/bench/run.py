"""Benchmarks: whole processes against what a user would type instead, as ratios within one run.

    ./dev bench [WORD…]      the benchmarks whose name has one of the words, or all

Each figure is the median of 20 runs (or of as many as its line says), the two sides taken in turn. All of it happens
in labs and namespaces of their own.
"""

import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from guestnet.lab import Lab
from guestnet.lab.node import Node

ROUNDS = 20
LINKS = 500
MORE_GUESTS = 24
GUEST = "n1g1"
MAC = "52:54:00:be:4c:01"

ATTACH_BY_HAND = """
ip link add link nic0 name hand0 address {mac} type macvtap mode bridge &&
ip link set hand0 up &&
virsh -q attach-device {guest} /run/hand.xml --live --config
"""
DETACH_BY_HAND = "virsh -q detach-device {guest} /run/hand.xml --live --config; ip link delete hand0"
INTERFACE = f"""<interface type='ethernet'><mac address='{MAC}'/><target dev='hand0' managed='no'/>
<model type='virtio'/></interface>"""

BARE_GUEST = "<domain type='qemu'><name>{name}</name><memory>1024</memory><os><type>hvm</type></os></domain>"

GUESTNET = [sys.executable, "-m", "guestnet"]


def main() -> None:
    """Run the benchmarks asked for and print their tables."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
    words = sys.argv[1:]

    def wanted(name: str) -> bool:
        return not words or any(word in name for word in words)

    here = [bench.__name__ for bench in (start, attach, links, complete) if wanted(bench.__name__)]
    if here:
        lab = Lab(name="bench")
        lab.up(nodes=1, guests=1, progress=lambda text: print(f"# {text}", file=sys.stderr))
        try:
            for name in here:
                inside(lab.node("n1"), name)
        finally:
            lab.down()
    for name in filter(wanted, ("hook", "hotplug")):
        importlib.import_module(f"tests.bench.{name}").main()


def inside(node: Node, name: str) -> None:
    """Run one benchmark within the node, so that no figure has the way into it."""
    (node.own / "run/hand.xml").write_text(INTERFACE, encoding="utf-8")
    done = node.run([sys.executable, __file__, "--inside", name], capture_output=False)
    if done.returncode != 0:
        sys.exit(f"{name} failed")


def spent(command: Sequence[str] | str) -> float:
    """Milliseconds that a command takes as a whole process; it must succeed."""
    words = ["sh", "-c", command] if isinstance(command, str) else list(command)
    begun = time.perf_counter()
    done = subprocess.run(
        words, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
    )
    taken = (time.perf_counter() - begun) * 1000
    if done.returncode != 0:
        sys.exit(f"{words} failed: {done.stdout.decode()}")
    return taken


def in_turn(
    sides: dict[str, Sequence[str] | str], after: dict[str, Sequence[str] | str] | None = None, rounds: int = ROUNDS
) -> dict[str, float]:
    """The median of each side in ms, the sides taken in turn; ``after`` cleans up behind a side, unmeasured."""
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, command in sides.items():
            ms = spent(command)
            if turn:  # the first warms the caches
                taken[name].append(ms)
            if after:
                spent(after[name])
    return {name: statistics.median(values) for name, values in taken.items()}


def table(title: str, medians: dict[str, float], against: str, limit: str = "") -> None:
    """Print each median and its ratio to one of them."""
    print(f"\n{title}" + (f" (aim: {limit})" if limit else ""))
    for name, ms in medians.items():
        print(f"  {name:<58} {ms:8.1f} ms  {ms / medians[against]:6.2f}x")


def start() -> None:
    """What `guestnet --help` costs more than an interpreter that does nothing."""
    python = [sys.executable, "-c", "pass"]
    medians = in_turn(
        {
            "python3 -c pass": python,
            "python3 -c 'import typer'": [sys.executable, "-c", "import typer"],
            "guestnet --help": [*GUESTNET, "--help"],
        }
    )
    table("start", medians, "python3 -c pass", "guestnet --help at most 8x")


def attach() -> None:
    """`guestnet attach` to a running guest against the same by ip and virsh, and where its time goes."""
    guestnet, by_hand = "guestnet attach", "ip link add, ip link set up, virsh attach-device"
    words = {"mac": MAC, "guest": GUEST}
    medians = in_turn(
        {
            by_hand: ATTACH_BY_HAND.format(**words),
            guestnet: [*GUESTNET, "attach", GUEST, "--parent", "nic0", "--mac", MAC],
        },
        {by_hand: DETACH_BY_HAND.format(**words), guestnet: [*GUESTNET, "detach", GUEST, "--all"]},
    )
    table("attach to a running guest", medians, by_hand, "guestnet at most 4x")
    imports = {
        "interpreter": "pass",
        "+ command line (typer)": "import guestnet.cli.guests",
        "+ lxml, libvirt, plans": "import guestnet.cli.guests, guestnet.attachment",
    }
    starts = in_turn({name: [sys.executable, "-c", code] for name, code in imports.items()})
    parts = [work() for _ in range(ROUNDS)]
    print("  where it goes:")
    before = 0.0
    for name, ms in starts.items():
        print(f"    {name:<56} {ms - before:8.1f} ms")
        before = ms
    for name in ("netlink and /sys", "libvirt", "plan, XML, the rest"):
        print(f"    {name:<56} {statistics.median(part[name] for part in parts):8.1f} ms")


def work() -> dict[str, float]:
    """One attach within this process: the ms spent behind each door."""
    from guestnet import attachment as verb
    from guestnet.guest import domain
    from guestnet.kernel import link, tap
    from guestnet.model import Mac, Request

    options = verb.Options(uri="qemu:///system")
    wanted = (Request(parent="nic0", mac=Mac(MAC)),)
    doors = (
        ("netlink and /sys", link.Links, ("__init__", "all", "find", "add", "_change", "quiet", "wireless")),
        ("netlink and /sys", tap, ("device",)),
        ("libvirt", domain.Hypervisor, ("__init__", "domain", "guests", "close")),
        ("libvirt", domain.Domain, ("snapshot", "attach", "set_metadata")),
    )
    spent_at = behind(doors, lambda: verb.attach(GUEST, wanted, options), rest="plan, XML, the rest")
    verb.detach(GUEST, (MAC,), options)
    return spent_at


def behind(
    doors: Sequence[tuple[str, Any, Sequence[str]]], work: Callable[[], object], *, rest: str
) -> dict[str, float]:
    """The ms that some work within this process spends behind each door: its name, and where its functions are."""
    taken = dict.fromkeys([door for door, _, _ in doors], 0.0)
    depth = [0]

    def timed(door: str, function: Callable[..., object]) -> Callable[..., object]:
        def run(*args: object, **kwargs: object) -> object:
            begun = time.perf_counter()
            depth[0] += 1
            try:
                return function(*args, **kwargs)
            finally:
                depth[0] -= 1
                if not depth[0]:
                    taken[door] += (time.perf_counter() - begun) * 1000

        return run

    saved = []
    for door, owner, names in doors:
        for name in names:
            saved.append((owner, name, getattr(owner, name)))
            setattr(owner, name, timed(door, getattr(owner, name)))
    begun = time.perf_counter()
    work()
    total = (time.perf_counter() - begun) * 1000
    for owner, name, function in saved:
        setattr(owner, name, function)
    return {**taken, rest: total - sum(taken.values())}


def links() -> None:
    """Five hundred macvtaps: made in one call against `ip -batch`, listed against `ip -d -j link`."""
    names = [f"b{number}" for number in range(LINKS)]
    batch = Path("/run/batch")
    batch.write_text(
        "".join(
            f"link add link nic0 name {name} group 77 type macvtap mode bridge\n"
            f"link set {name} alias bench allmulticast on addrgenmode none up\n"
            for name in names
        ),
        encoding="utf-8",
    )
    gone = Path("/run/gone")
    gone.write_text("".join(f"link delete {name}\n" for name in names), encoding="utf-8")
    add = [*GUESTNET, "macvtap", "add", *names, "--parent", "nic0", "--json"]
    by_batch, by_us = f"ip -batch, {LINKS} links", f"guestnet macvtap add, {LINKS} links"
    delete = ["ip", "-batch", str(gone)]
    medians = in_turn({by_batch: ["ip", "-batch", str(batch)], by_us: add}, {by_batch: delete, by_us: delete}, rounds=3)
    table("make links (median of 3)", medians, by_batch, "guestnet at most 2x")
    spent(add)
    try:
        shown = json.loads(
            subprocess.run([*GUESTNET, "macvtap", "list", "--json"], check=True, stdout=subprocess.PIPE).stdout
        )
        if len(shown) != LINKS:
            sys.exit(f"{len(shown)} links are listed, not {LINKS}")
        by_ip = f"ip -d -j link, {LINKS} links"
        medians = in_turn(
            {
                by_ip: ["ip", "-d", "-j", "link"],
                "python3 -c pass": [sys.executable, "-c", "pass"],
                "python3 -c 'import typer'": [sys.executable, "-c", "import typer"],
                f"guestnet macvtap list --json, {LINKS} links": [*GUESTNET, "macvtap", "list", "--json"],
            }
        )
        table("list links", medians, by_ip, "guestnet at most 4x")
    finally:
        spent(delete)


def complete() -> None:
    """What a shell waits for at a press of TAB: guests from libvirt, parents and NICs from the kernel."""
    python = "python3 -c pass"
    words = [*GUESTNET, "completion", "words", "--"]
    described = Path("/run/guest.xml")
    for number in range(MORE_GUESTS):
        described.write_text(BARE_GUEST.format(name=f"more{number}"), encoding="utf-8")
        spent(["virsh", "-q", "define", str(described)])
    spent([*GUESTNET, "attach", GUEST, "--parent", "nic0", "--mac", MAC])
    sides: dict[str, Sequence[str]] = {
        python: [sys.executable, "-c", "pass"],
        "guestnet att<TAB>": [*words, "att"],
        "guestnet attach <TAB>, the guests": [*words, "attach", ""],
        f"guestnet attach {GUEST} --parent <TAB>": [*words, "attach", GUEST, "--parent", ""],
        f"guestnet detach {GUEST} <TAB>, its NICs": [*words, "detach", GUEST, ""],
        "guestnet --version": [*GUESTNET, "--version"],
    }
    table(f"completion, {MORE_GUESTS + 1} guests", in_turn(dict(sides)), python, "150 ms")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        {"start": start, "attach": attach, "links": links, "complete": complete}[sys.argv[2]]()
    else:
        main()
