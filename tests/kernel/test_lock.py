"""The lock of the host: one at a time, freed by the kernel, and its holder is named."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from guestnet.errors import NotPermittedError, TimedOutError
from guestnet.kernel import lock

HOLD = """
import sys
from pathlib import Path
from guestnet.kernel import lock
with lock.held(path=Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(Path(lock.__file__).parents[1])},
    ) as process:  # fmt: skip
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_lock_is_given_again_after_it_was_given_back(tmp_path: Path) -> None:
    for _ in range(2):
        with lock.held(timeout=0, path=tmp_path / "lock"):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_makes_its_directory_for_root_alone(tmp_path: Path) -> None:
    with lock.held(path=tmp_path / "run" / "lock"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "run" / "lock").stat().st_mode & 0o777 == 0o600


def test_who_waits_too_long_is_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with another_holder(path) as holder, pytest.raises(TimedOutError) as caught, lock.held(timeout=0.05, path=path):
        pytest.fail("two hold it")
    assert f"process {holder.pid}" in caught.value.message
    assert sys.executable in caught.value.message


def test_who_waits_gets_it_when_its_holder_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with another_holder(path) as holder:
        holder.kill()
        with lock.held(timeout=5, path=path):
            assert path.read_text() == f"{os.getpid()}\n"


def test_the_lock_is_given_back_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with pytest.raises(ValueError), lock.held(path=path):
        raise ValueError
    with lock.held(timeout=0, path=path):
        pass


def test_a_link_in_place_of_the_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("keep")
    (tmp_path / "lock").symlink_to(tmp_path / "other")
    with pytest.raises(OSError), lock.held(path=tmp_path / "lock"):
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
            with lock.held(path=tmp_path / "lock"):
                pass
        except NotPermittedError:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
