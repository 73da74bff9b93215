"""The rules of the house: who may import whom, and the habits that hold in every file.

Each rule is a function from sources to a list of complaints, so that it can be shown a bad source as well as ours.
"""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parents[2]

# Lowest first. A module imports from lower layers and from its own; a new module needs a place here.
LAYERS = (
    ("closes", "errors", "inet", "machine", "model", "templates", "trail", "undo"),
    ("kernel",),
    ("guest",),
    ("plan",),
    ("apply",),
    (
        *("attachment", "doctor", "gc", "graph", "hook", "hostlink", "hostshim", "inventory", "launcher", "linklist"),
        *("parents", "qemu", "repair", "topology", "units", "watcher"),
    ),
    ("lab",),
    ("api",),
    ("report",),
    ("cli",),
    ("__main__",),
)

# These decide and describe; nothing they reach, at any depth, touches the machine.
PURE = ("guestnet.model", "guestnet.plan", "guestnet.guest.xml")
EFFECTS = (
    *("asyncio", "ctypes", "fcntl", "glob", "http", "io", "libvirt", "libvirt_qemu", "libvirtaio", "logging"),
    *("multiprocessing", "os", "pathlib", "pyroute2", "qemu", "random", "rich", "secrets", "select", "selectors"),
    *("shutil", "signal", "socket", "socketserver", "subprocess", "sys", "tempfile", "threading", "time", "typer"),
    *("urllib", "guestnet.apply", "guestnet.guest.domain", "guestnet.guest.qmp", "guestnet.kernel", "guestnet.lab"),
)
NO_EFFECTS = ("pathlib.PurePath", "pathlib.PurePosixPath", "urllib.parse")

# libvirt waits for the hook: one that calls libvirt hangs it.
HOOK_NEVER_REACHES = ("guestnet.guest.domain", "libvirt", "libvirt_qemu", "libvirtaio")

# Who may import these (or name the one that has a dot); nobody else may.
DOORS: Mapping[str, tuple[str, ...]] = {
    "click": (),  # typer brings its own
    "graphviz": ("guestnet.graph",),
    "fcntl": ("guestnet.kernel",),
    "libvirt": ("guestnet.guest.domain", "guestnet.guest.glance", "guestnet.lab"),
    "libvirt_qemu": ("guestnet.guest.domain", "guestnet.lab"),
    "libvirtaio": ("guestnet.guest.domain", "guestnet.lab"),
    "lxml": ("guestnet.guest", "guestnet.lab"),
    "pydantic": ("guestnet.parents", "guestnet.topology"),
    "pyroute2": ("guestnet.kernel",),
    "qemu": ("guestnet.guest.qmp",),
    "ruamel": ("guestnet.parents", "guestnet.topology"),
    "rich": ("guestnet.report", "guestnet.cli"),
    "syslog": ("guestnet.hook", "guestnet.watcher"),
    "socket.AF_NETLINK": ("guestnet.kernel", "guestnet.lab.devices"),
    "typer": ("guestnet.report", "guestnet.cli"),
}

SPEAKS = (
    "guestnet.report",
    "guestnet.cli",
    "guestnet.hook",  # libvirt reads what it says
)
EXITS = ("guestnet.cli", "guestnet.__main__")
CATCHES_EVERYTHING = (
    "guestnet.undo",  # each inverse gets its turn
    "guestnet.kernel.netns",  # an error is carried from a thread to its caller
)
SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput")
SLEEPS = ("time.sleep", "asyncio.sleep")

LONGEST_FILE = 700

# Written in halves, for this file is read as well. The mirrors and indexes are those of the reader's machine.
FOREIGN = tuple(
    re.compile("".join(halves))
    for halves in (
        (r"\bpypi", r"\.org"),
        (r"\bpython", r"hosted\.org"),
        (r"\b(?:deb|security|snapshot|ftp[\w.]*)\.debian", r"\.org"),
        (r"\bregistry\.np", r"mjs\.org"),
        (r"\bcrates", r"\.io\b"),
        (r"\bproxy\.gol", r"ang\.org"),
        (r"\b(?:docker|ghcr|quay)", r"\.io\b"),
        (r"\bindex-", r"url\b"),
        (r"\bfind-", r"links\b"),
        (r"(?<![\w.~/-])/wo", r"rk/"),
        (r"(?<![\w.~/-])/tmp/(?:exp|scr", r"atch|bash_jobs)"),
        (r"(?<![\w.~/-])/opt/wh", r"eels"),
    )
)


