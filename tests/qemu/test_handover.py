"""fds on their way: taken or not, closed for good or not."""

import os
import select
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from guestnet.errors import GuestnetError
from guestnet.kernel.handover import LastClose, was_taken


def hears(last_close: LastClose, timeout: float = 5.0) -> bool:
    return bool(select.select([last_close.fd], [], [], timeout)[0])


def test_a_close_is_heard_when_it_is_the_last_of_the_open_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    with LastClose.of(f"/proc/self/fd/{fd}") as last_close:
        path.unlink()
        last_close.clear()
        heir = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(fd,))
        ours, theirs = socket.socketpair()
        socket.send_fds(ours, [b"\0"], [fd])
        os.close(fd)
        assert not hears(last_close, 0)
        heir.kill()
        heir.communicate()
        assert not hears(last_close, 0)  # it is on its way still
        ours.close()
        theirs.close()
        assert hears(last_close)


def test_a_node_that_is_not_there_cannot_be_listened_to(tmp_path: Path) -> None:
    with pytest.raises(GuestnetError, match="No such file"):
        LastClose.of(str(tmp_path / "none"))


def test_what_was_sent_is_taken_when_it_is_read_or_refused() -> None:
    for answer in (lambda end: end.recv(1), lambda end: end.close()):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            assert was_taken(ours, 0)
            ours.send(b"x")
            assert not was_taken(ours, 0.01)
            taker = threading.Thread(target=answer, args=(theirs,))
            taker.start()
            assert was_taken(ours, 5)
            taker.join()
