"""docs/start.md in a Debian that has nothing on it, as a new user goes through it: from the clone to `lab down`.

    ./dev setup && ./dev run python -m tests.install.start

All of it is installed from the network, so it is no test of ./dev test. It prints what each command says and when; the
status is 1 where one fails.
"""

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import REPO
from tests.docs.blocks import shell_blocks
from tests.install import debian
from tests.install.debian import System, quietly

_TO_HAVE_IT = ("apt-get update", "apt-get install -y --no-install-recommends git", "git clone /srv/guestnet /guestnet")
_OF_THE_NETWORK = ("etc/pip.conf", "usr/local/share/ca-certificates")
"""What this machine's pip has from where, and whom it trusts on the way: the package sources are beside apt's."""


def commands() -> Iterator[str]:
    """The commands of the page, up to the part that is about a guest of the reader's own."""
    page, _, _ = (REPO / "docs/start.md").read_text(encoding="utf-8").partition("\n## A guest of your own\n")
    for block in shell_blocks(page):
        yield from (call.command for call in block.calls)


def main() -> int:
    """Go through it; the status."""
    with tempfile.TemporaryDirectory(prefix="guestnet-start-") as made:
        scratch = Path(made)
        root = scratch / "root"
        debian.bootstrap(root, debian.release())
        for name in _OF_THE_NETWORK:
            if Path("/", name).exists():
                quietly("cp", "-a", f"/{name}", str((root / name).parent))
        put_repository(root / "srv/guestnet")
        with debian.running(root) as system:
            return go_through(system)


def put_repository(directory: Path) -> None:
    """The tree as it is now, in a repository of its own."""
    directory.mkdir()
    files = ("git", "-C", str(REPO), "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate")
    names = [name for name in quietly(*files).split("\0") if (REPO / name).is_file()]
    quietly("cp", "-a", "--parents", "-t", str(directory), *names)
    own = ("git", "-C", str(directory), "-c", "user.name=start", "-c", "user.email=start@localhost")
    for words in (("init", "-q"), ("add", "--all"), ("commit", "-q", "-m", "The tree as it is")):
        quietly(*own, *words)


def go_through(system: System) -> int:
    """Each command in the shell that the page says, one after the other, until one fails."""
    first, *others = commands()
    shell = ["set -e", *(f"printf '\\n# %s\\n' {shlex.quote(one)}; {one}" for one in others)]
    (system.root / "root/page").write_text("\n".join(shell) + "\n", encoding="utf-8")
    begun = time.monotonic()
    for words in (*_TO_HAVE_IT, f"cd /guestnet && {first} /root/page"):
        print(f"{time.monotonic() - begun:6.1f} s  # {words}", flush=True)
        called = system.inside("sh", "-c", words)
        with subprocess.Popen(
            called, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                print(f"{time.monotonic() - begun:6.1f} s  {line}", end="", flush=True)
        if process.returncode:
            print(f"this ended with {process.returncode}: {words}")
            return 1
    print(f"{time.monotonic() - begun:6.1f} s  all of the page")
    return 0


if __name__ == "__main__":
    sys.exit(main())
