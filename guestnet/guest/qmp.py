"""A running QEMU without libvirt: the one place that speaks QMP (docs/interop/qmp-spec of QEMU), through qemu.qmp.

The library is of asyncio. Its loop runs in a thread of its own and every method here waits for it: so a signal that
ends the caller's work in its middle never ends the loop's, and the undo that follows can go on talking to QEMU.
"""

import asyncio
import concurrent.futures
import contextlib
import errno
import logging
import os
import socket
import stat
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import EventListener, ExecInterruptedError, ExecuteError, Message, QMPClient, QMPError, Runstate

from guestnet.closes import Closes
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, TimedOutError, UsageError

GREETING_SECONDS = 5.0
"""How long QEMU may take to say that it is there: it does so at once unless another client is being served."""

ANSWER_SECONDS = 30.0
"""How long QEMU may take to answer a command; its main loop answers in milliseconds unless its disk hangs."""

_LISTEN = "-qmp unix:PATH,server=on,wait=off"
_LIBVIRT_PROGRAMS = ("libvirtd", "virtqemud")
_LIBVIRT_CHARDEV = "charmonitor"  # qemuBuildMonitorCommandLine, src/qemu/qemu_command.c of libvirt
_LIBVIRT_SOCKET = f"socket,id={_LIBVIRT_CHARDEV},".encode()
_AGAIN = 0.02  # seconds between two tries to get into the line
_TICK = 0.25  # seconds between two looks at whether QEMU is still there
_UCRED = struct.Struct("=iII")

logging.getLogger("qemu.qmp").addHandler(logging.NullHandler())  # what it logs is raised too
logging.getLogger("qemu.qmp").propagate = False

_T = TypeVar("_T")

Call = tuple[str, Mapping[str, object]]
"""A command of QMP's and its arguments."""


