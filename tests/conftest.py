"""For all tests: seeds give the same streams in any order; with --no-skips a test that skips itself fails."""

import collections
import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from openmm_diffusion.mcmc import streams


@pytest.fixture(autouse=True)
def streams_do_not_depend_on_the_tests_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-th move with a seed has the same stream whatever was tested before."""
    monkeypatch.setattr(streams, "_copies", collections.defaultdict(itertools.count))


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
