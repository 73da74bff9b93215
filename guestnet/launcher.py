"""The file that libvirt calls as its hook: put there, taken away, looked at, and libvirt told of it.

libvirt runs the executables in hooks/qemu.d (from 6.5 on) and hooks/qemu. Whether there are any it looks up when it
starts and on SIGHUP (virHookInitialize, src/util/virhook.c): so a running one has to be told, once.
"""

import errno
import hashlib
import math
import os
import re
import select
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import guestnet
from guestnet import templates
from guestnet.errors import HOOK_REFUSED, ConflictError, GuestnetError, NotPermittedError, TimedOutError, UsageError
from guestnet.kernel import files, lock

DIRECTORY = Path("/etc/libvirt/hooks")
TOLD = lock.DIRECTORY / "told"
"""First the boot in which the launcher was put there, when (seconds since boot), and its ctime; then the daemons that
have looked for their hooks since: PID and start."""

TIMEOUT = 10.0
"""Seconds a daemon gets to look for its hooks again."""

_LARGEST = 1 << 16
_DAEMONS = ("libvirtd", "virtqemud")
_DIRECTORIES_SINCE = (6, 5, 0)
_PYTHON = re.compile(rb"^python='([^'\n]*)'$", re.MULTILINE)
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")
_MARK = b"#!/bin/sh\n# guestnet hook "
_SUM = re.compile(rb"^# sha256 .*\n", re.MULTILINE)
_TICKS = os.sysconf("SC_CLK_TCK")
_LOCK = lock.DIRECTORY / "hook.lock"
_ANSWERS = lock.DIRECTORY / "answers"
_AGAIN = 0.01  # seconds between two looks for an answer
_ASK_AGAIN = 1.0  # a reload that meets another is ignored (daemonReloadHandler), and nobody says so
_IMPORTS = 60.0  # seconds that a Python gets to find guestnet
_SKEW = 1.0  # a daemon that was started so soon after the launcher was written is told once more
_GONE = (errno.ENOENT, errno.ESRCH, errno.EACCES, errno.EPERM)


