"""The file systems of one lab node, put up from inside its new mount namespace; run as a program by guestnet.lab.node.

It imports the standard library only, so that it starts quickly and does not depend on what the caller's Python path is.
Everything here is seen in this mount namespace alone. What the node writes lands in the lab's own tmpfs: ``/etc`` and
``/var`` are overlays with their upper layers there, ``/run`` and libvirt's directories are fresh directories of it.
"""

import grp
import json
import os
import pwd
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

LIBVIRT_DIRECTORIES = {
    "/etc/libvirt": "etc-libvirt",
    "/var/lib/libvirt": "lib-libvirt",
    "/var/cache/libvirt": "cache-libvirt",
    "/var/log/libvirt": "log-libvirt",
}
"""Where libvirtd keeps things, and the directory below the node's own that stands there instead."""

CHARACTER_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
"""Name and device number, of Linux's Documentation/admin-guide/devices.txt."""

QEMU_CONF = """\
stdio_handler = "file"
cgroup_controllers = []
security_driver = "none"
namespaces = []
remember_owner = 0
dynamic_ownership = 0
user = "root"
group = "root"
"""

LIBVIRTD_CONF = """\
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
host_uuid_source = "machine-id"
log_outputs = "3:file:/var/log/libvirt/libvirtd.log"
"""


def mount(*arguments: str) -> None:
    """Run mount(8); CalledProcessError where it refuses."""
    subprocess.run(("mount", "-n", *arguments), check=True)


def mounted_below(directory: str, *, keep: str = "") -> list[str]:
    """The mount points below ``directory`` in this namespace, oldest first; without ``keep`` and what is below it."""
    points = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        point = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), line.split()[4])
        if point.startswith(directory + "/") and not (keep and (point + "/").startswith(keep + "/")):
            points.append(point)
    return points


def detach_below(directory: str, *, keep: str = "") -> None:
    """Detach every mount below ``directory`` in this namespace, but not the one at ``keep`` nor those below it.

    What another lab removes outside goes here too, at any moment: so what counts is what is left. OSError if it stays.
    """
    while points := mounted_below(directory, keep=keep):
        for point in reversed(points):
            subprocess.run(("umount", "-n", "-l", point), check=False, stderr=subprocess.DEVNULL)
        left = mounted_below(directory, keep=keep)
        if len(left) >= len(points):
            raise OSError(f"these mounts cannot be detached: {', '.join(left)}")


def put_devices(kvm: bool) -> None:
    """Mount a private /dev: what QEMU and libvirtd need, and no /dev/tap<ifindex> of another namespace."""
    wanted = dict(CHARACTER_DEVICES)
    for name in ("net/tun", "vhost-net", *(("kvm",) if kvm else ())):
        try:
            number = os.stat(f"/dev/{name}").st_rdev
        except FileNotFoundError:
            continue
        wanted[name] = (os.major(number), os.minor(number))
    mount("-t", "tmpfs", "-o", "mode=0755,nosuid", "dev", "/dev")
    for name in ("net", "pts", "shm"):
        os.mkdir(f"/dev/{name}", 0o755)
    for name, (major, minor) in wanted.items():
        os.mknod(f"/dev/{name}", stat.S_IFCHR | 0o666, os.makedev(major, minor))
        os.chmod(f"/dev/{name}", 0o666 if name in CHARACTER_DEVICES else 0o600)
    mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,mode=0620", "devpts", "/dev/pts")
    mount("-t", "tmpfs", "-o", "mode=1777,nosuid,nodev", "shm", "/dev/shm")
    os.symlink("pts/ptmx", "/dev/ptmx")
    os.symlink("/proc/self/fd", "/dev/fd")
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        os.symlink(f"/proc/self/fd/{number}", f"/dev/{name}")


