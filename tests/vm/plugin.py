"""Tests that name what they need of the kernel run where the kernel has it: here, or all together in one machine.

`@pytest.mark.kernel("8021q", "dummy")` on a test. Where the running kernel has all of it, nothing is different. Where
something is missing, the tests that miss it are run by a second pytest in the test machine, and what it reports is
logged here, each test by itself, as it comes. `@pytest.mark.kernel_without("8021q")` is for the contrary: where the
kernel has it, the test is run in the machine, which withholds the module meanwhile.

A machine that dies or hangs is started once more, for the tests that it owes, and that is said: the processor that QEMU
emulates does not always bear guests of its own.
"""

import json
import os
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from guestnet.errors import GuestnetError
from guestnet.lab.image import image
from tests.vm import features
from tests.vm.machine import REPO, Machine, MachineDiedError, Stream, prepare

TIMEOUT = 900.0
SILENCE = 150.0
_OUTPUT_BYTES = 16_384


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("test machine")
    group.addoption(
        "--machine-timeout", metavar="SECONDS", type=float, default=TIMEOUT,
        help=f"end the test machine after this time ({TIMEOUT:g})",
    )  # fmt: skip
    group.addoption(
        "--machine-silence", metavar="SECONDS", type=float, default=SILENCE,
        help=f"end the test machine when no test begins or ends in it for this time ({SILENCE:g})",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "kernel(feature, ...): needs these of the kernel, and runs where they are")
    config.addinivalue_line("markers", "kernel_without(module, ...): runs on a kernel without these, or withholds them")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.pluginmanager.hasplugin("tests.vm.inside"):
        return
    there = [item for item in items if _belongs_there(item)]
    if there:
        items[:] = [item for item in items if item not in set(there)] + there
        config.pluginmanager.register(Elsewhere(config, {item.nodeid for item in there}), "guestnet-machine")


def _belongs_there(item: pytest.Item) -> bool:
    if os.geteuid() != 0:
        return False  # it is skipped for that
    return bool(features.missing(features.of(item))) or any(map(features.has, features.withheld_by(item)))


