"""What the hook adds to `virsh start`: for a guest without NICs of guestnet's, for one with a NIC, and for many.

Runs inside a node of the lab, like the benchmarks of run.py, and by itself: python tests/bench/hook.py
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bench.run import spent, table

ROUNDS = 7
GUESTS = 16
NICS = 4
LAUNCHER = Path("/etc/libvirt/hooks/qemu.d/guestnet")
NOTHING, OURS = Path("/run/hook-nothing"), Path("/run/hook-ours")


def mac(guest: int, nic: int) -> str:
    """The MAC of a guest's NIC."""
    return f"52:54:00:be:{guest:02x}:{nic:02x}"


def ifname(guest: int, nic: int) -> str:
    """The macvtap of that NIC."""
    return "gn" + mac(guest, nic).replace(":", "")


def domain(name: str, guest: int, nics: int) -> str:
    """A guest that runs no system, with that many NICs on nic0. Started paused: libvirt alone is measured."""
    rows = "".join(
        f'<nic mac="{mac(guest, nic)}" parent="nic0" mode="bridge" ifname="{ifname(guest, nic)}" backend="macvtap" '
        'multicast="all"/>'
        for nic in range(nics)
    )
    metadata = f'<metadata><attachments xmlns="urn:guestnet:domain:1">{rows}</attachments></metadata>' if nics else ""
    interfaces = "".join(
        f"<interface type='ethernet'><mac address='{mac(guest, nic)}'/><model type='virtio'/>"
        f"<target dev='{ifname(guest, nic)}' managed='no'/></interface>"
        for nic in range(nics)
    )
    return (
        f"<domain type='qemu'><name>{name}</name>{metadata}<memory unit='MiB'>16</memory><os>"
        "<type arch='x86_64' machine='pc'>hvm</type></os><features><acpi/></features><devices>"
        f"<controller type='usb' model='none'/><memballoon model='none'/>{interfaces}</devices></domain>"
    )


def define(name: str, guest: int, nics: int) -> str:
    """Define such a guest; its name."""
    subprocess.run(["virsh", "-q", "define", "/dev/stdin"], input=domain(name, guest, nics), text=True, check=True)
    return name


def hook() -> None:
    """All of it."""
    spent([sys.executable, "-m", "guestnet", "hook", "install"])
    OURS.write_bytes(LAUNCHER.read_bytes())
    NOTHING.write_text("#!/bin/sh\nexit 0\n", encoding="ascii")
    made: list[str] = []
    try:
        for part in (alone, without, one, many):
            part(made)
    finally:
        for name in made:
            subprocess.run(["virsh", "-q", "undefine", name], check=False)
        use(OURS)
        spent([sys.executable, "-m", "guestnet", "hook", "uninstall"])


def use(text: Path) -> None:
    """Let libvirt call that hook from now on."""
    LAUNCHER.write_bytes(text.read_bytes())
    os.chmod(LAUNCHER, 0o755)


def start(name: str, text: Path, before: Callable[[], object] | None = None) -> float:
    """Milliseconds of `virsh start` with that hook; the guest is stopped again."""
    use(text)
    if before is not None:
        before()
    ms = spent(["virsh", "-q", "start", "--paused", name])
    stop(name)
    return ms


def stop(name: str) -> None:
    """End a guest without the second that QEMU takes over SIGTERM; libvirt calls its hook all the same."""
    spent(f"kill -9 $(cat /run/libvirt/qemu/{name}.pid); until virsh domstate {name} | grep -q 'shut off'; do :; done")


def by_hand(guest: int, nics: int) -> None:
    """The links of a guest, all by one ip(8)."""
    lines = "".join(
        f"link add link nic0 name {ifname(guest, nic)} address {mac(guest, nic)} type macvtap mode bridge\n"
        f"link set {ifname(guest, nic)} up\n"
        for nic in range(nics)
    )
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def away(guest: int, nics: int) -> None:
    """Delete them."""
    lines = "".join(f"link delete {ifname(guest, nic)}\n" for nic in range(nics))
    subprocess.run(["ip", "-batch", "-"], input=lines, text=True, check=True)


