"""What the running kernel can do, by the names of the modules that bring it."""

import ctypes
import errno
import os
import shutil
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path

import pytest

from guestnet.kernel.netlink import NLM_F_CREATE, NLM_F_EXCL, NetlinkError, Rtnl, attribute, nested
from guestnet.lab.programs import SYSTEM_PATH

LINK_KINDS = {
    "8021q": "vlan", "bonding": "bond", "bridge": "bridge", "dummy": "dummy", "ifb": "ifb", "ipvlan": "ipvlan",
    "macvlan": "macvlan", "macvtap": "macvtap", "team": "team", "veth": "veth", "vrf": "vrf", "vxlan": "vxlan",
}  # fmt: skip
"""Modules that bring a kind of link, and its name in netlink."""

NO_LINKS = {"bonding": "max_bonds=0", "dummy": "numdummies=0", "ifb": "numifbs=0"}
"""Modules that make links when they are loaded, and the option by which they make none."""

NODES = {"kvm": "/dev/kvm", "tun": "/dev/net/tun", "vhost_net": "/dev/vhost-net", "machine": "/run/machine"}
"""Modules whose work is done through a device node; and ``machine``, what only the test machine has."""

QDISCS = {"sch_htb": ("root", "htb"), "sch_sfq": ("root", "sfq"), "sch_ingress": ("ingress",), "sch_tbf": (
    "root", "tbf", "rate", "1mbit", "burst", "10k", "latency", "1ms")}  # fmt: skip
"""Modules that bring a queueing discipline, and the words tc(8) adds one by."""

WITHHELD = Path("/run/modprobe.d/withheld.conf")

_NEWLINK, _LINKINFO, _INFO_KIND = 16, 18, 1
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@cache
def has(feature: str) -> bool:
    """Whether the running kernel has this; a module that brings it is loaded."""
    name = feature.replace("-", "_")
    if name in LINK_KINDS:
        if name in NO_LINKS:
            _loads(name)  # before the kernel does so by itself, and without the option
        return _has_link_kind(LINK_KINDS[name])
    if name in NODES:
        return os.path.exists(NODES[name]) or (_loads(name) and os.path.exists(NODES[name]))
    if name in QDISCS:
        tc = ("tc", "qdisc", "add", "dev", "lo", *QDISCS[name])
        return subprocess.run(("unshare", "--net", *tc), check=False, capture_output=True).returncode == 0
    return os.path.isdir(f"/sys/module/{name}") or _loads(name)


def of(item: pytest.Item) -> tuple[str, ...]:
    """What a test says it needs, by `@pytest.mark.kernel(feature, ...)`."""
    return tuple(str(feature) for mark in item.iter_markers("kernel") for feature in mark.args)


def withheld_by(item: pytest.Item) -> tuple[str, ...]:
    """What a test says the kernel must not have, by `@pytest.mark.kernel_without(feature, ...)`."""
    return tuple(str(feature) for mark in item.iter_markers("kernel_without") for feature in mark.args)


def missing(features: tuple[str, ...]) -> list[str]:
    """Those of the features that the running kernel has not."""
    return [feature for feature in features if not has(feature)]


@contextmanager
def withheld(modules: tuple[str, ...]) -> Iterator[None]:
    """For the block, these modules are not loaded and cannot be; for a machine of its own, as no other is asked."""
    with ExitStack() as back:
        for module in modules:
            WITHHELD.parent.mkdir(exist_ok=True)
            with WITHHELD.open("a", encoding="ascii") as file:
                back.callback(WITHHELD.unlink, missing_ok=True)
                file.write(f"install {module} /bin/false\n")
            subprocess.run(("modprobe", "-r", "-q", module), check=True)
        yield


def _loads(module: str) -> bool:
    path = shutil.which("modprobe", path=SYSTEM_PATH)
    if path is None:
        return False
    words = (path, "-q", module, *((NO_LINKS[module],) if module in NO_LINKS else ()))
    return subprocess.run(words, check=False, capture_output=True).returncode == 0


def _has_link_kind(kind: str) -> bool:
    """Whether there are links of that kind: one is asked for, in a network namespace that goes with this call.

    Without what such a link needs it is refused with EINVAL and the like, and with EOPNOTSUPP where there is no such
    kind (rtnl_newlink, net/core/rtnetlink.c).
    """
    answers: list[bool] = []

    def ask() -> None:
        if _libc.unshare(_CLONE_NEWNET):
            return
        with Rtnl() as rtnl:
            parts = nested(_LINKINFO, attribute(_INFO_KIND, kind))
            try:
                rtnl.request(_NEWLINK, struct.pack("=BxHiII", socket.AF_UNSPEC, 0, 0, 0, 0) + parts,
                             flags=NLM_F_CREATE | NLM_F_EXCL)  # fmt: skip
                answers.append(True)
            except NetlinkError as error:
                answers.append(error.errno != errno.EOPNOTSUPP)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    if not answers:
        raise PermissionError(errno.EPERM, "only root can find out what links the kernel has")
    return answers[0]
