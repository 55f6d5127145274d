"""What an output's first axis counts is seen in batches of different sizes, or said."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torchrec.inference.modules import PredictModule, QualNameMetadata

from tests.support.factories.base import ForwardFactory
from tests.support.factories.kinds_base import Batch
from tests.support.kinds import CPU, KINDS, prepare, signature
from torchrec_handler.archive.format import Count, InputSignature, OutputSplit, Signature
from torchrec_handler.archive.samples import Sample
from torchrec_handler.errors import FactoryError
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.signature.counts import sizes
from torchrec_handler.load.signature.draw import STYLES
from torchrec_handler.load.signature.outputs import Outputs, observe_outputs, probes

Forward = Callable[[Batch], Any]

USER = InputSignature(name="user", type="dense", num_features=1)
CANDIDATES = InputSignature(
    name="candidates",
    type="sparse",
    num_features=2,
    features=("movie", "genre"),
    ids_below=(None, None),
)
HISTORY = InputSignature(
    name="history", type="weighted_sparse", num_features=1, features=("clicked",), ids_below=(9,)
)


class Methods(PredictModule):
    """`forward`, and whatever other methods a test gives."""

    def __init__(self, methods: Mapping[str, Forward]) -> None:
        super().__init__(torch.nn.Identity(), "cpu")
        self.given = methods

    def predict_forward(self, batch: Batch) -> Any:
        return self.given["forward"](batch)

    def rank(self, batch: Batch) -> Any:
        return self.given["rank"](batch)


class Factory(ForwardFactory):
    """Methods, and what is said of their outputs."""

    inputs = {entry.name: entry.type for entry in (USER, CANDIDATES, HISTORY)}  # noqa: RUF012

    def __init__(
        self, methods: Mapping[str, Forward], said: Mapping[str, Any], result: str
    ) -> None:
        self.methods, self.said, self.result = methods, said, result

    def create_predict_module(self) -> Any:
        return Methods(self.methods)

    def result_metadata(self) -> str:
        return self.result

    def model_inputs_data(self) -> dict[str, Any]:
        return {name: {"outputs": outputs} for name, outputs in self.said.items()}

    def qualname_metadata(self) -> dict[str, QualNameMetadata]:
        return {name: QualNameMetadata(need_preproc=True) for name in self.methods}


def observe(
    forward: Forward | None = None,
    *,
    result: str = "dict_of_tensor",
    said: Mapping[str, Any] | None = None,
    samples: tuple[Sample, ...] = (),
    inputs: tuple[InputSignature, ...] = (USER, CANDIDATES, HISTORY),
    **methods: Forward,
) -> Outputs:
    """What a model's outputs count."""
    given = {"forward": forward, **methods} if forward else methods
    output = run_factory(Factory(given, said or {}, result), CPU, world_size=1)
    known = Signature(inputs=inputs, methods=dict.fromkeys(given, True), result_metadata=result)
    return observe_outputs(output, known, output.module, CPU, samples=samples)


def split(*counts: Count, shape: tuple[int, ...] = ()) -> tuple[OutputSplit, ...]:
    return (OutputSplit(counts=counts, shape=shape),)


def rows(batch: Batch) -> int:
    return len(batch["user"])


def of_feature(batch: Batch, position: int) -> torch.Tensor:
    """The ids of a feature of the candidates."""
    movies = int(batch["candidates.lengths"].reshape(2, -1)[0].sum())
    return batch["candidates.values"].tensor_split([movies])[position]


def test_each_output_counts_what_fits_all_batches() -> None:
    """Rows, all ids of an input, those of a feature; k values of each."""

    def forward(batch: Batch) -> Batch:
        movies, genres = of_feature(batch, 0), of_feature(batch, 1)
        return {
            "row": batch["user"][:, 0],
            "pair": batch["user"].repeat(1, 2),
            "three": batch["user"].reshape(-1).repeat_interleave(3),
            "candidates": batch["candidates.values"],
            "movie": torch.zeros(len(movies), 4, 5),
            "genre": genres.repeat_interleave(2),
            "clicked": batch["history.weights"],
        }

    assert observe(forward).splits == {
        "forward": {
            "row": split(Count(factor=1)),
            "pair": split(Count(factor=1), shape=(2,)),
            "three": split(Count(factor=3)),
            "candidates": split(Count(factor=1, input="candidates")),
            "movie": split(Count(factor=1, input="candidates", features=(0,)), shape=(4, 5)),
            "genre": split(Count(factor=2, input="candidates", features=(1,))),
            "clicked": split(Count(factor=1, input="history")),
        }
    }


