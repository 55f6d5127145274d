"""`dense.dtype: auto`: what is decided, written, shown, and computed by who loads it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.support.factories.layered import WIDTH, LayeredFactory, seeded
from torchrec_archiver import build_archive
from torchrec_archiver.__main__ import main
from torchrec_handler.archive.format import INDEX, SAMPLES, Declined, DenseDtypes
from torchrec_handler.archive.read import read_index
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import OptionError
from torchrec_handler.kernels.graph import methods
from torchrec_handler.kernels.graph.method import EVERY
from torchrec_handler.kernels.products import is_fast
from torchrec_handler.load import placing
from torchrec_handler.load.call import call_recorded
from torchrec_handler.load.loader import load
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options

CPU = torch.device("cpu")
REQUESTED = 600
"""Rows of the one request that is recorded."""
MIDDLE = 0.01
"""What the robust layer changes outputs less by, in any type, and the sensitive one more."""

PLAIN = Options(self_test=False)
"""In float32, which is not what was recorded."""

needs_types = pytest.mark.skipif(
    not is_fast("bfloat16"), reason="a processor that has but float32 decides nothing else"
)

Build = Callable[[float], Path]


def options(allowed: float) -> Options:
    return Options.model_validate({"dense": {"dtype": "auto", "max_error": allowed}})


def loaded(folder: Path, given: Options) -> Predictor:
    return load(folder, given, CPU)


@pytest.fixture(scope="module", autouse=True)
def graphs_are_no_slower() -> Iterator[None]:
    """On a busy machine a build and a worker may find so of other sizes each."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(methods, "_time", lambda method: method.ranges.append(EVERY[0]))
        yield


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """An archive by what outputs may be off by, built once."""
    built: dict[float, Path] = {}

    def build(allowed: float) -> Path:
        if allowed not in built:
            folder = tmp_path_factory.mktemp("auto")
            config, samples = folder / "model-config.yaml", folder / "samples.jsonl"
            config.write_text(f"torchrec: {{dense: {{dtype: auto, max_error: {allowed}}}}}")
            given = {name: value.tolist() for name, value in inputs(REQUESTED).items()}
            samples.write_text(json.dumps({"batch_size": REQUESTED, **given}))
            built[allowed] = build_archive(
                model_name="layered",
                version="1.0",
                factory=LayeredFactory,
                weights=seeded().state_dict(),
                samples=samples,
                config_file=config,
                export_path=folder,
                archive_format="no-archive",
            )
        return built[allowed]

    return build


def inputs(rows: int) -> dict[str, torch.Tensor]:
    """Rows of the request."""
    random = torch.Generator().manual_seed(7)
    return {
        "float_features": torch.randn(REQUESTED, WIDTH, generator=random)[:rows],
        "id_list_features.lengths": torch.ones(rows, dtype=torch.int32),
        "id_list_features.values": torch.ones(rows, dtype=torch.int32),
    }


def decided(folder: Path) -> DenseDtypes:
    dense = read_index(folder).dense
    assert dense is not None
    return dense


def scores(predictor: Predictor, rows: int) -> torch.Tensor:
    """Of the request's first rows."""
    outputs = call_recorded(predictor.module, "forward", inputs(rows), "dict_of_tensor", CPU)
    return outputs["default"][0]


@needs_types
def test_a_sensitive_layer_stays_and_others_are_as_fast_as_they_may_be(build: Build) -> None:
    dense = decided(build(MIDDLE))
    assert dense.dtypes.keys() == {"robust.weight", "sensitive.weight", "top.weight"}
    assert dense.dtypes["sensitive.weight"] == dense.dtypes["top.weight"] == "float32"
    assert dense.dtypes["robust.weight"] != "float32"
    assert 0 < dense.mean_error < dense.max_error <= dense.allowed == MIDDLE
    assert dense.rows == 1000
    assert dense.instructions
    kernels = {one.dtype for one in read_index(build(MIDDLE)).kernels.replaced}
    assert dense.dtypes["robust.weight"] in kernels


