"""The character device of a macvtap: found, opened, and checked to be the one that is meant.

/dev/tapN is named from an ifindex, which counts in one network namespace, while /dev is one for all of them: two
macvtaps of one ifindex compete for the name, and the second has no node. So the numbers come from sysfs of the link's
own namespace, and every fd is asked who it is before it is handed on.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import stat
import struct
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, UsageError
from guestnet.kernel import netns, sysfs
from guestnet.model import QUEUES_MAX, Kind, Link, LinkName, Mac

DEV = "/dev"

# include/uapi/linux/if_tun.h
_TUNGETIFF, _TUNSETIFF, _TUNSETVNETHDRSZ = 0x800454D2, 0x400454CA, 0x400454D8
_IFF_TAP, _IFF_NO_PI, _IFF_VNET_HDR, _IFF_MULTI_QUEUE = 0x2, 0x1000, 0x4000, 0x100
_SIOCGIFHWADDR = 0x8927
_IFREQ = struct.Struct("=16sH22x")
_AGAIN = 0.02  # seconds between two looks at a process that does not let itself be seen
_UNSEEN = 1.0  # seconds it gets
_PIDFD_GETFD = 438  # the same on every architecture

# struct statx (include/uapi/linux/stat.h): stx_mode, stx_rdev_major, stx_rdev_minor
_STATX = struct.Struct("=28xH98xII120x")
_AT_FDCWD, _AT_STATX_DONT_SYNC, _STATX_TYPE = -100, 0x4000, 0x1
_libc = ctypes.CDLL(None, use_errno=True)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that has a macvtap open, and its name (proc(5), comm)."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"process {self.pid} ({self.name})"


def held(links: Iterable[Link], *, namespace: int | None = None) -> dict[int, tuple[Holder, ...]]:
    """The processes that have the macvtaps among these links open, by ifindex; a link that goes meanwhile is left out.

    Raises what ``holders`` raises.
    """
    devices = {link.index: device for link, device in _devices(links, namespace)}
    found = holders(*devices.values())
    return {index: found[device.rdev] for index, device in devices.items() if device.rdev in found}


def unheld(links: Iterable[Link], *, namespace: int | None = None) -> tuple[Link, ...]:
    """The macvtaps among these links that no process has open; one that goes meanwhile is left out.

    Raises what ``holders`` raises.
    """
    devices = dict(_devices(links, namespace))
    found = holders(*devices.values())
    return tuple(link for link, device in devices.items() if device.rdev not in found)


def _devices(links: Iterable[Link], namespace: int | None) -> Iterator[tuple[Link, TapDevice]]:
    for link in links:
        if link.kind == Kind.MACVTAP:
            with contextlib.suppress(ConflictError):  # it has none any more
                yield link, device_of(link, namespace=namespace)


def holders(*taps: TapDevice) -> dict[int, tuple[Holder, ...]]:
    """The processes that have these devices open, by device number (proc(5), /proc/PID/fd); one that ends meanwhile is
    left out.

    An fd whose macvtap was deleted under it does not count: the kernel gives its number to the next one. Raises
    NotPermittedError where a process does not let itself be looked at; init may, it runs no guest.
    """
    wanted = {tap.rdev for tap in taps}
    found: dict[int, dict[int, Holder]] = {}
    todo = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()] if wanted else []
    never, deadline = threading.Event(), time.monotonic() + _UNSEEN
    while todo:
        unseen = []
        for pid in todo:
            try:
                for rdev in _open_devices(pid, wanted):
                    name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
                    found.setdefault(rdev, {})[pid] = Holder(pid=pid, name=name)
            except (FileNotFoundError, ProcessLookupError):
                continue
            except PermissionError:
                if pid != 1:
                    unseen.append(pid)
        # a child of such an init is like it until it has become another program
        if unseen and time.monotonic() > deadline:
            raise NotPermittedError(f"the open files of process {unseen[0]} cannot be seen", hint="run this with sudo")
        todo = unseen
        if todo:
            never.wait(_AGAIN)
    return {rdev: tuple(those.values()) for rdev, those in found.items()}


def _open_devices(pid: int, wanted: set[int]) -> set[int]:
    """Which of these devices a process has open. Raises PermissionError where the process cannot be looked at."""
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{fd}"
        try:
            # a node may lie anywhere, and in another mount namespace /dev/tapN is seen as /tapN
            rdev = _character_device(path) if os.readlink(path).startswith("/") else None
        except FileNotFoundError:  # closed meanwhile
            continue
        if rdev in wanted and not _is_severed(pid, int(fd)):
            found.add(rdev)
    return found


def _character_device(path: str) -> int | None:
    """The device number of an open file; None where it is no character device.

    Asks no server and no FUSE daemon (AT_STATX_DONT_SYNC, statx(2)): a dead one would hold up whoever waits for the
    lock of this host. Raises PermissionError where it is the process that cannot be looked at.
    """
    now = bytearray(_STATX.size)
    place = (ctypes.c_char * _STATX.size).from_buffer(now)
    if _libc.statx(_AT_FDCWD, path.encode(), _AT_STATX_DONT_SYNC, _STATX_TYPE, place) < 0:
        number = ctypes.get_errno()
        if number in (errno.EPERM, errno.ESRCH):
            raise OSError(number, os.strerror(number), path)
        os.readlink(path)
        return None  # whatever a file system that is out of reach says: what it has is no node of ours
    mode, major, minor = _STATX.unpack(now)
    return os.makedev(major, minor) if stat.S_ISCHR(mode) else None


def _is_severed(pid: int, fd: int) -> bool:
    """Whether the macvtap behind a process's fd was deleted. Where the kernel does not let that fd be asked (before
    Linux 5.6, in a container) it is taken for whole."""
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        copy = _libc.syscall(ctypes.c_long(_PIDFD_GETFD), process, fd, 0)
    finally:
        os.close(process)
    if copy < 0:
        return False
    try:
        fcntl.ioctl(copy, _TUNGETIFF, bytearray(_IFREQ.size))
    except OSError as error:
        return error.errno == errno.ENOLINK
    finally:
        os.close(copy)
    return False


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
    import tempfile  # a millisecond, which this alone needs

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
                raise NotPermittedError(
                    f"{path} of {tap.ifname}: {error.strerror}", hint="run this with sudo"
                ) from error
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