# Reading sources


class Import(NamedTuple):
    """One imported name in full (``from lxml import etree`` is ``lxml.etree``), and its line."""

    name: str
    line: int


def within(name: str, *roots: str) -> bool:
    """Whether a dotted name is one of the roots or lies under one."""
    return any(name == root or name.startswith(root + ".") for root in roots)


class House:
    """Modules by dotted name, parsed; imports at the top of a file and inside functions count the same."""

    def __init__(self, sources: Mapping[str, str]) -> None:
        self.trees = {name: ast.parse(source) for name, source in sources.items()}
        # what the package itself has is looked up when it is asked for: the import of any module would not run it
        self.imports = {
            name: list(self._imports(name, tree)) if name != "guestnet" else [] for name, tree in self.trees.items()
        }
        self.aliases = {name: dict(self._aliases(tree)) for name, tree in self.trees.items()}

    def _imports(self, module: str, tree: ast.Module) -> Iterator[Import]:
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    yield from (Import(alias.name, node.lineno) for alias in names)
                case ast.ImportFrom(names=names):
                    base = self._base(module, node)
                    yield from (Import(f"{base}.{alias.name}", node.lineno) for alias in names)
                case ast.Call(
                    func=ast.Name(id=call) | ast.Attribute(attr=call), args=[ast.Constant(value=str(name)), *_]
                ):
                    if call in {"import_module", "__import__"}:
                        yield Import(name, node.lineno)

    def _base(self, module: str, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        is_package = any(within(other, module) and other != module for other in self.trees)
        parts = module.split(".")
        parts = parts[: len(parts) - node.level + is_package]
        return ".".join([*parts, node.module] if node.module else parts)

    def _aliases(self, tree: ast.Module) -> Iterator[tuple[str, str]]:
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names):
                    yield from ((a.asname, a.name) if a.asname else (a.name.split(".")[0],) * 2 for a in names)
                case ast.ImportFrom(module=str(base), names=names, level=0):
                    yield from ((a.asname or a.name, f"{base}.{a.name}") for a in names)

    def full_name(self, module: str, node: ast.AST | None) -> str:
        """What an expression names, e.g. ``socket.AF_NETLINK``, through imports and their aliases; else nothing."""
        match node:
            case ast.Name(id=name):
                return self.aliases[module].get(name, name)
            case ast.Attribute(value=value, attr=attr):
                owner = self.full_name(module, value)
                return f"{owner}.{attr}" if owner else ""
        return ""

    def nodes(self) -> Iterator[tuple[str, ast.AST]]:
        """Every node of every module."""
        for name, tree in self.trees.items():
            for node in ast.walk(tree):
                yield name, node

    def uses(self) -> Iterator[tuple[str, str, int]]:
        """Every name that is read, in full: (module, name, line)."""
        for module, node in self.nodes():
            if isinstance(node, ast.Name | ast.Attribute) and (name := self.full_name(module, node)):
                yield module, name, node.lineno

    def target(self, name: str) -> str | None:
        """The module of ours that an import of this name runs, if it is one of ours."""
        while name and name not in self.trees:
            name = name.rpartition(".")[0]
        return name or None

    def edges(self, module: str) -> set[str]:
        """The modules of ours that a module imports."""
        return {found for each in self.imports[module] if (found := self.target(each.name))} - {module}

    def reach(self, module: str) -> dict[str, str]:
        """Everything that an import of a module may run, each with the way to it; packages on the way run too."""
        ways = {module: module}
        todo = [module]
        while todo:
            here = todo.pop()
            packages = {parent for parent in self.trees if within(here, parent)}
            for there in (self.edges(here) | packages) - ways.keys():
                ways[there] = f"{ways[here]} -> {there}"
                todo.append(there)
        return ways


def layer(module: str) -> int | None:
    """The height of a module; the package itself, which runs none of them by itself, is below all."""
    if module == "guestnet":
        return -1
    part = module.split(".")[1]
    return next((height for height, parts in enumerate(LAYERS) if part in parts), None)


# The rules: imports


