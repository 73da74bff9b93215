"""A failure before, in and after each step of an attach leaves everything as it was."""

import json
import sys

import pytest

from tests.libvirt.conftest import Host
from tests.libvirt.test_concurrency import until

pytestmark = [pytest.mark.root, pytest.mark.guest]

STEPS = (
    "make macvtap",
    "check the device node",
    "mark",
    "keep the host's IPv6 off",
    "let all multicast through",
    "bring gn",
    "write the metadata",
    "plug NIC",
)
PARENTS = ("nic0", "nic1")
"""Two NICs in one attach: the failure of the second takes the first back too."""

NAMES = ["bring nic0", *STEPS[:-2], *STEPS[:-2], *STEPS[-2:], STEPS[-1]]


@pytest.mark.parametrize("phase", ["begin", "inside", "end"])
@pytest.mark.parametrize("number", range(len(NAMES)), ids=lambda number: f"{number}-{NAMES[number].replace(' ', '-')}")
def test_a_failure_leaves_links_nodes_fds_and_both_xmls_as_they_were(n1: Host, phase: str, number: int) -> None:
    n1.run("ip", "link", "set", "nic0", "down")
    before = n1.state()
    try:
        done = n1.node.run([sys.executable, "-m", "tests.libvirt.fault", "n1g1", phase, str(number), *PARENTS])
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout)
        assert [step.startswith(name) for step, name in zip(told["steps"], NAMES, strict=True)] == [True] * len(NAMES)
        assert told["error"], "the step did not fail"
        assert "not undone" not in told["error"]
        assert told["fds"][0] == told["fds"][1]
        assert n1.state() == before
    finally:
        n1.run("ip", "link", "set", "nic0", "up")
        until(lambda: "LOWER_UP" in n1.links()["nic0"]["flags"])  # the carrier comes in its own time
