"""A pytest plugin (`-p bench.report`) that appends one JSON line per test to $LOUPE_REPORT as it ends.

So a run that is cut off has told already what it found: each test's outcome and seconds, and a failure's error.
"""

import json
import os

import pytest


class Report:
    def __init__(self, config: pytest.Config) -> None:
        self.config = config

    def line(self, report: pytest.CollectReport | pytest.TestReport) -> None:
        line: dict[str, object] = {"test": report.nodeid, "outcome": report.outcome}
        line["seconds"] = round(getattr(report, "duration", 0), 3)
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            line["error"] = (crash.message if crash else str(report.longrepr))[-2000:]
            terminal = self.config.pluginmanager.get_plugin("terminalreporter")
            terminal.write_line(f"\nFAILED {report.nodeid}: {' '.join(str(line['error']).split())[:300]}", flush=True)
        with open(os.environ["LOUPE_REPORT"], "a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            self.line(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.line(report)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # with xdist, its controller hears of every test
        config.pluginmanager.register(Report(config))