def test_each_method_has_splits_of_its_own() -> None:
    seen = observe(
        lambda batch: {"default": batch["user"][:, 0]},
        rank=lambda batch: {"default": batch["history.weights"]},
    )
    assert seen.splits == {
        "forward": {"default": split(Count(factor=1))},
        "rank": {"default": split(Count(factor=1, input="history"))},
    }
    assert list(seen.alone) == []


def test_each_tensor_of_a_tuple_has_a_split_and_a_mask_has_none() -> None:
    def forward(batch: Batch) -> Any:
        return {"pair": (batch["user"][:, 0], batch["history.values"])}

    def masked(batch: Batch) -> Any:
        return {"pair": (batch["history.values"], torch.zeros(3))}

    row, clicked = split(Count(factor=1)), split(Count(factor=1, input="history"))
    seen = observe(forward, result="dict_of_tensors")
    assert seen.splits["forward"] == {"pair": row + clicked}
    seen = observe(masked, result="dict_with_mask_tensor")
    assert seen.splits["forward"] == {"pair": clicked}


HOW_TO_SAY = (
    "; to say what it counts, let PredictFactory.model_inputs_data()[INPUT]['outputs'] hold "
    "{'scores': FEATURE}, or be ['scores'] for all ids of the input"
)
NOTHING_FITS = (
    "its first axis counts neither rows, nor the ids of a sparse input or of a feature, so nobody "
    "can tell requests that share a batch apart; leave it out, or give k values a row or an id"
)


@pytest.mark.parametrize(
    ("forward", "received"),
    [
        (lambda batch: batch["user"].mean(), "[1] for 2 rows, [1] for 3 rows, [1] for 4 rows"),
        (lambda _: torch.zeros(12), "[12] for 2 rows, [12] for 3 rows, [12] for 4 rows"),
        (
            lambda batch: batch["user"][1:],
            "[1, 1] for 2 rows, [2, 1] for 3 rows, [3, 1] for 4 rows",
        ),
        (lambda _: torch.zeros(0, 2), "[0, 2] for 2 rows, [0, 2] for 3 rows, [0, 2] for 4 rows"),
    ],
    ids=["metric", "constant", "shorter", "empty"],
)
def test_what_fits_nothing_cannot_be_cut(forward: Forward, received: str) -> None:
    seen = observe(lambda batch: {"row": batch["user"], "scores": forward(batch)})
    assert seen.splits == {}
    assert seen.untold == {
        "forward": f"forward: output 'scores': received {received}: {NOTHING_FITS}{HOW_TO_SAY}"
    }
    assert list(seen.alone) == ["forward"]


def alike(batch: Batch) -> Batch:
    """One score a candidate, whose two features must have lists of the same lengths."""
    lengths = batch["candidates.lengths"].reshape(2, -1)
    if not torch.equal(lengths[0], lengths[1]):
        message = "a movie has a genre"
        raise ValueError(message)
    return {"scores": of_feature(batch, 0)}


def test_what_several_things_fit_cannot_be_cut_unless_it_is_said() -> None:
    seen = observe(alike)
    assert seen.untold == {
        "forward": (
            "forward: output 'scores': received [6] for 2 rows, [5] for 3 rows, [4] for 4 rows: "
            "its first axis may count the ids of 'movie' of candidates or the ids of 'genre' of "
            f"candidates{HOW_TO_SAY}"
        )
    }
    said = {"candidates": {"scores": "movie"}}
    count = Count(factor=1, input="candidates", features=(0,))
    assert observe(alike, said=said).splits == {"forward": {"scores": split(count)}}


def one_id_each(batch: Batch) -> None:
    if not (batch["candidates.lengths"] == 1).all():
        message = "one movie and one genre a row"
        raise ValueError(message)


