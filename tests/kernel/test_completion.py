"""What a shell offers: links and parents out of the kernel, and the rest of a line."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from guestnet import cli, templates
from guestnet.cli import completion
from guestnet.model import GROUP, guest_alias
from tests.conftest import Answer, Namespace

ROOT: Any = typer.main.get_command(cli.app)
UUID = "0358686d-8322-4602-9c28-95173f6bc52c"


def offered(line: str) -> list[str]:
    """What the last word of a line could become; a blank at its end begins a new one."""
    *before, unfinished = line.split(" ")
    return [word for word, _ in completion.candidates(ROOT, before, unfinished)]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("att", ["attach"]),
        ("--ver", ["--version", "--verbose"]),
        ("macvt", ["macvtap"]),
        ("macvtap de", ["delete"]),
        ("attach vm1 --pa", ["--parent"]),
        ("attach vm1 --mode v", ["vepa"]),
        ("attach vm1 --mode=v", ["--mode=vepa"]),
        ("attach vm1 --parent ens3 --backend ", ["macvtap", "direct"]),
        ("attach vm1 --dry-run --link d", ["down"]),
        ("attach vm1 --mac ", []),
        ("attach vm1 ", []),
        ("attach vm1 --", ["--parent", "--vlan"]),
        ("xml domain q --disk ", [completion.FILES]),
        ("topology up 0.5", ["0.5", "0.5-guest", completion.FILES]),
        ("completion ", ["bash", "zsh", "fish"]),
        ("nothing ", []),
        ("attach --nothing ", []),
        ("attach --nothing=", []),
        ("exec x -- ls --", []),
    ],
)
def test_a_line_is_completed(line: str, words: list[str]) -> None:
    found = offered(line)
    assert found[:2] == words[:2] if line.endswith("vm1 --") else found == words


@pytest.fixture
def guests(parent: Namespace) -> Namespace:
    """A namespace with two guests' macvtaps and one of nobody's, and a VLAN beside."""
    for name, guest in (("gn1", "vm1"), ("gn2", "vm2")):
        parent.ip(f"link add link nic0 name {name} group {GROUP} type macvtap mode bridge")
        parent.ip("link set", name, "alias", guest_alias(UUID, guest).replace(" ", ""))
    parent.ip("link add link nic0 name other0 type macvtap mode bridge")
    parent.ip("link add br0 type bridge")
    parent.ip("link set peer0 master br0")
    return parent


@pytest.mark.root
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("attach vm1 --parent ", {"nic0", "br0"}),
        ("attach vm1 --parent n", {"nic0"}),
        ("detach vm1 ", {"gn1"}),
        ("detach vm1 gn1 ", {"gn1"}),
        ("set vm2 ", {"gn2"}),
        ("macvtap delete ", {"gn1", "gn2", "other0"}),
        ("macvtap add ", set()),
        ("exec o", {"other0"}),
    ],
)
def test_links_are_offered_where_they_are_meant(guests: Namespace, line: str, words: set[str]) -> None:
    assert set(guests.call(lambda: offered(line))) == words


@pytest.mark.root
def test_network_namespaces_are_offered(guests: Namespace) -> None:
    assert guests.name in offered("macvtap list --netns ")


@pytest.mark.root
def test_bash_completes_what_is_typed(guests: Namespace, run_guestnet: Callable[..., Answer]) -> None:
    script = 'eval "$(guestnet completion bash)"; complete -p guestnet; COMP_WORDS=(guestnet "$@") COMP_CWORD=$#\n'
    script += 'compopt() { :; }; _guestnet; printf "%s\\n" "${COMPREPLY[@]}"'
    for words, answer in (
        (["att"], ["attach"]),
        (["detach", "vm2", ""], ["gn2"]),
        (["xml", "domain", "q", "--mem"], ["--memory"]),
    ):
        line = ["nsenter", f"--net=/run/netns/{guests.name}", "--", "bash", "-c", script, "bash", *words]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        done = subprocess.run(line, capture_output=True, text=True, timeout=60, check=True, env={"PATH": path})
        assert done.stdout.splitlines() == ["complete -F _guestnet guestnet", *answer]
        assert done.stderr == ""


# What is written by the user alone: addresses, numbers, names of what is not there yet
_FREE = {
    *("VID", "MAC", "N", "NAME", "NAME...", "RATE", "SECONDS", "MIB", "BUS", "IP/LEN", "IP[/LEN]", "NIC.VID|NAME"),
    *("NODE", "NODE|GUEST", "NAME=LINK", "CMD...", "WORD...", "MACHINE"),
}


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every command with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, f"{path} {name}")


def test_every_value_that_a_command_takes_is_offered_or_is_the_users_own() -> None:
    unknown = []
    for name, (module, _) in cli._COMMANDS.items():
        app = getattr(importlib.import_module(f"guestnet.cli.{module}"), f"{name}_app")
        for path, command in commands(typer.main.get_command(app), name):
            for one in command.params:
                metavar = getattr(one, "metavar", None)
                chosen = metavar and "|" in metavar and not metavar.isupper()
                if metavar and not chosen and metavar not in {*completion._SOURCES, *_FREE}:
                    unknown.append(f"{path}: {metavar}")
    assert unknown == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_printed_as_it_came(shell: str, run_guestnet: Callable[..., Answer]) -> None:
    assert run_guestnet("completion", shell).out.encode() == templates.read(f"completion/guestnet.{shell}")
