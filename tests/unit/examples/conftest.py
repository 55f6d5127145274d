"""The data that all examples share."""

from tests.support.fixtures import dataset

__all__ = ["dataset"]