def test_rows_are_cut_as_rows_where_every_list_has_one_id() -> None:
    """The ids of a feature would be cut at the same places, which serving sees to."""

    def forward(batch: Batch) -> Batch:
        one_id_each(batch)
        return {"scores": batch["user"][:, 0]}

    movie, genre = (Count(factor=1, input="candidates", features=(at,)) for at in (0, 1))
    clicked = Count(factor=1, input="history")
    assert observe(forward).splits["forward"] == {
        "scores": split(Count(factor=1), movie, genre, clicked)
    }


def test_two_values_a_row_or_one_an_id_of_two_features_cannot_be_told() -> None:
    """Rows would be cut in one piece, ids of two features in two."""

    def forward(batch: Batch) -> Batch:
        one_id_each(batch)
        return {"scores": batch["candidates.values"]}

    def of_rows(batch: Batch) -> Batch:
        one_id_each(batch)
        return {"scores": batch["user"].repeat_interleave(2)}

    assert (
        observe(forward)
        .untold["forward"]
        .startswith(
            "forward: output 'scores': received [4] for 2 rows, [6] for 3 rows, [8] for 4 rows: "
            "its first axis may count rows or all ids of candidates or the ids of 'movie'"
        )
    )
    assert observe(of_rows, said={"candidates": {"scores": None}}).splits == {
        "forward": {"scores": split(Count(factor=2))}
    }
    assert observe(forward, said={"candidates": ["scores"]}).splits == {
        "forward": {"scores": split(Count(factor=1, input="candidates"))}
    }


def test_several_features_can_be_said() -> None:
    """In the order in which the output holds them."""

    def forward(batch: Batch) -> Batch:
        return {"scores": torch.cat([of_feature(batch, 1), of_feature(batch, 0)])}

    said = {"candidates": {"scores": ["genre", "movie"]}}
    count = Count(factor=1, input="candidates", features=(1, 0))
    assert observe(forward, said=said).splits == {"forward": {"scores": split(count)}}


def test_what_is_said_holds_for_the_methods_in_which_it_is_so() -> None:
    seen = observe(
        alike,
        rank=lambda batch: {"scores": batch["user"][:, 0]},
        said={"candidates": {"scores": "genre"}},
    )
    assert seen.splits == {
        "forward": {"scores": split(Count(factor=1, input="candidates", features=(1,)))},
        "rank": {"scores": split(Count(factor=1))},
    }


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            {"candidates": {"scores": "movie"}},
            (
                ": forward: output 'scores': received [2] for 2 rows, [3] for 3 rows, [4] for 4 "
                "rows, where the first axis does not count the ids of 'movie' of candidates"
            ),
        ),
        ({"candidates": ["ranks"]}, ": says what 'ranks' counts, which is no output"),
        (
            {"candidates": {"scores": "film"}},
            (
                "['candidates']['outputs']['scores']: received the feature 'film', expected of "
                "movie, genre"
            ),
        ),
        (
            {"candidates": ["scores"], "history": ["scores"]},
            "['history']['outputs']: says what 'scores' counts, which another input said before",
        ),
        (
            {"user": ["scores"]},
            (
                "['user']['outputs']['scores']: the input is dense and has no ids, expected None, "
                "for its rows"
            ),
        ),
        (
            {"candidates": "scores"},
            "['candidates']['outputs']: received 'scores', expected outputs, or features by output",
        ),
        (
            {"candidates": {"scores": 3}},
            (
                "['candidates']['outputs']['scores']: received 3, expected a feature, features or "
                "None"
            ),
        ),
    ],
)
def test_what_is_said_and_is_not_so_is_refused(said: Mapping[str, Any], message: str) -> None:
    with pytest.raises(FactoryError) as caught:
        observe(lambda batch: {"scores": batch["user"][:, 0]}, said=said)
    assert str(caught.value) == f"Factory.model_inputs_data{message}"


