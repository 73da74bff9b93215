"""Small Debian boxes for vagrant-libvirt, built here out of what apt on this machine is configured with.

Vagrant's own boxes are downloads of some hundred MB that want KVM. These have a kernel beside their disk, so that
nothing has to load a boot loader, and are cached: 30 s the first time, nothing after. NODES has beside it all that
vagrant/notes installs on its nodes, which have no network here.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.lab import cache
from guestnet.lab import kernel as kernels
from guestnet.lab.image import COMMAND_LINE, KERNEL_PACKAGE, image
from guestnet.lab.programs import Progress, output_of, program, quiet
from guestnet.lab.turn import turn
from tests.vagrant.vagrant import NOTES, REPO
from tests.vm import machine

MODULES = ("virtio_pci", "virtio_blk", "ext4", "virtio_net", "8021q")
OPTIONAL = ("crc32c_generic",)
"""What the initramfs loads, for disk and network; the modules stay when the disk takes over. Without the last, which
ext4 asks for by another name, a kernel that has it as a module mounts no ext4.
"""

BUILD_SECONDS = 600.0
_OWN = Path(__file__).parent / "box"
_KEYS = "/usr/share/rubygems-integration/all/gems"


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A box by its name in Vagrant: the packages in it, and the size of its disk in GB.

    A ``node`` is one that has guests of its own: it has Debian's stock kernel with all modules, and at hand what
    vagrant/notes gets from elsewhere, the wheels of guestnet's Python packages and the kernel of the lab's guests.
    """

    name: str
    packages: tuple[str, ...]
    disk: int
    node: bool = False


TESTBED = Box(
    name="guestnet/debian",
    packages=("systemd-sysv", "udev", "openssh-server", "sudo", "iproute2", "iputils-ping", "kmod", "rsync"),
    disk=1,
)


def nodes() -> Box:
    """The box of vagrant/notes: with the packages that its ``install`` names."""
    words = (NOTES / "install").read_text(encoding="utf-8").replace("\\\n", " ")
    line = next(line for line in words.splitlines() if line.startswith("apt-get") and " install " in line)
    packages = [word for word in line.split(" install ")[1].split() if not word.startswith("-")]
    return Box(name="guestnet/node", packages=(*TESTBED.packages, "apt", *packages), disk=3, node=True)


def file_of(box: Box, progress: Progress = quiet) -> Path:
    """The box's file, from the cache or built now; a second caller waits for the first. Raises GuestnetError."""
    home = cache.directory("vagrant")
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    sources: list[object] = [(path.name, path.read_bytes()) for path in sorted(_OWN.iterdir())]
    if box.node:
        image(progress)  # the kernel of the lab's guests is in the cache then
        project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
        sources += [project["build-system"]["requires"], project["project"]["dependencies"]]
        sources += sorted(cache.directory("lab").glob("kernel-*"))
    key = hashlib.sha256(repr((sources, box, MODULES, OPTIONAL, COMMAND_LINE, _codename())).encode())
    built = home / f"box-{key.hexdigest()[:12]}"
    with turn(home / ".lock", timeout=BUILD_SECONDS, busy="another box is still being built"):
        if not built.is_dir():
            with cache.made(built) as directory:
                _build(box, directory, progress)
    return built / "debian.box"


def _build(box: Box, directory: Path, progress: Progress) -> None:
    scratch = directory / "scratch"
    scratch.mkdir()
    kernel = _kernel(box, scratch, progress)
    content = kernel.vmlinuz.read_bytes()
    (scratch / "kernel").write_bytes(kernels.elf(content) or content)
    _write_initramfs(scratch / "initramfs", kernel)
    more = _write_more(scratch / "more", kernel, progress) if box.node else None
    progress("building a Debian root for the box")
    _write_root(box, scratch, more)
    progress("packing the box")
    _write_disk(box, scratch)
    (scratch / "metadata.json").write_text(
        json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": box.disk}), encoding="utf-8"
    )
    text = (_OWN / "Vagrantfile").read_text(encoding="utf-8")
    arguments = COMMAND_LINE.replace("panic=-1", "panic=-1 root=/dev/vda rw net.ifnames=0")
    (scratch / "Vagrantfile").write_text(text.replace("COMMAND_LINE", arguments), encoding="utf-8")
    with tarfile.open(directory / "debian.box", "w") as archive:
        for name in ("metadata.json", "Vagrantfile", "kernel", "initramfs", "box.img"):
            archive.add(scratch / name, arcname=name)
    output_of("rm", "-rf", "--one-file-system", str(scratch))


def _kernel(box: Box, scratch: Path, progress: Progress) -> kernels.Kernel:
    """The small kernel for clouds, unpacked below ``scratch``; for a node the one that the test machine has too."""
    if box.node:
        boot = machine.prepare(progress)
        return kernels.Kernel(version=boot.version, vmlinuz=boot.kernel, modules=boot.modules)
    package = kernels.newest(KERNEL_PACKAGE)
    if package is None:
        raise NotFoundError(f"apt does not know {KERNEL_PACKAGE}", hint="apt-get update")
    return kernels.download(package, scratch, progress)


