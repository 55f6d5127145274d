"""Nothing but the test's own builds writes to a model store."""

from tests.support.fixtures import store, workspace

__all__ = ["store", "workspace"]