class State(StrEnum):
    """What stands where the launcher belongs. ``uncalled``: it is there, and this libvirt does not look there."""

    CURRENT = "current"
    OUTDATED = "outdated"
    MISSING = "missing"
    FOREIGN = "foreign"
    UNCALLED = "uncalled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Daemon:
    """A running libvirtd or virtqemud; ``told`` once it is known to have looked for its hooks since."""

    pid: int
    program: str
    told: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """What there is of the hook.

    ``python`` is the interpreter the launcher names, empty where there is no launcher. ``exposed`` is a file or
    directory of what libvirt runs as root that others may change, empty where there is none. ``others`` are the hooks
    of others that libvirt calls for guests as well.
    """

    path: str
    state: State
    python: str
    python_there: bool
    exposed: str
    daemons: tuple[Daemon, ...]
    others: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether the next start of a guest calls it, and it can do its work."""
        return self.state is State.CURRENT and self.python_there and all(daemon.told for daemon in self.daemons)


def status(directory: Path = DIRECTORY) -> Status:
    """What there is of the hook now. Raises NotPermittedError for who may not look at libvirtd."""
    _must_be_root("looking at the hook")
    path = _path(directory)
    python = _interpreter(path)
    changeable = exposed(Path(python), Path(python).parents[1], *running()[1:]) if python else ""
    return Status(
        path=str(path), state=_state(path), python=python, python_there=bool(python) and os.access(python, os.X_OK),
        exposed=changeable, daemons=_daemons(path),
        others=tuple(str(other) for other in _executables(directory) if other != path),
    )  # fmt: skip


def python() -> str:
    """The Python that runs now, by one name however it was called: an environment has several for it."""
    own = os.path.join(sys.prefix, "bin", "python")
    return own if sys.prefix != sys.base_prefix and os.access(own, os.X_OK) else sys.executable


def running() -> tuple[Path, ...]:
    """What root runs with the Python that runs now: it, its environment, where packages come from, and guestnet."""
    import sysconfig

    return Path(python()), Path(sys.prefix), Path(sysconfig.get_path("purelib")), Path(guestnet.__file__)


def exposed(*files: Path) -> str:
    """The first of these files, or of what leads to them, that others than root may change; else nothing.

    What leads there are the directories and, one by one, the symbolic links on the way.
    """
    todo, seen = [Path(os.path.abspath(file)) for file in files], set[Path]()
    while todo:
        path = todo.pop(0)
        for part in (path, *path.parents):
            if part in seen:
                continue
            seen.add(part)
            try:
                found = os.lstat(part)
                if stat.S_ISLNK(found.st_mode):
                    target = part.parent.joinpath(os.readlink(part), path.relative_to(part))
                    todo.insert(0, Path(os.path.normpath(target)))
            except OSError:
                continue  # what is not there runs nowhere
            by_all = found.st_mode & 0o002 and not found.st_mode & stat.S_ISVTX
            by_group = found.st_mode & 0o020 and found.st_gid != 0
            if found.st_uid != 0 or ((by_all or by_group) and not stat.S_ISLNK(found.st_mode)):
                return str(part)
    return ""


def installed(directory: Path = DIRECTORY) -> bool:
    """Whether the launcher is there and of this guestnet, which anybody may see; not whether libvirt knows of it."""
    return _state(_path(directory)) is State.CURRENT


def version() -> str:
    """The version of the libvirt daemon that runs, else of the one that would; empty where there is none."""
    programs = [f"/proc/{pid}/exe" for pid in _running()]
    programs += [f"{place}/{name}" for name in _DAEMONS for place in ("/usr/sbin", "/usr/bin", "/usr/local/sbin")]
    for program in programs:
        if os.access(program, os.X_OK):
            words = [program, "--version"]
            null = subprocess.DEVNULL
            try:
                done = subprocess.run(words, stdin=null, capture_output=True, text=True, timeout=TIMEOUT, check=False)
            except (OSError, subprocess.TimeoutExpired):
                continue  # gone since, no program of this machine's, or it hangs
            found = _VERSION.search(done.stdout)
            if found is not None:
                return found[0]
    return ""


def takes_directories(version: str) -> bool:
    """Whether a libvirt of that version runs what is in hooks/qemu.d; one whose version is not known does."""
    found = _VERSION.search(version)
    return found is None or tuple(int(part) for part in found.groups()) >= _DIRECTORIES_SINCE


def install(directory: Path = DIRECTORY, *, libvirt: str | None = None) -> None:
    """Put the launcher there, with the Python that runs now; nothing to do where it is so. libvirt is not told yet.

    ``libvirt`` is its version, looked up where it is not given. Raises ConflictError for a file of somebody else's, or
    one of ours that somebody changed, which stays, and GuestnetError for a Python that does not find guestnet by
    itself.
    """
    _must_be_root("installing the hook")
    several = takes_directories(version() if libvirt is None else libvirt)
    path, single = directory / "qemu.d/guestnet", directory / "qemu"
    taken = not several and _read(single) is not None and not _is_ours(single)
    if not several and not taken:
        path = single
    if _read(path) is not None and not _is_ours(path):
        raise ConflictError(
            f"{path} is there and is not guestnet's, or was changed", hint="look what it is, and move it away"
        )
    if not _is_current(path):
        _check_python()
        with _writing(path):
            _put(path)
    if taken and not _mentions(single, path):
        raise ConflictError(
            f"{single} is not guestnet's, and libvirt before 6.5 calls no other hook",
            hint=f'call guestnet\'s there, with what is on stdin: {path} "$@" || exit 1',
        )


def uninstall(directory: Path = DIRECTORY) -> bool:
    """Take the launcher away; False where there is none. Raises ConflictError for a file of somebody else's, or one of
    ours that somebody changed, which stays.

    libvirt need not be told: it looks for the file before each call.
    """
    _must_be_root("taking the hook away")
    _clear(directory)
    path = _path(directory)
    if _read(path) is None:
        return False
    if not _is_ours(path):
        raise ConflictError(
            f"{path} is not guestnet's, or was changed: it stays", hint="look what it is, and remove it yourself"
        )
    with _writing(path):
        path.unlink(missing_ok=True)
    if path.parent != directory:
        with suppress(OSError):  # it has others in it
            path.parent.rmdir()
    TOLD.unlink(missing_ok=True)
    return True


def put_back(before: Status) -> None:
    """The inverse of ``install``: takes the launcher away where there was none. One that was outdated stays renewed."""
    path = Path(before.path)
    if before.state is State.MISSING:
        uninstall(path.parents[1] if path.parent.name == "qemu.d" else path.parent)


def tell(directory: Path = DIRECTORY, *, timeout: float = TIMEOUT) -> tuple[Daemon, ...]:
    """Let every running daemon look for its hooks, and wait until it has; gives those that had to be told.

    One that was told, or started since, is left in peace; one that is started by a socket looks when it starts. On
    SIGHUP a daemon calls its own hook right after it has looked for all of them (virHookCall): so one is put there for
    as long as this takes. Raises TimedOutError for a daemon that does not answer, GuestnetError.
    """
    _must_be_root("telling libvirt")
    path = _path(directory)
    if _read(path) is None or all(daemon.told for daemon in _daemons(path)):
        return ()
    deadline = time.monotonic() + timeout
    with lock.held(timeout, path=_LOCK):
        since = _boottime()
        daemons = _daemons(path)
        silent = tuple(daemon for daemon in daemons if not daemon.told)
        with _hook_of_the_daemon(directory) as answers:
            for daemon in silent:
                _ask(daemon, answers, deadline)
        _write_told(since, path, (_stamp(daemon.pid) for daemon in daemons))
    return silent


# The file


def _path(directory: Path) -> Path:
    """Where the launcher is, else where it would be."""
    path, single = directory / "qemu.d/guestnet", directory / "qemu"
    return single if _read(path) is None and _is_ours(single) else path


def _state(path: Path) -> State:
    if _read(path) is None:
        return State.MISSING
    if not _is_ours(path):
        return State.FOREIGN
    if not _is_current(path):
        return State.OUTDATED
    single = path.parents[1] / "qemu"
    if path.parent.name == "qemu.d" and _read(single) is not None and not _mentions(single, path):
        # only here is it worth the milliseconds to ask
        return State.CURRENT if takes_directories(version()) else State.UNCALLED
    return State.CURRENT


def _read(path: Path) -> bytes | None:
    return files.content(path, _LARGEST)


def sealed(text: bytes) -> bytes:
    """A hook with the sum of its other lines in it, by which every guestnet knows the text for one of guestnet's."""
    return _SUM.sub(b"# sha256 %s\n" % _sum(text), text, count=1)


