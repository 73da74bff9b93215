"""What the testbed's Vagrantfile makes of testbed.yaml and parents.yaml; `./dev test-vagrant` lets Vagrant do it."""

import json
import shutil
import subprocess
from pathlib import Path

from guestnet.machine import machine_id
from guestnet.model import Mac
from tests.conftest import REPO

RECORDER = """
require "json"
class Recorder
  def method_missing(name, *words, **options)
    $said << [name, words, options]
    yield Recorder.new if block_given?
    Recorder.new
  end
end
module Vagrant
  def self.configure(_version) = yield(Recorder.new)
end
$said = []
load ARGV[0]
puts JSON.generate($said)
"""


def _said(directory: Path) -> list[tuple[str, list[object], dict[str, object]]]:
    """What the Vagrantfile says to Vagrant, each with its words and options."""
    done = subprocess.run(
        ["ruby", "-e", RECORDER, str(directory / "Vagrantfile")],
        capture_output=True, text=True, timeout=30, check=True, env={"GUESTNET": "/opt/guest net/guestnet"},
    )  # fmt: skip
    found: list[tuple[str, list[object], dict[str, object]]] = [tuple(one) for one in json.loads(done.stdout)]
    return found


def test_parents_have_their_names_here_and_macs_are_those_that_attach_would_choose(tmp_path: Path) -> None:
    project = Path(shutil.copytree(REPO / "vagrant/testbed", tmp_path / "testbed"))
    nics = [{"parent": "lan"}, {"parent": "lan.11", "mode": "vepa"}, {"parent": "lan"}, {"parent": "other.12"}]
    described = {"name": "t", "box": "none", "machines": {"vm1": {"nics": nics}}}
    (project / "testbed.yaml").write_text(json.dumps(described), encoding="utf-8")
    (project / "parents.yaml").write_text('parents: {lan: ens3, "other.12": storage}', encoding="utf-8")
    runs = [words[0]["inline"] for name, words, _ in _said(project) if name == "run="]  # type: ignore[index]
    guestnet = "/opt/guest\\ net/guestnet"
    wanted = [("ens3", 0, "bridge"), ("ens3.11", 0, "vepa"), ("ens3", 1, "bridge"), ("storage", 0, "bridge")]
    assert [run.removeprefix("sudo ") for run in runs] == [
        *(
            f"{guestnet} attach t_vm1 --parent {parent} --mac {Mac.derive(machine_id(), 't_vm1', parent, number)} "
            f"--mode {mode}"
            for parent, number, mode in wanted
        ),
        f"{guestnet} detach t_vm1 --all --timeout 10",
    ]


def test_a_machine_knows_its_network_by_the_mac(tmp_path: Path) -> None:
    project = Path(shutil.copytree(REPO / "vagrant/testbed", tmp_path / "testbed"))
    nic = {"parent": "lan", "mac": "52:54:00:00:00:09", "addresses": ["dhcp", "2001:db8::9/64"]}
    described = {"name": "t", "box": "none", "machines": {"vm1": {"nics": [nic]}}}
    (project / "testbed.yaml").write_text(json.dumps(described), encoding="utf-8")
    [script] = [str(options["inline"]) for name, _, options in _said(project) if name == "provision"]
    directory = tmp_path / "network"
    directory.mkdir()
    lines = script.replace("/etc/systemd/network", str(directory)).splitlines()
    wanted = [line for line in lines if str(directory) in line]
    subprocess.run(["sh", "-e", "-c", "\n".join(wanted)], check=True, timeout=20)
    assert (directory / "70-525400000009.network").read_text(encoding="utf-8") == (
        "[Match]\nMACAddress=52:54:00:00:00:09\n[Link]\nRequiredForOnline=no\n[Network]\nDHCP=yes\n"
        "Address=2001:db8::9/64\n"
    )