@needs_types
def test_the_error_that_is_written_is_that_of_who_is_served(build: Build) -> None:
    """Of rows that are asked too; drawn ones may be further off, but never than is written."""
    for allowed in (MIDDLE, 100.0):
        dense = decided(build(allowed))
        served, plain = loaded(build(allowed), options(allowed)), loaded(build(allowed), PLAIN)
        off = [
            float((scores(served, rows) - scores(plain, rows)).abs().max())
            for rows in (1, 11, 63, REQUESTED)
        ]
        assert 0.2 * dense.max_error < max(off) <= dense.max_error * 1.01


def test_little_that_is_allowed_is_float32_and_much_the_fastest(build: Build) -> None:
    tiny = decided(build(1e-12))
    assert set(tiny.dtypes.values()) == {"float32"} if tiny.dtypes else True
    assert (tiny.max_error, tiny.mean_error) == (0.0, 0.0)
    much = decided(build(100.0))
    if is_fast("bfloat16"):
        assert "float32" not in {much.dtypes["robust.weight"], much.dtypes["sensitive.weight"]}
        assert much.max_error > MIDDLE


def test_a_worker_computes_what_the_build_recorded(build: Build) -> None:
    for allowed in (MIDDLE, 100.0):
        folder = build(allowed)
        served = loaded(folder, options(allowed))
        (sample,) = read_samples(folder / SAMPLES)
        torch.testing.assert_close(
            scores(served, sample.rows), sample.outputs["default"][0], atol=1e-5, rtol=1e-5
        )
        signature = read_index(folder).signature
        assert signature.splits is not None
        assert set(signature.splits) == {"forward"}


@needs_types
def test_a_processor_without_an_instruction_computes_in_float32_and_says_so(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build(MIDDLE)
    dtype = decided(folder).dtypes["robust.weight"]
    monkeypatch.setattr(placing, "is_fast", lambda dtype: dtype == "float32")
    served = loaded(folder, options(MIDDLE))
    plain = loaded(folder, PLAIN)
    torch.testing.assert_close(scores(served, 64), scores(plain, 64), atol=1e-5, rtol=1e-5)
    takes = {
        "bfloat16": "amx_bf16, avx512_bf16",
        "int8": "amx_int8, avx512_vnni, avx_vnni",
    }[dtype]
    assert [one for one in served.report.declined if one.path == "robust.weight"] == [
        Declined(
            path="robust.weight",
            kernel="linear",
            why=(
                f"is in float32, not in {dtype} as the build decided: this processor has no "
                f"kernel for it, which takes one of {takes}"
            ),
        ),
    ]


def test_an_archive_that_holds_no_decision_is_not_guessed(build: Build, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    folder.mkdir()
    for path in build(MIDDLE).rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(build(MIDDLE))
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(path.read_bytes())
    index = json.loads((folder / INDEX).read_text())
    del index["dense"]
    (folder / INDEX).write_text(json.dumps(index))
    assert loaded(folder, PLAIN).dense is None
    with pytest.raises(OptionError) as caught:
        loaded(folder, options(MIDDLE))
    assert str(caught.value) == (
        "torchrec.dense.dtype: received 'auto', which a build decides and writes into the archive, "
        "but this archive holds no decision; build it with torchrec-archiver, or name a type"
    )


def test_inspect_shows_what_was_decided(build: Build, capsys: pytest.CaptureFixture[str]) -> None:
    dense = decided(build(MIDDLE))
    assert main(["inspect", str(build(MIDDLE))]) == 0
    shown = capsys.readouterr().out
    assert "Layers, by dense.dtype: auto" in shown
    for name, dtype in dense.dtypes.items():
        (line,) = [line for line in shown.splitlines() if name in line]
        assert dtype in line
    assert (
        f"dense.dtype auto: off from float32 by at most {dense.max_error:.2g}, of 0.01 allowed, "
        f"by {dense.mean_error:.2g} in the mean, on 1,000 rows; decided on a processor with "
        f"{', '.join(dense.instructions) or 'float32 alone'} "
    ) in " ".join(shown.split())
