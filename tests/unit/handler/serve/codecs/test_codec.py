"""What every codec keeps to, the body that they are given, and a fifth format from outside."""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from tests.support.answered import ask
from tests.support.exact import DENSE, INPUTS, Exact, predictor
from tests.support.one_request import BODIES, COLUMNS, JSON, ROWS, body, model, raw
from torchrec_handler.errors import InvalidRequest
from torchrec_handler.options import Options
from torchrec_handler.serve.codecs import choose
from torchrec_handler.serve.codecs.codec import (
    NOTHING,
    Arguments,
    Asked,
    Body,
    Codec,
    Model,
    as_tensors,
    flat,
)
from torchrec_handler.serve.codecs.json_document import JsonParser
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import Columns, RawRequest, Response

CODECS = list(choose.CODECS)
ANSWER = {"default": np.array([0.5, 0.25], np.float32)}


class TestBody:
    def test_is_parsed_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        parsed = []
        parse = JsonParser.parse

        def counted(parser: JsonParser, content: bytes) -> Any:
            parsed.append(content)
            return parse(parser, content)

        monkeypatch.setattr(JsonParser, "parse", counted)
        for content in BODIES.values():
            choose.Codecs("ranking", model().signature, model().limits).decode(raw(content, ""))
        assert parsed == [content for name, content in BODIES.items() if name != "protobuf"]

    def test_that_is_no_json_has_no_names(self) -> None:
        for content in (b"", b"hello", BODIES["protobuf"]):
            assert not body(content).is_json
            assert body(content).names == ()

    def test_may_start_with_a_byte_order_mark(self) -> None:
        assert body(b'\xef\xbb\xbf{"a": 1}').names == ["a"]

    def test_has_no_more_names_than_it_may(self) -> None:
        with pytest.raises(InvalidRequest) as caught:
            _ = Body(raw(b'{"a": 1, "b": 2}'), JsonParser(), 1).names
        assert str(caught.value) == "body: received 2 names, expected at most 1"


@pytest.mark.parametrize("make", CODECS)
class TestEveryCodec:
    def test_says_what_it_is_called_and_sent_as(self, make: Callable[[Model], Codec]) -> None:
        codec = make(model())
        assert [made(model()).name for made in CODECS].count(codec.name) == 1
        assert codec.content_types
        assert all(name == name.lower().strip() and "/" in name for name in codec.content_types)

    def test_reads_its_own_body_first(self, make: Callable[[Model], Codec]) -> None:
        codec = make(model())
        given = body(BODIES[codec.name.replace("_", " ")])
        assert (
            next(one for made in CODECS if (one := made(model())).reads(given)).name == codec.name
        )
        columns, asked = codec.decode(given)
        assert {name: array.tolist() for name, array in columns.arrays.items()} == COLUMNS
        assert columns.batch_size in (None, ROWS)
        assert asked.select(ANSWER) == ANSWER

    def test_reads_arguments(self, make: Callable[[Model], Codec]) -> None:
        codec = make(model())
        arguments, asked = codec.arguments(body(BODIES[codec.name.replace("_", " ")]))
        assert arguments
        assert codec.encode(ANSWER, asked).body

    def test_answers_as_one_of_its_content_types(self, make: Callable[[Model], Codec]) -> None:
        """Also what another codec read."""
        codec = make(model())
        _, own = codec.decode(body(BODIES[codec.name.replace("_", " ")]))
        for asked in (own, NOTHING):
            assert codec.encode(ANSWER, asked).content_type in codec.content_types


