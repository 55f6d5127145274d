"""Packed layers give what torch.nn.Linear and ReLU give, to the rounding of their data type."""

import logging
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrec_handler.kernels import products
from torchrec_handler.kernels.packed import BLOCK_ROWS, FEW_ROWS, Layers
from torchrec_handler.kernels.products import INT8_ROWS, RELU, Layer, half_precision, is_fast
from torchrec_handler.options import KernelDtype

DTYPES: tuple[KernelDtype, ...] = ("float32", "bfloat16", "int8")
BOUNDS: dict[KernelDtype, float] = {"float32": 1e-6, "bfloat16": 1e-2, "int8": 3e-2}
"""How far an output may be off, in units of the largest; the last two of a chain of three."""
ROWS = (0, 1, 2, FEW_ROWS - 1, FEW_ROWS, INT8_ROWS - 1, INT8_ROWS, BLOCK_ROWS, BLOCK_ROWS + 1)
WIDTHS = (13, 256, 200, 64, 1)
"""None a multiple of the others; the first and the last layer are too small to pack by rights."""


def random_layers(widths: Sequence[int] = WIDTHS, seed: int = 0) -> list[Layer]:
    """With a ReLU behind each but the last, of outputs that keep their size."""
    random = torch.Generator().manual_seed(seed)
    return [
        Layer(
            weight=torch.randn(outputs, inputs, generator=random) * (2 / inputs) ** 0.5,
            bias=torch.randn(outputs, generator=random) / 4,
            activation=RELU if position < len(widths) - 2 else None,
        )
        for position, (inputs, outputs) in enumerate(pairwise(widths))
    ]


def random_rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def plain(layers: Sequence[Layer], x: torch.Tensor) -> torch.Tensor:
    """In float64, so that what is compared with it is only the packed layers' own rounding."""
    x = x.double()
    for weight, bias, relu, _ in layers:
        x = torch.nn.functional.linear(x, weight.double(), bias.double())
        x = x.relu() if relu else x
    return x


def error(received: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, in units of the largest value."""
    assert received.shape == expected.shape
    assert received.dtype == torch.float32
    if not expected.numel():
        return 0.0
    return float((received - expected).abs().max() / expected.abs().max().clamp(min=1))


@pytest.fixture(autouse=True, scope="module")
def nothing_is_small() -> Iterator[None]:
    """So that layers of any size are packed; which ones pay is for the last tests here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "PACKED_WEIGHTS", 0)
        patch.setattr(products, "INT8_WEIGHTS", 0)
        for name in ("bfloat16", "int8"):
            patch.setitem(products.WORK, name, 0)
        yield


@pytest.fixture
def as_if_elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bool]]:
    """What the processor says of itself, to be changed; what was found before is forgotten."""
    capabilities = dict(torch.cpu.get_capabilities())
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    is_fast.cache_clear()
    yield capabilities
    is_fast.cache_clear()


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_rows_in_every_data_type(dtype: KernelDtype, rows: int) -> None:
    layers = random_layers()
    x = random_rows(rows, WIDTHS[0])
    assert error(Layers(layers, dtype)(x), plain(layers, x)) < BOUNDS[dtype]


