"""The tree of errors: as its file draws it, each with the HTTP status it answers with."""

import re

import pytest

from torchrec_handler import errors

DRAWN = re.compile(r"^(?P<lead>[│├└─ ]*)(?P<name>[A-Z]\w+)(?: +(?P<status>\d{3}))?")


def _drawn() -> list[tuple[str, str | None, int | None]]:
    """(error, its base, its status) as the docstring of `errors` draws them."""
    found: list[tuple[str, str | None, int | None]] = []
    above: dict[int, str] = {}
    for line in str(errors.__doc__).splitlines()[2:]:
        match = DRAWN.match(line)
        assert match, line
        depth = len(match["lead"]) // 4
        above[depth] = match["name"]
        status = int(match["status"]) if match["status"] else None
        found.append((match["name"], above.get(depth - 1), status))
    return found


def _real() -> list[tuple[str, str | None, int | None]]:
    return [
        (
            found.__name__,
            None if found is errors.TorchRecServeError else found.__bases__[0].__name__,
            found.status
            if issubclass(found, errors.RequestError) and found is not errors.RequestError
            else None,
        )
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ]


def test_the_tree_is_drawn_as_it_is() -> None:
    assert _drawn() == _real()


@pytest.mark.parametrize(
    ("error", "status", "phrase"),
    [
        (errors.InvalidRequest, 400, "Bad Request"),
        (errors.UnknownQualname, 404, "Not Found"),
        (errors.RequestTooLarge, 413, "Request Entity Too Large"),
        (errors.UnsupportedMediaType, 415, "Unsupported Media Type"),
        (errors.PredictError, 500, "Internal Server Error"),
        (errors.Overloaded, 503, "Service Unavailable"),
        (errors.OutOfMemory, 507, "Insufficient Storage"),
    ],
)
def test_request_errors_have_a_status_and_their_name_as_type(
    error: type[errors.RequestError], status: int, phrase: str
) -> None:
    raised = error("why")
    assert (raised.status, raised.phrase, raised.type) == (status, phrase, error.__name__)
    assert str(raised) == "why"


def test_loading_errors_are_runtime_errors() -> None:
    """TorchServe ends the worker without an answer on any other exception."""
    for found in (
        errors.ArchiveError,
        errors.OptionError,
        errors.FactoryError,
        errors.WeightsError,
    ):
        assert issubclass(found, RuntimeError)
    assert not issubclass(errors.BuildError, RuntimeError)
    assert not issubclass(errors.RequestError, RuntimeError)