class Csv:
    """Dense rows, one a line; a line `# NAME` gives the name back."""

    name = "csv"
    content_types = ("text/csv",)

    def __init__(self, model: Model) -> None:
        self._column = model.signature.inputs[0].name

    def reads(self, body: Body) -> bool:
        return not body.is_json and body.content.isascii() and b"," in body.content

    def decode(self, body: Body) -> tuple[Columns, Asked]:
        lines = body.content.decode().splitlines()
        titles = [line[1:].strip() for line in lines if line.startswith("#")]
        rows = [line.split(",") for line in lines if not line.startswith("#")]
        try:
            block = np.array(rows, dtype=np.float64)
        except ValueError as error:
            message = f"body: not valid CSV ({error})"
            raise InvalidRequest(message) from None
        return Columns(arrays={self._column: block}), Title(titles[0]) if titles else NOTHING

    def arguments(self, body: Body) -> tuple[Arguments, Asked]:
        columns, asked = self.decode(body)
        return as_tensors(columns), asked

    def encode(self, answer: Mapping[str, Any], asked: Asked) -> Response:
        lines = [f"# {asked.text}"] if isinstance(asked, Title) else []
        for name, array in flat(answer).items():
            lines.append(",".join([name, *map(str, np.ravel(array).tolist())]))
        return Response(content_type="text/csv", body="\n".join(lines).encode())


class Title(Asked):
    def __init__(self, text: str) -> None:
        self.text = text

    def select(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        return {"default": answer["default"]}


class TestAFifthFormat:
    """As a user adds it: one class, one entry."""

    @pytest.fixture
    def engine(self, monkeypatch: pytest.MonkeyPatch) -> Engine:
        monkeypatch.setattr(choose, "CODECS", [Csv, *CODECS])
        methods = {"forward": True, "negative": False}
        served = predictor(Exact((DENSE,), "dict_of_tensor"), DENSE, methods=methods)
        return Engine("ranking", served, Options())

    @pytest.mark.parametrize("content_type", ["text/csv", "", "application/octet-stream"])
    def test_is_read_and_written(self, engine: Engine, content_type: str) -> None:
        (answered,) = ask(engine, [raw(b"# x\n1,0,0\n2,0,0", content_type)])
        assert (answered.content_type, answered.body) == ("text/csv", b"# x\ndefault,4.0,8.0")

    def test_is_accepted_by_and_accepts_others(self, engine: Engine) -> None:
        csv, columns = ask(
            engine,
            [
                raw(b'{"float_features": [[1, 0, 0]]}', JSON, "text/csv"),
                raw(b"# x\n1,0,0", "text/csv", JSON),
            ],
        )
        assert csv.body.startswith(b"default,4.0\nflat,")
        assert json.loads(columns.body) == {"default": [4.0]}

    def test_leaves_the_others_as_they_were(self, monkeypatch: pytest.MonkeyPatch) -> None:
        served = predictor(Exact(INPUTS, "dict_of_tensor"), *INPUTS)
        requests = [raw(content, "") for content in BODIES.values()]
        expected = ask(Engine("ranking", served, Options()), requests)
        monkeypatch.setattr(choose, "CODECS", [Csv, *CODECS])
        assert ask(Engine("ranking", served, Options()), requests) == expected

    def test_refuses_in_its_own_words(self, engine: Engine) -> None:
        (refused,) = ask(engine, [raw(b"1,a,0", "text/csv")])
        assert b"body: not valid CSV (could not convert string to float: 'a')" in refused.body

    def test_is_told_to_who_sends_another(self, engine: Engine) -> None:
        (refused,) = ask(engine, [raw(b"1", "image/png")])
        assert b"expected one of text/csv, application/json, text/json, " in refused.body

    def test_reads_arguments_of_a_method_that_is_called_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Sums(Exact):
            def total(self, float_features: Any) -> Any:
                return {"default": float_features.sum(dim=0)}

        monkeypatch.setattr(choose, "CODECS", [Csv, *CODECS])
        methods = {"forward": True, "total": False}
        served = predictor(Sums((DENSE,), "dict_of_tensor"), DENSE, methods=methods)
        request = RawRequest(body=b"1,2,3\n4,5,6", content_type="text/csv", qualname="total")
        (answered,) = ask(Engine("ranking", served, Options()), [request])
        assert answered.body == b"default,5.0,7.0,9.0"