@given(
    rows=st.integers(0, 300),
    widths=st.lists(st.integers(1, 160), min_size=2, max_size=4),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_layers_of_any_size(rows: int, widths: list[int], dtype: KernelDtype, seed: int) -> None:
    layers = random_layers(widths, seed)
    x = random_rows(rows, widths[0], seed=seed)
    assert error(Layers(layers, dtype)(x), plain(layers, x)) < 3 * BOUNDS[dtype]


@pytest.mark.parametrize("rows", [1, 80])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_of_any_type_and_layout(dtype: KernelDtype, rows: int) -> None:
    layers = random_layers((128, 128, 128))
    packed = Layers(layers, dtype)
    wide = random_rows(rows, 256)
    for x in (
        wide[:, 64:192],
        wide[:, ::2],
        random_rows(128, rows).t(),
        wide[:1, :128].expand(rows, -1),
    ):
        assert error(packed(x), plain(layers, x)) < BOUNDS[dtype]
    for half in (torch.float16, torch.bfloat16):
        x = wide[:, :128].to(half)
        assert error(packed(x), plain(layers, x)) < BOUNDS[dtype]


@pytest.mark.parametrize("shape", [(), (5,), (90,), (4, 0), (2, 3, 20)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_leading_dimensions_are_kept(dtype: KernelDtype, shape: tuple[int, ...]) -> None:
    layers = random_layers()
    x = random_rows(*shape, WIDTHS[0])
    received = Layers(layers, dtype)(x)
    assert received.shape == (*shape, WIDTHS[-1])
    assert error(received, plain(layers, x)) < BOUNDS[dtype]


@pytest.mark.parametrize("rows", [2, FEW_ROWS, INT8_ROWS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_the_rows_beside_it(dtype: KernelDtype, rows: int) -> None:
    """One request's huge numbers are no other request's loss of precision."""
    packed = Layers(random_layers((128, 128, 128)), dtype)
    x = random_rows(rows, 128)
    before = packed(x)
    x[0] *= 1e6
    assert torch.equal(packed(x)[1:], before[1:])


@pytest.mark.parametrize("rows", [1, FEW_ROWS, INT8_ROWS])
@pytest.mark.parametrize("dtype", DTYPES)
def test_inputs_are_left_as_they_are(dtype: KernelDtype, rows: int) -> None:
    x = random_rows(rows, 128)
    before = x.clone()
    Layers([Layer(weight=torch.eye(128), bias=torch.zeros(128), activation=RELU)], dtype)(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_of_zero_leave_the_bias(dtype: KernelDtype) -> None:
    bias = torch.arange(128.0)
    layers = [Layer(weight=torch.zeros(128, 128), bias=bias)]
    for rows in (1, FEW_ROWS, INT8_ROWS):
        received = Layers(layers, dtype)(random_rows(rows, 128))
        torch.testing.assert_close(received, bias.expand(rows, -1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_beyond_float16(dtype: KernelDtype) -> None:
    """FBGEMM would clip them."""
    layers = [Layer(weight=torch.eye(128) * 1e6, bias=torch.zeros(128))]
    for rows in (1, FEW_ROWS, INT8_ROWS):
        x = random_rows(rows, 128)
        assert error(Layers(layers, dtype)(x), plain(layers, x)) < BOUNDS[dtype]


def test_float32_shares_the_weights_for_few_rows() -> None:
    """No second copy of what a module holds already."""
    layers = random_layers((20, 5))
    packed = Layers(layers, "float32")
    layers[0].weight.zero_()
    for rows in range(1, FEW_ROWS):
        assert torch.equal(packed(random_rows(rows, 20)), layers[0].bias.expand(rows, -1))


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_without_the_instructions_layers_compute_more_precisely(
    dtype: KernelDtype, as_if_elsewhere: dict[str, bool]
) -> None:
    as_if_elsewhere.clear()
    layers = random_layers()
    float16 = products.PACKED["float16"](layers)
    for rows in ROWS:
        x = random_rows(rows, WIDTHS[0])
        assert torch.equal(
            Layers(layers, dtype)(x), torch.cat(list(map(float16, torch.split(x, BLOCK_ROWS))))
        )
    assert half_precision(dtype) == torch.float32


@pytest.mark.parametrize("dtype", DTYPES)
def test_without_the_kernel_layers_are_torchs(
    dtype: KernelDtype,
    as_if_elsewhere: dict[str, bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As in a build of torch without oneDNN or FBGEMM."""
    as_if_elsewhere |= {names[0]: True for names in products.INSTRUCTIONS.values()}

    def lacking(_: Any) -> Any:
        message = "no such kernel"
        raise NotImplementedError(message)

    monkeypatch.setattr(products, "PACKED", dict.fromkeys(products.PACKED, lacking))
    layers = random_layers()
    caplog.set_level(logging.WARNING)
    for rows in ROWS:
        x = random_rows(rows, WIDTHS[0])
        assert error(Layers(layers, dtype)(x), plain(layers, x)) < BOUNDS["float32"]
    tried = {
        "float32": ["float32"],
        "bfloat16": ["float16", "bfloat16"],
        "int8": ["float16", "bfloat16", "int8"],
    }[dtype]
    assert [record.message for record in caplog.records] == [
        f"dense layers: no kernel for {name} here: no such kernel" for name in tried
    ]


@pytest.mark.parametrize(
    ("inputs", "outputs", "computed"),
    [(63, 64, "float32"), (64, 64, "bfloat16"), (256, 127, "bfloat16"), (256, 128, "int8")],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_layers_that_are_too_small_compute_more_precisely(
    dtype: KernelDtype,
    inputs: int,
    outputs: int,
    computed: KernelDtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A model's own inputs, whose sizes differ, most often go into such a one."""
    layers = random_layers((inputs, outputs))
    x = random_rows(INT8_ROWS, inputs)
    computed = "bfloat16" if (dtype, computed) == ("bfloat16", "int8") else computed
    is_computed = is_fast("bfloat16") and is_fast("int8")
    expected = products.PACKED[computed](layers)(x).double() if is_computed else plain(layers, x)
    monkeypatch.setattr(products, "PACKED_WEIGHTS", 64 * 64)
    monkeypatch.setattr(products, "INT8_WEIGHTS", 256 * 128)
    # A processor without one of them computes all layers more precisely.
    bound = BOUNDS["float32" if is_computed else "int8"]
    assert error(Layers(layers, dtype)(x), expected) < bound


@pytest.mark.parametrize(
    ("rows", "computed"),
    [(FEW_ROWS, "float32"), (20, "bfloat16"), (INT8_ROWS, "bfloat16"), (80, "int8")],
)
@pytest.mark.skipif(not is_fast("bfloat16") or not is_fast("int8"), reason="needs the kernels")
def test_few_rows_of_a_small_layer_are_computed_more_precisely(
    rows: int, computed: KernelDtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = random_layers((256, 128))
    x = random_rows(rows, 256)
    expected = products.PACKED[computed](layers)(x).double()
    for name, least in {"bfloat16": 20, "int8": 80}.items():
        monkeypatch.setitem(products.WORK, name, 256 * 128 * least)
    assert error(Layers(layers, "int8")(x), expected) < BOUNDS["float32"]