class RefusedError(GuestnetError):
    """QEMU said no. ``kind`` is the class of its error (QapiErrorClass): DeviceNotFound, GenericError, …"""

    def __init__(self, message: str, *, kind: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class GoneError(GuestnetError):
    """QEMU has ended, or has closed the connection."""


class Monitor(Closes):
    """A QMP connection to a QEMU; closed at the end of the block.

    Raises, from the constructor, NotFoundError where nobody listens, UsageError for what is no QMP socket,
    ConflictError where it is in use by another client or is a monitor of libvirt's, NotPermittedError.
    """

    def __init__(self, path: str, *, timeout: float = GREETING_SECONDS) -> None:
        self.path = path
        connected = _connect(path, timeout)
        self.pid = _peer(connected)
        try:
            self._loop = asyncio.new_event_loop()
        except OSError as error:  # no fds are left for it
            connected.close()
            raise _unreachable(path, error) from error
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient()
        self._events: EventListener = EventListener(names=("DEVICE_DELETED", "DEVICE_UNPLUG_GUEST_ERROR"))
        try:
            if _is_for_libvirt(self.pid):
                raise _is_libvirts(path)
            self._wait(self._greet(connected, timeout), timeout + 1)
            if any(one.get("label") == _LIBVIRT_CHARDEV for one in self.execute("query-chardev")):
                raise _is_libvirts(path)
        except BaseException:
            self.close()
            connected.close()
            raise

    def close(self) -> None:
        """Close the connection and end the thread."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._hang_up(), ANSWER_SECONDS)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def gone(self) -> bool:
        """Whether QEMU has closed the connection, as it does when it ends."""
        return self._client.runstate is not Runstate.RUNNING

    def execute(self, command: str, **arguments: object) -> Any:
        """What QEMU returns for that command. Raises RefusedError, GoneError, TimedOutError."""
        return self._wait(self._execute(command, arguments), ANSWER_SECONDS)

    def several(self, calls: Sequence[Call], *, must: int = 0, fd: int | None = None) -> list[Any]:
        """What QEMU returns for these commands, which are sent in one go; None for one that it refuses.

        Of those the first ``must`` have to succeed: what the first of them met is raised once all are answered, for
        QEMU carries out what follows all the same. A copy of ``fd`` goes with the first command, a ``getfd``.
        """

        async def all_of_them() -> list[Any]:
            if fd is not None:
                self._send(fd)
            works = (self._execute(command, dict(arguments)) for command, arguments in calls)
            answers = await asyncio.gather(*works, return_exceptions=True)
            for place, answer in enumerate(answers):
                if isinstance(answer, BaseException) and not (isinstance(answer, RefusedError) and place >= must):
                    raise answer
            return [None if isinstance(answer, RefusedError) else answer for answer in answers]

        return self._wait(all_of_them(), ANSWER_SECONDS)

    def give_fd(self, name: str, fd: int) -> None:
        """Give QEMU a copy of an fd, which it keeps under that name until a command takes it (``getfd``).

        One at a time: of fds that were sent and not named yet it keeps the last.
        """
        self.several([("getfd", {"fdname": name})], must=1, fd=fd)

    def drop_fd(self, name: str) -> None:
        """Let QEMU close an fd that it was given and that no command took; one that was sent and not named yet too."""
        if self.gone:
            return
        for command in ("getfd", "closefd"):
            with contextlib.suppress(RefusedError, GoneError):
                self.execute(command, fdname=name)

    def unplug(self, device: str, timeout: float, waiting: Callable[[float], None] | None = None) -> None:
        """Ask the guest to let go of a device and wait until it has (DEVICE_DELETED); nothing to do where it is gone.

        ``waiting`` hears the seconds spent. Raises TimedOutError when the guest does not let go in time (it may later),
        ConflictError when it says that it will not, RefusedError, GoneError.
        """
        begun = time.monotonic()
        words = self._wait(self._ask_to_unplug(device), ANSWER_SECONDS)
        if not self.has(device):
            return
        while (spent := time.monotonic() - begun) < timeout:
            if waiting is not None:
                waiting(spent)
            event = self._wait(self._event(device, min(_TICK, timeout - spent)), ANSWER_SECONDS)
            if event == "DEVICE_DELETED" or (event is None and not self.has(device)):
                return
            if event is not None:
                raise ConflictError(
                    f"the guest refuses to let go of {device}", hint="its log says why; the NIC stays as it is"
                )
        raise TimedOutError(
            f"the guest has not let go of {device} within {timeout:g} s" + (f": {words}" if words else ""),
            hint="is it up, and has it a driver for hot-plug? It may let go later; the same command then does the rest",
        )

    def has(self, device: str) -> bool:
        """Whether there is a device of that ID."""
        return any(one["name"] == device for one in self.execute("qom-list", path="/machine/peripheral"))

    def _wait(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        """What the coroutine gives, run by the loop's thread; cancelled there if the wait for it ends otherwise."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(timeout)
        except concurrent.futures.TimeoutError:
            raise TimedOutError(f"the QEMU at {self.path} does not answer", hint="is it stopped, or stuck?") from None
        except BaseException:
            future.cancel()
            raise

    async def _greet(self, connected: socket.socket, seconds: float) -> None:
        self._client.register_listener(self._events)
        try:
            async with asyncio.timeout(seconds):
                await self._client.connect(connected)
        except TimeoutError:
            raise ConflictError(
                f"{self.path} is in use: no greeting came within {seconds:g} s, and QEMU serves one client at a time",
                hint=f"end the other client, or give QEMU a second socket: {_LISTEN}",
            ) from None
        except QMPError as error:
            cause = error.__cause__
            if isinstance(cause, EOFError | OSError):
                raise NotFoundError(
                    f"{self.path}: the connection was closed before QEMU said anything", hint="is QEMU still running?"
                ) from error
            raise UsageError(
                f"{self.path} is no QMP socket: what answers there does not greet as QMP does",
                hint=f"a monitor for people (-monitor) will not do: {_LISTEN}",
            ) from error

    async def _hang_up(self) -> None:
        with contextlib.suppress(QMPError, EOFError, OSError):  # QEMU was quicker
            await self._client.disconnect()

    def _send(self, fd: int) -> None:
        try:
            if not self.gone:
                self._client.send_fd_scm(fd)
                return
        except BrokenPipeError:
            pass
        raise GoneError(f"the QEMU at {self.path} has ended, or closed the connection, before it got an fd")

    async def _execute(self, command: str, arguments: dict[str, object]) -> Any:
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise RefusedError(f"QEMU refuses {command}: {error}", kind=error.error_class) from error
        except (QMPError, EOFError, OSError) as error:
            if isinstance(error, ExecInterruptedError) or self.gone:
                raise GoneError(
                    f"the QEMU at {self.path} has ended, or closed the connection, during {command}"
                ) from error
            raise GuestnetError(f"{command} at {self.path}: {error}") from error

    async def _ask_to_unplug(self, device: str) -> str:
        """Ask; what QEMU says where it has been asked before, or where there is no such device."""
        self._events.clear()
        try:
            await self._execute("device_del", {"id": device})
        except RefusedError as error:
            if error.kind not in ("GenericError", "DeviceNotFound"):
                raise
            return error.message
        return ""

    async def _event(self, device: str, seconds: float) -> str | None:
        """The name of the next event about the device; None where none comes in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    event: Message = await self._events.get()
                    data: Any = event.get("data")
                    if data.get("device") == device:
                        return str(event["event"])
        if self.gone:
            raise GoneError(f"the QEMU at {self.path} has ended while {device} was waited for")
        return None


def _connect(path: str, timeout: float) -> socket.socket:
    try:
        there = os.stat(path)
    except OSError as error:
        raise _unreachable(path, error) from error
    if not stat.S_ISSOCK(there.st_mode):
        raise UsageError(f"{path} is not a socket", hint=f"start QEMU with {_LISTEN}")
    if _is_in_libvirts_directories(path):  # before it is touched: who connects stands in libvirt's way
        raise _is_libvirts(path)
    # by way of the directory: sun_path takes 107 bytes (unix(7))
    directory = os.open(os.path.dirname(path) or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        made.setblocking(False)
        deadline = time.monotonic() + timeout
        while not _is_connected(made, f"/proc/self/fd/{directory}/{os.path.basename(path)}"):
            if time.monotonic() > deadline:
                raise ConflictError(
                    f"{path} is in use by others, who wait in line", hint=f"give QEMU a second socket: {_LISTEN}"
                )
            threading.Event().wait(_AGAIN)
    except OSError as error:
        made.close()
        raise _unreachable(path, error) from error
    except BaseException:
        made.close()
        raise
    finally:
        os.close(directory)
    return made


def _is_connected(made: socket.socket, address: str) -> bool:
    """Whether the other side has room for one more that waits to be served (unix(7), EAGAIN)."""
    try:
        made.connect(address)
    except BlockingIOError:
        return False
    return True


def _unreachable(path: str, error: OSError) -> GuestnetError:
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFoundError(f"there is no QMP socket {path}", hint=f"start QEMU with {_LISTEN}")
        case errno.ECONNREFUSED:
            return NotFoundError(f"nobody listens at {path}", hint="its QEMU has ended, or the path is another one's")
        case errno.EACCES | errno.EPERM:
            return NotPermittedError(f"{path}: {error.strerror}", hint="run this as the user QEMU runs as, or as root")
        case _:
            return GuestnetError(f"{path}: {error.strerror}")


def _peer(connected: socket.socket) -> int:
    """The process that listens, 0 where it is in no PID namespace that is seen from here (SO_PEERCRED, unix(7))."""
    pid: int
    pid, _, _ = _UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid


def _is_in_libvirts_directories(path: str) -> bool:
    parts = Path(os.path.realpath(path)).parts
    return "libvirt" in parts and parts[-1] == "monitor.sock"


def _is_for_libvirt(pid: int) -> bool:
    """Whether the process that listens is libvirt, which makes the socket of its monitor and passes it on, or a QEMU
    that libvirt has started: that listens once more to what it is passed (socket_get_fd, util/qemu-sockets.c)."""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe")).removesuffix(" (deleted)")
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return program in _LIBVIRT_PROGRAMS or any(word.startswith(_LIBVIRT_SOCKET) for word in words)


def _is_libvirts(path: str) -> GuestnetError:
    return ConflictError(
        f"{path} is a monitor of a libvirt guest", hint="guestnet attach GUEST --parent … is for guests of libvirt"
    )
