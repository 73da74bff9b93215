"""The wheel and the sdist: what is in them, and that they can be installed with pip."""

import hashlib
import re
import runpy
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name as canonical
from packaging.version import Version

import guestnet
from tests.conftest import REPO
from tests.install.conftest import Packages, built


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## (\S+)", (REPO / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    assert found[1] == guestnet.__version__


def test_the_pages_name_this_version() -> None:
    for name in ("README.md", "docs/install.md", "docs/start.md"):
        found = re.findall(r"guestnet[ _-](\d+(?:\.\d+)+)", (REPO / name).read_text(encoding="utf-8"))
        assert set(found) == {guestnet.__version__}, name


def test_the_page_on_installing_has_what_the_debian_package_brings() -> None:
    deb = runpy.run_path(str(REPO / "packaging/deb.py"))
    page = (REPO / "docs/install.md").read_text(encoding="utf-8")
    _, _, below = page.partition("| bundled | in Debian 12 | why |\n|---|---|---|\n")
    rows = re.findall(r"^\| ([\w.]+)(?:,? ([\d.]+)?.*?)? \|", below.partition("\n\n")[0], re.MULTILINE)
    bundled = {canonical(one.name): Version(one.version) for one in deb["closure"]("guestnet")}
    needed = [Requirement(line) for line in requires("guestnet") or ()]
    asked_for = {canonical(one.name) for one in needed if one.marker is None} - deb["FROM_DEBIAN"].keys()
    assert {canonical(name) for name, _ in rows} == asked_for
    for name, least in rows:
        assert bundled[canonical(name)] >= Version(least or "0"), name
    for package in deb["FROM_DEBIAN"].values():
        assert f"`{package}`" in page


def test_the_sdist_has_the_tree_and_makes_the_same_wheel(packages: Packages, tmp_path: Path) -> None:
    subprocess.run(["tar", "-C", str(tmp_path), "-xf", str(packages.sdist)], check=True)
    [tree] = tmp_path.iterdir()
    assert tree.name == f"guestnet-{guestnet.__version__}"
    wanted = "CHANGELOG.md HACKING.md LICENSE README.md dev docs guestnet packaging templates tests vagrant"
    assert set(wanted.split()) <= {path.name for path in tree.iterdir()}
    assert [path for path in tree.rglob("*") if path.name in ("__pycache__", ".vagrant", "build")] == []
    built(tree, tmp_path / "again", "-t", "wheel")
    [again] = (tmp_path / "again").iterdir()
    assert hashlib.sha256(again.read_bytes()).digest() == hashlib.sha256(packages.wheel.read_bytes()).digest()


def test_the_wheel_installs_with_pip_and_brings_its_templates(packages: Packages, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path)], check=True)
    python = tmp_path / "bin/python"
    words = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input"]
    subprocess.run([*words, str(packages.wheel)], check=True, timeout=300, cwd=tmp_path)
    answer = subprocess.run(
        [tmp_path / "bin/guestnet", "--version"], capture_output=True, text=True, check=True, cwd="/"
    )
    assert answer.stdout.startswith(f"guestnet {guestnet.__version__}\n")
    code = "from guestnet import templates, launcher; launcher._check_python(); print(templates.directory())"
    where = subprocess.run([str(python), "-I", "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    here, there = REPO / "templates", Path(where.strip())
    assert there.is_relative_to(tmp_path)
    files = {path.relative_to(here) for path in here.rglob("*") if path.is_file()}
    assert {path.relative_to(there) for path in there.rglob("*") if path.is_file()} == files
