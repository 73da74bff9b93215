"""The packages, built once for all tests of them."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPO


@dataclass(frozen=True)
class Packages:
    """What `./dev package` builds, and a Debian package of a later guestnet."""

    directory: Path
    wheel: Path
    sdist: Path
    deb: Path

    def later(self) -> Path:
        """The Debian package again as of a version whose hook has one more line."""
        root = self.directory / "later"
        subprocess.run(["dpkg-deb", "-R", str(self.deb), str(root)], check=True)
        control = root / "DEBIAN/control"
        control.write_text(control.read_text().replace("\nVersion: ", "\nVersion: 1:99+"))
        [launcher] = root.glob("usr/lib/guestnet/lib/python3.*/site-packages/guestnet/templates/hook/launcher")
        launcher.write_text(launcher.read_text() + "# a later version\n")
        made = self.directory / "guestnet_later.deb"
        words = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "--build", str(root), str(made)]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        shutil.rmtree(root)
        return made


def built(tree: Path, directory: Path, *kinds: str) -> None:
    """Build the wheel (``-t wheel``) or the sdist of a tree into a directory."""
    words = [sys.executable, "-m", "hatchling", "build", "-d", str(directory), *kinds]
    done = subprocess.run(words, cwd=tree, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def packages() -> Iterator[Packages]:
    """The packages of this tree."""
    with tempfile.TemporaryDirectory(prefix="guestnet-packages-") as made:
        directory = Path(made)
        built(REPO, directory)
        [wheel], [sdist] = directory.glob("*.whl"), directory.glob("*.tar.gz")
        man = [sys.executable, "-m", "sphinx", "-q", "-b", "man", "-d", str(directory / "doctrees")]
        subprocess.run([*man, str(REPO / "docs"), str(directory / "man")], check=True)
        deb = [sys.executable, str(REPO / "packaging/deb.py"), "--man", str(directory / "man")]
        done = subprocess.run([*deb, str(wheel), str(directory)], check=True, stdout=subprocess.PIPE, text=True)
        yield Packages(directory=directory, wheel=wheel, sdist=sdist, deb=Path(done.stdout.strip()))