def start_devices(own: Path) -> None:
    """Start the process that keeps /dev/tapN and the log; it misses nothing from now on when this returns."""
    heard, ready = os.pipe()
    program = Path(__file__).with_name("devices.py")
    words = (sys.executable, "-I", "-S", str(program), str(ready), str(own / "run/lab/log"))
    with open(own / "devices.log", "wb") as log:
        subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(ready,), start_new_session=True
        )
    os.close(ready)
    os.read(heard, 1)  # ends when the other end is closed
    os.close(heard)


def put_overlay(directory: str, own: Path) -> None:
    """Mount a copy-on-write view of ``directory`` over it; the copies lie in ``own``."""
    upper, work = own / "upper", own / "work"
    upper.mkdir(parents=True)
    work.mkdir()
    mount("-t", "overlay", "-o", f"lowerdir={directory},upperdir={upper},workdir={work}", "overlay", directory)


def put_file(path: str, text: str) -> None:
    """Write a file of the node in place of whatever the machine has there, were it a link."""
    Path(path).unlink(missing_ok=True)
    Path(path).write_text(text, encoding="utf-8")


def put_accounts() -> None:
    """Give the node the accounts libvirt was built for; without them its QEMU driver does not start.

    It looks for them before it reads qemu.conf (libvirt, virQEMUDriverConfigNew). Debian's libvirt-daemon-system makes
    them; a machine with only the daemon has none.
    """
    for group in ("kvm", "libvirt-qemu"):
        try:
            grp.getgrnam(group)
        except KeyError:
            with open("/etc/group", "a", encoding="utf-8") as file:
                file.write(f"{group}:x:{64055 if group == 'libvirt-qemu' else 64056}:\n")
    try:
        pwd.getpwnam("libvirt-qemu")
    except KeyError:
        with open("/etc/passwd", "a", encoding="utf-8") as file:
            file.write("libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin\n")


def main(
    own: Path,
    name: str,
    image: Path,
    files: dict[str, str],
    capabilities: Path,
    libvirtd: str,
    kvm: bool,
) -> None:
    """Turn the namespaces this process is in into the node ``name`` that has its things in ``own``; start its libvirtd.

    ``image`` is the directory of the guests' kernel, ``files`` texts to put into the node by path, ``capabilities`` a
    directory of libvirt's saved QEMU probes (it need not exist). Whatever fails leaves the namespaces to the caller.
    """
    socket.sethostname(name)
    (own / "run/lab/image").mkdir(parents=True)
    mount("--bind", "-o", "ro", str(image), str(own / "run/lab/image"))
    saved = own / "cache-libvirt/qemu/capabilities"
    saved.mkdir(parents=True)
    if capabilities.is_dir():
        for file in capabilities.iterdir():
            (saved / file.name).write_bytes(file.read_bytes())
    for directory in ("/etc", "/var"):
        put_overlay(directory, own / directory.strip("/"))
    for directory, ours in LIBVIRT_DIRECTORIES.items():
        (own / ours).mkdir(exist_ok=True)
        os.makedirs(directory, exist_ok=True)
        mount("--bind", str(own / ours), directory)
    put_accounts()
    own_files = {"/etc/libvirt/qemu.conf": QEMU_CONF, "/etc/libvirt/libvirtd.conf": LIBVIRTD_CONF}
    for path, text in (own_files | files).items():
        put_file(path, text)
    put_devices(kvm)
    start_devices(own)
    detach_below("/sys")
    mount("-t", "sysfs", "sysfs", "/sys")
    detach_below("/run", keep=str(own.parent))
    (own / "run/lock").mkdir(exist_ok=True)
    mount("--rbind", str(own / "run"), "/run")
    os.chdir("/")
    subprocess.run((libvirtd, "-d", "-p", "/run/libvirtd.pid"), check=True, stdin=subprocess.DEVNULL)


if __name__ == "__main__":
    words = json.loads(sys.argv[1])
    try:
        main(
            Path(words["own"]),
            words["name"],
            Path(words["image"]),
            words["files"],
            Path(words["capabilities"]),
            words["libvirtd"],
            words["kvm"],
        )
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