def median(values: list[float]) -> float:
    """The middle one."""
    return sorted(values)[len(values) // 2]


def without(made: list[str]) -> None:
    """A guest that is not ours."""
    made.append(define("plain", 0, 0))
    taken: dict[Path, list[float]] = {NOTHING: [], OURS: []}
    for turn in range(ROUNDS + 1):
        for text, values in taken.items():
            ms = start("plain", text)
            values += [ms] if turn else []
    trivial = "virsh start, hook is #!/bin/sh and exit 0"
    medians = {trivial: median(taken[NOTHING]), "virsh start, hook is guestnet's": median(taken[OURS])}
    table("start of a guest without attachments", medians, trivial, "guestnet's hook at most 1.2x")


def alone(_made: list[str]) -> None:
    """The hook by itself, called as libvirt calls it: what a machine at work hides among QEMU's milliseconds."""
    plain, single = domain("plain", 0, 0).encode(), domain("single", 1, 1)
    single = single.replace("</name>", "</name><uuid>0358686d-8322-4602-9c28-95173f6bc52c</uuid>")
    sides: dict[str, tuple[Path, str, bytes]] = {
        "#!/bin/sh and exit 0": (NOTHING, "prepare", plain),
        "an operation that is none of its business": (OURS, "started", plain),
        "a guest without attachments": (OURS, "prepare", plain),
        "a start with one NIC, the link is made": (OURS, "prepare", single.encode()),
        "the stop after it, the link is deleted": (OURS, "release", single.encode()),
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(20 + 1):
        for name, (text, operation, xml) in sides.items():
            os.chmod(text, 0o755)
            begun = time.perf_counter()
            subprocess.run([str(text), "single", operation, "begin", "-"], input=xml, check=True)
            taken[name] += [(time.perf_counter() - begun) * 1000] if turn else []
    medians = {name: median(values) for name, values in taken.items()}
    table("the hook by itself", medians, "#!/bin/sh and exit 0")


def one(made: list[str]) -> None:
    """A guest with one NIC, whose link is there or is made."""
    made.append(define("single", 1, 1))
    taken: dict[Path, list[float]] = {NOTHING: [], OURS: []}
    for turn in range(ROUNDS + 1):
        for text, values in taken.items():
            ms = start("single", text, (lambda: by_hand(1, 1)) if text is NOTHING else None)
            values += [ms] if turn else []
            if text is NOTHING:
                away(1, 1)
    there, ours = median(taken[NOTHING]), median(taken[OURS])
    table("start of a guest with one NIC", {"link made by hand before": there, "link made by the hook": ours},
          "link made by hand before", "350 ms more at most")  # fmt: skip
    print(f"  added by the hook: {ours - there:.0f} ms")


def many(made: list[str]) -> None:
    """Guests started one after the other from nothing: what each NIC costs."""
    print(f"\nguests with up to {NICS} NICs each, started from nothing (aim: the cost per NIC does not grow)")
    print(f"  {'NICs':>6} {'guests':>7} {'links made before':>20} {'links made by the hook':>24} {'added per NIC':>15}")
    for nics, rounds in ((1, 5), (4, 5), (16, 2), (64, 1)):
        each = min(nics, NICS)
        numbers = range(10, 10 + nics // each)
        names = [f"many{number}x{each}" for number in numbers]
        made += [define(name, number, each) for name, number in zip(names, numbers, strict=True) if name not in made]
        taken: dict[Path, list[float]] = {NOTHING: [], OURS: []}
        for _ in range(rounds):
            for text, values in taken.items():
                use(text)
                for number in numbers if text is NOTHING else ():
                    by_hand(number, each)
                begun = time.perf_counter()
                for name in names:
                    spent(["virsh", "-q", "start", "--paused", name])
                values.append((time.perf_counter() - begun) * 1000)
                for name in names:
                    stop(name)
                for number in numbers if text is NOTHING else ():
                    away(number, each)
        there, ours = median(taken[NOTHING]), median(taken[OURS])
        print(f"  {nics:>6} {len(names):>7} {there:>17.0f} ms {ours:>21.0f} ms {(ours - there) / nics:>12.1f} ms")


def main() -> None:
    """Build a lab, run it there, take the lab down."""
    from guestnet.lab import Lab

    lab = Lab(name="cbench")
    lab.up(nodes=1, guests=0)
    try:
        done = lab.node("n1").run([sys.executable, __file__, "--inside"], capture_output=False)
    finally:
        lab.down()
    if done.returncode:
        sys.exit("hook failed")


if __name__ == "__main__":
    if sys.argv[1:] == ["--inside"]:
        hook()
    else:
        main()
