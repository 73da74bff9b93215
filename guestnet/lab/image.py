"""The lab guests' kernel and initramfs, made once and kept in a cache."""

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

from guestnet import templates
from guestnet.errors import GuestnetError, NotFoundError
from guestnet.lab import cache
from guestnet.lab import kernel as kernels
from guestnet.lab.kernel import Kernel
from guestnet.lab.programs import Progress, program, quiet
from guestnet.lab.turn import turn

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

PROBE_SECONDS = 5.0
BUILD_SECONDS = 600.0


def cache_directory() -> Path:
    """Where images are kept: ``lab`` below $GUESTNET_CACHE, or below /var/cache/guestnet."""
    return cache.directory("lab")


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
    home = cache_directory()
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    kernel = home / f"kernel-{key.hexdigest()[:12]}"
    key.update(repr(sorted(sources.items())).encode())
    key.update(busybox.read_bytes())
    with _turn():
        if not kernel.is_dir():
            with cache.made(kernel) as directory:
                _fetch_kernel(directory, progress)
        version = (kernel / "version").read_text(encoding="utf-8").strip()
        key.update(version.encode())
        built = home / f"image-{key.hexdigest()[:12]}"
        if not built.is_dir():
            progress(f"building the guest image for Linux {version}")
            with cache.made(built) as directory:
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


def _fetch_kernel(directory: Path, progress: Progress) -> None:
    """Put ``version``, ``vmlinuz``, ``modules/*.ko`` and ``modules/order`` of a kernel into ``directory``.

    Debian's cloud kernel where apt knows it; else the kernel this machine runs, where its files are in /boot and
    /lib/modules.
    """
    running = os.uname().release
    if os.uname().machine != "x86_64":
        raise GuestnetError(f"the lab makes guests for x86_64 only, and this machine is {os.uname().machine}")
    package = kernels.newest(KERNEL_PACKAGE)
    if package is None:
        kernel = Kernel(
            version=running, vmlinuz=Path(f"/boot/vmlinuz-{running}"), modules=Path(f"/lib/modules/{running}")
        )
        if not kernel.vmlinuz.is_file() or not kernel.modules.is_dir():
            raise NotFoundError(
                f"apt does not know {KERNEL_PACKAGE}, and {kernel.vmlinuz} with {kernel.modules} is not there either",
                hint="apt-get update",
            )
        progress(f"taking this machine's kernel {running} for the guests")
        _take_kernel(directory, kernel)
        return
    with tempfile.TemporaryDirectory(prefix="unpacked-", dir=directory) as scratch:
        _take_kernel(directory, kernels.download(package, Path(scratch), progress))


def _take_kernel(directory: Path, kernel: Kernel) -> None:
    """Copy the kernel and the modules the guests need, with those they depend on, from an unpacked or installed one."""
    modules = kernel.closure(REQUIRED, OPTIONAL)
    (directory / "modules").mkdir()
    for name, content in modules.items():
        (directory / "modules" / f"{name}.ko").write_bytes(content)
    (directory / "modules/order").write_text("".join(f"{name}\n" for name in modules), encoding="utf-8")
    shutil.copyfile(kernel.vmlinuz, directory / "vmlinuz")
    (directory / "version").write_text(kernel.version + "\n", encoding="utf-8")


def _write_initramfs(target: Path, modules: Path, busybox: Path, sources: dict[str, bytes]) -> None:
    """Write the guest's root file system, a gzipped cpio archive: busybox with its links, our scripts, the modules."""
    tree = kernels.busybox_tree(busybox)
    tree["init"] = (0o120777, b"bin/busybox")
    for name in ("etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "proc", "sys", "dev", "tmp", "root"):
        tree[name] = (0o040755, b"")
    for path, content in sources.items():
        tree[path] = (0o100755, content)
    for file in sorted(modules.iterdir()):
        tree[f"lib/modules/{file.name}"] = (0o100644, file.read_bytes())
    with gzip.open(target, "wb", compresslevel=1) as archive:
        archive.write(kernels.archive(tree))
