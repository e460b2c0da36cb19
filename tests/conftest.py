"""What holds for all tests: with --no-skips a test that skips itself fails, unless it needs a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="skipped tests fail, but those marked gpu")


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Turn a skip into a failure that quotes its reason."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.skipped and item.config.getoption("--no-skips") and item.get_closest_marker("gpu") is None:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"a test skips itself, which --no-skips forbids: {reason}"
