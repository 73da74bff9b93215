"""The verbs that start a program with taps: run, args and exec."""

import os
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from guestnet import apply
from guestnet.errors import ConflictError, GuestnetError, NotFoundError, NotPermittedError, UsageError
from guestnet.kernel import lock, tap
from guestnet.kernel.handover import LastClose
from guestnet.kernel.link import Links
from guestnet.kernel.tap import Tap
from guestnet.kernel.vhost import PATH as VHOST_NET
from guestnet.kernel.vhost import Vhost as VhostFds
from guestnet.machine import machine_id
from guestnet.model import HOST_ALIAS, LinkName, Mode, Request
from guestnet.plan import qemu as plan
from guestnet.plan.host import Host
from guestnet.plan.qemu import Vhost
from guestnet.plan.steps import LinkStep
from guestnet.qemu import nics as making
from guestnet.qemu.nics import Opened, Options
from guestnet.undo import Undo
from guestnet.watcher import start as start_watcher

FIRST_FD = 3
"""The lowest fd that is no standard one (sd_listen_fds(3) begins there too)."""

_PASSED_ON = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
_IGNORED_BY_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)
_PLACEHOLDER = re.compile(r"\{(fd|fds|vhostfd|vhostfds|ifname|mac)([1-9][0-9]{0,3})?(,?)\}")


# run


