"""Rows that are read together are what each body's rows are alone."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.answered import ask
from tests.support.exact import INPUTS, Exact, examples, predictor
from tests.support.one_request import INSTANCES, codecs, raw
from torchrec_handler.errors import RequestError
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs.choose import Reply
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import Columns

HOLE = "#"
"""Where a template has a number."""
ROW = {
    "age": "#",
    "price": "#",
    "hour": "#",
    "user": "#",
    "movie": "[#,#]",
    "tags": "[[#,#]]",
    "clicks": "[[#,#],[#,#]]",
    "image": "[#,#,#,#]",
    "title": "[#,#,#,#]",
}
NUMBERS = st.sampled_from(["1", "0", "7", "12"])
OTHER_NUMBERS = st.sampled_from(["", "-1", "1,2", "0.5", "9223372036854775808", "1 2", "e", "3,"])
PIECES = st.sampled_from(
    [
        "[",
        "]",
        "{",
        "}",
        "},{",
        ",",
        ":",
        '"',
        "\\",
        HOLE,
        " ",
        "null",
        "é",
        '"a":',
        '],"parameters":[',
    ]
)


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """Some that differ in numbers, all with the same faults, and each with some of its own."""
    comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": ")]))

    def row() -> str:
        left_out = draw(st.sets(st.sampled_from(list(ROW)), max_size=1))
        features = [f'"{name}"{colon}{text}' for name, text in ROW.items() if name not in left_out]
        return "{" + comma.join(features) + "}"

    rows = [row() for _ in range(draw(st.integers(0, 3)))]
    template = f'{{"instances"{colon}[{comma.join(rows)}]}}'
    for piece in draw(st.lists(PIECES, max_size=2)):
        at = draw(st.integers(0, len(template)))
        template = template[:at] + piece + template[at + draw(st.integers(0, 1)) :]
    numbers = NUMBERS | OTHER_NUMBERS if draw(st.booleans()) else NUMBERS

    def body() -> bytes:
        first, *rest = template.split(HOLE)
        return "".join([first, *(draw(numbers) + text for text in rest)]).encode()

    return [body() for _ in range(draw(st.integers(2, 3)))]


def shown(columns: Columns, reply: Reply) -> Any:
    arrays = {name: (a.dtype, a.shape, a.tolist()) for name, a in columns.arrays.items()}
    return list(arrays), arrays, columns.batch_size, reply.asked, reply.codec.name


def together(given: Sequence[bytes]) -> list[tuple[list[int], list[Any] | None]]:
    """Each group of several, and what it holds; nothing where it cannot be read together."""
    read, requests = codecs(), [raw(body) for body in given]
    found: list[tuple[list[int], list[Any] | None]] = []
    for positions in read.group(requests):
        if len(positions) > 1:
            try:
                decoded = read.decode_together([requests[at] for at in positions])
            except RequestError:
                found.append((positions, None))
            else:
                found.append((positions, [shown(own, decoded.reply) for own in decoded.each()]))
    return found


@examples(2.0)
@given(bodies())
def test_any_bodies(given: list[bytes]) -> None:
    for positions, decoded in together(given):
        if decoded is not None:
            assert decoded == [shown(*codecs().decode(raw(given[at]))) for at in positions]


@examples(0.5)
@given(bodies())
def test_any_bodies_are_answered_as_alone(given: list[bytes]) -> None:
    engine = Engine("ranking", predictor(Exact(INPUTS, "dict_of_tensor"), *INPUTS), Options())
    requests = [raw(body) for body in given]
    assert ask(engine, requests) == [ask(engine, [one])[0] for one in requests]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_good_ones_are_read_together(separators: tuple[str, str]) -> None:
    other = [{**INSTANCES[0], "age": 1.5, "movie": [1, 2, 3]}, {**INSTANCES[1], "genres": []}]
    documents = [{"instances": INSTANCES}, {"instances": other}]
    given = [json.dumps(one, separators=separators).encode() for one in documents]
    ((positions, decoded),) = together(given)
    assert positions == [0, 1]
    assert decoded == [shown(*codecs().decode(raw(body))) for body in given]


@pytest.mark.parametrize(
    "body",
    [
        b'{"instances":[],"shared":{}}',
        b'{"instances":[{}],"parameters":{"a":[]}}',
        b'{"instances":[]}',
        b'{"instances":[{"\\u0061ge":1}]}',
        b'{"instances":[{"age":1},"]}',
        b'{"instances":1}',
        b'{"instances":[{}],"parameters":[]}',
        b'{"instances":[{}],"parameters":[1]}',
    ],
)
def test_what_is_not_read_together(body: bytes) -> None:
    assert together([body] * 2) == [([0, 1], None)]