class Elsewhere:
    """The tests of this run that are run in the machine, which is started with the first of them."""

    def __init__(self, config: pytest.Config, ids: set[str]) -> None:
        self._config = config
        self._ids = ids
        self._held = ExitStack()
        self._items: list[pytest.Item] = []
        self._machine: Machine | None = None
        self._again = False
        """Whether this is the second machine."""
        self._over = ""
        """Why there is nothing more to come from the machine, once that is so."""
        self._lines = b""
        self._waiting: dict[str, deque[dict[str, Any]]] = {}
        self._done: set[str] = set()
        self._output = {Stream.OUT: b"", Stream.ERR: b""}
        self._deadline = 0.0

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        if item.nodeid not in self._ids:
            return None
        if self._machine is None and not self._over:
            self._start([one for one in item.session.items if one.nodeid in self._ids])
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self) -> None:
        self._held.close()

    def _start(self, items: list[pytest.Item]) -> None:
        """Boot the machine for these tests; where it cannot be, ``_over`` says why."""
        self._items = items
        try:
            image(self._say)  # no network in there: a lab finds its image in the cache
            self._machine = self._held.enter_context(
                Machine(
                    prepare(self._say),
                    [sys.executable, "-m", "pytest", *self._words(items)],
                    directory=self._config.invocation_params.dir,
                    kept=[self._config.rootpath],
                    files={"items": json.dumps([item.nodeid for item in items]).encode()},
                    more={"PYTHONPATH": str(REPO)},
                )
            )
        except (GuestnetError, OSError) as error:
            hint = f" ({error.hint})" if isinstance(error, GuestnetError) and error.hint else ""
            self._over = f"the test machine cannot be made: {error}{hint}"
        self._deadline = time.monotonic() + self._config.option.machine_timeout

    def _words(self, items: list[pytest.Item]) -> Iterator[str]:
        """The inner pytest's command line: what of ours changes how a test runs or how its failure is shown."""
        option = self._config.option
        yield from ("-p", "tests.vm.inside", "-p", "no:cacheprovider", "--color=no")
        for plugin in option.plugins:
            yield from ("-p", plugin)
        yield f"--rootdir={self._config.rootpath}"
        if self._config.inipath is not None:
            yield from ("-c", str(self._config.inipath))
        for line in option.override_ini or ():
            yield from ("-o", line)
        # a test that hangs shows where, before it is taken for silent
        yield from ("-o", f"faulthandler_timeout={option.machine_silence * 0.8:g}")
        yield from ("--tb", option.tbstyle, f"--capture={option.capture}", f"--import-mode={option.importmode}")
        yield from ["-v"] * max(0, option.verbose)
        for word, wanted in (("-l", option.showlocals), ("--runxfail", option.runxfail)):
            if wanted:
                yield word
        for line in option.pythonwarnings or ():
            yield from ("-W", line)
        yield from dict.fromkeys(str(item.path) for item in items)

    def _say(self, line: str) -> None:
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.write_line(f"test machine: {line}")

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """The reports of one test as they come; a failed one where the machine has none."""
        heard = time.monotonic()
        while True:
            waiting = self._waiting.setdefault(item.nodeid, deque())
            while waiting:
                message = waiting.popleft()
                if "end" in message:
                    return
                yield _report(self._config, message["report"])
            if self._over:
                yield self._lost(item)
                return
            heard = self._listen(heard)

    def _listen(self, heard: float) -> float:
        """Take what comes next from the machine; gives the time at which a test was last heard of."""
        assert self._machine is not None
        option = self._config.option
        limit = min(self._deadline, heard + option.machine_silence)
        try:
            pieces = self._machine.read(max(0.0, limit - time.monotonic()))
        except MachineDiedError:
            return self._lose("the machine died", heard)
        for stream, data in pieces:
            if stream is Stream.REPORTS:
                heard = time.monotonic()
                self._take(data)
            else:
                self._output[stream] = (self._output[stream] + data)[-_OUTPUT_BYTES:]
                if option.capture == "no":
                    (sys.stdout if stream is Stream.OUT else sys.stderr).write(data.decode(errors="replace"))
        if self._machine.status is not None:
            self._finish(f"pytest in the machine ended with status {self._machine.status}")
        elif time.monotonic() >= self._deadline:
            self._finish(f"the machine was ended after {option.machine_timeout:g} s")
        elif time.monotonic() >= heard + option.machine_silence:
            return self._lose(f"the machine was ended after {option.machine_silence:g} s without a report", heard)
        return heard

    def _lose(self, why: str, heard: float) -> float:
        """End the machine; the first one is followed by another that runs what is owed."""
        self._finish(why)
        if self._again:
            return heard
        owed = [item for item in self._items if item.nodeid not in self._done]
        self._say(f"it is started once more, for {len(owed)} tests; {self._over}")
        self._again, self._over, self._lines = True, "", b""
        for item in owed:
            self._waiting.pop(item.nodeid, None)
        self._output = dict.fromkeys(self._output, b"")
        self._start(owed)
        return time.monotonic()

    def _take(self, data: bytes) -> None:
        *lines, self._lines = (self._lines + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "error" in message:
                self._output[Stream.ERR] += f"{message['error']}\n".encode()
            else:
                self._waiting.setdefault(message["test"], deque()).append(message)
                if "end" in message:
                    self._done.add(message["test"])

    def _finish(self, why: str) -> None:
        """End the machine and keep what it said last."""
        assert self._machine is not None
        parts = [why]
        for title, text in (
            ("console", self._machine.console()),
            *((stream, data.decode(errors="replace")) for stream, data in self._output.items()),
        ):
            if text.strip():
                parts.append(f"-- the end of its {title}:\n{text.rstrip()}")
        self._over = "\n".join(parts)
        self._held.close()

    def _lost(self, item: pytest.Item) -> pytest.TestReport:
        """A failed report for a test that the machine owes; the first says all, the others only that there is one."""
        text = f"{item.nodeid} was not reported from the test machine: {self._over}"
        first, *more = self._over.splitlines()
        if more:
            self._over = f"{first}, as the first of these failures shows"
        return pytest.TestReport(
            nodeid=item.nodeid, location=item.location, keywords=dict.fromkeys(item.keywords, 1),
            outcome="failed", longrepr=text, when="call",
        )  # fmt: skip


def _report(config: pytest.Config, data: dict[str, Any]) -> pytest.TestReport:
    """The report again; JSON made lists of its tuples."""
    data["location"] = tuple(data["location"])
    data["sections"] = [tuple(section) for section in data["sections"]]
    if isinstance(data["longrepr"], list):
        data["longrepr"] = tuple(data["longrepr"])
    report: pytest.TestReport = config.hook.pytest_report_from_serializable(config=config, data=data)
    return report