def _write_more(tree: Path, kernel: kernels.Kernel, progress: Progress) -> Path:
    """Put what a node's root has beside Debian's packages into a directory; it is copied over that root."""
    shutil.copytree(kernel.modules, tree / "usr/lib/modules" / kernel.version)
    for kept in cache.directory("lab").glob("kernel-*"):
        shutil.copytree(kept, tree / "var/cache/guestnet/lab" / kept.name)
    wheels = tree / "usr/local/share/wheels"
    wheels.mkdir(parents=True)
    progress("making wheels of the Python packages that guestnet needs")
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "wheel", "--wheel-dir", str(wheels))
    output_of(*pip, str(REPO), "hatchling")
    for own in wheels.glob("guestnet-*"):
        own.unlink()  # the node makes its own of the tree
    (tree / "etc").mkdir()
    (tree / "etc/pip.conf").write_text("[global]\nno-index = true\nfind-links = /usr/local/share/wheels\n")
    return tree


def _write_initramfs(target: Path, kernel: kernels.Kernel) -> None:
    tree = kernels.busybox_tree(Path(program("busybox", "busybox-static")).resolve())
    tree["init"] = (0o100755, (_OWN / "init").read_bytes())
    for name in ("root", "modules", "proc", "dev"):
        tree[name] = (0o040755, b"")
    modules = kernel.closure(MODULES, OPTIONAL)
    for name, content in modules.items():
        tree[f"modules/{name}.ko"] = (0o100644, content)
    tree["modules/order"] = (0o100644, "".join(f"{name}\n" for name in modules).encode())
    target.write_bytes(kernels.archive(tree))


def _write_root(box: Box, scratch: Path, more: Path | None) -> None:
    """Put a Debian into ``scratch``/debian, by the mirror and the proxy that apt on this machine uses.

    What is in ``more`` goes over it; apt in there knows of no mirror then.
    """
    key = next(Path(_KEYS).glob("vagrant-[0-9]*/keys/vagrant.pub"), None)
    if key is None:
        raise NotFoundError("vagrant's well-known key is not there", hint="apt install vagrant")
    sources = scratch / "sources.list"
    sources.write_text("".join(f"{line}\n" for line in _sources()), encoding="utf-8")
    proxies = [
        line.strip().rstrip(";")
        for line in output_of("apt-config", "dump").splitlines()
        if line.startswith("Acquire::") and "proxy" in line.split(" ", 1)[0].lower()
    ]
    words = [
        program("mmdebstrap", "mmdebstrap"), "--quiet", "--variant=essential", "--format=directory",
        f"--include={','.join(box.packages)}", '--aptopt=APT::Install-Recommends "false"',
        *(f"--aptopt={line}" for line in proxies),
        *(f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("doc", "man", "locale")),
        f"--customize-hook={_OWN / 'customize'} \"$1\"", _codename(), str(scratch / "debian"), str(sources),
    ]  # fmt: skip
    done = subprocess.run(
        words, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL,
        env={**os.environ, "VAGRANT_KEY": str(key), "MORE": str(more or "")},
    )  # fmt: skip
    if done.returncode != 0:
        raise GuestnetError(f"mmdebstrap failed: {' '.join(done.stderr.split()[-60:])}")


def _write_disk(box: Box, scratch: Path) -> None:
    """Make the disk out of ``scratch``/debian: an ext4 over the whole of it, as qcow2. Nothing is mounted."""
    raw = scratch / "box.raw"
    mke2fs = program("mke2fs", "e2fsprogs")
    output_of(mke2fs, "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(scratch / "debian"), str(raw), f"{box.disk}G")
    output_of(program("qemu-img", "qemu-utils"), "convert", "-O", "qcow2", str(raw), str(scratch / "box.img"))


def _codename() -> str:
    found = output_of("sh", "-c", ". /etc/os-release && echo $VERSION_CODENAME").strip()
    if not found:
        raise GuestnetError("/etc/os-release has no VERSION_CODENAME, the box is made for a Debian release")
    return found


def _sources() -> list[str]:
    """The lines of sources.list(5) for Debian's release, its updates and security, as apt here has them."""
    form = "$(REPO_URI) $(RELEASE) $(CODENAME) $(ORIGIN) $(COMPONENT) $(SIGNED_BY)"
    lines = set()
    for target in output_of("apt-get", "indextargets", "--format", form, "Created-By: Packages").splitlines():
        uri, release, codename, origin, component, *signed = target.split(" ", 5)
        if origin == "Debian" and component == "main" and codename.startswith(_codename()):
            by = f"[signed-by={signed[0]}] " if signed and signed[0].startswith("/") else ""
            lines.add(f"deb {by}{uri} {release} main")
    if not lines:
        raise NotFoundError("apt has no list of Debian's packages", hint="apt-get update")
    return sorted(lines)


if __name__ == "__main__":
    try:
        for one in (TESTBED, nodes()):
            print(file_of(one, lambda text: print(text, flush=True)))
    except GuestnetError as error:
        sys.exit(f"{error.message}" + (f"\nhint: {error.hint}" if error.hint else ""))
