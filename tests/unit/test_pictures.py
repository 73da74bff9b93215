"""Every picture of the documentation was drawn by guestnet, and is what it draws today."""

import re
import shlex
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from guestnet.topology import document
from tests.unit.conftest import Guestnet

REPO = Path(__file__).resolve().parents[2]
PICTURES = REPO / "docs" / "pictures"
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]

COMMAND = re.compile(r"# guestnet (topology graph .*)")
FENCE = re.compile(r"```(.*)")
IMAGE = re.compile(r"!\[[^]]*\]\(([^) ]+)|<img\b[^>]*\bsrc=[\"']?([^\"' >]+)")
# corners and uprights, +-- and --+; in a block also arrows, and lines of nothing but strokes
ANYWHERE = re.compile(r"[│-╿]|\+-{2,}|-{2,}\+")
IN_A_BLOCK = re.compile(r"-{2,}>|<-{2,}|^(?=.*[|/\\])[|/\\+_ -]+$")
SVG = "{http://www.w3.org/2000/svg}"


class Drawn(NamedTuple):
    """A picture in characters: where it is, the command above it, and the lines."""

    where: str
    command: str
    text: str


def pictures(name: str, page: str) -> Iterator[Drawn]:
    """The pictures of a page, by the command that each begins with."""
    for line, block in blocks(page):
        first, _, rest = block.partition("\n")
        if found := COMMAND.fullmatch(first):
            yield Drawn(f"{name}:{line}", found[1], rest)


def blocks(page: str) -> Iterator[tuple[int, str]]:
    """The fenced blocks of a page, each with the number of its first line."""
    inside: list[str] | None = None
    start = 0
    for number, line in enumerate(page.splitlines(), 1):
        if not FENCE.fullmatch(line.strip()):
            if inside is not None:
                inside.append(f"{line}\n")
        elif inside is None:
            inside, start = [], number + 1
        else:
            yield start, "".join(inside)
            inside = None


def by_hand(name: str, page: str) -> Iterator[str]:
    """What looks drawn in a page, and is in no picture that a command made."""
    fenced = {
        start + offset: COMMAND.match(block) is not None
        for start, block in blocks(page)
        for offset in range(block.count("\n"))
    }
    for number, line in enumerate(page.splitlines(), 1):
        if fenced.get(number):
            continue
        in_a_block = number in fenced or line.startswith("    ")
        if ANYWHERE.search(line) or (in_a_block and IN_A_BLOCK.search(line)):
            yield f"{name}:{number}: {line}"


def words_of(svg: str) -> list[str]:
    """What is written in an SVG; where it stands depends on Graphviz's release and the fonts."""
    return sorted(element.text or "" for element in ElementTree.fromstring(svg).iter(f"{SVG}text"))  # noqa: S314 - ours


ALL = [drawn for page in PAGES for drawn in pictures(page.name, page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("drawn", ALL, ids=[f"{drawn.where.partition(':')[0]} {drawn.command}" for drawn in ALL])
def test_a_picture_is_what_guestnet_draws_today(
    drawn: Drawn, guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(REPO)
    assert guestnet(*shlex.split(drawn.command)).text == drawn.text


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_picture_is_drawn_by_hand(path: Path) -> None:
    page = path.read_text(encoding="utf-8")
    assert list(by_hand(path.name, page)) == []
    images = [found[1] or found[2] for found in IMAGE.finditer(page)]
    assert [one for one in images if (path.parent / one).resolve().parent != PICTURES] == []


@pytest.mark.parametrize("path", sorted(PICTURES.glob("*.svg")), ids=lambda path: path.stem)
def test_an_svg_is_the_one_that_guestnet_draws(path: Path, guestnet: Guestnet) -> None:
    source = path.stem if path.stem in document.shipped() else str(path.with_suffix(".yaml"))
    drawn = guestnet("topology", "graph", source, "--format", "svg")
    assert drawn.status == 0, drawn.err
    assert words_of(drawn.out) == words_of(path.read_text(encoding="utf-8"))


def test_there_is_nothing_beside_pictures_and_the_files_that_pages_draw_them_from() -> None:
    named = {Path(shlex.split(drawn.command)[2]).name for drawn in ALL}
    others = {path.name for path in PICTURES.iterdir() if path.suffix != ".svg"}
    assert others <= named | {path.with_suffix(".yaml").name for path in PICTURES.glob("*.svg")}


BOX = "+-- n1 --+\n|  nic0  |\n+--------+"


@pytest.mark.parametrize(
    "page",
    [
        f"```\n{BOX}\n```\n",
        f"    {BOX}\n",
        f"```\n# guestnet list\n{BOX}\n```\n",
        "```\nguest\n  │\nens3\n```\n",
        "```\nguest\n  |\nens3\n```\n",
        "    a    b\n     \\  /\n     nic0\n",
        "```\nguest --> ens3\n```\n",
        f"```\n# guestnet topology graph 0.1\n{BOX}\n```\n\n{BOX}\n",
    ],
)
def test_a_picture_that_no_command_made_is_found(page: str) -> None:
    assert list(by_hand("page", page))


@pytest.mark.parametrize(
    "page",
    [
        f"```\n# guestnet topology graph 0.1\n{BOX}\n```\n",
        "| a | b |\n|---|---|\n| c | d |\n",
        "<!-- not run: words -->\n\n    guestnet list | sort\n    guestnet lab exec n1 -- ls /\n",
        "words; a -> b\n\n```\n# virsh list\n Id   Name\n-----------\n```\n",
    ],
)
def test_what_is_no_picture_is_left_in_peace(page: str) -> None:
    assert list(by_hand("page", page)) == []


def test_where_the_paths_of_many_guests_are_too_wide_only_names_are_drawn(
    guestnet: Guestnet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = "".join(f"      vm{number}: {{kind: guest, parent: lan}}\n" for number in range(3))
    path = tmp_path / "x.yaml"
    path.write_text(f"name: x\nnodes:\n  n1:\n    parents: {{lan: ens3}}\n    endpoints:\n{ends}", encoding="utf-8")
    for columns, words in ((300, 3), (120, 0)):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = guestnet("topology", "graph", str(path), "--path").out.splitlines()
        assert max(map(len, lines)) <= columns
        text = "\n".join(lines)
        assert (text.count("/dev/tapN"), text.count("held open by QEMU")) == (3, words)


def test_the_path_of_a_frame_is_in_an_svg_too(guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPO)
    drawn = guestnet("topology", "graph", "docs/pictures/vlan-guest.yaml", "--path", "--format", "svg")
    assert {"/dev/tapN", "gn52540016ca9e", "ens3.11", "guest: vm1"} <= set(words_of(drawn.out))