def _sum(text: bytes) -> bytes:
    return hashlib.sha256(_SUM.sub(b"", text, count=1)).hexdigest().encode()


def _is_ours(path: Path) -> bool:
    """Whether it is as some guestnet wrote it, this version or another: one that was changed since is somebody's."""
    text = _read(path) or b""
    return text.startswith(_MARK) and _SUM.search(text) is not None and sealed(text) == text


def _is_current(path: Path) -> bool:
    if _read(path) != _wanted():
        return False
    found = os.stat(path)
    return (stat.S_IMODE(found.st_mode), found.st_uid) == (0o755, 0)


def _mentions(single: Path, path: Path) -> bool:
    """Whether the one hook of an old libvirt calls ours, as far as can be told."""
    return os.fsencode(path) in (_read(single) or b"")


def _interpreter(path: Path) -> str:
    found = _PYTHON.search(_read(path) or b"") if _is_ours(path) else None
    return os.fsdecode(found[1]) if found is not None else ""


def _executables(directory: Path) -> Iterator[Path]:
    """The hooks that libvirt calls for guests."""
    try:
        entries = sorted((directory / "qemu.d").iterdir())
    except (FileNotFoundError, NotADirectoryError):
        entries = []
    for path in (directory / "qemu", *entries):
        if path.is_file() and os.access(path, os.X_OK):
            yield path


