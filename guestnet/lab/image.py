"""The lab guests' kernel and initramfs, made once and kept in a cache."""

import gzip
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from guestnet import templates
from guestnet.errors import GuestnetError, NotFoundError
from guestnet.lab.turn import turn

Progress: TypeAlias = Callable[[str], None]
"""What long work tells about itself, one line at a time."""

KERNEL_PACKAGE = "linux-image-cloud-amd64"
"""Debian's package that depends on the newest small kernel; it is unpacked, never installed."""

REQUIRED = ("virtio_pci", "virtio_net")
OPTIONAL = ("vmxnet3", "e1000", "e1000e", "8139cp", "8021q", "button", "evdev")
"""Modules for the guest: the first must be there or be built in, the others are taken where the kernel has them."""

GUEST_FILES = {"rcS": "etc/rcS", "agent": "etc/agent", "inittab": "etc/inittab", "powerbtn": "etc/acpi/PWRF/00000080"}
"""Template below templates/lab and its path in the initramfs; the last is where busybox acpid looks (power key)."""

COMMAND_LINE = (
    "console=ttyS0 quiet panic=-1 mitigations=off nokaslr no_timer_check tsc=reliable random.trust_cpu=on"
    " cryptomgr.notests lsm= nowatchdog init_on_alloc=0"
)
"""Kernel arguments that take the boot under TCG from 2.6 s to 1.8 s without changing what the guest can do."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

PROBE_SECONDS = 5.0
BUILD_SECONDS = 600.0


def quiet(line: str) -> None:
    """Tell nobody."""


def cache_directory() -> Path:
    """Where images are kept: ``lab`` below $GUESTNET_CACHE, or below /var/cache/guestnet."""
    return Path(os.environ.get("GUESTNET_CACHE") or "/var/cache/guestnet").absolute() / "lab"


def program(name: str, package: str) -> str:
    """The path of a program the lab needs, also where PATH has no sbin; NotFoundError names its Debian package."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}")
    if path is None:
        raise NotFoundError(f"the lab needs {name}, which is not installed", hint=f"apt install {package}")
    return path


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What a lab guest boots: a directory with ``vmlinuz`` and ``initramfs``."""

    directory: Path
    kernel_version: str

    @property
    def kernel(self) -> Path:
        """The bzImage."""
        return self.directory / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        """The cpio archive, gzipped."""
        return self.directory / "initramfs"


def image(progress: Progress = quiet) -> Image:
    """The guest image, from the cache or built now; a second caller waits for the first.

    The first time takes a download of about 27 MB and two seconds; after that a look at the cache. The kernel is kept:
    delete the cache directory to get a newer one. Raises NotFoundError where a program or a kernel is missing and
    GuestnetError where the download or the unpacking fails; the cache then holds nothing half made.
    """
    busybox = Path(program("busybox", "busybox-static")).resolve()
    sources = {path: templates.read(f"lab/{name}") for name, path in GUEST_FILES.items()}
    key = hashlib.sha256(repr((REQUIRED, OPTIONAL)).encode())
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True, mode=0o755)
    kernel = cache / f"kernel-{key.hexdigest()[:12]}"
    key.update(repr(sorted(sources.items())).encode())
    key.update(busybox.read_bytes())
    with _turn():
        if not kernel.is_dir():
            with _made(kernel) as directory:
                _fetch_kernel(directory, progress)
        version = (kernel / "version").read_text(encoding="utf-8").strip()
        key.update(version.encode())
        built = cache / f"image-{key.hexdigest()[:12]}"
        if not built.is_dir():
            progress(f"building the guest image for Linux {version}")
            with _made(built) as directory:
                shutil.copyfile(kernel / "vmlinuz", directory / "vmlinuz")
                _write_initramfs(directory / "initramfs", kernel / "modules", busybox, sources)
    return Image(directory=built, kernel_version=version)


def kvm_works(guest: Image, progress: Progress = quiet) -> bool:
    """Whether a guest runs under KVM here, found out by booting one with a deadline, once per boot of this machine.

    /dev/kvm may be there and every guest on it hang (nested in some micro-VMs), so its presence says nothing.
    $GUESTNET_LAB_KVM, 0 or 1, is taken at its word and nothing is tried.
    """
    asked = os.environ.get("GUESTNET_LAB_KVM", "")
    if asked in {"0", "1"}:
        return asked == "1"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    answer = cache_directory() / "kvm.json"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    with _turn():
        try:
            known = json.loads(answer.read_bytes())
        except (FileNotFoundError, ValueError):
            known = {}
        if known.get("boot_id") == boot:
            return bool(known.get("works"))
        progress("finding out whether KVM works")
        works = _boots_under_kvm(guest)
        with tempfile.NamedTemporaryFile("w", dir=answer.parent, prefix=".kvm-", delete=False) as file:
            json.dump({"boot_id": boot, "works": works}, file)
        os.replace(file.name, answer)
    return works


def _boots_under_kvm(guest: Image) -> bool:
    """Whether QEMU with KVM boots the guest and ends by itself within PROBE_SECONDS; it is killed if it does not."""
    # fmt: off
    command = (
        program("qemu-system-x86_64", "qemu-system-x86"), "-nodefaults", "-no-user-config", "-display", "none",
        "-no-reboot", "-machine", "q35", "-accel", "kvm", "-m", "128", "-kernel", str(guest.kernel),
        "-initrd", str(guest.initramfs), "-append", f"{COMMAND_LINE} guestnet.probe",
    )
    # fmt: on
    null = subprocess.DEVNULL
    probe = subprocess.Popen(command, stdin=null, stdout=null, stderr=null)
    try:
        return probe.wait(PROBE_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return False
    finally:
        if probe.returncode is None:
            probe.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the kernel: waiting longer for it would hang us too
                probe.wait(PROBE_SECONDS)


def _turn() -> AbstractContextManager[int]:
    """The cache's lock: one builder at a time, and whoever waited finds what the other built."""
    return turn(cache_directory() / ".lock", timeout=BUILD_SECONDS, busy="another lab is still building its image")