def test_what_is_padded_to_the_longest_list_of_a_batch_is_called_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def forward(batch: Batch) -> Batch:
        longest = int(batch["history.lengths"].max())
        return {"padded": torch.zeros(rows(batch), longest), "user": batch["user"]}

    seen = observe(forward)
    assert (seen.splits, list(seen.alone)) == ({}, ["forward"])
    assert seen.padded == {
        "forward": (
            "forward: output 'padded': received [2, 3] and [3, 2]: behind the first axis its shape "
            "depends on what else is in the batch; pad it to a fixed size to have requests batched"
        )
    }
    with caplog.at_level(logging.WARNING):
        seen.warn()
    assert [record.message for record in caplog.records] == [
        f"outputs: {seen.padded['forward']}",
        (
            "outputs: requests of forward are called one by one, since it is not known how to cut "
            "what a batch gives"
        ),
    ]


def test_a_similarity_of_rows_is_padded_too() -> None:
    seen = observe(lambda batch: {"alike": batch["user"] @ batch["user"].T})
    assert list(seen.padded) == ["forward"]


def by_row(batch: Batch) -> torch.Tensor:
    """All ids of the candidates, those of a row one behind another."""
    lengths = batch["candidates.lengths"].reshape(2, -1)
    lists = batch["candidates.values"].split(batch["candidates.lengths"].tolist())  # type: ignore[no-untyped-call]
    return torch.cat([lists[at] for at in np.arange(lengths.numel()).reshape(2, -1).T.flatten()])


@pytest.mark.parametrize(
    ("forward", "counted"),
    [
        (lambda batch: batch["user"].repeat(1, 2).T.reshape(-1), "rows"),
        (lambda batch: torch.cat([batch["user"], -batch["user"]]), "rows"),
        (lambda batch: batch["user"].softmax(dim=0), "rows"),
        (lambda batch: batch["user"].sort(dim=0).values, "rows"),
        (lambda batch: batch["history.weights"].flip(0), "all ids of history"),
        (by_row, "all ids of candidates"),
    ],
    ids=["task by task", "two tasks", "softmax", "sorted", "flipped", "row by row"],
)
def test_values_that_are_not_those_of_a_request_alone_are_called_alone(
    forward: Forward, counted: str
) -> None:
    """Sizes tell nothing of it, and requests would get each other's values."""
    seen = observe(lambda batch: {"row": batch["user"], "scores": forward(batch)})
    assert (seen.splits, list(seen.alone)) == ({}, ["forward"])
    assert seen.mixed == {
        "forward": (
            f"forward: output 'scores': counts {counted}, but what requests of a batch get so is "
            "not what they get alone: it holds the values in another order, or they depend on what "
            "else is in the batch; give those of each row, or of each id in the order of the "
            "input's values, one behind another to have requests batched"
        )
    }


def test_what_is_said_is_compared_too() -> None:
    said = {"candidates": {"scores": ["movie", "genre"]}}
    seen = observe(
        lambda batch: {"scores": torch.cat([of_feature(batch, 1), of_feature(batch, 0)])}, said=said
    )
    assert list(seen.mixed) == ["forward"]


def test_what_is_drawn_by_chance_is_batched() -> None:
    """No two calls give the same, so they cannot be compared."""
    seen = observe(lambda batch: {"scores": torch.rand_like(batch["user"])})
    assert list(seen.splits) == ["forward"]


def test_rounding_is_no_difference() -> None:
    """A processor sums otherwise in batches of another size."""
    seen = observe(lambda batch: {"scores": batch["user"] + rows(batch) * 1e-6})
    assert list(seen.splits) == ["forward"]


def test_a_mask_that_follows_the_batch_is_cut_as_values_are() -> None:
    """Others are everybody's."""

    def forward(batch: Batch) -> Any:
        values = batch["history.values"]
        return {"ids": (values, values > 0), "tasks": (batch["user"], torch.ones(3) > 0)}

    clicked = split(Count(factor=1, input="history"))
    assert observe(forward, result="dict_with_mask_tensor").splits["forward"] == {
        "ids": clicked * 2,
        "tasks": split(Count(factor=1), shape=(1,)),
    }


def test_a_mask_that_nobody_can_cut_is_said() -> None:
    def forward(batch: Batch) -> Any:
        slots = torch.arange(int(batch["history.lengths"].max())) >= 0
        return {"scores": (batch["user"], slots)}

    untold = observe(forward, result="dict_with_mask_tensor").untold["forward"]
    assert untold.startswith(
        "forward: output 'scores': received [3] for 2 rows, [2] for 3 rows, [1] for 4 rows: its "
        "first axis counts neither rows,"
    )


