"""The Debian package: a wheel of guestnet, the Python packages that Debian 12 has too old or not at all, and what goes
with them into a system.

    python packaging/deb.py [--man DIRECTORY] WHEEL DIRECTORY [VERSION]

It is run with the Python of the development environment (`./dev package`), and takes the packages from there: those
that the tests ran with. The man pages are built before, by Sphinx. Needs dpkg-deb and nothing else of Debian's tools.
The answer is the path of the package.
"""

import argparse
import compileall
import gzip
import hashlib
import os
import py_compile
import re
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

from packaging.requirements import Requirement

HERE = Path(__file__).parent
TREE = HERE.parent

FROM_DEBIAN = {"libvirt-python": "python3-libvirt"}
"""What the system's Python has and is new enough: the binding goes with the system's libvirt."""

LINKED = ("libvirt.py", "libvirt_qemu.py", "libvirtaio.py", "libvirtmod", "libvirtmod_qemu")
"""Of that package, what is linked into ours; the last two are extension modules."""

HOME = Path("/usr/lib/guestnet")
_DEBIANS = Path("/usr/lib/python3/dist-packages")
_UNUSED = re.compile(r"(^|/)(__pycache__|tests?|includes|isoschematron)/|\.(pxd|pxi|pyx|h|c|pyi)$|direct_url\.json$")


def main() -> None:
    """Build it from the words of the command line."""
    words = argparse.ArgumentParser(description="Build the Debian package.")
    words.add_argument("--man", type=Path, default=TREE / "build/man", help="where the man pages are")
    words.add_argument("wheel", type=Path)
    words.add_argument("directory", type=Path)
    words.add_argument("version", nargs="?", help="instead of the wheel's, for tests of an upgrade")
    given = words.parse_args()
    with tempfile.TemporaryDirectory(prefix="guestnet-deb-") as scratch:
        print(build(given.wheel, given.man, given.directory, Path(scratch), given.version))


