"""MovieLens-100k as arrays, from the files in the `recbole` wheel.

The licence of the data forbids keeping it here; the wheel saves a download at run time.
Shapes: B ratings, U users, M movies, G ids of genres. Arrays of U and M are indexed by id; ids
start at 1, so row 0 of these is unused.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CLICK_RATING = 4


class DatasetMissingError(RuntimeError):
    """The wheel that holds MovieLens-100k is not installed."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ratings:
    """Ratings, by user and then by time."""

    user: NDArray[np.int64]
    """[B]."""

    movie: NDArray[np.int64]
    """[B]."""

    rating: NDArray[np.int64]
    """[B], 1 to 5."""

    timestamp: NDArray[np.int64]
    """[B], seconds since 1970, UTC."""

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> Ratings:
        """Return the ratings at `index`, in its order."""
        return Ratings(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    @property
    def click(self) -> NDArray[np.bool_]:
        """[B], what the model predicts."""
        return self.rating >= CLICK_RATING


@dataclass(frozen=True, kw_only=True, eq=False)
class Catalogue:
    """What is known of users and movies apart from the ratings."""

    age: NDArray[np.int64]
    """[U], years."""

    gender: NDArray[np.int64]
    """[U]."""

    occupation: NDArray[np.int64]
    """[U]."""

    release_year: NDArray[np.int64]
    """[M], the median where the file has none."""

    genre_lengths: NDArray[np.int64]
    """[M], none to six; a movie of genre `unknown` has none."""

    genre_values: NDArray[np.int32]
    """[G], the genres of movie 1, then those of movie 2, and so on."""

    titles: dict[int, str]


def read_ratings() -> Ratings:
    """Read all ratings.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    table = np.loadtxt(_folder() / "ml-100k.inter", delimiter="\t", skiprows=1, dtype=np.int64)
    user, movie, rating, timestamp = table[np.lexsort((table[:, 3], table[:, 0]))].T
    return Ratings(user=user, movie=movie, rating=rating, timestamp=timestamp)


def read_catalogue() -> Catalogue:
    """Read all users and movies.

    Raises:
        DatasetMissingError: when the `recbole` wheel is not installed.
    """
    folder = _folder()
    user, age, gender, occupation, _ = _read_text(folder / "ml-100k.user").T
    movie, title, year, genre = _read_text(folder / "ml-100k.item").T
    user_ids, movie_ids = user.astype(np.int64), movie.astype(np.int64)
    if not np.array_equal(movie_ids, np.arange(1, len(movie_ids) + 1)):
        msg = f"{folder / 'ml-100k.item'}: expected the movies 1, 2, 3, … in this order"
        raise ValueError(msg)

    has_year = np.char.isdigit(year)
    years = np.empty(len(year), dtype=np.int64)
    years[has_year] = year[has_year].astype(np.int64)
    years[~has_year] = np.median(years[has_year])

    genres = [[name for name in names.split() if name != "unknown"] for names in genre.tolist()]
    return Catalogue(
        age=_by_id(user_ids, age.astype(np.int64)),
        gender=_by_id(user_ids, np.unique(gender, return_inverse=True)[1]),
        occupation=_by_id(user_ids, np.unique(occupation, return_inverse=True)[1]),
        release_year=_by_id(movie_ids, years),
        genre_lengths=_by_id(movie_ids, np.array([len(names) for names in genres])),
        genre_values=np.unique(np.concatenate(genres), return_inverse=True)[1].astype(np.int32),
        titles=dict(zip(movie_ids.tolist(), title.tolist(), strict=True)),
    )


def _folder() -> Path:
    spec = importlib.util.find_spec("recbole")
    places = (spec.submodule_search_locations or []) if spec else []
    for place in places:
        folder = Path(place, "dataset_example", "ml-100k")
        if folder.is_dir():
            return folder
    msg = (
        "MovieLens-100k is not installed; this example reads it from the recbole wheel: "
        "run `pip install --no-deps recbole==1.2.1`"
    )
    raise DatasetMissingError(msg)


def _read_text(path: Path) -> NDArray[np.str_]:
    return np.loadtxt(
        path, delimiter="\t", skiprows=1, dtype=np.str_, encoding="utf-8", comments=None
    )


def _by_id(ids: NDArray[np.int64], column: NDArray[np.int64]) -> NDArray[np.int64]:
    indexed = np.zeros(ids.max() + 1, dtype=np.int64)
    indexed[ids] = column
    return indexed
