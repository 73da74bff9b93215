"""The QMP socket of a QEMU: what is none, whose it is, and one that does not answer."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from guestnet.errors import ConflictError, GuestnetError, NotFoundError, TimedOutError, UsageError
from guestnet.guest import qmp
from guestnet.guest.qmp import Monitor, RefusedError
from tests.conftest import as_user
from tests.qemu.conftest import GUESTNET, Host

pytestmark = pytest.mark.root


def test_a_socket_that_is_missing_or_no_socket_or_dead_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no QMP socket"):
        Monitor(str(tmp_path / "none"))
    with pytest.raises(UsageError, match="is not a socket"):
        Monitor(__file__)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with pytest.raises(NotFoundError, match="nobody listens"):
        Monitor(str(tmp_path / "dead"))


@contextmanager
def answering(path: Path, text: bytes) -> Iterator[None]:
    """A server that says this to who connects, and closes."""

    def serve() -> None:
        with suppress(OSError):
            client, _ = server.accept()
            with client:
                client.sendall(text)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


@pytest.mark.parametrize(
    ("text", "error", "said"),
    [
        (b"QEMU 7.2.22 monitor - type 'help' for more information\r\n(qemu) ", UsageError, "no QMP socket"),
        (b'{"hello": 1}\r\n', UsageError, "no QMP socket"),
        (b"", NotFoundError, "closed before QEMU said anything"),
    ],
)
def test_what_greets_otherwise_is_no_qmp_socket(
    text: bytes, error: type[GuestnetError], said: str, tmp_path: Path
) -> None:
    with answering(tmp_path / "qmp", text), pytest.raises(error, match=said):
        Monitor(str(tmp_path / "qmp"))


def test_a_socket_that_another_client_has_is_in_use(host: Host, qemu: Callable[..., Path]) -> None:
    path = qemu()
    with Monitor(str(path)) as mine:
        with pytest.raises(ConflictError, match="is in use"):
            Monitor(str(path), timeout=0.3)
        assert mine.execute("query-status")["running"]
    with Monitor(str(path)) as mine:
        assert mine.execute("query-status")["running"]


def test_a_socket_with_no_room_in_its_line_is_in_use(tmp_path: Path) -> None:
    path = str(tmp_path / "qmp")
    with ExitStack() as stack:
        server = stack.enter_context(socket.socket(socket.AF_UNIX))
        server.bind(path)
        server.listen(0)
        stack.enter_context(socket.socket(socket.AF_UNIX)).connect(path)
        with pytest.raises(ConflictError, match="who wait in line"):
            Monitor(path, timeout=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("list",), "run this as the user QEMU runs as"),
        (("attach", "--parent", "nic0"), "making a NIC needs root"),
        (("detach", "--all"), "deleting the links of a NIC needs root"),
    ],
)
def test_an_ordinary_user_is_told_what_is_not_theirs(
    words: tuple[str, ...], said: str, host: Host, qemu: Callable[..., Path]
) -> None:
    path = qemu()
    path.parent.chmod(0o700)
    with host.start(*as_user(65534), *GUESTNET, "qemu", *words, "--qmp", str(path)) as process:
        _, err = process.communicate(timeout=60)
    assert (process.returncode, said in err) == (4, True), err


def test_a_qemu_that_does_not_answer_is_not_waited_for_without_end(
    host: Host, qemu: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = qemu()
    monkeypatch.setattr(qmp, "ANSWER_SECONDS", 0.3)
    one = Monitor(str(path))
    try:
        os.kill(one.pid, signal.SIGSTOP)
        with pytest.raises(TimedOutError, match="does not answer"):
            one.execute("query-status")
        os.kill(one.pid, signal.SIGCONT)
    finally:
        one.close()


def test_a_path_too_long_for_a_socket_address_is_reached_all_the_same(
    host: Host, qemu: Callable[..., Path], tmp_path: Path
) -> None:
    path = qemu()
    far = tmp_path / ("d" * 100) / "e"
    far.mkdir(parents=True)
    (far / "qmp").symlink_to(path)
    with Monitor(str(far / "qmp")) as one:
        assert one.execute("query-status")["running"]


def test_a_monitor_in_libvirts_directories_is_refused(qemu: Callable[..., Path], tmp_path: Path) -> None:
    directory = tmp_path / "libvirt/qemu/domain-1-vm"
    directory.mkdir(parents=True)
    path = directory / "monitor.sock"
    qemu("-qmp", f"unix:{path},server=on,wait=off", at=path)
    with pytest.raises(ConflictError, match="is a monitor of a libvirt guest") as caught:
        Monitor(str(path))
    assert "guestnet attach" in caught.value.hint


def test_a_second_monitor_of_a_libvirt_guest_is_refused(qemu: Callable[..., Path], tmp_path: Path) -> None:
    libvirts = f"socket,id=charmonitor,path={tmp_path / 'libvirts'},server=on,wait=off"
    path = qemu("-chardev", libvirts, "-mon", "chardev=charmonitor,mode=control")
    with pytest.raises(ConflictError, match="is a monitor of a libvirt guest"):
        Monitor(str(path))


def test_what_qemu_refuses_has_its_class(qemu: Callable[..., Path]) -> None:
    with Monitor(str(qemu())) as one, pytest.raises(RefusedError) as caught:
        one.execute("netdev_del", id="none")
    assert caught.value.kind == "DeviceNotFound"


def test_the_command_line_imports_the_library_only_to_talk_to_qemu() -> None:
    code = "import sys, guestnet.cli.qemu, guestnet.qemu.run; sys.exit('qemu.qmp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
