"""Types by layer: of parameters, of what a graph makes of them, and changed while they are used."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.support.graphs import CPU, DENSE, Batch, as_graph, norm
from torchrec_handler.kernels.choice import Choice
from torchrec_handler.kernels.graph.layers import weights_of
from torchrec_handler.kernels.kernel import Target
from torchrec_handler.kernels.linear import chain
from torchrec_handler.kernels.packed import Layers
from torchrec_handler.kernels.products import is_fast
from torchrec_handler.kernels.registry import replace_forwards
from torchrec_handler.options import PRECISIONS, KernelDtype, Kernels

ROWS = (1, 11, 12, 63, 64, 300)


def stack() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256)
    )


def chosen(module: nn.Module, dtypes: Mapping[str, KernelDtype], **options: Any) -> Choice:
    return Choice(module.named_parameters(), dtypes, **options)


def test_a_layer_is_as_precise_as_the_most_precise_of_its_parameters() -> None:
    module = stack()
    choice = chosen(module, {"0.weight": "int8", "2.weight": "bfloat16"})
    of = [module.get_parameter(f"{at}.weight") for at in (0, 2, 4)]
    assert choice.of([of[0].detach()]) == "int8"
    assert choice.of(of[:2]) == "bfloat16"
    assert choice.of([]) == choice.of(of) == choice.of([of[0].detach().clone()]) == "float32"
    assert choice.names(of[:2]) == {"0.weight", "2.weight"}
    assert (choice.least, chosen(module, {}).least) == ("int8", "float32")


@pytest.mark.parametrize(
    "dtypes",
    [
        ("int8", "float32", "bfloat16"),
        ("float32", "bfloat16", "bfloat16"),
        ("bfloat16", "int8", "int8"),
        ("float32", "float32", "float32"),
        ("int8", "int8", "int8"),
    ],
    ids="-".join,
)
def test_each_layer_computes_in_its_own_type(dtypes: tuple[KernelDtype, ...]) -> None:
    module = stack()
    layers = chain(module)
    assert isinstance(layers, list)
    names = [f"{at}.weight" for at in (0, 2, 4)]
    choice = chosen(module, dict(zip(names, dtypes, strict=True)))
    packed = Layers(layers, "float32", choice)
    alone = [Layers([one], dtype) for one, dtype in zip(layers, dtypes, strict=True)]
    assert packed.dtype == max((one.dtype for one in alone), key=PRECISIONS.index)
    for rows in ROWS:
        x = torch.randn(rows, 256, generator=torch.Generator().manual_seed(rows))
        expected = x
        for one in alone:
            expected = one(expected)
        torch.testing.assert_close(packed(x), expected, atol=1e-5, rtol=1e-5)


def test_an_open_choice_may_be_changed_and_a_closed_one_keeps_no_weights() -> None:
    module = stack()
    x = torch.randn(100, 256, generator=torch.Generator().manual_seed(0))
    choice = chosen(module, {}, is_open=True)
    replace_forwards(module, Target(device=CPU, dtype="float32", choice=choice), Kernels())
    (layers,) = choice.watching
    assert [len(one.sources) for one in layers.layers] == [1, 1, 1]
    plain = stack()(x)
    torch.testing.assert_close(module(x), plain, atol=1e-5, rtol=1e-5)
    dtypes: dict[str, KernelDtype] = {"2.weight": "bfloat16"}
    choice.change(dtypes)
    other = stack()
    closed = chosen(other, dtypes)
    report = replace_forwards(other, Target(device=CPU, dtype="bfloat16", choice=closed), Kernels())
    assert torch.equal(module(x), other(x))
    assert torch.equal(module(x), plain) is not is_fast("bfloat16")
    assert list(closed.watching) == []
    assert report.replaced[0].dtype in {"bfloat16", "float16", "float32"}
    choice.change({})
    torch.testing.assert_close(module(x), plain, atol=1e-5, rtol=1e-5)


class Parted(nn.Module):
    """Layers that a graph folds, merges and splits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.folded, self.norm = nn.Linear(DENSE, 4), norm(4)
        self.first, self.second = nn.Linear(4, 5), nn.Linear(4, 6)
        self.split = nn.Linear(3 * 11, 2)
        self.product = nn.Parameter(torch.randn(2, 3))
        self.eval()

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        x = self.norm(self.folded(batch["x"]))
        both = torch.cat([self.first(x), self.second(x)], dim=1)
        y = self.split(torch.cat([both, both * both, both], dim=1))
        return {"default": y @ (self.product * 2)}


def test_what_a_graph_makes_of_layers_is_known_by_their_parameters() -> None:
    module = Parted()
    method = as_graph(module)
    assert not isinstance(method, str), method
    choice = chosen(module, {})
    found = [
        (sorted(choice.names(weights.sources)), tuple(weights.weight.shape))
        for weights in map(weights_of, method._captured.program.nodes)
        if weights
    ]
    assert found == [
        (["folded.weight"], (4, DENSE)),
        (["first.weight", "second.weight"], (11, 4)),
        (["split.weight"], (2, 22)),
        (["product"], (3, 2)),
    ]
