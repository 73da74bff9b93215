"""guestnet hook: what libvirt calls when a guest starts and stops."""

from typing import TYPE_CHECKING

import typer

from guestnet import report
from guestnet.cli import options

if TYPE_CHECKING:
    from guestnet.launcher import Status

hook_app = typer.Typer(
    rich_markup_mode=None, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True
)

_STATES = {
    "current": "installed",
    "outdated": "installed, of another guestnet or another Python: guestnet hook install renews it",
    "missing": "not installed: guestnet hook install puts it there",
    "foreign": "is there and is not guestnet's",
    "uncalled": "installed, but libvirt before 6.5 calls hooks/qemu alone, which does not call it",
}


@hook_app.callback()
def _hook() -> None:
    """What makes the links of guests when they start, and takes them away when they stop: libvirt's hook."""


@hook_app.command()
def install(json: options.Json = False) -> None:
    """Install the hook, with the Python that runs now, and let libvirt look for it: no restart."""
    from guestnet import launcher

    before = launcher.status()
    with report.progress("waiting for libvirt to look for it", json_wanted=json):
        launcher.install()
        told = launcher.tell()
    now = launcher.status()
    changed = before.state != now.state or bool(told)
    if json:
        report.as_json({"changed": changed, **report.object_of(now)})
        return
    if not changed:
        report.told(f"{now.path}: unchanged, it is so already")
        return
    report.told(f"{now.path}: installed")
    for daemon in told:
        report.told(f"  {daemon.program} (process {daemon.pid}) has looked for it")
    if now.exposed:
        report.told(f"note: {_exposed(now)}")


@hook_app.command()
def uninstall(json: options.Json = False) -> None:
    """Take the hook away. Guests that run keep their links."""
    from guestnet import launcher

    before = launcher.status()
    changed = launcher.uninstall()
    if json:
        report.as_json({"changed": changed, **report.object_of(launcher.status())})
        return
    report.told(f"{before.path}: {'taken away' if changed else 'unchanged, it is not installed'}")


@hook_app.command()
def status(json: options.Json = False) -> None:
    """Show whether the hook is installed, whether it works, and whether libvirt knows of it."""
    from guestnet import launcher

    now = launcher.status()
    version = launcher.version()
    if json:
        directories = launcher.takes_directories(version)
        report.as_json({**report.object_of(now), "ready": now.ready, "libvirt": version, "directories": directories})
        return
    report.line(f"{now.path}: {_STATES[now.state]}")
    for name, value in _facts(now, version):
        report.line(f"  {name:<12} {value}")


def _exposed(now: "Status") -> str:
    return f"libvirt runs this as root, and others than root may change {now.exposed}"


def _facts(now: "Status", version: str) -> list[tuple[str, str]]:
    facts = []
    if now.python:
        facts.append(("Python", now.python + ("" if now.python_there else ", which is gone: guestnet hook install")))
    if now.exposed:
        facts.append(("note", _exposed(now)))
    facts.append(("libvirt", version or "not found"))
    if now.state in ("current", "outdated"):
        untold = "has not looked for it: guestnet hook install"
        facts += [
            (daemon.program, f"process {daemon.pid}, {'knows of it' if daemon.told else untold}")
            for daemon in now.daemons
        ]
    return facts + [("also called", path) for path in now.others]
