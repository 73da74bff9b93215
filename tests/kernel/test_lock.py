"""The locks of the host and of its guests: one at a time, freed by the kernel, and their holder is named."""

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from guestnet.errors import ConflictError, NotPermittedError, TimedOutError
from guestnet.kernel import lock

UUID = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"

HOLD = """
import sys
from pathlib import Path
from guestnet.kernel import lock
lock.PATH = Path(sys.argv[1])
with lock.held() if len(sys.argv) == 2 else lock.guest(sys.argv[2], "vm1"):
    print("held", flush=True)
    sys.stdin.read()
"""

Take = Callable[..., AbstractContextManager[lock.Held]]


@pytest.fixture(autouse=True)
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(lock, "PATH", tmp_path / "run" / "lock")
    return lock.PATH


def host(timeout: float = lock.TIMEOUT) -> AbstractContextManager[lock.Held]:
    return lock.held(timeout)


def guest(timeout: float = lock.TIMEOUT) -> AbstractContextManager[lock.Held]:
    return lock.guest(UUID, "vm1", timeout)


EACH = pytest.mark.parametrize(("take", "words"), [(host, ()), (guest, (UUID,))], ids=["host", "guest"])


@contextmanager
def another_holder(path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[2])},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


@EACH
def test_a_lock_is_given_again_after_it_was_given_back(take: Take, words: tuple[str, ...]) -> None:
    for _ in range(2):
        with take(0):
            pass


def test_the_locks_make_their_directory_for_root_alone(path: Path) -> None:
    with lock.held(), lock.guest(UUID, "vm1"):
        assert path.parent.stat().st_mode & 0o777 == 0o700
        assert {entry.stat().st_mode & 0o777 for entry in path.parent.iterdir()} == {0o600}


def test_the_file_of_a_guests_lock_goes_with_it(path: Path) -> None:
    with lock.held(), lock.guest(UUID, "vm1"), lock.guest_if_free(OTHER):
        assert len(list(path.parent.iterdir())) == 3
    assert list(path.parent.iterdir()) == [path]


def test_one_guest_does_not_wait_for_another_nor_for_the_host() -> None:
    with lock.held(), lock.guest(UUID, "vm1", 0), lock.guest(OTHER, "vm2", 0):
        pass


@EACH
def test_who_waits_too_long_is_told_who_has_it_and_since_when(path: Path, take: Take, words: tuple[str, ...]) -> None:
    with another_holder(path, *words) as holder, pytest.raises(TimedOutError) as caught, take(0.05):
        pytest.fail("two hold it")
    what = "the guest vm1" if words else "this host"
    assert f"is at work on {what}" in caught.value.message
    assert re.search(rf"process {holder.pid}, {sys.executable} .*, for 0 s$", caught.value.message, re.DOTALL)


def test_who_waits_for_over_a_second_is_told_for_whom(path: Path) -> None:
    heard: list[str] = []
    with another_holder(path) as holder:

        def hear(text: str) -> None:
            heard.append(text)
            holder.kill()

        with lock.held(notice=hear):
            pass
    assert len(heard) == 1
    assert f"process {holder.pid}" in heard[0]


@EACH
def test_who_waits_gets_it_when_its_holder_is_killed(path: Path, take: Take, words: tuple[str, ...]) -> None:
    with another_holder(path, *words) as holder:
        holder.kill()
        with take(5):
            pass


def test_a_guests_lock_is_not_waited_for_where_it_shall_be_free(path: Path) -> None:
    with another_holder(path, UUID) as holder:
        with pytest.raises(ConflictError) as caught, lock.guest_if_free(UUID):
            pytest.fail("two hold it")
        assert f"process {holder.pid}" in caught.value.message
        with lock.guest_if_free(OTHER):
            pass


def test_who_is_at_work_on_another_guest_is_told(path: Path) -> None:
    assert lock.others([]) == ""
    with lock.guest(UUID, "vm1"), another_holder(path, OTHER) as holder:
        assert lock.others([UUID]).startswith(f"process {holder.pid}, ")
        assert lock.others([UUID, OTHER]) == ""
    with lock.guest(UUID, "vm1"):
        assert lock.others([OTHER]).startswith(f"process {os.getpid()}, ")
    (path.parent / f"guest-{UUID}.lock").touch()  # of one that was killed
    assert lock.others([]) == ""


def test_who_waited_for_a_guests_lock_has_it_alone() -> None:
    """The file went with the holder that was waited for; nobody shall find the name free."""
    waiting, has_it, done = threading.Event(), threading.Event(), threading.Event()

    def wait_for_it() -> None:
        with lock.guest(UUID, "vm1", notice=lambda _text: waiting.set()):
            has_it.set()
            done.wait()

    with ThreadPoolExecutor() as threads:
        with lock.guest(UUID, "vm1"):
            ended = threads.submit(wait_for_it)
            assert waiting.wait(5)
        try:
            assert has_it.wait(5)
            with pytest.raises(ConflictError), lock.guest_if_free(UUID):
                pytest.fail("two hold it")
        finally:
            done.set()
        ended.result()


def test_who_holds_a_guests_lock_learns_that_the_guest_starts() -> None:
    lock.stir(UUID)  # nobody holds it
    with lock.guest_if_free(UUID) as mine:
        assert not mine.stirred()
        lock.stir(OTHER)
        assert not mine.stirred()
        lock.stir(UUID)
        assert mine.stirred()
    with lock.guest_if_free(UUID) as mine:
        assert not mine.stirred()


@pytest.mark.parametrize("uuid", ["", "../../../../../../../../etc/x/y/z/aaa", UUID + "/x"])
def test_a_uuid_that_is_none_leads_nowhere(path: Path, uuid: str) -> None:
    with pytest.raises(ConflictError), lock.guest_if_free(uuid):
        pass
    assert not path.parent.exists()


@EACH
def test_a_lock_is_given_back_when_the_block_fails(take: Take, words: tuple[str, ...]) -> None:
    with pytest.raises(ValueError), take():
        raise ValueError
    with take(0):
        pass


def test_a_lock_whose_file_was_taken_away_is_given_back_all_the_same(path: Path) -> None:
    with lock.held(), lock.guest(UUID, "vm1"):
        for entry in path.parent.iterdir():
            entry.unlink()


def test_a_link_in_place_of_the_file_is_not_followed(path: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_text("keep")
    path.parent.mkdir()
    path.symlink_to(tmp_path / "other")
    with pytest.raises(OSError), lock.held():
        pytest.fail("it was followed")
    assert (tmp_path / "other").read_text() == "keep"


@pytest.mark.root
def test_who_may_not_write_it_is_told_so(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            with lock.held():
                pass
        except NotPermittedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
