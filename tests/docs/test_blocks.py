"""Every shell block of the documentation is run in the order of its page, and answers what the page shows; or says why
it is not run. tests/docs/blocks.py has the words by which a page says so."""

import json
import re
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from docs import commands
from guestnet.inventory import Row
from tests.docs.blocks import REPO, Block, Same, blocks, comments, pages, shell_blocks
from tests.docs.conftest import Host

WITHOUT_GUESTS = ("vlan.md",)
"""Pages about links alone that need more of the kernel than the running one may have."""


def run(path: Path) -> list[Block]:
    return [block for block in shell_blocks(path.read_text(encoding="utf-8")) if not block.reason]


def must_be_so(path: Path, host: Host, labs: Host) -> None:
    """Run the page; what of it did not happen as it says fails the test, all of it at once."""
    same = Same()
    found: list[str] = []
    for block in run(path):
        if block.is_for_elsewhere:
            found.append(f"{path.name}:{block.line}: this is not for a test: say why it is not run\n{block.text}")
            continue
        place = labs if block.is_lab else host
        if block.first:
            status, answer = place.run(same.command(block.first))
            if status:
                found.append(f"{path.name}:{block.line}: what comes first ends with {status}:\n{answer}")
        for call in block.calls:
            status, answer = place.run(same.command(call.command))
            where = f"{path.name}:{call.line}: {call.command}"
            if (status != 0) != call.fails:
                found.append(f"{where}\nends with {status}:\n{answer}")
            elif call.shown is not None and (why := same.difference(call.shown, answer)):
                found.append(f"{where}\n{why}; the page shows\n{call.shown}\nand it is\n{answer}")
    if found:
        pytest.fail("\n".join(found), pytrace=False)


WITH_GUESTS = [path for path in pages() if run(path) and path.name not in WITHOUT_GUESTS]


@pytest.mark.root
@pytest.mark.guest
@pytest.mark.parametrize("path", WITH_GUESTS, ids=lambda path: path.stem)
def test_what_a_page_shows_is_what_happens(path: Path, host: Host, labs: Host) -> None:
    must_be_so(path, host, labs)


@pytest.mark.root
@pytest.mark.guest
def test_the_schema_of_a_list_is_that_of_a_list(host: Host) -> None:
    status, answer = host.run("guestnet attach vm1 --parent ens3 --no-hook >attached; guestnet list --json")
    assert status == 0
    rows = TypeAdapter(tuple[Row, ...]).validate_json(answer, strict=True)
    assert [row.parent for row in rows] == ["ens3"]
    (row,) = json.loads(answer)
    assert set(row) == set(commands.schemas()["list"]["$defs"]["Row"]["properties"])


