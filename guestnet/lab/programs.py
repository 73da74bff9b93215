"""The programs of this machine that the lab is made with."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from guestnet.errors import GuestnetError, NotFoundError

Progress: TypeAlias = Callable[[str], None]
"""What long work tells about itself, one line at a time."""

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def quiet(line: str) -> None:
    """Tell nobody."""


def program(name: str, package: str) -> str:
    """The path of a program the lab needs, also where PATH has no sbin; NotFoundError names its Debian package."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_PATH}")
    if path is None:
        raise NotFoundError(f"the lab needs {name}, which is not installed", hint=f"apt install {package}")
    return path


def output_of(*command: str, cwd: Path | None = None) -> str:
    """What a program wrote to stdout; GuestnetError with its last words where it fails."""
    done = subprocess.run(command, check=False, cwd=cwd, text=True, capture_output=True, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise GuestnetError(f"{os.path.basename(command[0])} failed: {words}")
    return done.stdout
