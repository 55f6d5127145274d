"""The trained example, its archive, and folders for other archives."""

from tests.support.fixtures import dataset, movielens_archive, store, trained, workspace

__all__ = ["dataset", "movielens_archive", "store", "trained", "workspace"]
