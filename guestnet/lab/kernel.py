"""Kernels out of Debian packages, unpacked and never installed, and the archives they boot from."""

import gzip
import lzma
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from guestnet.errors import GuestnetError, NotFoundError
from guestnet.lab.programs import Progress, output_of, program, quiet

Tree: TypeAlias = Mapping[str, tuple[int, bytes]]
"""Files by path without leading slash: mode with file type, and content (of a symbolic link its target)."""

_BOOT_FLAG, _PAYLOAD, _SETUP_SECTORS = 0x1FE, 0x248, 0x1F1


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A kernel that lies somewhere: its version, its bzImage and the directory of its modules."""

    version: str
    vmlinuz: Path
    modules: Path

    def closure(self, required: Iterable[str], optional: Iterable[str] = ()) -> dict[str, bytes]:
        """The named modules and those they depend on, unpacked, in the order in which they can be loaded.

        What is built in is left out, and so is what of ``optional`` is missing; NotFoundError where a required one is.
        """
        files = {_module_name(path): path for path in self.modules.rglob("*.ko*")}
        builtin = {_module_name(Path(line)) for line in (self.modules / "modules.builtin").read_text().split()}
        taken: dict[str, bytes] = {}

        def take(name: str) -> None:
            if name in taken or name in builtin:
                return
            if name not in files:
                raise NotFoundError(f"Linux {self.version} has no module {name}", hint=f"see below {self.modules}")
            content = _module_bytes(files[name])
            # what a module needs is in its .modinfo section as depends=a,b (kernel, scripts/mod/modpost.c)
            depends = re.search(rb"\0depends=([A-Za-z0-9_,-]*)\0", b"\0" + content)
            for needed in depends[1].decode("ascii").split(",") if depends else ():
                if needed:
                    take(needed.replace("-", "_"))
            taken[name] = content

        for name in required:
            take(name)
        for name in optional:
            if name in files:
                take(name)
        return taken


def newest(metapackage: str) -> str | None:
    """The kernel package that Debian's ``metapackage`` depends on now; None where apt is missing or knows none."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    found = re.search(r"Depends: (linux-image-\S+)", output_of("apt-cache", "depends", metapackage))
    return found[1] if found else None


def download(package: str, scratch: Path, progress: Progress = quiet) -> Kernel:
    """The kernel of that package, unpacked below the directory ``scratch``; GuestnetError where apt cannot get it."""
    progress(f"downloading {package}")
    try:
        output_of("apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package, cwd=scratch)
    except GuestnetError as error:
        error.hint = "apt-get update"
        raise
    (archive,) = scratch.glob("*.deb")
    root = scratch / "root"
    output_of("dpkg-deb", "-x", str(archive), str(root))
    archive.unlink()
    version = package.removeprefix("linux-image-")
    lib = root / "lib" if (root / "lib/modules").is_dir() else root / "usr/lib"
    return Kernel(version=version, vmlinuz=root / f"boot/vmlinuz-{version}", modules=lib / "modules" / version)


def elf(vmlinuz: bytes) -> bytes | None:
    """The ELF image in a bzImage, which QEMU boots without unpacking it in the guest (PVH).

    None where it is packed in a way that cannot be read. The header's fields are those of the kernel's
    Documentation/arch/x86/boot.rst.
    """
    if vmlinuz[_BOOT_FLAG : _BOOT_FLAG + 2] != b"\x55\xaa":
        return None
    offset, length = struct.unpack_from("<II", vmlinuz, _PAYLOAD)
    begin = ((vmlinuz[_SETUP_SECTORS] or 4) + 1) * 512 + offset
    payload = vmlinuz[begin : begin + length]
    # the unpacked size stands behind the payload (kernel, scripts/Makefile.lib, size_append)
    match payload[:4]:
        case b"\xfd7zX":
            unpacked = lzma.LZMADecompressor().decompress(payload)
        case b"\x28\xb5\x2f\xfd":
            command = (program("zstd", "zstd"), "-dcq", "-")
            unpacked = subprocess.run(command, check=False, input=payload, capture_output=True).stdout
        case _:
            return None
    return unpacked if unpacked.startswith(b"\x7fELF") else None


def archive(tree: Tree) -> bytes:
    """The cpio archive of these files, uncompressed, as an initramfs or a part of one: several can be joined."""
    entries = [_entry(number, name, *what) for number, (name, what) in enumerate(sorted(tree.items()), start=1)]
    whole = b"".join([*entries, _entry(0, "TRAILER!!!", 0, b"")])
    return whole + b"\0" * (-len(whole) % 512)


def busybox_tree(busybox: Path) -> dict[str, tuple[int, bytes]]:
    """``bin`` with busybox and a link for each of its commands, and ``sbin`` as another name of it."""
    tree: dict[str, tuple[int, bytes]] = {"bin": (0o040755, b""), "sbin": (0o120777, b"bin")}
    tree["bin/busybox"] = (0o100755, busybox.read_bytes())
    for applet in output_of(str(busybox), "--list").split():
        tree.setdefault(f"bin/{applet}", (0o120777, b"busybox"))
    return tree


def _entry(inode: int, name: str, mode: int, content: bytes) -> bytes:
    """One file in the "newc" format, owned by root (kernel, driver-api/early-userspace/buffer-format.rst)."""
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4)


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
            command = (program("zstd", "zstd"), "-dc", str(path))
            return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
        case _:
            raise GuestnetError(f"the module {os.fspath(path)} is packed in a way the lab cannot read")
