"""Nothing but the test's own builds writes to a model store."""

from tests.support.fixtures import short_folder, store, workspace

__all__ = ["short_folder", "store", "workspace"]
