"""The character device of a macvtap: found, opened, and checked to be the one that is meant.

/dev/tapN is named from an ifindex, which counts in one network namespace, while /dev is one for all of them: two
macvtaps of one ifindex compete for the name, and the second has no node. So the numbers come from sysfs of the link's
own namespace, and every fd is asked who it is before it is handed on.
"""

import contextlib
import errno
import fcntl
import os
import re
import stat
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, UsageError
from guestnet.kernel import netns, sysfs
from guestnet.model import QUEUES_MAX, Link, LinkName, Mac

DEV = "/dev"

# include/uapi/linux/if_tun.h
_TUNGETIFF, _TUNSETIFF, _TUNSETVNETHDRSZ = 0x800454D2, 0x400454CA, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("=16sH22x")
_VNET_MODELS = ("virtio", "e1000e", "igb", "vmxnet3")


class Node(StrEnum):
    """What stands at /dev/tapN of a link."""

    RIGHT = "right"
    MISSING = "missing"
    FOREIGN = "foreign"


@dataclass(frozen=True, slots=True, kw_only=True)
class TapDevice:
    """The character device of a macvtap, as sysfs of its own namespace names it."""

    ifname: str
    ifindex: int
    mac: str
    major: int
    minor: int

    @property
    def path(self) -> str:
        """The node devtmpfs makes for it, unless another namespace's link has the name already."""
        return f"{DEV}/tap{self.ifindex}"

    @property
    def rdev(self) -> int:
        """Its device number, as stat(2) gives it in st_rdev."""
        return os.makedev(self.major, self.minor)

    def node(self) -> Node:
        """Whether /dev/tapN is this device, is not there, or is something else."""
        try:
            found = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return Node.MISSING
        return Node.RIGHT if stat.S_ISCHR(found.st_mode) and found.st_rdev == self.rdev else Node.FOREIGN


def device(ifname: str, *, namespace: int | None = None) -> TapDevice:
    """The character device of the macvtap of that name, in the namespace of the fd given or in the caller's.

    Raises NotFoundError where there is no such link, ConflictError where it is no macvtap.
    """

    def look() -> TapDevice:
        LinkName(ifname)
        base = f"class/net/{ifname}"
        with sysfs.opened() as root:
            index, mac = sysfs.read(root, f"{base}/ifindex"), sysfs.read(root, f"{base}/address")
            if index is None or mac is None:
                raise NotFoundError(f"there is no interface {ifname}", hint="guestnet macvtap list shows what there is")
            return _device(root, ifname, int(index), mac)

    return look() if namespace is None else netns.call(namespace, look)


def device_of(link: Link, *, namespace: int | None = None) -> TapDevice:
    """The character device of a macvtap that was just looked at."""

    def look() -> TapDevice:
        with sysfs.opened() as root:
            return _device(root, link.name, link.index, link.mac)

    return look() if namespace is None else netns.call(namespace, look)


def _device(root: int, ifname: str, index: int, mac: str) -> TapDevice:
    numbers = sysfs.read(root, f"class/net/{ifname}/macvtap/tap{index}/dev")
    if numbers is None:
        raise ConflictError(f"{ifname} is no macvtap, it has no character device")
    major, _, minor = numbers.partition(":")
    return TapDevice(ifname=ifname, ifindex=index, mac=mac, major=int(major), minor=int(minor))


def make_node(tap: TapDevice) -> None:
    """Make /dev/tapN where no devtmpfs does (a private /dev), mode 0600.

    Nothing to do where the right one is there by now. Raises ConflictError if something else is.
    """
    try:
        os.mknod(tap.path, stat.S_IFCHR | 0o600, tap.rdev)
    except FileExistsError:
        if tap.node() is not Node.RIGHT:
            raise ConflictError(f"{tap.path} is there already and is not {tap.ifname}") from None


def remove_node(tap: TapDevice) -> None:
    """Remove /dev/tapN if it is this device's; what else stands there stays."""
    if tap.node() is Node.RIGHT:
        os.unlink(tap.path)


def holders(tap: TapDevice) -> tuple[int, ...]:
    """The processes that have the device open, by their fds (proc(5)). A process that ends meanwhile is left out."""
    found = []
    for pid in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            fds = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        for fd in fds:
            with contextlib.suppress(OSError):
                now = os.stat(f"/proc/{pid}/fd/{fd}")
                if stat.S_ISCHR(now.st_mode) and now.st_rdev == tap.rdev:
                    found.append(int(pid))
                    break
    return tuple(found)


def free_index(taken: frozenset[int]) -> int:
    """An ifindex that no link of ``taken`` has and no node in /dev is named from.

    High and random, so that two namespaces that ask at once do not meet.
    """
    nodes = {int(match[1]) for entry in os.listdir(DEV) if (match := re.fullmatch(r"tap([0-9]+)", entry))}
    while True:
        index = int.from_bytes(os.urandom(3)) | 1 << 24
        if index not in taken and index not in nodes:
            return index


def has_vnet_header(model: str) -> bool:
    """Whether QEMU puts a virtio-net header before each frame for that NIC model (net/tap.c, IFF_VNET_HDR)."""
    return model.startswith(_VNET_MODELS)


