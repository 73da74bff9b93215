"""What holds for all tests does hold: each kind of leftover fails the test that leaves it, and so does a skip in CI."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

LEAVES = {
    "fds": "import os\ndef test_x(): os.open('/etc/hostname', os.O_RDONLY)",
    "children": (
        "import subprocess\nkept = []\n"
        "def test_x(): kept.append(subprocess.Popen(['sleep', '9']))\n"
        "def teardown_module():\n    kept[0].kill()\n    kept[0].wait()"
    ),
    "nodes": (
        "import os\ndef test_x(): os.mknod('/dev/tap-gntest')\n"
        "def teardown_module(): os.unlink('/dev/tap-gntest')"
    ),
    "links": (
        "import subprocess\nrun = lambda line: subprocess.run(line.split(), check=True)\n"
        "def test_x(): run('ip link add gntest0 type veth peer name gntest1')\n"
        "def teardown_module(): run('ip link delete gntest0')"
    ),
    "mounts": (
        "import subprocess\nrun = lambda line: subprocess.run(line.split(), check=True)\n"
        "def test_x(): run('mount -t tmpfs gntest /mnt')\n"
        "def teardown_module(): run('umount /mnt')"
    ),
    "namespaces": (
        "import subprocess\nrun = lambda line: subprocess.run(line.split(), check=True)\n"
        "def test_x(): run('ip netns add gntest-left')\n"
        "def teardown_module(): run('ip netns delete gntest-left')"
    ),
}  # fmt: skip
SHARED = "GUESTNET_TESTS_SHARE_THE_MACHINE"
LISTED = "a good reason"
LIST = f"import pytest\nfrom tests.conftest import MAY_SKIP\nMAY_SKIP[{LISTED!r}] = 'and no loss'\n"
SKIPS = LIST + "def test_x(): pytest.skip({reason!r})"
SKIPS_ALL = LIST + "pytest.skip({reason!r}, allow_module_level=True)"


def run(tmp_path: Path, text: str, **more: str) -> tuple[int, str]:
    """The exit status and the report of pytest over this one file, in a network namespace of its own."""
    (tmp_path / "test_inner.py").write_text(text)
    line = ["unshare", "--net", "--mount", sys.executable, "-m", "pytest", "-vv", "-p", "no:cacheprovider"]
    line += ["-p", "tests.conftest", "-o", "addopts=", "--rootdir", str(tmp_path), str(tmp_path / "test_inner.py")]
    environment = {key: value for key, value in os.environ.items() if key not in ("CI", SHARED)}
    done = subprocess.run(
        line, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env={**environment, "PYTHONPATH": str(REPO), **more},
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.root
@pytest.mark.parametrize("kind", LEAVES)
def test_what_a_test_leaves_fails_it(tmp_path: Path, kind: str) -> None:
    code, out = run(tmp_path, LEAVES[kind])
    assert code == 1
    assert f"'{kind}': [" in out


@pytest.mark.root
def test_a_test_that_leaves_nothing_passes(tmp_path: Path) -> None:
    code, out = run(tmp_path, "def test_x(parent): parent.ip('link add mt0 link nic0 type macvtap')")
    assert code == 0, out


@pytest.mark.root
@pytest.mark.parametrize("text", [SKIPS, SKIPS_ALL])
@pytest.mark.parametrize(
    ("reason", "ci", "fails"),
    [("no time", "true", True), ("no time", "", False), (LISTED, "true", False)],
)
def test_a_skip_in_ci_fails_unless_its_reason_is_on_the_list(
    tmp_path: Path, text: str, reason: str, ci: str, fails: bool
) -> None:
    code, out = run(tmp_path, text.format(reason=reason), CI=ci)
    assert (code not in (0, pytest.ExitCode.NO_TESTS_COLLECTED)) is fails, out
    if fails:
        assert "not on the list of tests/conftest.py: no time" in out
