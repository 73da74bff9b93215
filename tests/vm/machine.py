"""The test machine: a stock Debian kernel under QEMU, with this machine's own root under it.

Nothing of it is a file outside the cache: its streams are socket pairs, its initramfs is in memory, and QEMU dies with
the process that started it.
"""

import hashlib
import io
import os
import secrets
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.lab import cache
from guestnet.lab import kernel as kernels
from guestnet.lab.programs import SYSTEM_PATH, Progress, output_of, program, quiet
from guestnet.lab.turn import turn

REPO = Path(__file__).resolve().parents[2]

KERNEL_PACKAGE = "linux-image-amd64"
"""Debian's package that depends on the newest stock kernel: the small one for clouds has no 9p."""

INITRAMFS_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay", "virtio_console")
LEFT_OUT = ("sound", *(f"drivers/{name}" for name in ("gpu", "media", "scsi", "infiniband", "iio", "usb", "hwmon")),
            "drivers/net/wireless", "drivers/net/ethernet")  # fmt: skip
"""Directories of modules that are not kept: no such hardware is in the machine."""

LOADED = (("8021q", "macvtap", "macvlan", "veth", "dummy", "bridge"), ("tun", "vhost_net", "kvm_amd"))
"""Modules that the machine has from the start, each group loaded at the same time as the others.

The kernel loads others when they are asked for, but for those whose device node is what they are asked for by.
"""

COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 oops=panic mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=on"
    " cryptomgr.notests lsm= nowatchdog init_on_alloc=0 norandmaps"
)
"""The last makes each process's code lie where the one before had it: QEMU then has it translated already."""

CPU = "max,la57=off,smap=off,smep=off"
"""What makes QEMU's work larger and tests nothing of ours is off."""

MEMORY = 1536
"""In MiB; what the command writes takes of it too."""

PASSED = ("CI", "HOME", "LANG", "TERM", "COLUMNS", "LINES")
"""Names of the environment that the command gets; those that begin with GUESTNET_ too."""
NOT_PASSED = ("GUESTNET_TESTS_SHARE_THE_MACHINE", "GUESTNET_LAB_KVM")
SET = {
    "PATH": f"{Path(sys.executable).parent}:{SYSTEM_PATH}",
    "HOME": "/root",
    "LANG": "C.UTF-8",
    "GUESTNET_LAB_KVM": "1",
}
"""What it gets where nothing of that name is passed.

KVM is SVM as QEMU emulates it: a guest in there runs several times faster on it.
"""

BUILD_SECONDS = 600.0
CONSOLE_BYTES = 1 << 16
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the machine boots: an ELF kernel (or a bzImage), an initramfs, and the directory of its modules."""

    version: str
    kernel: Path
    initramfs: Path
    modules: Path


def prepare(progress: Progress = quiet) -> Boot:
    """The kernel and the initramfs, from the cache or made now; a second caller waits for the first.

    The first time takes a download of about 71 MB and some seconds. The kernel is kept: delete the cache directory
    to get a newer one. Raises GuestnetError where that fails; the cache then holds nothing half made.
    """
    busybox = Path(program("busybox", "busybox-static")).resolve()
    init = (Path(__file__).parent / "init").read_bytes()
    home = cache.directory("testvm")
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    key = hashlib.sha256(repr((KERNEL_PACKAGE, LEFT_OUT)).encode())
    kernel = home / f"kernel-{key.hexdigest()[:12]}"
    key.update(repr((INITRAMFS_MODULES, init)).encode() + busybox.read_bytes())
    with turn(home / ".lock", timeout=BUILD_SECONDS, busy="another test machine is still being made"):
        if not kernel.is_dir():
            with cache.made(kernel) as directory:
                _fetch_kernel(directory, progress)
        version = (kernel / "version").read_text(encoding="utf-8").strip()
        modules = kernel / "lib/modules" / version
        key.update(version.encode())
        built = home / f"initramfs-{key.hexdigest()[:12]}"
        if not built.is_dir():
            with cache.made(built) as directory:
                _write_initramfs(directory / "initramfs", version, modules, busybox, init)
    return Boot(version=version, kernel=kernel / "kernel", initramfs=built / "initramfs", modules=modules)


def _fetch_kernel(directory: Path, progress: Progress) -> None:
    """Put ``version``, ``kernel`` and ``lib/modules`` of Debian's stock kernel into ``directory``."""
    if os.uname().machine != "x86_64":
        raise GuestnetError(f"the test machine is made for x86_64 only, and this machine is {os.uname().machine}")
    package = kernels.newest(KERNEL_PACKAGE)
    if package is None:
        raise NotFoundError(f"apt does not know {KERNEL_PACKAGE}", hint="apt-get update")
    scratch = directory / "unpacked"
    scratch.mkdir()
    found = kernels.download(package, scratch, progress)
    progress(f"unpacking Linux {found.version} for the test machine")
    for name in LEFT_OUT:
        shutil.rmtree(found.modules / "kernel" / name, ignore_errors=True)
    modules = directory / "lib/modules" / found.version
    modules.parent.mkdir(parents=True)
    found.modules.rename(modules)
    # the package brings no modules.dep: the machine it is installed on makes it
    output_of(program("depmod", "kmod"), "-b", str(directory), "-a", found.version)
    content = found.vmlinuz.read_bytes()
    (directory / "kernel").write_bytes(kernels.elf(content) or content)
    (directory / "version").write_text(found.version + "\n", encoding="utf-8")
    shutil.rmtree(scratch)