@pytest.mark.root
@pytest.mark.kernel("8021q", "bridge", "dummy", "macvtap")
@pytest.mark.parametrize("name", WITHOUT_GUESTS)
def test_what_a_page_on_links_shows_is_what_happens(name: str, bare_host: Host, labs: Host) -> None:
    must_be_so(REPO / "docs" / name, bare_host, labs)


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_each_block_is_shell_or_plainly_none(path: Path) -> None:
    of_page = blocks(path.read_text(encoding="utf-8"))
    doubts = [f"{path.name}:{block.line}: {block.doubt}" for block in of_page if block.doubt]
    assert doubts == []


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.stem)
def test_what_is_said_of_blocks_is_said_right_before_one_and_names_tests_that_are_there(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    of_blocks = blocks(text)
    assert comments(text) == sum(bool(block.reason) + bool(block.first) for block in of_blocks)
    for block in of_blocks:
        for named in re.findall(r"tests/[\w./-]*\w", block.reason):
            assert (REPO / named).exists(), f"{path.name}:{block.line}: there is no {named}"


PAGE = """\
Words.

    guestnet list

<!-- not run: for a reason;
     tests/docs -->

    # guestnet list
    nothing

```yaml
guestnet: 1
```

<!-- first: ip link add x type dummy -->
```console
# guestnet attach vm1 \\
>     --parent ens3
vm1: attached in 26 ms
$ ip link del x
error: no
```

- a list

  ```
  # guestnet gc
  ```

```
guest     eth0
```
"""


def test_the_shell_blocks_of_a_page_are_found_with_what_is_said_of_them() -> None:
    plain, unwanted, shown, listed = shell_blocks(PAGE)
    assert [block.line for block in (plain, unwanted, shown, listed)] == [3, 8, 17, 27]
    assert [(call.command, call.shown) for call in plain.calls] == [("guestnet list", None)]
    assert (unwanted.reason, unwanted.first) == ("for a reason;\n     tests/docs", "")
    assert (shown.reason, shown.first) == ("", "ip link add x type dummy")
    first, second = shown.calls
    assert (first.command, first.fails) == ("guestnet attach vm1 \\\n    --parent ens3", False)
    assert (second.line, second.command, second.fails) == (20, "ip link del x", True)
    assert [call.command for call in listed.calls] == ["guestnet gc"]
    assert comments(PAGE) == 2


@pytest.mark.parametrize(
    ("block", "doubt"),
    [
        ("```text\n# dhclient eth1\n```", "# dhclient eth1"),
        ("```text\nan answer\n\n$ ls\n```", "$ ls"),
        ("```ini\n[Link]  # of the NIC\n# ip link show\n```", "# ip link show"),
        ("```yaml\n# the NICs\nnics: [a]\n```", ""),
        ("    dhclient eth1", "say at its fence"),
        ("```\nan answer\n```", "say at its fence"),
        ("```text\nan answer\n```", ""),
        ("    A=1 B=2 pipx install x", ""),
        ("```console\n# dhclient eth1\n```", ""),
    ],
)
def test_a_block_that_may_be_shell_and_is_not_run_is_in_doubt(block: str, doubt: str) -> None:
    [found] = blocks(block)
    assert doubt in found.doubt
    assert bool(found.doubt) == bool(doubt)


def test_what_would_change_the_machine_is_never_run() -> None:
    harmful = "    apt-get install x\n\nand\n\n    guestnet list\n    guestnet lab up\n\nand\n\n    # docker run x\n"
    assert [block.is_for_elsewhere for block in shell_blocks(harmful + "\nand\n\n    guestnet list\n")] == [
        True, True, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "answer", "is_same"),
    [
        ("vm1: attached in 26 ms", "vm1: attached in 1.5 ms", True),
        ("vm1: attached in 26 ms", "vm1: changed in 26 ms", False),
        ("NAME  MAC\na     52:54:00:00:00:01", "NAME    MAC\na     52:54:00:00:00:02", True),
        ("gn525400000001 has 52:54:00:00:00:01", "gn525400000002 has 52:54:00:00:00:02", True),
        ("gn525400000001 has 52:54:00:00:00:01", "gn525400000002 has 52:54:00:00:00:03", False),
        ("a\n…\nb", "a\n1\n2\nb", True),
        ("a\n…\nb", "a\n1\n2\nc", False),
        ("3: x: <UP> …", "17: x: <UP> mtu 1500", True),
        ("one\ntwo", "one", False),
        ("", "something", False),
    ],
)
def test_an_answer_may_differ_in_what_varies_and_in_nothing_else(shown: str, answer: str, is_same: bool) -> None:
    assert (Same().difference(shown, answer) == "") == is_same


def test_a_mac_of_the_page_is_one_and_the_same_in_all_of_it() -> None:
    same = Same()
    assert same.difference("MAC 52:54:00:00:00:01", "MAC 52:54:00:00:00:02") == ""
    assert same.command("detach gn525400000001 52:54:00:00:00:01") == "detach gn525400000002 52:54:00:00:00:02"
    assert same.command("add --mac 52:54:00:00:00:99") == "add --mac 52:54:00:00:00:99"
    assert same.difference("MAC 52:54:00:00:00:99", "MAC 52:54:00:00:00:02") != ""
