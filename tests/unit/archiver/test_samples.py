"""Samples: drawn by the signature or read from a file, recorded in growing batches."""

import json
from pathlib import Path

import numpy as np
import pytest

from torchrec_archiver.samples import BATCHES, draw_requests, read_requests
from torchrec_handler.archive.format import InputSignature, Signature
from torchrec_handler.errors import BuildError
from torchrec_handler.options import Options
from torchrec_handler.serve.request import Sparse

SIGNATURE = Signature(
    inputs=(
        InputSignature(name="dense", type="dense", num_features=2, features=("x", "y")),
        InputSignature(
            name="ids", type="sparse", num_features=2, features=("a", "b"), ids_below=(10, None)
        ),
        InputSignature(
            name="scored", type="weighted_sparse", num_features=1, features=("c",), ids_below=(3,)
        ),
        InputSignature(name="vectors", type="embedding", num_features=2, width=4),
    ),
    methods={"forward": True},
    result_metadata="dict_of_tensor",
)


def test_drawn_requests_fit_the_signature() -> None:
    requests = draw_requests(SIGNATURE)
    assert [request.rows for request in requests] == list(BATCHES)
    for request in requests:
        assert np.asarray(request.inputs["dense"]).shape == (request.rows, 2)
        assert np.asarray(request.inputs["vectors"]).shape == (request.rows, 2, 4)
        ids, scored = request.inputs["ids"], request.inputs["scored"]
        assert isinstance(ids, Sparse)
        assert isinstance(scored, Sparse)
        assert ids.lengths.shape == (2, request.rows)
        first = int(ids.lengths[0].sum())
        assert (ids.values[:first] < 10).all()
        assert (ids.values >= 0).all()
        assert scored.weights is not None
        assert scored.weights.size == scored.values.size == scored.lengths.sum()
        assert (scored.values < 3).all()


def test_the_same_requests_are_drawn_again() -> None:
    for first, second in zip(draw_requests(SIGNATURE), draw_requests(SIGNATURE), strict=True):
        assert np.array_equal(np.asarray(first.inputs["dense"]), np.asarray(second.inputs["dense"]))


def test_nothing_is_drawn_for_inputs_that_a_model_hides() -> None:
    hidden = Signature(
        inputs=(InputSignature(name="ids", type="sparse"),),
        methods={"forward": True},
        result_metadata="dict_of_tensor",
    )
    assert draw_requests(hidden) == []


def test_a_file_holds_a_request_a_line_in_any_json_format(tmp_path: Path) -> None:
    columns = {
        "dense": [[1, 2]],
        "ids.lengths": [1, 0],
        "ids.values": [3],
        "scored.lengths": [1],
        "scored.values": [2],
        "scored.weights": [0.5],
        "vectors": [[[0] * 4], [[0] * 4]],
    }
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{json.dumps(columns)}\n\n{json.dumps(columns)}\n", encoding="utf-8")
    requests = read_requests(path, SIGNATURE, Options())
    assert [request.rows for request in requests] == [1, 1]
    assert np.array_equal(np.asarray(requests[0].inputs["dense"]), [[1, 2]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "samples: PATH holds no request, expected one JSON body a line"),
        (
            '{"dense": [[1, 2]]}\n',
            "samples: PATH, line 1: ids.lengths: missing, received dense",
        ),
        ("\n{\n", "samples: PATH, line 2: body: not valid JSON"),
        (None, "samples: PATH cannot be read: No such file or directory"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(
    content: str | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "samples.jsonl"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(BuildError) as caught:
        read_requests(path, SIGNATURE, Options())
    assert str(caught.value).startswith(message.replace("PATH", str(path)))