def build(wheel: Path, man: Path, directory: Path, root: Path, version: str | None = None) -> Path:
    """Fill the empty directory ``root`` and pack it; the path of the package."""
    pages = sorted(man.glob("*.[1-8]"))
    if not pages:
        sys.exit(f"deb.py: there are no man pages in {man}: ./dev docs builds them")
    version = version or wheel.name.split("-")[1]
    bundled = closure("guestnet")
    make_python(root, wheel, bundled)
    for shell, place in (
        ("bash", "bash-completion/completions/guestnet"),
        ("zsh", "zsh/vendor-completions/_guestnet"),
        ("fish", "fish/vendor_completions.d/guestnet.fish"),
    ):
        put(root / "usr/share" / place, (TREE / f"templates/completion/guestnet.{shell}").read_bytes())
    for page in pages:
        put(root / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz", packed(page.read_bytes()))
    documents = root / "usr/share/doc/guestnet"
    put(documents / "changelog.gz", packed((TREE / "CHANGELOG.md").read_bytes()))
    put(documents / "copyright", copyright_of(bundled).encode())
    for path in documentation():
        put(documents / path.relative_to(TREE), path.read_bytes())
    for path in sorted((TREE / "docs/schema").glob("*.json")):
        put(root / "usr/share/guestnet/schema" / path.name, path.read_bytes())
    link(documents / "docs/schema", Path("../../../guestnet/schema"))
    link(root / "usr/share/guestnet/templates", site(HOME) / "guestnet/templates")
    control(root, version, bundled)
    architecture = run("dpkg", "--print-architecture").strip()
    target = directory / f"guestnet_{version}_{architecture}.deb"
    directory.mkdir(parents=True, exist_ok=True)
    run("dpkg-deb", "--root-owner-group", "-Zzstd", "-z9", "--build", str(root), str(target))
    return target


def documentation() -> list[Path]:
    """What a person reads, each at its place in the tree so that links lead there, and the testbed to copy.

    vagrant/notes is not of it: it installs guestnet out of the tree."""
    docs = TREE / "docs"
    found = [TREE / "README.md", TREE / "HACKING.md", *docs.rglob("*.md"), *(docs / "pictures").iterdir()]
    testbed = (TREE / "vagrant/testbed").iterdir()
    return sorted([*found, *(path for path in testbed if path.is_file())])


def closure(name: str, extra: str = "") -> list[Distribution]:
    """What a package needs at run time, at any depth, but what Debian brings; sorted by name."""
    found: dict[str, Distribution] = {}
    todo = [name]
    while todo:
        for line in distribution(todo.pop()).requires or ():
            needed = Requirement(line)
            if needed.name in FROM_DEBIAN or (needed.marker and not needed.marker.evaluate({"extra": extra})):
                continue
            one = distribution(needed.name)
            if one.name not in found:
                found[one.name] = one
                todo.append(one.name)
    return [found[each] for each in sorted(found, key=str.lower)]


def site(home: Path) -> Path:
    """Where Python finds packages below its home."""
    return home / f"lib/python{sysconfig.get_python_version()}/site-packages"


def make_python(root: Path, wheel: Path, bundled: list[Distribution]) -> None:
    """A virtual environment as venv(1) makes it, with nothing in it but what guestnet needs, and the command."""
    home = root / HOME.relative_to("/")
    packages = site(home)
    packages.mkdir(parents=True)
    version = sysconfig.get_python_version()
    put(home / "pyvenv.cfg", f"home = /usr/bin\ninclude-system-site-packages = false\nversion = {version}\n".encode())
    link(home / "bin/python", Path(f"/usr/bin/python{version}"))
    command = f"#!{HOME}/bin/python -I\nfrom guestnet.__main__ import main\n\nmain()\n"
    put(home / "bin/guestnet", command.encode(), 0o755)
    link(root / "usr/bin/guestnet", HOME / "bin/guestnet")
    for one in bundled:
        for source, name in files_of(one):
            put(packages / name, source.read_bytes())
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    for path in packages.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    compileall.compile_dir(
        packages, quiet=1, stripdir=str(root), prependdir="/", workers=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )  # fmt: skip
    tag = sys.implementation.cache_tag
    for name in LINKED:
        if name.endswith(".py"):
            link(packages / name, _DEBIANS / name)
            cached = f"__pycache__/{name.removesuffix('.py')}.{tag}.pyc"
            link(packages / cached, _DEBIANS / cached)  # so that Python writes none beside our files
        else:
            module = f"{name}{sysconfig.get_config_var('EXT_SUFFIX')}"
            link(packages / module, _DEBIANS / module)


def files_of(one: Distribution) -> Iterator[tuple[Path, str]]:
    """The files of an installed package that it needs to run, and its licences; where they are and their names."""
    for file in one.files or ():
        name = str(file)
        if not name.startswith("../") and not _UNUSED.search(name):
            yield Path(str(one.locate_file(file))), name


def control(root: Path, version: str, bundled: list[Distribution]) -> None:
    """Write what dpkg has to know: the description, the sums, the maintainer's scripts."""
    python = sysconfig.get_python_version()
    major, minor = map(int, python.split("."))
    needs = [f"python3 (>= {python})", f"python3 (<< {major}.{minor + 1})", "python3-libvirt (>= 9)"]
    # wheels are built against the oldest glibc they name, manylinux_2_28 at most
    depends = ", ".join(["libc6 (>= 2.28)", *needs])
    sizes = [path.lstat().st_size for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    text = (HERE / "debian/control").read_text(encoding="utf-8")
    for name, value in (
        ("VERSION", version), ("ARCHITECTURE", run("dpkg", "--print-architecture").strip()), ("DEPENDS", depends),
        ("SIZE", str(sum(sizes) // 1024)), ("BUNDLED", ", ".join(f"{one.name} {one.version}" for one in bundled)),
    ):  # fmt: skip
        text = text.replace(f"@{name}@", value)
    files = sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())
    sums = "".join(
        f"{hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()}  {path.relative_to(root)}\n"
        for path in files
    )
    put(root / "DEBIAN/md5sums", sums.encode())
    put(root / "DEBIAN/control", text.encode())
    for script in ("postinst", "prerm", "postrm"):
        put(root / f"DEBIAN/{script}", (HERE / "debian" / script).read_bytes(), 0o755)
    for path in root.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o755)
    root.chmod(0o755)


def copyright_of(bundled: list[Distribution]) -> str:
    """Whose it is and under which terms, ours and what is bundled."""
    parts = [f"guestnet\n\n{(TREE / 'LICENSE').read_text(encoding='utf-8')}\n"]
    for one in bundled:
        said = one.metadata
        short = [said[name] for name in ("License-Expression", "License") if name in said]
        licence = short[0] if short else ""
        if not licence or "\n" in licence:
            named = [
                line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License")
            ]
            licence = ", ".join(named)
        parts.append(f"{'-' * 80}\n{one.name} {one.version}: {licence}\n\n")
        for source, name in files_of(one):
            if re.search(r"dist-info/.*(licen[cs]e|copying|notice|authors)[^/]*$", name, re.IGNORECASE):
                parts.append(source.read_text(encoding="utf-8", errors="replace") + "\n")
    return "".join(parts)


def put(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file and the directories it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    path.chmod(mode)


def link(path: Path, target: Path) -> None:
    """Make a symbolic link and the directories it is in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def packed(content: bytes) -> bytes:
    """As gzip -9n packs it."""
    return gzip.compress(content, 9, mtime=0)


def run(*words: str) -> str:
    """What a program says; its failure is ours."""
    return subprocess.run(
        words, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, "LC_ALL": "C"}
    ).stdout


if __name__ == "__main__":
    main()