class Tap(Closes):
    """The open queues of one macvtap: fds that were checked to be this link's, closed at the end of the block.

    ``fds`` are O_NONBLOCK and O_CLOEXEC. They are this object's until ``release`` hands them to the caller.
    """

    def __init__(self, tap: TapDevice, fds: tuple[int, ...]) -> None:
        self.device = tap
        self.fds = fds

    @classmethod
    def open(cls, ifname: str, *, namespace: int | None = None, queues: int = 1, vnet_header: bool = True) -> Self:
        """Open ``queues`` queues of the macvtap of that name (1 to 256) and set the flags a NIC model needs.

        Raises UsageError for a count out of range, ConflictError when the device is full or is not what its name
        says, NotFoundError when the link is not there. Nothing stays open on failure.
        """
        if not 1 <= queues <= QUEUES_MAX:
            raise UsageError(f"{queues} queues are not possible", hint=f"1 to {QUEUES_MAX}")
        tap = device(ifname, namespace=namespace)
        fds: list[int] = []
        try:
            with _path(tap) as path:
                for _ in range(queues):
                    fds.append(_open(tap, path))
                    _set_flags(tap, fds[-1], vnet_header=vnet_header, multi_queue=queues > 1)
            for fd in fds:
                check(fd, tap)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise
        return cls(tap, tuple(fds))

    def release(self) -> tuple[int, ...]:
        """Hand the fds to the caller, who closes them from now on."""
        fds, self.fds = self.fds, ()
        return fds

    def close(self) -> None:
        """Close what was not released."""
        for fd in self.release():
            os.close(fd)


def check(fd: int, tap: TapDevice) -> None:
    """Raise ConflictError unless ``fd`` is that device: by device number, link name and MAC.

    The name and the MAC are the link's own answers (TUNGETIFF and SIOCGIFHWADDR, drivers/net/tap.c).
    """
    found = os.fstat(fd)
    name, mac, _ = identity(fd)
    wanted = (tap.rdev, tap.ifname, tap.mac)
    if not stat.S_ISCHR(found.st_mode) or (found.st_rdev, name, mac) != wanted:
        raise ConflictError(
            f"the device opened for {tap.ifname} ({tap.mac}, {tap.major}:{tap.minor}) is {name} "
            f"({mac}, {os.major(found.st_rdev)}:{os.minor(found.st_rdev)})",
            hint="a link of another network namespace has the node; run the command again",
        )


def identity(fd: int) -> tuple[str, Mac, int]:
    """The link name, MAC and IFF_ flags behind a tap fd.

    Raises NotFoundError when the link is gone: reads and writes on such an fd go on without a word (ENOLINK).
    """
    request = bytearray(_IFREQ.size)
    try:
        fcntl.ioctl(fd, _TUNGETIFF, request)
        name, flags = _IFREQ.unpack(request)
        fcntl.ioctl(fd, _SIOCGIFHWADDR, request)
    except OSError as error:
        if error.errno in (errno.ENOLINK, errno.ENODEV):
            raise NotFoundError("the macvtap behind this fd is gone") from None
        raise GuestnetError(f"fd {fd} is no tap: {error.strerror}") from error
    return name.rstrip(b"\0").decode(), Mac(request[18:24].hex(":")), flags


@contextmanager
def _path(tap: TapDevice) -> Iterator[str]:
    if tap.node() is Node.RIGHT:
        yield tap.path
        return
    # in /dev, since /run and /tmp are often mounted nodev; mkdtemp gives an unguessable name with mode 0700
    directory = tempfile.mkdtemp(prefix=".guestnet-", dir=DEV)
    path = f"{directory}/tap"
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, tap.rdev)
        try:
            yield path
        finally:
            os.unlink(path)
    finally:
        os.rmdir(directory)


def _open(tap: TapDevice, path: str) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        match error.errno:
            case errno.EBUSY:
                raise ConflictError(
                    f"{tap.ifname} has no free queue: {QUEUES_MAX} are open",
                    hint=f"a macvtap takes {QUEUES_MAX} queues in all; something else holds it open",
                ) from error
            case errno.EPERM | errno.EACCES:
                raise NotPermittedError(f"{path} of {tap.ifname}: {error.strerror}", hint="run this as root") from error
            case errno.ENODEV | errno.ENXIO | errno.ENOENT:
                raise NotFoundError(f"{tap.ifname} is gone") from error
            case _:
                raise GuestnetError(f"{path} of {tap.ifname}: {error.strerror}") from error


def _set_flags(tap: TapDevice, fd: int, *, vnet_header: bool, multi_queue: bool) -> None:
    flags = _IFF_TAP | _IFF_NO_PI
    flags |= _IFF_VNET_HDR if vnet_header else 0
    flags |= _IFF_MULTI_QUEUE if multi_queue else 0
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(tap.ifname.encode(), flags))
        if vnet_header:
            # 10 bytes are what the kernel begins with; a VMM that negotiates more sets 12 itself
            fcntl.ioctl(fd, _TUNSETVNETHDRSZ, struct.pack("=i", 10))
    except OSError as error:
        raise GuestnetError(f"the flags of {tap.ifname} cannot be set: {error.strerror}") from error
