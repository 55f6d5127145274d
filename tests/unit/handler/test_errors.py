"""The tree of errors, as its file draws it, and the sentence that a request's error makes."""

import copy
import pickle
import re
from collections.abc import Mapping

import pytest

from torchrec_handler import errors

DRAWN = re.compile(r"^(?P<lead>[│├└─ ]*)(?P<name>[A-Z]\w+)")


def _drawn() -> list[tuple[str, str | None]]:
    """(error, its base) as the docstring of `errors` draws them."""
    found: list[tuple[str, str | None]] = []
    above: dict[int, str] = {}
    for line in str(errors.__doc__).splitlines()[2:]:
        match = DRAWN.match(line)
        assert match, line
        depth = len(match["lead"]) // 4
        above[depth] = match["name"]
        found.append((match["name"], above.get(depth - 1)))
    return found


def _real() -> list[tuple[str, str | None]]:
    return [
        (
            found.__name__,
            None if found is errors.TorchRecServeError else found.__bases__[0].__name__,
        )
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, Exception)
    ]


def test_the_tree_is_drawn_as_it_is() -> None:
    assert _drawn() == _real()


@pytest.mark.parametrize(
    ("parts", "sentence"),
    [
        ({"said": "why"}, "why"),
        ({"where": "ids[3]", "received": "-1", "expected": "0"}, "ids[3]: received -1, expected 0"),
        ({"received": "3 rows", "expected": "at most 2"}, "received 3 rows, expected at most 2"),
        ({"said": "missing", "where": "ids", "received": "x"}, "ids: missing, received x"),
        ({"said": "too late", "hint": "try again"}, "too late; try again"),
        (
            {"where": "a", "received": "b", "expected": "c", "hint": "d"},
            "a: received b, expected c; d",
        ),
    ],
)
def test_a_request_error_is_data_and_says_all_of_it(
    parts: Mapping[str, str], sentence: str
) -> None:
    raised = errors.InvalidRequest(**parts)
    for error in (raised, copy.copy(raised), pickle.loads(pickle.dumps(raised))):
        assert str(error) == sentence
        assert error.type == "InvalidRequest"
        for name in ("said", "where", "received", "expected", "hint"):
            assert getattr(error, name) == parts.get(name)


def test_any_error_may_have_a_hint_that_its_text_ends_with() -> None:
    raised = errors.BuildError("no such folder", hint="make it first")
    for error in (raised, copy.copy(raised), pickle.loads(pickle.dumps(raised))):
        assert (error.sentence, error.hint) == ("no such folder", "make it first")
        assert str(error) == "no such folder; make it first"
    assert (str(errors.LoadError("no")), errors.LoadError("no").hint) == ("no", None)


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
