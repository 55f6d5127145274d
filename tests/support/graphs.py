"""Small modules as graphs, beside themselves."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree
from torchrec.modules.embedding_configs import EmbeddingConfig
from torchrec.modules.embedding_modules import EmbeddingBagCollection, EmbeddingCollection
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from tests.support.factories.kinds_base import table
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.capture import Captured, capture
from torchrec_handler.kernels.graph.method import (
    EVERY,
    GraphMethod,
)
from torchrec_handler.kernels.graph.methods import (
    capture_methods,
)
from torchrec_handler.kernels.graph.program import is_call
from torchrec_handler.kernels.graph.trials import Trial
from torchrec_handler.kernels.kernel import Target

CPU = torch.device("cpu")
FLOAT32 = Target(device=CPU, dtype="float32")
ROWS = (1, 2, 7, 300)
DENSE, IDS, WIDTH = 6, 20, 4
FEATURES = ("u", "v")

Batch = dict[str, torch.Tensor]
Forward = Callable[[Any, Batch], Any]


class Small(nn.Module):
    """A predict module of a function and what that uses: parts, and buffers."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module):
                self.add_module(name, part)
            else:
                self.register_buffer(name, part)
        self._forward = forward
        self.eval()

    def forward(self, batch: Batch) -> Any:
        return self._forward(self, batch)


def draw(rows: int, seed: int = 0, *, ids: int = IDS, most: int = 3, size: float = 1.0) -> Batch:
    """`x` [B, DENSE] and lists `s` of two features."""
    random = torch.Generator().manual_seed(1_000 * seed + rows)
    lengths = torch.randint(0, most + 1, (len(FEATURES) * rows,), generator=random).int()
    values = torch.randint(0, ids, (int(lengths.sum()),), generator=random).int()
    dense = torch.randn(rows, DENSE, generator=random) * size
    return {"x": dense, "s.lengths": lengths, "s.values": values}


def draws(rows: int) -> list[Batch]:
    """As trials are, and as they are not: other ids, larger numbers, few ids and none."""
    return [
        draw(rows, ids=2),
        draw(rows, 1, size=5),
        draw(rows, 2, most=1),
        draw(rows, 3, most=0),
    ]


def keyed(batch: Batch, keys: Sequence[str] = FEATURES) -> KeyedJaggedTensor:
    return KeyedJaggedTensor(keys=list(keys), lengths=batch["s.lengths"], values=batch["s.values"])


def bags(*features: str) -> EmbeddingBagCollection:
    tables = [table(name, IDS, width=WIDTH) for name in features or FEATURES]
    return EmbeddingBagCollection(tables=tables)


def sequences(*features: str) -> EmbeddingCollection:
    return EmbeddingCollection(
        tables=[
            EmbeddingConfig(
                name=f"t_{name}", num_embeddings=IDS, embedding_dim=WIDTH, feature_names=[name]
            )
            for name in features or FEATURES
        ]
    )


def norm(width: int) -> nn.BatchNorm1d:
    """As if it was trained."""
    made = nn.BatchNorm1d(width)
    for name in ("weight", "bias", "running_mean"):
        nn.init.normal_(getattr(made, name))
    nn.init.uniform_(made.get_buffer("running_var"), 0.5, 2)
    return made


def captured(module: nn.Module) -> Captured:
    """As it was followed, with nothing done to it."""
    return capture(module, "forward", draw(5, ids=2), {"s": len(FEATURES)})


def as_graph(module: nn.Module) -> GraphMethod | str:
    """A module's forward, as it is when it is loaded, used at all sizes; or why it is none."""
    batch = draw(5, ids=2)
    graphs, declined, _ = capture_methods(
        module, ["forward"], lambda _: Trial(5, batch), {"s": len(FEATURES)}, FLOAT32
    )
    if declined:
        return declined[0].why
    method = GraphMethod(graphs[0], FLOAT32)
    method.trials = [Trial(rows, draw(rows, ids=2)) for rows in (1, 2, 7, 16)]
    with torch.inference_mode():
        why = methods._differs(method, 1e-5)
    method.ranges = [*EVERY]
    return why or method


def copied(batch: Batch) -> Batch:
    return {name: tensor.clone() for name, tensor in batch.items()}


def assert_same(method: GraphMethod, forward: Callable[[Batch], Any]) -> None:
    """At all sizes, and in blocks where it has any; what one raises the other raises."""
    blocks = {method._run.block, 3} if 0 < method._run.block <= 1024 else {method._run.block}
    for rows in ROWS:
        for batch in draws(rows):
            for block in blocks:
                method._run.block = block
                with torch.inference_mode():
                    expected = outcome(forward, copied(batch))
                    assert_close(outcome(method, copied(batch)), expected)


def outcome(call: Callable[[Batch], Any], batch: Batch) -> Any:
    try:
        return dict(call(batch))
    except Exception as error:  # noqa: BLE001  whatever a model raises
        return f"{type(error).__name__}: {error}"


def assert_close(received: Any, expected: Any) -> None:
    if isinstance(expected, str) or isinstance(received, str):
        assert received == expected
        return
    assert list(received) == list(expected)
    pairs = zip(pytree.tree_leaves(received), pytree.tree_leaves(expected), strict=True)
    for given, wanted in pairs:
        assert given.shape == wanted.shape
        assert given.dtype == wanted.dtype
        largest = max(1.0, float(wanted.double().abs().max())) if wanted.numel() else 1.0
        torch.testing.assert_close(given, wanted, atol=1e-5 * largest, rtol=0, equal_nan=True)


def assert_graph(module: nn.Module) -> GraphMethod:
    """A module is a graph, which gives what it gives."""
    method = as_graph(module)
    assert not isinstance(method, str), method
    assert_same(method, module)
    return method


def calls(program: Any, *targets: Any) -> list[Any]:
    """Nodes of a program that call one of some functions."""
    return [node for node in program.nodes if is_call(node, *targets)]


def seeded_parts(**parts: Callable[[], Any]) -> Mapping[str, Any]:
    """Made in order, with weights that are the same every time."""
    torch.manual_seed(0)
    return {name: make() for name, make in parts.items()}


def layer(inputs: int = DENSE, outputs: int = WIDTH) -> nn.Linear:
    """Of numbers large enough for conditions that a trial's never meet."""
    made = nn.Linear(inputs, outputs)
    with torch.no_grad():
        made.weight.mul_(2)
    return made
