"""What docs/topologies.md shows is what guestnet answers; its pictures are in test_pictures.py."""

import re
import shlex
from pathlib import Path

import pytest

from guestnet.topology import document
from tests.unit.conftest import Guestnet
from tests.unit.test_pictures import words_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```\n# guestnet (.*)\n((?:.*\n)*?)```$", re.MULTILINE)
YAML = re.compile(r"^```yaml\n((?:.*\n)*?)```$", re.MULTILINE)


def blocks() -> list[tuple[str, str]]:
    return BLOCK.findall((DOCS / "topologies.md").read_text(encoding="utf-8"))


def answers() -> list[tuple[str, str]]:
    return [(command, answer) for command, answer in blocks() if "graph" not in command]


def test_every_shipped_topology_is_drawn() -> None:
    drawn = {command.removeprefix("topology graph ") for command, _ in blocks()}
    assert set(document.shipped()) <= drawn
    assert {path.stem for path in (DOCS / "pictures").glob("*.svg")} >= set(document.shipped())


@pytest.mark.parametrize(("command", "answer"), answers(), ids=[command for command, _ in answers()])
def test_what_is_shown_is_what_guestnet_answers(
    command: str, answer: str, guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    assert guestnet(*shlex.split(command)).text == answer


def test_the_file_in_the_guide_to_files_is_one() -> None:
    text = next(text for text in YAML.findall((DOCS / "topologies.md").read_text()) if "nodes:" in text)
    found = document.parse(text.encode(), "topologies.md")
    assert [endpoint.title for endpoint in found.endpoints] == ["n1/tap0"]


def test_without_dot_the_other_formats_are_named(guestnet: Guestnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    answer = guestnet("topology", "graph", "0.1", "--format", "svg")
    assert (answer.status, "--format dot" in answer.err) == (3, True)
    assert guestnet("topology", "graph", "0.1", "--format", "dot").out.startswith("graph guestnet {")


def test_a_picture_goes_into_a_file(guestnet: Guestnet, tmp_path: Path) -> None:
    target = tmp_path / "0.1.txt"
    assert guestnet("topology", "graph", "0.1", "--output", str(target)).text == ""
    assert "NS: tap0" in target.read_text(encoding="utf-8")
    answer = guestnet("topology", "graph", "0.1", "-o", str(tmp_path / "no" / "x"))
    assert (answer.status, "cannot be written" in answer.err) == (1, True)


def test_what_others_named_cannot_speak_to_graphviz(guestnet: Guestnet, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nnodes:\n  n1:\n    parents: {lan: nic0}\n    endpoints:\n      a:\n        kind: guest\n"
        '        parent: lan\n        guest: "a\\"];b\\\\N<&>\\u001b"\n',
        encoding="utf-8",
    )
    drawn = guestnet("topology", "graph", str(path), "--format", "svg")
    assert drawn.status == 0, drawn.err
    assert 'guest: a"];b\\N<&>?' in words_of(drawn.out)
    assert "\x1b" not in guestnet("topology", "graph", str(path)).out