def imports_go_up(house: House) -> Iterator[str]:
    """Imports go down only."""
    for module, imports in house.imports.items():
        if layer(module) is None:
            yield f"{module}: has no place in LAYERS"
            continue
        for name, line in imports:
            other = name if within(name, "guestnet") else None
            if other in (None, module, "guestnet"):
                continue
            other = house.target(other) or other
            here, there = layer(module), layer(other)
            if here is not None and there is not None and there > here:
                yield f"{module}:{line}: imports {other}, which is above it"


def imports_go_round(house: House) -> Iterator[str]:
    """Modules of one layer may know each other, but not in a ring."""
    state: dict[str, bool] = {}  # False while its imports are being followed, True after

    def follow(module: str, way: tuple[str, ...]) -> Iterator[str]:
        state[module] = False
        for there in sorted(house.edges(module) - {"guestnet"}):
            if there not in state:
                yield from follow(there, (*way, there))
            elif not state[there]:
                yield f"{there}: is imported by what it imports: {' -> '.join((*way[way.index(there) :], there))}"
        state[module] = True

    for module in sorted(house.trees):
        if module not in state:
            yield from follow(module, (module,))


def pure_modules_have_effects(house: House) -> Iterator[str]:
    """What decides does not read or change the machine, nor does anything it imports."""
    for module in PURE:
        for here, way in house.reach(module).items() if module in house.trees else ():
            for name, line in house.imports[here]:
                if within(name, *EFFECTS) and not within(name, *NO_EFFECTS):
                    yield f"{here}:{line}: imports {name} ({way})"
            for other, name, line in house.uses():
                if other == here and name in {"open", "input"}:
                    yield f"{here}:{line}: uses {name} ({way})"


def hook_reaches_libvirt(house: House) -> Iterator[str]:
    """The hook and libvirt never meet."""
    for here, way in house.reach("guestnet.hook").items() if "guestnet.hook" in house.trees else ():
        if within(here, *HOOK_NEVER_REACHES):
            yield f"{here}: is reached by the hook ({way})"
        for name, line in house.imports[here]:
            if within(name, *HOOK_NEVER_REACHES):
                yield f"{here}:{line}: imports {name} ({way})"


def doors_are_passed_by(house: House) -> Iterator[str]:
    """Each library that reaches outside has one door."""
    imports = [(module, name, line) for module, found in house.imports.items() for name, line in found]
    members = [(module, name, line) for module, name, line in house.uses() if "." in name and name in DOORS]
    for module, name, line in (*imports, *members):
        for what, allowed in DOORS.items():
            if within(name, what) and not within(module, *allowed):
                yield f"{module}:{line}: {what} belongs to {' and '.join(allowed) or 'nobody'}"


# The rules: habits


def others_speak(house: House) -> Iterator[str]:
    """Only the report and the command line write to a person."""
    for module, name, line in house.uses():
        if name in {"print", "sys.stdout", "sys.stderr"} and not within(module, *SPEAKS):
            yield f"{module}:{line}: uses {name}"


def others_exit(house: House) -> Iterator[str]:
    """Only the command line ends the process, or a module that is run as a program of its own."""
    programs = {
        node
        for _, block in house.nodes()
        if isinstance(block, ast.If) and ast.unparse(block.test) == "__name__ == '__main__'"
        for node in ast.walk(block)
    }
    for module, node in house.nodes():
        if within(module, *EXITS) or node in programs:
            continue
        match node:
            case ast.Attribute() | ast.Name() if house.full_name(module, node) in {"sys.exit", "exit", "quit"}:
                yield f"{module}:{node.lineno}: uses {house.full_name(module, node)}"
            case ast.Raise(exc=ast.Call(func=ast.Name(id="SystemExit")) | ast.Name(id="SystemExit")):
                yield f"{module}:{node.lineno}: raises SystemExit"


def sleeps(house: House) -> Iterator[str]:
    """Waiting is for an event or a deadline."""
    for module, name, line in house.uses():
        if name in SLEEPS:
            yield f"{module}:{line}: uses {name}"


def runs_a_shell(house: House) -> Iterator[str]:
    """Commands are lists of words."""
    for module, node in house.nodes():
        match node:
            case ast.keyword(arg="shell", value=value) if not (
                isinstance(value, ast.Constant) and value.value is False
            ):
                yield f"{module}:{node.lineno}: passes shell="
    for module, name, line in house.uses():
        if name in SHELLS:
            yield f"{module}:{line}: uses {name}"


