"""A model asked what it takes and gives; what cannot be asked is told what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor, KeyedTensor

from tests.support import drafted
from torchrec_archiver.draft.ask import ask_model
from torchrec_archiver.draft.files import request_text, write_files
from torchrec_archiver.draft.find import find_model
from torchrec_archiver.draft.parts import Draft
from torchrec_handler.errors import BuildError

HERE = "tests.support.drafted"


def asked(model: torch.nn.Module) -> Draft:
    return ask_model(model, "shop:Model", "Model()", "from shop import Model")


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(BuildError) as caught:
        call()
    return str(caught.value)


class Answers(torch.nn.Module):
    """Gives what it is made with."""

    def __init__(self, make: Callable[[KeyedTensor], Any]) -> None:
        super().__init__()
        self.bags = drafted.bags(user=50, movie=40)
        self.make = make

    def forward(self, ids: KeyedJaggedTensor) -> Any:
        return self.make(self.bags(ids))


@pytest.mark.parametrize(
    ("make", "lines"),
    [
        (
            lambda bags: bags.values().sum(1, keepdim=True),
            [
                'scores = model(batch["id_list_features"])',
                "# As the model gives them: torch.sigmoid(scores) makes probabilities of logits.",
                'return {"default": scores.reshape(-1)}',
            ],
        ),
        (
            lambda bags: bags,
            ['result = model(batch["id_list_features"])', "return result.to_dict()"],
        ),
        (
            lambda bags: [bags.values(), bags.values()],
            [
                'result = model(batch["id_list_features"])',
                'return {"output_0": result[0], "output_1": result[1]}',
            ],
        ),
    ],
    ids=["tensor", "KeyedTensor", "list"],
)
def test_what_forward_gives_becomes_a_dict_of_tensors(
    make: Callable[[KeyedTensor], Any], lines: list[str]
) -> None:
    assert list(asked(Answers(make)).forward) == lines


def test_each_of_several_sparse_inputs_has_the_features_that_it_is_looked_up_for() -> None:
    draft = asked(drafted.Keywords())
    assert [(one.name, one.type, one.features) for one in draft.inputs] == [
        ("id_list_features", "sparse", ("user", "country")),
        ("id_score_list_features", "weighted_sparse", ("movie",)),
        ("float_features", "dense", ("dense_0", "dense_1", "dense_2")),
    ]
    assert draft.forward[0] == (
        'result = model(user=batch["id_list_features"], item=batch["id_score_list_features"], '
        'context=batch["float_features"])'
    )


class SharedNames(torch.nn.Module):
    """Two inputs have a feature of one name."""

    def __init__(self) -> None:
        super().__init__()
        self.now, self.before = drafted.bags(movie=40), drafted.bags(movie=30, is_weighted=True)

    def forward(self, now: KeyedJaggedTensor, before: KeyedJaggedTensor) -> torch.Tensor:
        score: torch.Tensor = (self.now(now).values() * self.before(before).values()).sum(1)
        return score


def test_a_request_is_columns_where_two_inputs_share_a_name() -> None:
    assert request_text(asked(SharedNames())) == (
        '{"id_list_features.lengths": [1, 2], "id_list_features.values": [1, 1, 2], '
        '"id_score_list_features.lengths": [1, 2], '
        '"id_score_list_features.weights": [1.0, 1.0, 1.0], '
        '"id_score_list_features.values": [1, 1, 2]}\n'
    )


class Training(torch.nn.Module):
    def forward(self, batch: dict[str, int]) -> None: ...


def test_what_is_no_input_is_named() -> None:
    assert error_of(lambda: asked(Training())) == (
        "model: shop:Model: forward's batch is a dict[str, int], expected a Tensor or a "
        "KeyedJaggedTensor; name the model inside, without loss and labels, or wrap it in a module "
        "whose forward takes these"
    )


def test_a_loss_is_no_answer() -> None:
    assert error_of(lambda: asked(Answers(lambda bags: bags.values().sum()))) == (
        "model: shop:Model: forward gave one number for 2 rows, expected one a row; is it a loss? "
        "Name the model inside, without it"
    )
    assert error_of(lambda: asked(Answers(str))) == (
        "model: shop:Model: forward gave a str, expected a tensor, or tensors in a tuple, a dict "
        "or a KeyedTensor; wrap it in a module that returns these"
    )


def raising(_: KeyedTensor) -> None:
    message = "no such\nway"
    raise ValueError(message)


def test_a_forward_that_takes_nothing_that_is_tried_is_told_with_its_error() -> None:
    assert error_of(lambda: asked(Answers(raising))) == (
        "model: shop:Model: forward could not be called with what it seems to take: ValueError: no "
        "such way; its parameters are ids; wrap it in a module whose forward takes tensors [B, F] "
        "and KeyedJaggedTensors alone, each with its type"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dlrn", "model: module '{here}' has no 'dlrn'; did you mean dlrm?"),
        ("WIDTH", "model: {here}:WIDTH is a int, expected a Module, or what makes one"),
        (
            "asking_for",
            (
                "model: {here}:asking_for needs rows; write a function without parameters that "
                "returns the model, and name that"
            ),
        ),
        ("broken", "model: {here}:broken raised ValueError: no model today"),
        ("a_number", "model: {here}:a_number made a int, expected a torch.nn.Module"),
    ],
)
def test_what_makes_no_model_is_named(name: str, message: str) -> None:
    said = error_of(lambda: find_model(f"{HERE}:{name}"))
    assert said.startswith(message.replace("{here}", HERE))


def test_files_that_are_there_are_replaced_by_force_alone(tmp_path: Path) -> None:
    draft = asked(Answers(lambda bags: bags))
    (tmp_path / "factory.py").write_text("mine")
    assert error_of(
        lambda: write_files(draft, tmp_path, weights=None, imported=False, force=False)
    ) == (
        f"init: {tmp_path}/factory.py already exists; name another folder, or replace it with "
        "--force"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["factory.py"]
    write_files(draft, tmp_path, weights=tmp_path / "w.pt", imported=False, force=True)
    assert "--weights w.pt" in (tmp_path / "README.md").read_text()
