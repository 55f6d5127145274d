"""A batch's answers, beside TorchServe's own writer."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ts.context import Context, RequestProcessor

from tests.support.exact import examples
from torchrec_handler.front.torchserve.writer import create_predict_response, torchserves_own

TEXTS = st.text(st.characters(codec="utf-8"), max_size=8)
STATUSES = st.tuples(st.sampled_from([200, 400]), st.sampled_from([None, "", "OK", "Not Found"]))
HEADERS = st.dictionaries(
    st.sampled_from(["content-type", "ts_stream_next", "x"]),
    st.sampled_from(["", "application/json", "false"]) | st.text(st.characters(codec="ascii")),
)
BODIES = st.binary(max_size=20) | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
ANSWERS = st.lists(st.tuples(TEXTS, STATUSES, HEADERS, BODIES), max_size=4)


def context(answers: Sequence[tuple[Any, ...]]) -> Context:
    made = Context("model", "", {}, 1, None, "0.12.0")
    made.request_processor = [RequestProcessor({}) for _ in answers]
    for processor, (_, (status, phrase), headers, _) in zip(
        made.request_processor, answers, strict=True
    ):
        processor.report_status(status, phrase)
        for name, value in headers.items():
            processor.add_response_property(name, value)
    return made


@examples(0.3)
@given(ANSWERS, TEXTS, st.sampled_from([200, 503]), st.sampled_from(["bytes", "any", "failed"]))
def test_answers_are_written_as_torchserve_writes_them(
    answers: list[tuple[Any, ...]], message: str, code: int, kind: str
) -> None:
    ids = {at: answer[0] for at, answer in enumerate(answers)}
    bodies = [repr(answer[3]).encode() if kind == "bytes" else answer[3] for answer in answers]

    def written(write: Any) -> bytes:
        if kind == "failed":
            return bytes(write(None, ids, message, code))
        return bytes(write(bodies, ids, message, code, context=context(answers)))

    assert written(create_predict_response) == written(torchserves_own)


def test_other_ranks_than_the_first_answer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[tuple[Any, ...]] = [("id", (200, "OK"), {}, b"{}")]
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert create_predict_response([b"{}"], {0: "id"}, "", 200, context=context(answers)) is None
