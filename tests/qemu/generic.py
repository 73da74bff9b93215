"""A guest image with Debian's stock kernel: the small one of the lab has no driver for the NICs of old."""

import gzip
import hashlib
import tempfile
from pathlib import Path

from guestnet import templates
from guestnet.lab import cache
from guestnet.lab import kernel as kernels
from guestnet.lab.image import GUEST_FILES, Image
from guestnet.lab.programs import program
from guestnet.lab.turn import turn

PACKAGE = "linux-image-amd64"
MODULES = ("virtio_pci", "virtio_net", "e1000", "8139cp")
SECONDS = 600.0


def image() -> Image:
    """The image, from the cache or made now; the first time takes a download of about 71 MB."""
    home = cache.directory("nics")
    home.mkdir(parents=True, exist_ok=True, mode=0o755)
    sources = {path: templates.read(f"lab/{name}") for name, path in GUEST_FILES.items()}
    key = hashlib.sha256(repr((MODULES, sorted(sources.items()))).encode()).hexdigest()[:12]
    with turn(home / ".lock", timeout=SECONDS, busy="another test makes the image still"):
        package = kernels.newest(PACKAGE)
        assert package is not None, f"apt does not know {PACKAGE}"
        built = home / f"{package}-{key}"
        if not built.is_dir():
            with cache.made(built) as directory, tempfile.TemporaryDirectory(dir=home) as scratch:
                _make(directory, kernels.download(package, Path(scratch)), sources)
    return Image(directory=built, kernel_version=package.removeprefix("linux-image-"))


def _make(directory: Path, found: kernels.Kernel, sources: dict[str, bytes]) -> None:
    content = found.vmlinuz.read_bytes()
    (directory / "vmlinuz").write_bytes(kernels.elf(content) or content)
    tree = kernels.busybox_tree(Path(program("busybox", "busybox-static")).resolve())
    tree["init"] = (0o120777, b"bin/busybox")
    for name in ("etc", "etc/acpi", "etc/acpi/PWRF", "lib", "lib/modules", "proc", "sys", "dev", "tmp", "root"):
        tree[name] = (0o040755, b"")
    for path, text in sources.items():
        tree[path] = (0o100755, text)
    modules = found.closure(MODULES)
    for name, module in modules.items():
        tree[f"lib/modules/{name}.ko"] = (0o100644, module)
    tree["lib/modules/order"] = (0o100644, "".join(f"{name}\n" for name in modules).encode())
    with gzip.open(directory / "initramfs", "wb", compresslevel=1) as archive:
        archive.write(kernels.archive(tree))
