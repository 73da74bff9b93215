"""Two users of one VLAN come and go: it is there exactly while one of them is."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from guestnet.kernel import lock
from guestnet.kernel.link import Links
from guestnet.model import Kind
from tests.conftest import Namespace
from tests.kernel.vlans import site

pytestmark = [pytest.mark.root, pytest.mark.kernel("8021q", "macvtap", "veth")]

TIMES = 100 if os.environ.get("GUESTNET_TESTS_FULL") == "1" else 30
"""How often each of the two comes and goes."""


def test_a_vlan_is_there_exactly_while_somebody_uses_it(
    namespace: Callable[[], Namespace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "PATH", tmp_path / "lock")
    host = site(namespace)
    over = threading.Event()
    seen = {True: 0, False: 0}

    def come_and_go(name: str) -> None:
        for _ in range(TIMES):
            host.add(Kind.MACVTAP, name, parent="nic0.11")
            assert host.link(name).parent == host.link("nic0.11").index
            host.delete(Kind.MACVTAP, name)

    def look() -> None:
        with Links(host.here.fd) as links:
            while not over.is_set():
                with lock.held():  # nobody is in the middle of something
                    there = links.all()
                vlan = next((link for link in there if link.name == "nic0.11"), None)
                users = [link.name for link in there if link.kind == "macvtap"]
                assert (vlan is not None) == bool(users), users
                assert all(link.parent == vlan.index for link in there if vlan and link.name in users)
                seen[bool(users)] += 1

    with ThreadPoolExecutor() as threads:
        watching = threads.submit(look)
        users = [threads.submit(come_and_go, name) for name in ("mt0", "mt1")]
        try:
            for user in users:
                user.result()
        finally:
            over.set()
        watching.result()
    assert host.vlans() == {}
    assert seen[True] > TIMES / 4, seen
