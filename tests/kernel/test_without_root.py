"""What an ordinary user meets at the first try: what can be read is shown, the rest says what to do."""

from collections.abc import Callable

import pytest

from tests.conftest import Answer, Namespace

pytestmark = pytest.mark.root

NOBODY = 65534

REFUSED = (
    *("attach vm1 --parent nic0", "repair vm1", "gc --dry-run", "macvtap add t0 --parent nic0", "hook install"),
    *("host add nic0 --address 192.0.2.1/24", "topology up 0.1", "topology plan 0.1", "graph", "lab up"),
    *("qemu run --parent nic0 -- true", "exec nic0 -- true"),
)
SHOWN = (
    *("--version", "macvtap list", "host list", "topology status", "topology graph 0.1"),
    "xml interface vm1 --parent nic0",
)


def test_what_needs_root_says_so_and_what_to_do(
    parent: Namespace, run_guestnet: Callable[..., Answer], subtests: pytest.Subtests
) -> None:
    for line in REFUSED:
        with subtests.test(line):
            done = run_guestnet(*line.split(), netns=parent.name, user=NOBODY)
            assert done.code == 4, done
            assert "hint: run this with sudo" in done.err


def test_what_anybody_may_read_is_shown_to_anybody(
    parent: Namespace, run_guestnet: Callable[..., Answer], subtests: pytest.Subtests
) -> None:
    for line in SHOWN:
        with subtests.test(line):
            done = run_guestnet(*line.split(), netns=parent.name, user=NOBODY)
            assert (done.code, bool(done.out), done.err) == (0, True, ""), done