def run(command: Sequence[str], requests: Sequence[Request], options: Options) -> int:
    """Run a QEMU with these NICs, as a child in our own process group, and take their links away when it has ended.

    Gives its exit status, 128 and the number for a signal. Signals that others send to this process are passed on to
    it; those of the terminal reach it by themselves. Where this process is killed QEMU runs on, and its links go with
    `guestnet gc`; where QEMU goes to the background (-daemonize), a watcher takes them away when that ends.

    Raises NotFoundError where there is no such program, and what making the NICs raises; nothing is left then.
    """
    program = find_program(command[0])
    options = replace(options, guest=options.guest or plan.guest_name(command))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with making.opened(requests, options) as made:
            tell(made, options)
            # until the end: the signal that ends QEMU shall not end the cleaning up
            signal.pthread_sigmask(signal.SIG_BLOCK, (*_PASSED_ON, signal.SIGCHLD))
            if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:  # the kernel would reap it and tell nobody
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            child = _spawn(program, command, made, before)
            made.close_fds()
            status = _wait_for(child)
        _watch_what_is_left(made, options)
    finally:
        while signal.sigtimedwait((*_PASSED_ON, signal.SIGCHLD), 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return status


def tell(made: Opened, options: Options) -> None:
    """Say to the listener of ``options`` what was made."""
    if options.notice is None:
        return
    for text in made.notes:
        options.notice(text)
    for one in made.nics:
        vhost = ", vhost-net" if one.vhost_fds else ""
        options.notice(f"{one.ifname} on {one.plan.parent}, mode {one.plan.mode}, MAC {one.mac}{vhost}")


def find_program(name: str) -> str:
    """The path of a program. Raises NotFoundError."""
    found = shutil.which(name)
    if found is not None:
        return found
    if os.path.dirname(name) and os.path.exists(name):
        raise NotPermittedError(f"{name} cannot be executed", hint=f"is it a program? ls -l {shlex.quote(name)}")
    raise NotFoundError(f"there is no program {name}", hint="is it installed, and in PATH?")


def _spawn(program: str, command: Sequence[str], made: Opened, mask: set[int | signal.Signals]) -> int:
    words = [*command, *(word for nic in made.nics for word in nic.arguments)]
    for nic in made.nics:
        for fd in nic.pass_fds:
            os.set_inheritable(fd, True)
    try:
        return os.posix_spawn(program, words, os.environ, setsigmask=mask, setsigdef=_IGNORED_BY_PYTHON)
    except OSError as error:
        raise not_started(program, error) from error


def not_started(program: str, error: OSError) -> GuestnetError:
    """The error for a program that the kernel does not run."""
    kind = NotPermittedError if isinstance(error, PermissionError) else GuestnetError
    return kind(f"{program} does not start: {error.strerror}", hint="try it by itself")


def _wait_for(child: int) -> int:
    """Pass signals on until the child has ended; its exit status.

    It is not reaped before, so its number is nobody else's.
    """
    while True:
        told = signal.sigwaitinfo((*_PASSED_ON, signal.SIGCHLD))
        if told.si_signo != signal.SIGCHLD:
            # what the terminal sends (SI_KERNEL) it sends to the whole foreground process group, QEMU included
            if told.si_code <= 0:
                os.kill(child, told.si_signo)
            continue
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _watch_what_is_left(made: Opened, options: Options) -> None:
    for link, holders in made.left:
        with suppress(ConflictError):  # it went meanwhile: nothing to watch
            device = tap.device_of(link)
            if device.node() is tap.Node.RIGHT:
                with LastClose.of(device.path) as last_close:
                    start_watcher(last_close, link)
        if options.notice is not None:
            options.notice(f"{link.name} stays while {', '.join(map(str, holders))} has it open")


# args


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What a script puts after its own words for QEMU: the options, and the redirections that open the taps.

    ``steps`` are those taken, or that would be in a dry run; ``delete`` is the command that takes the links away.
    """

    nics: tuple[plan.Nic, ...]
    options: tuple[str, ...]
    redirections: tuple[str, ...]
    last_fd: int
    delete: str
    steps: tuple[LinkStep, ...]
    notes: tuple[str, ...]
    dry_run: bool = False

    @property
    def line(self) -> str:
        """All of it as one line of a shell script."""
        return " ".join((*map(shlex.quote, self.options), *self.redirections))


def arguments(
    requests: Sequence[Request], options: Options, *, first_fd: int = FIRST_FD, dry_run: bool = False
) -> Arguments:
    """Make macvtaps that stay until they are deleted, and give the words a shell script needs to open them for a QEMU.

    The same call again makes nothing and gives the same. Raises ConflictError where one of them is in use.
    """
    plan.check_requests(requests, options.vhost)
    if not dry_run:
        making.need_root("making a NIC")
    with ExitStack() as stack:
        if not dry_run:
            stack.enter_context(lock.held(notice=options.notice))
        links = stack.enter_context(Links())
        there = links.all()
        host = Host(links=there, wireless=links.wireless(there) if os.geteuid() == 0 else frozenset())
        if any(request.mode is Mode.PASSTHRU for request in requests):
            host = replace(host, used_elsewhere=links.used_elsewhere())
        wiring = plan.wire(
            requests, host, guest=options.guest or making.GUEST, machine_id=machine_id(), alias=HOST_ALIAS
        )
        making.check_support(wiring.steps, links)
        for nic in wiring.nics:
            _check_unused(nic, host)
        kernels = [_has_vhost(nic, options.vhost) for nic in wiring.nics]
        if not dry_run:
            with Undo() as undo:
                apply.run(wiring.steps, apply.Doors(links=links, target=links), undo, options.watch)
                paths = [_node(nic) for nic in wiring.nics]
        else:
            paths = [_planned_node(nic, host) for nic in wiring.nics]
    words: list[str] = []
    redirections: list[str] = []
    fd = first_fd
    for nic, path, kernel in zip(wiring.nics, paths, kernels, strict=True):
        fds = range(fd, fd + nic.queues)
        vhost_fds = range(fds.stop, fds.stop + (nic.queues if kernel else 0))
        words += plan.command_line(nic, fds, vhost_fds)
        redirections += [f"{number}<>{path}" for number in fds] + [f"{number}<>{VHOST_NET}" for number in vhost_fds]
        fd = vhost_fds.stop
    return Arguments(
        nics=wiring.nics, options=tuple(words), redirections=tuple(redirections), steps=wiring.steps,
        notes=wiring.notes, dry_run=dry_run, last_fd=fd - 1,
        delete=shlex.join(["guestnet", "macvtap", "delete", *(nic.ifname for nic in wiring.nics)]),
    )  # fmt: skip


def _check_unused(nic: plan.Nic, host: Host) -> None:
    link = host.find(nic.ifname)
    if link is None or os.geteuid() != 0:
        return
    held = tap.held([link]).get(link.index)
    if held:
        raise ConflictError(
            f"{nic.ifname} is there and in use: {held[0]} has it open",
            hint="for another guest give --name, or --mac",
        )


def _node(nic: plan.Nic) -> str:
    """The path by which a shell opens it: a shell cannot look whose node that is."""
    device = tap.device(nic.ifname)
    if device.node() is not tap.Node.RIGHT:
        raise ConflictError(
            f"{device.path} is not the node of {nic.ifname}",
            hint=f"delete it, guestnet macvtap delete {nic.ifname}: it is made again with a node of its own",
        )
    return device.path


def _planned_node(nic: plan.Nic, host: Host) -> str:
    link = host.find(nic.ifname)
    return f"{tap.DEV}/tapN" if link is None else f"{tap.DEV}/tap{link.index}"


def _has_vhost(nic: plan.Nic, vhost: Vhost) -> bool:
    if vhost is Vhost.OFF or not nic.virtio:
        return False
    try:
        VhostFds.open(1).close()
    except (NotFoundError, NotPermittedError, ConflictError):
        if vhost is Vhost.ON:
            raise
        return False
    return True


# exec


def execute(
    ifnames: Sequence[LinkName],
    command: Sequence[str],
    *,
    queues: int = 1,
    vnet_header: bool = True,
    vhost: Vhost = Vhost.OFF,
) -> None:
    """Become that program, with the taps of macvtaps that are there open from fd 3 on, all queues of the first one
    first; after them as many fds of vhost-net, where it is asked for and there.

    In the command ``{fd}``, ``{fds}``, ``{ifname}`` and ``{mac}`` are replaced, see ``filled``. LISTEN_FDS, LISTEN_PID
    and LISTEN_FDNAMES are set as sd_listen_fds(3) has them; fds that the caller passed on in this way are kept, and
    come first. Raises NotFoundError where there is no such program or macvtap, ConflictError where an fd it needs is
    taken, and what opening a tap raises; nothing stays open then.
    """
    program = find_program(command[0])
    # each is two for a moment, when it is moved to its number
    making.check_fd_limit(2 * queues * len(set(ifnames)) * (1 if vhost is Vhost.OFF else 2))
    with ExitStack() as stack:
        taps = [_open(name, queues, vnet_header, stack) for name in dict.fromkeys(ifnames)]
        kernels = [_vhost_fds(queues, vhost, stack) for _ in taps]
        mine = {fd: one.device.ifname for one in taps for fd in one.fds}
        mine |= {fd: f"vhost-{one.device.ifname}" for one, fds in zip(taps, kernels, strict=True) for fd in fds}
        first, names = _listened(os.environ)
        numbers = dict(zip(mine, range(first, first + len(mine)), strict=True))
        passed = [
            Passed(
                ifname=one.device.ifname, mac=one.device.mac, fds=tuple(numbers[fd] for fd in one.fds),
                vhost_fds=tuple(numbers[fd] for fd in kernel),
            )
            for one, kernel in zip(taps, kernels, strict=True)
        ]  # fmt: skip
        words = filled(command, passed)
        taken = [number for number in numbers.values() if _is_inherited(number)]
        if taken:
            raise ConflictError(
                f"fd {taken[0]} is open already, and the program would lose it",
                hint=f"close it for this command ({taken[0]}>&-), or pass it by LISTEN_FDS",
            )
        environment = {
            **os.environ, "LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(first + len(mine) - FIRST_FD),
            "LISTEN_FDNAMES": ":".join([*names, *mine.values()]),
        }  # fmt: skip
        # by way of numbers past all that are in use, so that none is overwritten before it is moved
        above = max(*numbers.values(), *map(int, os.listdir("/proc/self/fd"))) + 1
        copies = [(os.dup2(fd, above + place, inheritable=False), fd) for place, fd in enumerate(numbers)]
        for copy, fd in copies:
            os.dup2(copy, numbers[fd], inheritable=True)
        for caught in _IGNORED_BY_PYTHON:
            signal.signal(caught, signal.SIG_DFL)
        try:
            os.execve(program, words, environment)
        except OSError as error:
            raise not_started(program, error) from error


def _open(name: LinkName, queues: int, vnet_header: bool, stack: ExitStack) -> Tap:
    try:
        return stack.enter_context(Tap.open(name, queues=queues, vnet_header=vnet_header))
    except NotPermittedError as error:
        error.hint = "run this with sudo, or have an administrator give you the node by a udev rule, see docs/qemu.md"
        raise


def _vhost_fds(queues: int, vhost: Vhost, stack: ExitStack) -> tuple[int, ...]:
    if vhost is Vhost.OFF:
        return ()
    try:
        return stack.enter_context(VhostFds.open(queues)).fds
    except (NotFoundError, NotPermittedError, ConflictError):
        if vhost is Vhost.ON:
            raise
        return ()


def _listened(environment: Mapping[str, str]) -> tuple[int, list[str]]:
    """The first fd that is free after those the caller passed on as sd_listen_fds(3) has it, and their names."""
    count = environment.get("LISTEN_FDS", "")
    if environment.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return FIRST_FD, []
    names = environment.get("LISTEN_FDNAMES", "").split(":")
    return FIRST_FD + int(count), [*names, *["unknown"] * int(count)][: int(count)]


def _is_inherited(fd: int) -> bool:
    """Whether the caller gave it to us: Python opens its own close-on-exec."""
    try:
        return os.get_inheritable(fd)
    except OSError:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Passed:
    """What a program is passed of one macvtap, by the numbers it will have."""

    ifname: str
    mac: str
    fds: tuple[int, ...]
    vhost_fds: tuple[int, ...] = ()


def filled(command: Sequence[str], taps: Sequence[Passed]) -> list[str]:
    """The command with its placeholders replaced.

    ``{fd}`` is the fd of the first queue, ``{fds}`` are all with colons between them (``{fds,}`` with commas),
    ``{vhostfd}`` and ``{vhostfds}`` those of vhost-net, ``{ifname}`` and ``{mac}`` the name and the address: of the
    first macvtap, or of the second as ``{fd2}``, ``{fds2}``, and so on. All else in braces is left as it is. Raises
    UsageError for a number that no macvtap has, and for vhost-net where it is not open.
    """

    def word(match: re.Match[str]) -> str:
        what, number, comma = match.groups()
        if comma and not what.endswith("fds"):
            return match[0]
        at = int(number or 1)
        if at > len(taps):
            raise UsageError(f"{match[0]} is for macvtap number {at}, and {len(taps)} are named")
        tap = taps[at - 1]
        if what in ("ifname", "mac"):
            return tap.ifname if what == "ifname" else tap.mac
        fds = tap.vhost_fds if what.startswith("vhost") else tap.fds
        if not fds:
            raise UsageError(f"{match[0]} is for vhost-net, which is not open", hint="--vhost on")
        return (comma or ":").join(map(str, fds if what.endswith("fds") else fds[:1]))

    return [_PLACEHOLDER.sub(word, text) for text in command]
