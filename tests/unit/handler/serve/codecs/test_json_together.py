"""Bodies that are read together hold what each of them holds alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import DENSE, INPUTS, Exact, examples, predictor
from tests.support.one_request import COLUMNS, JSON, codecs, raw
from torchrec_handler.errors import RequestError
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.codecs.choose import Codecs
from torchrec_handler.serve.codecs.json_together import LONGEST, MOST
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import Columns, RawRequest

HOLE = "#"
"""Where a template has a number."""
NAMES = ["float_features", "id_list_features.lengths", "id_list_features.values"]
NUMBERS = st.sampled_from(
    ["1", "0", "-2", "7.5", "1e2", "9223372036854775807", "9223372036854775808", "1e999"]
)
BAD_NUMBERS = st.sampled_from(["", " ", "-", "1,2", "1 2", "01", "1,", ",1", "e", ".", "1\n"])
PIECES = st.sampled_from(
    ["[", "]", "{", "}", ",", ":", '"', "\\", HOLE, " ", "\t", "\x0b", "null", "true", "é", '"a":']
)
TEXTS = st.sampled_from(["[[#,#,#]]", "[#,#,#]", "[]", "[#]", "[[#],[#]]", "[[[#,#]]]", "[[]]"])


@st.composite
def templates(draw: st.DrawFn) -> str:
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (",", " : ")]))
    names = st.sampled_from([*NAMES, "embedding_features", "batch_size", "x"])
    arrays = draw(st.lists(st.tuples(names, TEXTS), max_size=4))
    return "{" + comma.join(f'"{name}"{colon}{text}' for name, text in arrays) + "}"


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """Some that differ in numbers, all with the same faults, and each with some of its own."""
    template = draw(templates())
    for piece in draw(st.lists(PIECES, max_size=2)):
        at = draw(st.integers(0, len(template)))
        template = template[:at] + piece + template[at + draw(st.integers(0, 1)) :]
    numbers = NUMBERS if draw(st.booleans()) else NUMBERS | BAD_NUMBERS

    def body() -> bytes:
        first, *rest = template.split(HOLE)
        return "".join([first, *(draw(numbers) + text for text in rest)]).encode()

    return [body() for _ in range(draw(st.integers(1, 4)))]


def shown(columns: Columns) -> Any:
    arrays = {name: (a.dtype, a.shape, a.tolist()) for name, a in columns.arrays.items()}
    return list(arrays), arrays, dict(columns.shared), columns.batch_size


def together(read: Codecs, given: Sequence[bytes]) -> list[tuple[list[int], list[Columns] | None]]:
    """Each group, and what it holds; nothing where it cannot be read together."""
    requests = [raw(body) for body in given]
    found: list[tuple[list[int], list[Columns] | None]] = []
    for positions in read.group(requests):
        if len(positions) == 1:
            found.append((positions, None))
            continue
        try:
            decoded = read.decode_together([requests[at] for at in positions])
        except RequestError:
            found.append((positions, None))
        else:
            found.append((positions, decoded.each()))
    return found


@examples(2.0)
@given(bodies())
def test_any_bodies(given: list[bytes]) -> None:
    read = codecs()
    groups = together(read, given)
    assert sorted(at for positions, _ in groups for at in positions) == list(range(len(given)))
    for positions, columns in groups:
        if columns is not None:
            alone = [read.decode(raw(given[at]))[0] for at in positions]
            assert list(map(shown, columns)) == list(map(shown, alone))


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", "\t:")])
def test_good_ones_are_read_together(separators: tuple[str, str]) -> None:
    """Every kind of array, of lists as many as each body has, of numbers any."""
    documents = [
        COLUMNS,
        {**COLUMNS, "float_features": [[-1, 0, 2e9], [1, 1, 1]], "id_list_features.values": []},
        {**COLUMNS, "id_list_features.values": [2**62 + 1]},
    ]
    bodies = [json.dumps(one, separators=separators).encode() for one in documents]
    ((positions, columns),) = together(codecs(), bodies)
    assert positions == [0, 1, 2]
    assert columns is not None
    alone = [codecs().decode(raw(body))[0] for body in bodies]
    assert list(map(shown, columns)) == list(map(shown, alone))


@pytest.mark.parametrize(
    "texts",
    [
        ("[1", "2]"),
        ("[1,", "2]"),
        ("[1", ",2]"),
        ("[1],[2", "3]"),
        ("[1],2", "[3"),
        ("[[1]", "[2]]"),
        ("[1,]", "[2]"),
        ("[1]2,", "[,3]"),
    ],
)
def test_bodies_that_make_up_for_one_another_are_not_mixed(texts: tuple[str, str]) -> None:
    given = [f'{{"float_features":{text}}}'.encode() for text in texts]
    assert together(codecs(), given)[0][1] is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x08\x01",
        b'{"a',
        b'{"float_features":[[1,2,3]],"a"}',
        b'{"float_features":[[1,2,3]]\0}',
        b'{"float_features":[[1,2,3]],"batch_size":2}',
        b'{"instances":[]}',
        b'{"float\\u005ffeatures": [[1,2,3]]}',
        b'{"float_features": [[1, 2, 3]]}' + b" " * LONGEST,
    ],
)
def test_what_is_not_read_together(body: bytes) -> None:
    groups = together(codecs(), [body] * 2)
    assert all(len(positions) == 1 or columns is None for positions, columns in groups)


def test_a_group_has_one_format_one_method_and_so_many_bodies() -> None:
    body = b'{"float_features":[[1,2,3]]}'
    requests = [raw(body)] * (MOST + 1)
    requests += [raw(body, "text/json"), raw(body, accept="text/json")]
    requests += [RawRequest(body=body, content_type=JSON, qualname="other")]
    requests += [RawRequest(body=body, content_type=JSON, content_encoding="gzip")]
    sizes = [len(positions) for positions in codecs().group(requests)]
    assert sizes == [1, MOST, 1, 1, 1, 1]


def test_more_than_a_request_may_hold_is_read_alone() -> None:
    """Limits are of a request, and of what is put together none."""
    served = predictor(Exact((DENSE,), "dict_of_tensor"), DENSE)
    engine = Engine("ranking", served, Options(limits=Limits(rows_per_request=2)))
    good = b'{"float_features":[[1,2,3]]}'
    assert [one.status for one in ask(engine, [raw(good)] * 5)] == [200] * 5
    bad = b'{"float_features":[[1,2,3],[1,2,3],[1,2,3]]}'
    assert [one.status for one in ask(engine, [raw(bad), raw(good)] * 3)] == [413, 200] * 3


def test_a_bad_body_is_told_of_its_own_fault() -> None:
    served = predictor(Exact(INPUTS, "dict_of_tensor"), *INPUTS)
    engine = Engine("ranking", served, Options())
    documents: list[Any] = [COLUMNS] * 4
    documents[1] = {**COLUMNS, "id_list_features.values": [1.5]}
    documents[2] = {**COLUMNS, "id_list_features.values": [1, 2, 3, 4, 5, 6, 10**6]}
    requests = [raw(json.dumps(one).encode()) for one in documents]
    alone = [ask(engine, [one])[0] for one in requests]
    assert ask(engine, requests) == alone
    assert [one.status for one in alone] == [200, 400, 400, 200]