def catches_everything(house: House) -> Iterator[str]:
    """Errors are caught by name; one that is raised again after a clean-up is not caught."""
    for module, node in house.nodes():
        if not isinstance(node, ast.ExceptHandler):
            continue
        if node.type is None:
            yield f"{module}:{node.lineno}: bare except"
            continue
        kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        names = {house.full_name(module, kind) for kind in kinds} & {"Exception", "BaseException"}
        last = node.body[-1]
        raised_again = isinstance(last, ast.Raise) and last.exc is None
        if names and not raised_again and module not in CATCHES_EVERYTHING:
            yield f"{module}:{node.lineno}: except {names.pop()}"


def cleans_up_when_collected(house: House) -> Iterator[str]:
    """Owners end with their block, not with the garbage."""
    for module, node in house.nodes():
        if isinstance(node, ast.FunctionDef) and node.name == "__del__":
            yield f"{module}:{node.lineno}: defines __del__"


def lacks_docstrings(house: House) -> Iterator[str]:
    """Modules and whatever in them is public say what they are; an override is explained where it is first said."""

    def visit(owner: ast.Module | ast.ClassDef, path: str) -> Iterator[str]:
        if ast.get_docstring(owner) is None:
            yield f"{path}: has no docstring"
        for node in owner.body:
            match node:
                case ast.ClassDef(name=name) if not name.startswith("_"):
                    yield from visit(node, f"{path}.{name}")
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) if not name.startswith("_"):
                    marks = {ast.unparse(mark).split(".")[-1] for mark in node.decorator_list}
                    if ast.get_docstring(node) is None and not marks & {"overload", "override", "setter"}:
                        yield f"{path}.{name}: has no docstring"

    for module, tree in house.trees.items():
        yield from visit(tree, module)


# The rules: files


def is_too_long(path: str, text: str) -> Iterator[str]:
    """A file can be read in one sitting."""
    if (lines := len(text.splitlines())) > LONGEST_FILE:
        yield f"{path}: {lines} lines"


def names_foreign_places(path: str, text: str) -> Iterator[str]:
    """Neither registries nor paths of the machine a file was written on."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in FOREIGN:
            if found := pattern.search(line):
                yield f"{path}:{number}: names {found[0]}"


def misnumbered(decisions: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Decisions count from 1 without a gap, and each has the same number in its name and its heading."""
    for number, (path, text) in enumerate(sorted(decisions), 1):
        if not Path(path).name.startswith(f"{number:04}-"):
            yield f"{path}: would be number {number}"
        if not text.startswith(f"# {number}. "):
            yield f"{path}: its heading is not number {number}"


HouseRule = Callable[[House], Iterator[str]]
FileRule = Callable[[str, str], Iterator[str]]

EVERYWHERE: tuple[HouseRule, ...] = (runs_a_shell,)
IN_THE_PACKAGE: tuple[HouseRule, ...] = (
    imports_go_up,
    imports_go_round,
    pure_modules_have_effects,
    hook_reaches_libvirt,
    doors_are_passed_by,
    others_speak,
    others_exit,
    sleeps,
    catches_everything,
    cleans_up_when_collected,
    lacks_docstrings,
)
FILES: tuple[FileRule, ...] = (is_too_long, names_foreign_places)


# Our own sources


def repository() -> Iterator[tuple[str, str]]:
    """The repository's text files: path and text."""
    left_out = {"__pycache__", "build", "dist", "htmlcov"}
    for where, folders, names in os.walk(REPO):
        folders[:] = sorted(
            each
            for each in folders
            if each not in left_out and (each in {".ci", ".github"} or not each.startswith("."))
        )
        for path in (Path(where, name) for name in sorted(names)):
            try:
                yield str(path.relative_to(REPO)), path.read_text(encoding="utf-8")
            except (UnicodeDecodeError, FileNotFoundError):
                continue  # not text, or an editor's file that has gone


@pytest.fixture(scope="module")
def files() -> dict[str, str]:
    return dict(repository())


@pytest.fixture(scope="module")
def python(files: dict[str, str]) -> dict[str, str]:
    """All Python sources by module name."""
    return {
        ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__"): text
        for path, text in files.items()
        if path.endswith(".py")
    }


@pytest.fixture(scope="module")
def package(python: dict[str, str]) -> House:
    return House({name: text for name, text in python.items() if within(name, "guestnet")})


def together(complaints: Iterable[str]) -> str:
    """All complaints as one text, which pytest shows in full."""
    return "\n".join(sorted(set(complaints)))


