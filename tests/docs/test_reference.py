"""The command reference, the man pages and the schemas are those of the code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from pydantic import TypeAdapter, ValidationError

from docs import commands
from guestnet.errors import ExitCode
from guestnet.parents import Parents
from tests.conftest import REPO

HANDED_ON = {"PATH", "HOME", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "XDG_RUNTIME_DIR", "TERM"}
"""Variables that are read as by any program, or by a protocol that a page explains."""


def test_the_reference_is_that_of_the_command_line() -> None:
    wanted = commands.files()
    there = {path: path.read_text(encoding="utf-8") for path in commands.REFERENCE.glob("*.md")}
    there |= {path: path.read_text(encoding="utf-8") for path in wanted if path.suffix == ".json" and path.exists()}
    stale = sorted(path.name for path in wanted.keys() | there if wanted.get(path) != there.get(path))
    assert stale == [], "write them again: ./dev docs"


def test_every_command_is_shown() -> None:
    pages = commands.pages()
    attach = pages["guestnet-attach"]
    assert "`guestnet attach [OPTIONS] --parent IFACE[.VID] GUEST`" in attach
    assert "`--mode MODE`\n: bridge, vepa, private or passthru. Default: bridge." in attach
    assert "## guestnet lab exec" in pages["guestnet-lab"]
    for code in ExitCode:
        assert f"- {int(code)}: {commands.MEANS[code]}" in attach


def test_every_command_of_dev_is_explained_to_who_works_on_guestnet() -> None:
    told = subprocess.run([REPO / "dev", "help"], capture_output=True, text=True, check=True).stdout
    commands_of_dev = re.findall(r"^  ([a-z-]+)(?= |$)", told, re.MULTILINE)
    assert {"demo", "setup", "clean"} <= set(commands_of_dev)
    explained = (REPO / "HACKING.md").read_text(encoding="utf-8")
    assert [one for one in commands_of_dev if f"\n| `./dev {one}" not in explained and one != "help"] == []


def test_what_is_hidden_stays_hidden() -> None:
    program = typer.Typer()
    program.callback()(lambda: None)
    program.command(hidden=True)(lambda: None)

    @program.command()
    def shown(seen: int = 1, unseen: int = typer.Option(2, hidden=True)) -> None:
        """It is <seen>."""

    pages = commands.pages(program)
    assert set(pages) == {"guestnet", "guestnet-shown"}
    assert r"It is \<seen>." in pages["guestnet-shown"]
    assert "`--seen SEEN`\n: Default: 1." in pages["guestnet-shown"]
    assert "unseen" not in pages["guestnet-shown"]


def test_every_variable_that_the_program_reads_is_in_the_reference() -> None:
    read = {
        name
        for path in (REPO / "guestnet").rglob("*.py")
        for name in re.findall(r"environ(?:\.get\(|\[)[\"'](\w+)", path.read_text(encoding="utf-8"))
    }
    assert read - HANDED_ON == set(commands.ENVIRONMENT) & read
    assert "GUESTNET_CACHE" in read


def test_the_schema_of_parents_is_that_of_what_is_read() -> None:
    schema = commands.schemas()["parents"]
    assert (schema["additionalProperties"], schema["properties"]["parents"]["type"]) == (False, "object")
    with pytest.raises(ValidationError):
        TypeAdapter(Parents).validate_python({"parent": {}})


def test_the_man_pages_are_made_without_a_warning(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "man", "-d", str(tmp_path / "doctrees")]
    done = subprocess.run([*build, "docs", str(tmp_path)], cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made = sorted(tmp_path.glob("*.1"), key=lambda path: path.stem)
    assert [path.stem for path in made] == sorted(commands.titles())
    words = ["groff", "-mandoc", "-Tutf8", "-Kutf8", "-ww", "-z", *map(str, made)]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stderr == ""
    assert "SECONDS" not in (tmp_path / "guestnet.1").read_text(), "another page is in it"
    for path in made:
        text = path.read_text()
        # what apropos(1) and whatis(1) read
        assert re.search(rf"^\.SH NAME\n{path.stem} \\- \S.*[^.]\n\.SH SYNOPSIS$", text, re.MULTILINE)
        assert "<>" not in text, f"{path.name} shows the address of a link that has none"
