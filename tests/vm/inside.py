"""The inner pytest's side of tests.vm.plugin: runs exactly the tests it was given and tells of each as it goes."""

import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from tests.vm import features
from tests.vm.machine import REPORTS_PATH


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Teller(config), "guestnet-teller")


class Teller:
    """Writes one line of JSON for each thing that happens, to the machine's port for it."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        # unbuffered: what is written is out, whatever becomes of the machine
        self._port = open(REPORTS_PATH, "wb", buffering=0)  # noqa: SIM115 - closed when the machine ends

    def _tell(self, **message: Any) -> None:
        line = json.dumps(message, default=repr).encode() + b"\n"
        while line:
            line = line[self._port.write(line) :]

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        wanted: list[str] = json.loads(Path("/run/machine/items").read_bytes())
        found = {item.nodeid: item for item in items}
        for missing in (one for one in wanted if one not in found):
            self._tell(error=f"{missing} is not found in the machine")
        items[:] = [found[one] for one in wanted if one in found]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        with features.withheld(features.withheld_by(item)):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if lacking := features.missing(features.of(item)):
            pytest.fail(f"the test machine's kernel has no {', '.join(lacking)} either", pytrace=False)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._tell(test=report.nodeid, report=data)

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._tell(test=nodeid, end=True)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(error=f"{report.nodeid} cannot be collected:\n{report.longreprtext}")

    def pytest_internalerror(self, excrepr: object) -> None:
        self._tell(error=str(excrepr))
