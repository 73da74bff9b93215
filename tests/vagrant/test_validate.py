"""What vagrant itself says of the Vagrantfiles, and of the lines that guestnet prints for one."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import REPO, Answer, Namespace

pytestmark = pytest.mark.root

VALID = "Vagrantfile validated successfully."


@pytest.fixture
def validate(tmp_path: Path, parent: Namespace) -> Callable[[Path], Answer]:
    """Runs `vagrant validate` in a directory, with a home of its own, in a namespace with ``nic0``. It asks nothing of
    anybody: the libvirt it looks for the host's interfaces in, beside the kernel, is libvirt's own test driver."""

    def run(directory: Path) -> Answer:
        done = subprocess.run(
            ["nsenter", f"--net=/run/netns/{parent.name}", "--", "vagrant", "validate"],
            cwd=directory, capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL,
            env={
                **os.environ, "VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
                "VAGRANT_CHECKPOINT_DISABLE": "1", "VAGRANT_NO_COLOR": "1",
                "LIBVIRT_DEFAULT_URI": "test:///default",
                "PATH": f"{os.environ['PATH']}:/usr/sbin",
            },
        )  # fmt: skip
        return Answer(done.returncode, done.stdout, done.stderr)

    return run


def _project(directory: Path, *snippets: str) -> Path:
    directory.mkdir()
    text = "".join(f"\n{snippet}" for snippet in snippets).replace("\n", "\n  ")
    (directory / "Vagrantfile").write_text(
        f'Vagrant.configure("2") do |config|\n  config.vm.box = "none"{text}\nend\n', encoding="utf-8"
    )
    return directory


@pytest.mark.parametrize("name", ["notes", "testbed"])
def test_a_shipped_vagrantfile_is_valid(name: str, validate: Callable[[Path], Answer]) -> None:
    answer = validate(REPO / "vagrant" / name)
    assert (answer.code, answer.out.strip(), answer.err.strip()) == (0, VALID, "")
    assert not (REPO / "vagrant" / name / ".vagrant").exists()


def test_the_lines_of_a_snippet_are_valid_beside_each_other(
    tmp_path: Path, parent: Namespace, run_guestnet: Callable[..., Answer], validate: Callable[[Path], Answer]
) -> None:
    parent.ip("link add br0 type bridge")
    # a name that Ruby would read as something else
    parent.ip("link add type veth")
    odd = 'a"#{x}\\$'
    subprocess.run(["ip", "-n", parent.name, "link", "set", "veth0", "name", odd], check=True)
    lines = []
    for words in (
        ("vm1", "--parent", "nic0"),
        ("vm1", "--parent", "br0", "--type", "bridge"),
        ("vm2", "--parent", "nic0", "--mode", "passthru", "--mac", "52:54:00:00:00:09", "--model", "e1000e"),
        ("vm2", "--parent", odd, "--mode", "private", "--no-trust-guest-rx-filters"),
    ):
        answer = run_guestnet("vagrant", "snippet", *words, netns=parent.name)
        assert answer.code == 0, answer
        lines.append(answer.out)
    answer = validate(_project(tmp_path / "project", *lines))
    assert (answer.code, answer.out.strip(), answer.err.strip()) == (0, VALID, "")


def test_a_vlan_that_is_not_there_is_named_and_vagrant_refuses_the_lines_until_it_is(
    tmp_path: Path, parent: Namespace, run_guestnet: Callable[..., Answer], validate: Callable[[Path], Answer]
) -> None:
    answer = run_guestnet("vagrant", "snippet", "vm1", "--parent", "nic0.11", netns=parent.name)
    assert answer.err.splitlines() == [
        "note: there is no VLAN 11 on nic0 yet, and vagrant-libvirt makes none",
        "first: guestnet vlan add nic0.11 --parent nic0 --vlan 11",
    ]
    project = _project(tmp_path / "project", answer.out)
    refused = validate(project)
    assert refused.code != 0
    assert "'nic0.11' which does not exist" in refused.out + refused.err
    parent.ip("link add nic0.11 type veth")  # by its name alone: vagrant-libvirt looks no further
    assert validate(project).out.strip() == VALID