def test_a_mask_of_the_whole_batch_is_called_alone() -> None:
    def forward(batch: Batch) -> Any:
        return {"scores": (batch["user"], torch.arange(5) < rows(batch))}

    seen = observe(forward, result="dict_with_mask_tensor")
    assert list(seen.mixed) == ["forward"]


def test_another_number_of_tensors_cannot_be_cut() -> None:
    def forward(batch: Batch) -> Any:
        return {"scores": [batch["user"]] * rows(batch)}

    assert observe(forward, result="dict_of_tensors").untold["forward"] == (
        "forward: output 'scores': has 2 and 3 and 4 and 5 tensors, as many each time are expected"
    )


def test_what_raises_whatever_is_drawn_is_said() -> None:
    def forward(batch: Batch) -> Batch:
        return {"scores": batch["users"]}

    seen = observe(forward, rank=lambda batch: {"scores": batch["user"][:, 0]})
    assert seen.raised == {"forward": "raised KeyError: 'users'"}
    assert list(seen.splits) == ["rank"]
    assert list(seen.alone) == ["forward"]
    wrong = observe(lambda batch: batch["user"])
    assert wrong.raised == {"forward": "forward: returned Tensor, expected a dict (dict_of_tensor)"}


def test_recorded_samples_tell_where_a_model_takes_nothing_drawn() -> None:
    """Samples of one row tell nothing: what it holds once may be anything."""

    def forward(_: Batch) -> Batch:
        message = "of real users only"
        raise ValueError(message)

    def sample(size: int, *clicked: int) -> Sample:
        inputs = {
            "user": torch.zeros(size, 1),
            "candidates.lengths": torch.ones(2 * size, dtype=torch.int32),
            "candidates.values": torch.zeros(2 * size, dtype=torch.int32),
            "history.lengths": torch.tensor(clicked, dtype=torch.int32),
            "history.values": torch.zeros(sum(clicked), dtype=torch.int32),
        }
        outputs = {"scores": (torch.zeros(sum(clicked)),)}
        return Sample(qualname="forward", rows=size, inputs=inputs, outputs=outputs)

    count = Count(factor=1, input="history")
    told = observe(forward, samples=(sample(2, 1, 4), sample(3, 0, 1, 1)))
    assert told.splits == {"forward": {"scores": split(count)}}
    assert observe(forward, samples=(sample(1, 4), sample(3, 0, 1, 1))).splits == {}


def test_nothing_is_drawn_for_a_model_that_hides_its_inputs() -> None:
    hidden = InputSignature(name="user", type="dense")
    seen = observe(lambda batch: {"scores": batch["user"][:, 0]}, inputs=(hidden,))
    assert (seen.splits, seen.raised, list(seen.alone)) == ({}, {}, ["forward"])


@pytest.mark.parametrize("features", [1, 26, 700])
def test_probes_tell_all_features_apart(features: int) -> None:
    """No two of all that may be counted are the same multiples of each other in all batches."""
    entry = InputSignature(name="ids", type="sparse", num_features=features)
    known = Signature(inputs=(USER, entry), methods={}, result_metadata="dict_of_tensor")
    drawn = list(probes(known, STYLES[0]))
    counted = [sizes(known, inputs, size) for size, inputs in drawn]
    ratios = {
        tuple(one[count] / one[Count(factor=1)] / (counted[0][count] / 2) for one in counted)
        for count in counted[0]
    }
    assert len(ratios) == len(counted[0]) == features + (1 if features == 1 else 2)
    assert 4 <= len(drawn) <= 8


@pytest.mark.parametrize("name", list(KINDS))
def test_every_kind_is_batched(name: str) -> None:
    kind = KINDS[name]
    output = run_factory(kind(), CPU, world_size=1)
    seen = observe_outputs(output, signature(kind), prepare(kind().create_predict_module()), CPU)
    assert seen.splits.keys() == output.qualnames.keys()
    counts = {
        count
        for outputs in seen.splits.values()
        for (part,) in outputs.values()
        for count in part.counts
    }
    assert counts == {Count(factor=1)}
