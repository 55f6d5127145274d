"""What makes this the quick tier: a test here fails when it takes long."""

import os
from collections.abc import Generator, Iterator

import pytest

from tests.support.exact import EXAMPLES

LIMIT = 4.0
"""Seconds of processor time, its children's included: on a busy machine a clock tells nothing.
Twice what a test should take at most, as processors differ."""

OF_PROPERTIES = LIMIT * max(1, EXAMPLES / 100)
"""Of a test that is tried on many examples."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fixtures and imports apart."""
    limit = OF_PROPERTIES if item.get_closest_marker("hypothesis") else LIMIT
    before = _seconds()
    yield
    spent = _seconds() - before
    if spent > limit:
        said = f"took {spent:.1f} s of processor time, tests/unit allows {limit:.0f} s"
        pytest.fail(f"{said}: make it smaller, or move it to tests/whole", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a test logged may be no text, which a process of xdist cannot send to the other."""
    report = yield
    report.sections = [
        (name, text.encode("utf-8", "backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def _seconds() -> float:
    return sum(os.times()[:4])