@contextmanager
def _made(target: Path) -> Iterator[Path]:
    """A directory that becomes ``target`` when the block ends well, and is removed when it does not.

    What a killed builder left is cleared away first: the caller holds the cache's lock, so nobody is at work there.
    """
    for leftover in target.parent.glob(f".new-{target.name}-*"):
        shutil.rmtree(leftover)
    temporary = Path(tempfile.mkdtemp(prefix=f".new-{target.name}-", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary)
        raise


def _run(*command: str, cwd: Path | None = None) -> str:
    """What a program wrote to stdout; GuestnetError with its last words where it fails."""
    done = subprocess.run(command, check=False, cwd=cwd, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise GuestnetError(f"{os.path.basename(command[0])} failed: {words}")
    return done.stdout


def _fetch_kernel(directory: Path, progress: Progress) -> None:
    """Put ``version``, ``vmlinuz``, ``modules/*.ko`` and ``modules/order`` of a kernel into ``directory``.

    Debian's cloud kernel where apt knows it; else the kernel this machine runs, where its files are in /boot and
    /lib/modules.
    """
    running = os.uname().release
    if os.uname().machine != "x86_64":
        raise GuestnetError(f"the lab makes guests for x86_64 only, and this machine is {os.uname().machine}")
    package = _apt_kernel()
    if package is None:
        kernel, modules = Path(f"/boot/vmlinuz-{running}"), Path(f"/lib/modules/{running}")
        if not kernel.is_file() or not modules.is_dir():
            raise NotFoundError(
                f"apt does not know {KERNEL_PACKAGE}, and {kernel} with {modules} is not there either",
                hint="apt-get update",
            )
        progress(f"taking this machine's kernel {running} for the guests")
        _take_kernel(directory, running, kernel, modules)
        return
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=directory) as scratch:
        progress(f"downloading {package}")
        try:
            _run("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=Path(scratch))
        except GuestnetError as error:
            error.hint = "apt-get update"
            raise
        (archive,) = Path(scratch).glob("*.deb")
        _run("dpkg-deb", "-x", str(archive), str(Path(scratch) / "root"))
        version = package.removeprefix("linux-image-")
        root = Path(scratch) / "root"
        lib = root / "lib" if (root / "lib/modules").is_dir() else root / "usr/lib"
        _take_kernel(directory, version, root / f"boot/vmlinuz-{version}", lib / "modules" / version)


def _apt_kernel() -> str | None:
    """The package that KERNEL_PACKAGE depends on now, whose name carries the version; None where apt knows none."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    found = re.search(r"Depends: (linux-image-\S+)", _run("apt-cache", "depends", KERNEL_PACKAGE))
    return found[1] if found else None


def _take_kernel(directory: Path, version: str, kernel: Path, modules: Path) -> None:
    """Copy the kernel and the modules the guests need, with those they depend on, from an unpacked or installed one."""
    files = {_module_name(path): path for path in modules.rglob("*.ko*")}
    builtin = {_module_name(Path(line)) for line in (modules / "modules.builtin").read_text().split()}
    (directory / "modules").mkdir()
    order: list[str] = []

    def take(name: str) -> None:
        if name in order or name in builtin:
            return
        if name not in files:
            raise NotFoundError(f"Linux {version} has no module {name}", hint=f"see below {modules}")
        content = _module_bytes(files[name])
        # what a module needs is in its .modinfo section as depends=a,b (kernel, scripts/mod/modpost.c)
        depends = re.search(rb"\0depends=([A-Za-z0-9_,-]*)\0", b"\0" + content)
        for needed in depends[1].decode("ascii").split(",") if depends else ():
            if needed:
                take(needed.replace("-", "_"))
        (directory / "modules" / f"{name}.ko").write_bytes(content)
        order.append(name)

    for name in REQUIRED:
        take(name)
    for name in OPTIONAL:
        if name in files:
            take(name)
    (directory / "modules/order").write_text("".join(f"{name}\n" for name in order), encoding="utf-8")
    shutil.copyfile(kernel, directory / "vmlinuz")
    (directory / "version").write_text(version + "\n", encoding="utf-8")


def _module_name(path: Path) -> str:
    """The name the kernel gives a module file: without its endings, and with _ for -."""
    return path.name.split(".ko")[0].replace("-", "_")


def _module_bytes(path: Path) -> bytes:
    """The module itself, whatever it is packed with."""
    match path.suffix:
        case ".ko":
            return path.read_bytes()
        case ".xz":
            return lzma.decompress(path.read_bytes())
        case ".gz":
            return gzip.decompress(path.read_bytes())
        case ".zst":
            return subprocess.run(
                (program("zstd", "zstd"), "-dc", str(path)), check=True, stdout=subprocess.PIPE
            ).stdout
        case _:
            raise GuestnetError(f"the module {path} is packed in a way the lab cannot read")


def _write_initramfs(target: Path, modules: Path, busybox: Path, sources: dict[str, bytes]) -> None:
    """Write the guest's root file system, a gzipped cpio archive: busybox with its links, our scripts, the modules."""
    applets = _run(str(busybox), "--list").split()
    tree: dict[str, tuple[int, bytes]] = {"init": (0o120777, b"bin/busybox")}
    for name in ("bin", "etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "proc", "sys", "dev", "tmp", "root"):
        tree[name] = (0o040755, b"")
    tree["bin/busybox"] = (0o100755, busybox.read_bytes())
    for applet in applets:
        tree.setdefault(f"bin/{applet}", (0o120777, b"busybox"))
    tree["sbin"] = (0o120777, b"bin")
    for path, content in sources.items():
        tree[path] = (0o100755, content)
    for file in sorted(modules.iterdir()):
        tree[f"lib/modules/{file.name}"] = (0o100644, file.read_bytes())
    with gzip.open(target, "wb", compresslevel=1) as archive:
        for number, (name, (mode, content)) in enumerate(sorted(tree.items()), start=1):
            archive.write(_cpio_entry(number, name, mode, content))
        archive.write(_cpio_entry(0, "TRAILER!!!", 0, b""))


def _cpio_entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One file in the "newc" format, owned by root (kernel, driver-api/early-userspace/buffer-format.rst)."""
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)
