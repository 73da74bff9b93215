"""Systemd units of ours on this host: written and started at boot, or taken away."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from guestnet import launcher
from guestnet.errors import ConflictError, GuestnetError
from guestnet.kernel import files
from guestnet.plan.unit import DeleteUnit, WriteUnit
from guestnet.undo import Undo

DIRECTORY = Path("/etc/systemd/system")
ME = (launcher.python(), "-I", "-m", "guestnet")
"""The words by which a unit calls this guestnet."""

_WANTS = "multi-user.target.wants"
_RUNNING = Path("/run/systemd/system")  # sd_booted(3)
_OURS = b"# Written by `guestnet "  # how each of templates/systemd begins


def planned(unit: WriteUnit) -> tuple[WriteUnit, ...]:
    """The step that makes it so: none where it is so, nor on a host without systemd. Raises ConflictError where a unit
    of that name is somebody else's."""
    if _missing():
        return ()
    path = DIRECTORY / unit.name
    there = files.content(path)
    if there is not None and not there.startswith(_OURS):
        raise ConflictError(
            f"{path} is there and is not guestnet's", hint="look what it is, and move it away, or do without --persist"
        )
    return () if there == unit.text.encode() and _wants(path).is_symlink() else (unit,)


def notes(*read: Path) -> tuple[str, ...]:
    """What a person should know who has a unit written; ``read`` are files that it reads at boot."""
    if _missing():
        return ("this host has no systemd: nothing brings it back at boot",)
    found = []
    if not _RUNNING.is_dir():
        found.append("systemd does not run here now: the unit counts from the next boot with it on")
    changeable = launcher.exposed(*launcher.running(), *read)
    if changeable:
        found.append(f"systemd runs the unit as root, and others than root may change {changeable}")
    return tuple(found)


def deletion(name: str) -> tuple[DeleteUnit, ...]:
    """The step that takes it away: none where there is none. One that is somebody else's stays."""
    return (DeleteUnit(name=name),) if is_ours(name) else ()


def is_ours(name: str) -> bool:
    """Whether there is a unit of that name that guestnet wrote."""
    return (files.content(DIRECTORY / name) or b"").startswith(_OURS)


def at_boot(name: str) -> bool:
    """Whether systemd starts a unit of ours of that name at boot."""
    return is_ours(name) and _wants(DIRECTORY / name).is_symlink()


def ours(prefix: str) -> tuple[str, ...]:
    """The names of the units of ours that begin so."""
    return tuple(path.name for path in sorted(DIRECTORY.glob(f"{prefix}*.service")) if is_ours(path.name))


def carry_out(steps: Iterable[WriteUnit | DeleteUnit], undo: Undo) -> None:
    """Write units and take them away, and tell systemd; ``undo`` has what they were."""
    done = False
    for step in steps:
        path = DIRECTORY / step.name
        link = _wants(path)
        undo.push(f"the unit {path.name}", _put_back, path, files.content(path), enabled=link.is_symlink())
        done = True
        try:
            if isinstance(step, DeleteUnit):
                _forget(path)
                continue
            link.parent.mkdir(parents=True, exist_ok=True)
            files.replace(path, step.text.encode(), 0o644)
            if not link.is_symlink():
                link.symlink_to(path)
        except OSError as error:
            raise GuestnetError(f"the unit {path} cannot be changed: {error.strerror}") from error
    if done:
        _reload()


def _missing() -> bool:
    """Whether this host has no systemd. Where it is there and does not run, as in an image that is being made, a unit
    counts at the next boot."""
    return not _RUNNING.is_dir() and shutil.which("systemctl") is None


def _wants(path: Path) -> Path:
    return path.parent / _WANTS / path.name


def _put_back(path: Path, before: bytes | None, *, enabled: bool) -> None:
    if before is None:
        _forget(path)
        return
    files.replace(path, before, 0o644)
    if enabled and not _wants(path).is_symlink():
        _wants(path).symlink_to(path)
    if not enabled:
        _wants(path).unlink(missing_ok=True)


def _forget(path: Path) -> None:
    _wants(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _reload() -> None:
    """Let systemd read its units again, where it is what runs this host."""
    if not _RUNNING.is_dir():
        return
    done = subprocess.run(
        ("systemctl", "daemon-reload"), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode != 0:
        raise GuestnetError(f"systemctl daemon-reload failed: {' '.join(done.stderr.split()) or 'it says nothing'}")
