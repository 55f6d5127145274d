"""A factory drawn up from names and shapes alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import drafted
from torchrec_archiver.checkpoint.read import read_checkpoint
from torchrec_archiver.draft.files import factory_text, request_text
from torchrec_archiver.draft.layers import layers
from torchrec_archiver.draft.names import draft_checkpoint
from torchrec_archiver.draft.parts import Draft
from torchrec_handler.errors import BuildError


def drawn(state: dict[str, Any], folder: Path) -> Draft:
    return draft_checkpoint(read_checkpoint(state, folder), Path("last.pt"))


class Nested(torch.nn.Module):
    """Parts of every kind that names show."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = torch.nn.Module()
        self.tower.bags = drafted.bags(user=50)
        self.tower.norm = torch.nn.LayerNorm(8)
        self.bottom = torch.nn.Sequential(
            torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
        )
        self.mixers = torch.nn.ParameterList([torch.empty(2, 3), torch.empty(2, 3)])
        self.plain_embedding = torch.nn.Embedding(5, 2)
        self.scale = torch.nn.Parameter(torch.empty(7))
        self.history = drafted.Sequences().history


FORWARD = """\
def forward(self, numbers, ids):
        # A guess, by widths alone. Put the forward here that was trained, then delete
        # Factory.guessed, which every build warns of.
        # Not called: scale, which takes no numbers.
        # Not called: mixers, which takes no numbers.
        # Not called: plain_embedding, which takes no numbers.
        tower_bags = self.tower.bags(ids).values()
        history = torch.cat([v.to_padded_dense().sum(1) for v in self.history(ids).values()], dim=1)
        tower_norm = self.tower.norm(tower_bags)
        bottom = self.bottom(numbers)
        return {"bottom": bottom.reshape(-1), "tower_norm": tower_norm, "history": history}
"""


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_the_parts_of_an_unknown_model_have_the_checkpoint_s_names(
    wrapper: str, tmp_path: Path
) -> None:
    state = {f"{wrapper}{name}": value for name, value in Nested().state_dict().items()}
    draft = drawn({"model": state, "optimizer": {"state": {}}}, tmp_path)
    text = factory_text(draft)
    assert [(one.name, one.features) for one in draft.inputs] == [
        ("float_features", ("dense_0", "dense_1", "dense_2")),
        ("id_list_features", ("user", "seen")),
    ]
    assert "".join(text.partition("def forward(self, numbers, ids):\n")[1:]).startswith(FORWARD)
    made: dict[str, Any] = {"__name__": "factory"}
    exec(compile(text, "factory.py", "exec"), made)  # noqa: S102  what users run
    model = made["Factory"]().model(torch.device("cpu"))
    expected = {name.removeprefix("module."): value.shape for name, value in state.items()}
    assert {name: value.shape for name, value in model.state_dict().items()} == expected


@pytest.mark.parametrize("name", ["dlrm", "dlrm_dcn", "dlrm_projection"])
def test_a_dlrm_is_made_with_the_checkpoint_s_shapes(name: str, tmp_path: Path) -> None:
    trained = getattr(drafted, name)()
    state = {f"net.{key}": value for key, value in trained.state_dict().items()}
    made: dict[str, Any] = {"__name__": "factory"}
    exec(compile(factory_text(drawn(state, tmp_path)), "factory.py", "exec"), made)  # noqa: S102
    model = made["Factory"]().model(torch.device("cpu"))
    assert type(model) is type(trained)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    assert shapes == {key: value.shape for key, value in trained.state_dict().items()}


def test_the_dict_with_the_tables_is_the_model(tmp_path: Path) -> None:
    state = drafted.dlrm().state_dict()
    draft = drawn({"other": {"weight": torch.zeros(2)}, "state": state}, tmp_path)
    assert "from torchrec.models.dlrm import DLRM" in draft.imports


def test_tables_of_several_features_are_noticed_by_what_follows_them(tmp_path: Path) -> None:
    state = dict(drafted.dlrm().state_dict())
    state["over_arch.model.0._mlp.0._linear.weight"] = torch.zeros(16, 8 + 6)
    assert drawn(state, tmp_path).guesses[-1] == (
        "tables: over_arch takes 14 numbers, which 2 features do not make: some tables are of "
        "several features; name them in feature_names"
    )


def test_a_checkpoint_without_tables_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        drawn({"over.weight": torch.zeros(2, 2)}, tmp_path)
    assert str(caught.value) == (
        "weights: last.pt holds no tables of TorchRec's collections (embedding_bags.NAME.weight or "
        "embeddings.NAME.weight), its first entries are over.weight; name what makes the model "
        "with --model MODULE:NAME"
    )


def test_names_of_layers_are_code_that_makes_them() -> None:
    shapes = {
        "top._mlp.0._linear.weight": (8, 4),
        "top._mlp.1._linear.weight": (2, 8),
        "heads.first.weight": (1, 2),
        "heads.first.bias": (1,),
        "odd.2.x": (3,),
    }
    assert list(layers(shapes, {}).lines) == [
        "self.top = MLP(4, [8, 2], bias=False)",
        "self.heads = torch.nn.Module()",
        "self.heads.first = torch.nn.Linear(2, 1)",
        "self.odd = torch.nn.Module()",
        'self.odd.add_module("2", torch.nn.Module())',
        'self.odd.get_submodule("2").x = torch.nn.Parameter(torch.empty((3,)))',
    ]


def test_a_request_s_ids_are_in_small_tables_too(tmp_path: Path) -> None:
    state = {"ebc.embedding_bags.t_flag.weight": torch.zeros(1, 4)}
    assert request_text(drawn(state, tmp_path)) == (
        '{"instances": [\n  {"flag": [0]},\n  {"flag": [0, 0]}\n]}\n'
    )