def _wanted() -> bytes:
    name = python()
    if not os.path.isabs(name) or "'" in name or not name.isprintable():
        raise UsageError(f"the hook cannot name the Python {name!r}", hint="install guestnet into another one")
    text = templates.read("hook/launcher").replace(b"@REFUSED@", str(HOOK_REFUSED).encode())
    return sealed(text.replace(b"@PYTHON@", os.fsencode(name)))


def _check_python() -> None:
    """Raise GuestnetError unless the Python that runs now finds this guestnet without help of the environment."""
    code = "import guestnet.hook; print(guestnet.__version__, guestnet.__file__)"
    words = [python(), "-I", "-c", code]
    null = subprocess.DEVNULL
    try:
        done = subprocess.run(words, stdin=null, capture_output=True, text=True, cwd="/", timeout=_IMPORTS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GuestnetError(f"libvirt could not call {words[0]}: {error}") from error
    if done.stdout.strip() != f"{guestnet.__version__} {guestnet.__file__}":
        raise GuestnetError(
            f"{words[0]} does not find this guestnet by itself, so libvirt could not call it",
            hint="install guestnet into that Python: pip install",
        )


def _put(path: Path) -> None:
    """Write the launcher. A daemon counts as one that knows it if it starts once it is there."""
    _write_told(math.inf, path)  # for the case that what follows is cut short
    _replace(path, _wanted(), 0o755)
    _write_told(_boottime(), path)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Write a file at once and for good: there is the old one or the new one, after a crash too."""
    # not in qemu.d: libvirt runs whatever is executable there, whatever its name
    place = path.parent.parent if path.parent.name.endswith(".d") else path.parent
    for directory in (place, path.parent):
        if not directory.is_dir():
            directory.mkdir(parents=True)
            directory.chmod(0o700 if directory == lock.DIRECTORY else 0o755)
    files.replace(path, content, mode, place=place)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise GuestnetError(f"{path} cannot be written: {error.strerror}") from error


# The daemons


def _daemons(path: Path) -> tuple[Daemon, ...]:
    since, told = _told(path)
    return tuple(
        Daemon(pid=pid, program=program, told=_stamp(pid) in told or _start(pid) / _TICKS > since + _SKEW)
        for pid, program in _running().items()
    )


def _told(path: Path) -> tuple[float, frozenset[str]]:
    """Since when, in seconds after boot, a daemon that starts finds the launcher, and the stamps of older ones that
    have looked for it.

    Where nothing was written down since boot, the launcher is older, or came by other hands: then its ctime counts,
    which is of the wall clock.
    """
    try:
        changed = os.stat(path).st_ctime_ns
    except FileNotFoundError:
        return math.inf, frozenset()
    try:
        head, *stamps = TOLD.read_text(encoding="ascii").splitlines()
        boot, since, of = head.split()
    except (FileNotFoundError, ValueError):
        boot, since, of, stamps = "", "", "", []
    if boot != _boot():
        return _boottime() - (time.time() - changed / 1e9), frozenset()
    return (float(since), frozenset(stamps)) if of == str(changed) else (math.inf, frozenset())


def _write_told(since: float, path: Path, stamps: Iterable[str] = ()) -> None:
    try:
        changed = os.stat(path).st_ctime_ns
    except FileNotFoundError:
        changed = 0
    _replace(TOLD, "\n".join([f"{_boot()} {since} {changed}", *stamps]).encode(), 0o600)


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _running() -> dict[int, str]:
    """The daemons that look for hooks where we do: of root, in our mount namespace, by PID. Not what a daemon has
    forked and not yet made another program of: SIGHUP would end that."""
    here = os.stat("/proc/self/ns/mnt").st_ino
    programs: dict[int, str] = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        try:
            program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
            if (
                program in _DAEMONS
                and os.stat(f"/proc/{pid}/ns/mnt").st_ino == here
                and not os.stat(f"/proc/{pid}").st_uid
            ):
                programs[pid] = program
        except OSError as error:
            if error.errno not in _GONE:
                raise
    return {pid: program for pid, program in programs.items() if _parent(pid) not in programs}


def _fields(pid: int) -> list[str]:
    """What /proc/PID/stat says after the name, proc_pid_stat(5): the state, the parent, …; nothing where it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return []
    return text.rpartition(")")[2].split()


def _parent(pid: int) -> int:
    fields = _fields(pid)
    return int(fields[1]) if fields else 0


def _start(pid: int) -> int:
    """When it was started, in clock ticks since boot."""
    fields = _fields(pid)
    return int(fields[19]) if fields else 0


def _stamp(pid: int) -> str:
    return f"{pid} {_start(pid)}"


def _hears(pid: int) -> bool:
    """Whether it has a handler for SIGHUP by now; without one the signal would end it."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return False
    found = re.search(r"^SigCgt:\s*([0-9a-f]+)$", text, re.MULTILINE)
    return found is not None and bool(int(found[1], 16) & 1 << signal.SIGHUP - 1)


@contextmanager
def _hook_of_the_daemon(directory: Path) -> Iterator[bool]:
    """Have daemons write down that they have looked. False where a libvirt before 6.5 has a hook of somebody else's."""
    several = takes_directories(version())
    path = directory / ("daemon.d/guestnet" if several else "daemon")
    if _read(path) is not None and not _is_ours(path):
        yield False
        return
    text = sealed(templates.read("hook/told").replace(b"@ANSWERS@", os.fsencode(_ANSWERS)))
    with _writing(path):
        _replace(_ANSWERS, b"", 0o600)
        _replace(path, text, 0o755)
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        if several:
            with suppress(OSError):
                path.parent.rmdir()
        _ANSWERS.unlink(missing_ok=True)


def _clear(directory: Path) -> None:
    """Take away what a ``tell`` that was killed has left."""
    left = [path for path in (directory / "daemon.d/guestnet", directory / "daemon") if _is_ours(path)]
    if not left:
        return
    with lock.held(TIMEOUT, path=_LOCK):  # one that is at work takes it away itself
        for path in left:
            with _writing(path):
                path.unlink(missing_ok=True)
            if path.parent != directory:
                with suppress(OSError):  # it has others in it
                    path.parent.rmdir()
        _ANSWERS.unlink(missing_ok=True)


def _ask(daemon: Daemon, answers: bool, deadline: float) -> None:
    """Send SIGHUP, again if need be, until the daemon has answered or is gone."""
    try:
        fd = os.pidfd_open(daemon.pid)
    except ProcessLookupError:
        return
    try:
        asked: float | None = None
        while True:
            if answers and str(daemon.pid) in _ANSWERS.read_text(encoding="ascii").split():
                return
            now = time.monotonic()
            if now >= deadline:
                raise TimedOutError(
                    f"{daemon.program} (process {daemon.pid}) has not looked for its hooks in time",
                    hint="see whether it answers (virsh list), or restart it; then: guestnet hook install",
                )
            if (asked is None or now - asked >= _ASK_AGAIN) and _hears(daemon.pid) and daemon.pid in _running():
                signal.pidfd_send_signal(fd, signal.SIGHUP)
                asked = now
                if not answers:
                    return  # it is on its way, and nothing tells when it is there
            if select.select([fd], [], [], _AGAIN)[0]:
                return  # the next one looks when it starts
    except ProcessLookupError:
        return
    finally:
        os.close(fd)


def _must_be_root(what: str) -> None:
    if os.geteuid() != 0:
        raise NotPermittedError(f"{what} needs root", hint="run this with sudo")