def title(rule: object) -> str:
    return getattr(rule, "__name__", "")


@pytest.mark.parametrize("rule", IN_THE_PACKAGE, ids=title)
def test_no_module_of_the_package_breaks_the_rule(rule: HouseRule, package: House) -> None:
    assert "guestnet" in package.trees
    assert together(rule(package)) == ""


@pytest.mark.parametrize("rule", EVERYWHERE, ids=title)
def test_no_python_file_breaks_the_rule(rule: HouseRule, python: dict[str, str]) -> None:
    assert together(rule(House(python))) == ""


@pytest.mark.parametrize("rule", FILES, ids=title)
def test_no_file_breaks_the_rule(rule: FileRule, files: dict[str, str]) -> None:
    assert "pyproject.toml" in files
    assert together(complaint for path, text in files.items() for complaint in rule(path, text)) == ""


def test_the_decisions_are_numbered(files: dict[str, str]) -> None:
    decisions = [(path, text) for path, text in files.items() if path.startswith("docs/decisions/")]
    assert "docs/decisions/0001-own-rtnetlink.md" in dict(decisions)
    assert together(misnumbered(decisions)) == ""


SLOW_TO_IMPORT = {"asyncio", "libvirt", "lxml", "pyroute2", "rich"}


def imported_by(*words: str) -> set[str]:
    """The top-level modules that a Python process imports while it does this."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *words], capture_output=True, text=True, cwd=REPO, timeout=60, check=False
    )
    lines = done.stderr.splitlines()
    assert done.returncode == 0, "\n".join(line for line in lines if not line.startswith("import time:"))
    found = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines if line.startswith("import time:")}
    assert "guestnet" in found
    return found


def test_help_is_printed_without_the_slow_libraries() -> None:
    assert imported_by("-m", "guestnet", "--help") & SLOW_TO_IMPORT == set()


def test_the_command_line_is_imported_without_the_slow_libraries() -> None:
    assert imported_by("-c", "import guestnet.cli") & SLOW_TO_IMPORT == set()


def test_the_python_api_is_imported_without_the_slow_libraries() -> None:
    assert (
        imported_by("-c", "from guestnet import attach, detach, list_nics, mac_of, set_nic") & SLOW_TO_IMPORT == set()
    )


def test_the_package_by_itself_runs_none_of_its_modules() -> None:
    words = "import sys, guestnet; sys.exit([name for name in sys.modules if name.startswith('guestnet.')] != [])"
    imported_by("-c", words)


# Each rule can fail, and lets pass what it should

FUNCTION = '"""Words."""\n\n\ndef act():\n    """Act."""\n    '

BAD: tuple[tuple[HouseRule, dict[str, str]], ...] = (
    (imports_go_up, {"guestnet.model": "import guestnet.plan"}),
    (imports_go_up, {"guestnet.model": "from guestnet import plan"}),
    (imports_go_up, {"guestnet.kernel.link": "from guestnet.guest.domain import Domain"}),
    (imports_go_up, {"guestnet.kernel.link": "from ..attachment import attach"}),
    (imports_go_up, {"guestnet.kernel": "from ..lab import x", "guestnet.kernel.tap": ""}),
    (imports_go_up, {"guestnet.lab.node": FUNCTION + "from guestnet import cli"}),
    (imports_go_up, {"guestnet.report": "import importlib\nimportlib.import_module('guestnet.cli.main')"}),
    (imports_go_up, {"guestnet.utils": ""}),
    (imports_go_round, {"guestnet.attachment": "import guestnet.hook", "guestnet.hook": "import guestnet.attachment"}),
    (
        imports_go_round,
        {"guestnet.cli": "from guestnet.cli import a", "guestnet.cli.a": "from guestnet.cli import app"},
    ),
    (
        imports_go_round,
        {
            "guestnet.guest.a": "from guestnet.guest.b import B",
            "guestnet.guest.b": FUNCTION + "from guestnet.guest import c",
            "guestnet.guest.c": "from guestnet.guest import a",
        },
    ),
    (pure_modules_have_effects, {"guestnet.plan": "import os"}),
    (pure_modules_have_effects, {"guestnet.plan": "from os.path import exists"}),
    (pure_modules_have_effects, {"guestnet.plan": "from pathlib import Path"}),
    (pure_modules_have_effects, {"guestnet.model": FUNCTION + "import socket"}),
    (pure_modules_have_effects, {"guestnet.model": FUNCTION + "return open('x')"}),
    (pure_modules_have_effects, {"guestnet.plan": "from guestnet.kernel import link"}),
    (pure_modules_have_effects, {"guestnet.plan": "import guestnet.undo", "guestnet.undo": "import time"}),
    (pure_modules_have_effects, {"guestnet.guest": "import libvirt", "guestnet.guest.xml": "import lxml.etree"}),
    (hook_reaches_libvirt, {"guestnet.hook": "from guestnet.guest import domain"}),
    (hook_reaches_libvirt, {"guestnet.hook": FUNCTION + "import libvirt"}),
    (
        hook_reaches_libvirt,
        {
            "guestnet.hook": "from guestnet.apply import run",
            "guestnet.apply": FUNCTION + "from guestnet.guest.domain import Domain",
            "guestnet.guest.domain": "",
        },
    ),
    (doors_are_passed_by, {"guestnet.attachment": "import libvirt"}),
    (doors_are_passed_by, {"guestnet.guest.xml": "import libvirt"}),
    (doors_are_passed_by, {"guestnet.attachment": "import pyroute2.iproute"}),
    (doors_are_passed_by, {"guestnet.apply": "from fcntl import ioctl"}),
    (doors_are_passed_by, {"guestnet.apply": "import socket\nsocket.socket(socket.AF_NETLINK)"}),
    (doors_are_passed_by, {"guestnet.apply": "from socket import AF_NETLINK as family"}),
    (doors_are_passed_by, {"guestnet.plan": "from lxml import etree"}),
    (doors_are_passed_by, {"guestnet.doctor": FUNCTION + "from rich.table import Table"}),
    (doors_are_passed_by, {"guestnet.doctor": "import typer"}),
    (doors_are_passed_by, {"guestnet.cli.app": "import click"}),
    (others_speak, {"guestnet.attachment": "print('x')"}),
    (others_speak, {"guestnet.lab.node": "import sys\nsys.stderr.write('x')"}),
    (others_speak, {"guestnet.lab.node": "from sys import stdout as out\nout.write('x')"}),
    (others_exit, {"guestnet.hook": "import sys\nsys.exit(1)"}),
    (others_exit, {"guestnet.hook": "from sys import exit as leave\nleave(1)"}),
    (others_exit, {"guestnet.hook": "raise SystemExit(1)"}),
    (others_exit, {"guestnet.hook": "raise SystemExit"}),
    (others_exit, {"guestnet.report": "quit()"}),
    (others_exit, {"guestnet.report": "if __name__ != '__main__':\n    quit()"}),
    (sleeps, {"guestnet.lab.node": "import time\ntime.sleep(1)"}),
    (sleeps, {"guestnet.lab.node": "import time as t\nt.sleep(1)"}),
    (sleeps, {"guestnet.lab.node": "from time import sleep\nsleep(1)"}),
    (runs_a_shell, {"tests.conftest": "import subprocess\nsubprocess.run('ls', shell=True)"}),
    (runs_a_shell, {"tests.conftest": "from os import system\nsystem('ls')"}),
    (catches_everything, {"guestnet.attachment": "try:\n    x\nexcept:\n    raise"}),
    (catches_everything, {"guestnet.attachment": "try:\n    x\nexcept Exception:\n    pass"}),
    (
        catches_everything,
        {"guestnet.attachment": "try:\n    x\nexcept (OSError, BaseException) as e:\n    raise OSError from e"},
    ),
    (cleans_up_when_collected, {"guestnet.lab.node": "class Node:\n    def __del__(self): ..."}),
    (lacks_docstrings, {"guestnet.plan": ""}),
    (lacks_docstrings, {"guestnet.plan": '"""Words."""\ndef act(): ...'}),
    (lacks_docstrings, {"guestnet.plan": '"""Words."""\nasync def act(): ...'}),
    (lacks_docstrings, {"guestnet.plan": '"""Words."""\nclass Plan: ...'}),
    (lacks_docstrings, {"guestnet.plan": '"""Words."""\nclass Plan:\n    """A plan."""\n    def act(self): ...'}),
)

GOOD: tuple[dict[str, str], ...] = (
    {
        "guestnet": '"""Words."""\n__version__ = "1"',
        "guestnet.kernel": '"""Words."""',
        "guestnet.kernel.link": '"""Words."""\nimport socket\nfrom guestnet.kernel import tap\nsocket.AF_NETLINK',
        "guestnet.kernel.tap": '"""Words."""\nimport fcntl\nfrom guestnet.errors import GuestnetError',
        "guestnet.errors": '"""Words."""\nfrom guestnet import __version__',
    },
    {
        "guestnet.plan": '"""Words."""\nfrom guestnet.guest import xml',
        "guestnet.guest.xml": '"""Words."""\nimport lxml.etree',
    },
    {"guestnet.model": '"""Words."""\nfrom pathlib import PurePosixPath\nfrom typing import Self'},
    {"guestnet.attachment": '"""Words."""\nimport guestnet.hook', "guestnet.hook": '"""Words."""\nimport logging'},
    {"guestnet.hook": '"""Words."""\nimport guestnet.guest.xml', "guestnet.guest.xml": '"""Words."""'},
    {"guestnet.guest.domain": '"""Words."""\nimport libvirt\nfrom lxml import etree'},
    {"guestnet.lab.node": '"""Words."""\nimport libvirt\nrich = 1\nprice = rich.real'},
    {"guestnet.cli": '"""Words."""\nimport sys\nimport typer\nprint(1)\nsys.exit(2)\nraise SystemExit'},
    {"guestnet.undo": '"""Words."""\ntry:\n    x\nexcept Exception:\n    y'},
    {"guestnet.apply": '"""Words."""\ntry:\n    x\nexcept BaseException:\n    y()\n    raise'},
    {"guestnet.apply": '"""Words."""\nimport subprocess\nsubprocess.run(["ls"], shell=False)\nstop.wait(sleep)'},
    {"guestnet.apply": '"""Words."""\ndef _act(): ...\nclass _Step:\n    def act(self): ...'},
    {"guestnet.lab.node": '"""Words."""\nimport sys\nif __name__ == "__main__":\n    sys.exit(1)'},
    {"guestnet.apply": FUNCTION + "def inner(): ..."},
)


@pytest.mark.parametrize(("rule", "sources"), BAD, ids=lambda value: title(value) or "in " + " ".join(value))
def test_a_source_that_breaks_a_rule_is_found(rule: HouseRule, sources: dict[str, str]) -> None:
    assert list(rule(House(sources)))


@pytest.mark.parametrize("sources", GOOD, ids=" ".join)
def test_a_source_that_keeps_the_rules_is_left_in_peace(sources: dict[str, str]) -> None:
    house = House(sources)
    assert together(complaint for rule in (*IN_THE_PACKAGE, *EVERYWHERE) for complaint in rule(house)) == ""


def test_every_rule_has_been_shown_a_source_that_breaks_it() -> None:
    assert {rule for rule, _ in BAD} == {*IN_THE_PACKAGE, *EVERYWHERE}


@pytest.mark.parametrize(
    "line",
    [
        "pip install --index-" + "url=https://mirror",
        "https://files.python" + "hosted.org/packages",
        "see https://py" + "pi.org/project/x",
        "deb http://deb.debian" + ".org/debian bookworm main",
        "FROM docker" + ".io/library/debian",
        "cd /wo" + "rk/main",
        "PATH=/opt/wh" + "eels:$PATH",
        "'/tmp/scr" + "atch-dev'",
    ],
)
def test_a_line_that_names_a_foreign_place_is_found(line: str) -> None:
    assert list(names_foreign_places("x", line))


@pytest.mark.parametrize(
    "line", ["apt-get install libvirt-dev", "mkdir -p network/work/x ./work/y ~/work/z", "see https://www.debian.org/"]
)
def test_a_line_that_names_no_foreign_place_is_left_in_peace(line: str) -> None:
    assert list(names_foreign_places("x", line)) == []


def test_a_file_is_too_long_from_the_first_line_over_the_limit() -> None:
    assert list(is_too_long("x", "\n" * LONGEST_FILE)) == []
    assert list(is_too_long("x", "\n" * (LONGEST_FILE + 1)))


def test_a_decision_under_another_number_is_found() -> None:
    right = [("0002-b.md", "# 2. B"), ("0001-a.md", "# 1. A")]
    assert list(misnumbered(right)) == []
    assert list(misnumbered([*right, ("0003-c.md", "# 4. C")]))
    assert list(misnumbered([*right, ("0004-c.md", "# 4. C")]))
    assert list(misnumbered([*right, ("0002-c.md", "# 2. C")]))