def _write_initramfs(target: Path, version: str, modules: Path, busybox: Path, init: bytes) -> None:
    tree = kernels.busybox_tree(busybox)
    tree["init"] = (0o100755, init)
    for name in ("lower", "changes", "root", "kept", "machine", "modules", "proc", "dev", "sys"):
        tree[name] = (0o040755, b"")
    needed = kernels.Kernel(version=version, vmlinuz=target, modules=modules).closure(INITRAMFS_MODULES)
    for name, content in needed.items():
        tree[f"modules/{name}.ko"] = (0o100644, content)
    tree["modules/order"] = (0o100644, "".join(f"{name}\n" for name in needed).encode())
    target.write_bytes(kernels.archive(tree))


class Stream(StrEnum):
    """Where something that came out of the machine comes from."""

    OUT = "stdout"
    ERR = "stderr"
    REPORTS = "reports"
    CONSOLE = "console"


PORTS = (Stream.OUT, Stream.ERR, Stream.REPORTS)
"""Ports of the machine's virtio-serial device, each a character device there: /run/machine/NAME."""
REPORTS_PATH = f"/run/machine/{Stream.REPORTS}"


class MachineDiedError(Exception):
    """The machine ended before the command did."""


class Machine:
    """One command in one machine: a context manager, which ends the machine, whatever it is at.

    ``command`` runs in ``directory`` with stdin from /dev/null. ``kept`` are directories below /tmp or /run that
    the machine must see: there it has none of the host's else. ``files`` are put into its /run/machine, ``more`` is
    added to the command's environment.
    """

    def __init__(
        self,
        boot: Boot,
        command: Sequence[str],
        *,
        directory: Path = REPO,
        kept: Iterable[Path] = (),
        memory: int = MEMORY,
        files: Mapping[str, bytes] | None = None,
        more: Mapping[str, str] | None = None,
    ) -> None:
        self.status: int | None = None
        """The command's exit status, as a shell has it, once it has ended."""
        self._console = bytearray()
        self._mark = b"\x1e" + secrets.token_hex(16).encode()
        self._rest = {Stream.OUT: b"", Stream.ERR: b""}
        self._marked: dict[Stream, int] = {}
        self._boot = boot
        self._memory = memory
        self._files = self._tree(self._own_files(command, directory, kept, more or {}) | dict(files or {}))
        self._held = ExitStack()
        self._sockets: dict[Stream, socket.socket] = {}

    def _own_files(
        self, command: Sequence[str], directory: Path, kept: Iterable[Path], more: Mapping[str, str]
    ) -> dict[str, bytes]:
        environment = dict(SET)
        for name, value in os.environ.items():
            if (name in PASSED or name.startswith("GUESTNET_")) and name not in NOT_PASSED:
                environment[name] = value
        environment |= more
        words = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
        script = f"ulimit -n 1024\ncd {shlex.quote(str(directory))} || exit 126\nexec {shlex.join(words)}\n"
        needed = [REPO, directory, self._boot.modules, cache.directory(""), Path(sys.prefix), Path(sys.base_prefix)]
        return {
            "start": (Path(__file__).parent / "start").read_bytes(),
            "command": script.encode(),
            "keep": "".join(f"{path}\n" for path in _hidden([*needed, *kept])).encode(),
            "load": "".join(f"{' '.join(group)}\n" for group in LOADED).encode(),
            "mark": self._mark,
            "modules": str(self._boot.modules).encode(),
            "repo.tar": _snapshot(),
        }

    def _tree(self, files: Mapping[str, bytes]) -> kernels.Tree:
        return {f"machine/{name}": (0o100755 if name == "start" else 0o100644, what) for name, what in files.items()}

    def __enter__(self) -> Self:
        with ExitStack() as held:
            self._selector = held.enter_context(selectors.DefaultSelector())
            theirs = {}
            for stream in Stream:
                ours, their = (held.enter_context(end) for end in socket.socketpair())
                ours.setblocking(False)
                theirs[stream] = their
                self._sockets[stream] = ours
                self._selector.register(ours, selectors.EVENT_READ, stream)
            initramfs = os.memfd_create("initramfs", os.MFD_CLOEXEC)
            held.callback(os.close, initramfs)
            with open(initramfs, "wb", closefd=False) as file:
                file.write(self._boot.initramfs.read_bytes())
                file.write(kernels.archive(self._files))
            self._process = subprocess.Popen(
                self._argv({stream: end.fileno() for stream, end in theirs.items()}, initramfs),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=theirs[Stream.CONSOLE].fileno(),
                pass_fds=(initramfs, *(end.fileno() for end in theirs.values())),
            )  # fmt: skip
            held.callback(self._end)
            for end in theirs.values():
                end.close()
            self._held = held.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._held.close()

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _argv(self, fds: Mapping[Stream, int], initramfs: int) -> list[str]:
        argv = [
            # it never outlives us, however we end
            *("setpriv", "--pdeathsig", "KILL", "--"),
            *(program("qemu-system-x86_64", "qemu-system-x86"), "-nodefaults", "-no-user-config", "-no-reboot"),
            *("-display", "none", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", CPU),
            *("-m", str(self._memory), "-smp", str(min(4, max(2, len(os.sched_getaffinity(0)))))),
            *("-kernel", str(self._boot.kernel), "-initrd", f"/proc/self/fd/{initramfs}", "-append", COMMAND_LINE),
            *("-fsdev", "local,id=root,path=/,readonly=on,multidevs=remap,security_model=none"),
            *("-device", "virtio-9p-pci,fsdev=root,mount_tag=root", "-device", "virtio-serial-pci"),
        ]
        for stream, fd in fds.items():
            argv += ["-chardev", f"socket,id={stream},fd={fd}"]
            if stream in PORTS:
                argv += ["-device", f"virtserialport,chardev={stream},name={stream}"]
        return [*argv, "-serial", f"chardev:{Stream.CONSOLE}"]

    def read(self, timeout: float) -> list[tuple[Stream, bytes]]:
        """What came next, without the console's; nothing where nothing came within ``timeout`` seconds.

        Once ``status`` is set, nothing more comes. Raises MachineDiedError where the machine ended before that.
        """
        found: list[tuple[Stream, bytes]] = []
        deadline = time.monotonic() + timeout
        while not found and self.status is None:
            if not self._selector.get_map():
                self._process.wait()
                raise MachineDiedError
            ready = self._selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return []
            for key, _ in ready:
                found += self._receive(key.data)
            if len(self._marked) == len(self._rest):
                # what was written before the command ended is in the socket by now
                while more := self._receive(Stream.REPORTS):
                    found += more
                self.status = self._marked[Stream.OUT]
        return found

    def console(self, lines: int = 100) -> str:
        """The end of what the kernel and QEMU said."""
        text = bytes(self._console).decode("utf-8", errors="replace").replace("\r", "")
        return "\n".join(text.splitlines()[-lines:])

    def _receive(self, stream: Stream) -> list[tuple[Stream, bytes]]:
        """What is there to be read from the stream now."""
        end = self._sockets[stream]
        try:
            data = end.recv(_CHUNK)
        except BlockingIOError:
            return []
        except ConnectionResetError:
            data = b""
        ended = not data
        if ended and end in self._selector.get_map():
            self._selector.unregister(end)
        if stream is Stream.CONSOLE:
            self._console += data
            del self._console[:-CONSOLE_BYTES]
            return []
        if stream in self._rest:
            data = self._before_mark(stream, data, ended)
        return [(stream, data)] if data else []

    def _before_mark(self, stream: Stream, data: bytes, ended: bool) -> bytes:
        """Of the stream's next piece what belongs to it; what may be the beginning of the mark waits for the rest."""
        if stream in self._marked:
            return b""
        text = self._rest[stream] + data
        at = text.find(self._mark)
        if at >= 0:
            line, newline, _ = text[at:].partition(b"\n")
            if newline:
                self._marked[stream] = int(line[len(self._mark) :] or 0)
        elif ended:
            at = len(text)
        else:
            at = len(text) - max(n for n in range(len(self._mark)) if text.endswith(self._mark[:n]))
        self._rest[stream] = text[at:]
        return text[:at]


def _snapshot() -> bytes:
    """The repository's files as they are now, as a tar archive: whoever edits one meanwhile changes no test's run."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for above in reversed(REPO.parents[:-1]):
            tar.add(above, recursive=False)
        for where, folders, names in os.walk(REPO):
            folders[:] = [name for name in folders if name == ".ci" or not name.startswith((".", "__pycache__"))]
            for path in (Path(where), *(Path(where, name) for name in names)):
                with suppress(FileNotFoundError):  # somebody's file that has gone
                    tar.add(path, recursive=False)
    return archive.getvalue()


def _hidden(paths: Iterable[Path]) -> list[Path]:
    """Those of the paths that a new /tmp and /run would hide, without those within others."""
    real = sorted({path.resolve() for path in paths if path.exists()})
    below = [path for path in real if path.parts[1:2] in {("tmp",), ("run",)}]
    return [path for path in below if not any(other in path.parents for other in below)]
