"""SimpleFactory: what it gives TorchRec, what `forward` gets, and what is said of wrong use."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.package.package_importer import PackageImporter
from torchrec.inference.model_packager import PredictFactoryPackager

from tests.support.answered import ask as answered
from tests.support.archives.good import unmangled
from tests.support.archives.plain import build_plain
from tests.support.factories import simple
from tests.support.factories.packagers import ForgetfulPackager, OwnPackager
from tests.support.paths import ROOT
from torchrec_archiver import DefaultPackager, build_archive
from torchrec_handler.archive.format import PACKAGE
from torchrec_handler.errors import BuildError, FactoryError
from torchrec_handler.load.factory import run_factory
from torchrec_handler.load.loader import load
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest
from torchrec_handler.simple import SimpleFactory, dense, sparse

CPU = torch.device("cpu")
README_MODEL = ROOT / "tests" / "support" / "factories" / "readme_model.txt"
REQUEST = {
    "float_features": [[0.5, 1.0], [2.0, -1.0]],
    "id_list_features.lengths": [1, 0, 2, 1],
    "id_list_features.values": [49, 3, 69, 8],
    "id_score_list_features.lengths": [2, 1],
    "id_score_list_features.values": [8, 0, 1],
    "id_score_list_features.weights": [0.5, 2.0, -1.0],
    "embedding_features": torch.arange(16).reshape(2, 2, 4).tolist(),
}
"""Two rows for `EveryInput`."""


def tensors() -> dict[str, Any]:
    """`REQUEST` as TorchRec's batch."""
    found: dict[str, Any] = {
        name: torch.tensor(value, dtype=torch.int32 if name.endswith(("hs", "lues")) else None)
        for name, value in REQUEST.items()
    }
    found["embedding_features"] = list(found["embedding_features"].float().unbind(0))
    return found


def build(folder: Path, factory: str | type[SimpleFactory], **arguments: Any) -> Path:
    return build_archive(
        model_name="simple",
        version="1.0",
        factory=factory,
        export_path=folder,
        archive_format="no-archive",
        **arguments,
    )


def ask(predictor: Predictor, document: Any, qualname: str = "forward") -> tuple[int, Any]:
    body = json.dumps(document).encode()
    request = RawRequest(body=body, content_type="application/json", qualname=qualname)
    (response,) = answered(Engine("simple", predictor, Options()), [request])
    return response.status, json.loads(response.body)


def test_the_model_of_the_readme_is_built_and_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "readme_factory.py").write_text(README_MODEL.read_text(encoding="utf-8"))
    monkeypatch.syspath_prepend(tmp_path)
    factory = __import__("readme_factory").Factory()
    torch.manual_seed(0)
    trained = factory.model(CPU, tables="cpu").eval()
    for weight in trained.sparse_arch.parameters():  # fresh ones are too small to be told apart
        torch.nn.init.uniform_(weight, -1, 1)
    float32 = tmp_path / "float32.yaml"
    float32.write_text("torchrec: {tables: {dtype: float32}}\n")
    archive = build(
        tmp_path, "readme_factory:Factory", weights=trained.state_dict(), config_file=float32
    )
    options = Options.model_validate({"tables": {"dtype": "float32"}})
    shared = {"user": 999, "age": 0.5}
    instances = [{"movie": 1999, "genres": [3, 19], "hour": 1.0}, {"movie": 1, "hour": -1.0}]
    status, answer = ask(load(archive, options, CPU), {"shared": shared, "instances": instances})
    batch = {
        "float_features": torch.tensor([[0.5, 1.0], [0.5, -1.0]]),
        "id_list_features.lengths": torch.tensor([1, 1, 1, 1, 2, 0], dtype=torch.int32),
        "id_list_features.values": torch.tensor([999, 999, 1999, 1, 3, 19], dtype=torch.int32),
    }
    factory.model = lambda _: trained
    expected = factory.create_predict_module()(batch)["default"]
    assert status == 200
    assert (expected[0] - expected[1]).abs() > 0.01
    torch.testing.assert_close(torch.tensor(answer["predictions"]), expected)


# What TorchRec is given.


def test_metadata_are_those_of_the_inputs() -> None:
    output = run_factory(simple.EveryInput(), CPU, world_size=1)
    assert {
        name: (entry.type, entry.device, entry.pinned) for name, entry in output.batching.items()
    } == {
        "float_features": ("dense", "cpu", [""]),
        "id_list_features": ("sparse", "cpu", ["lengths", "values"]),
        "id_score_list_features": ("weighted_sparse", "cpu", ["lengths", "values", "weights"]),
        "embedding_features": ("embedding", "cpu", [""]),
    }
    assert output.model_inputs_data == {
        "float_features": {"features": ["age", "hour"]},
        "id_list_features": {"features": ["user", "movie"], "outputs": {"ids": "movie"}},
        "id_score_list_features": {"features": ["topic"]},
        "embedding_features": {"features": ["text", "image"], "width": 4},
    }
    assert {name: entry.need_preproc for name, entry in output.qualnames.items()} == {
        "forward": True,
        "doubled": True,
        "bias": False,
    }
    assert output.result_metadata == "dict_of_tensor"


def test_the_server_s_ranks_are_known_to_the_model() -> None:
    factory = simple.EveryInput()
    run_factory(factory, CPU, world_size=3)
    assert (factory.world_size, factory.device) == (3, CPU)


def test_sparse_inputs_are_keyed_jagged_tensors() -> None:
    seen = {}

    class Looks(simple.EveryInput):
        def forward(self, model: torch.nn.Module, batch: Any) -> Any:
            seen.update({name: batch[name] for name in self.inputs})
            return super().forward(model, batch)

    module: Any = Looks().create_predict_module()
    module.predict_module.load_state_dict(simple.seeded().state_dict(), assign=True)
    module(tensors())
    assert seen["float_features"].tolist() == REQUEST["float_features"]
    bags, weighted = seen["id_list_features"], seen["id_score_list_features"]
    assert bags.keys() == ["user", "movie"]
    assert bags.weights_or_none() is None
    assert bags["movie"].to_dense()[0].tolist() == [3, 69]
    assert weighted["topic"].weights().tolist() == [0.5, 2.0, -1.0]
    assert [vector.shape for vector in seen["embedding_features"]] == [(2, 4), (2, 4)]


# Through an archive.


def expected() -> torch.Tensor:
    """[2], of the float model."""
    factory = simple.EveryInput()
    factory.model = lambda device: simple.seeded()  # type: ignore[method-assign]  # noqa: ARG005
    scores: torch.Tensor = factory.create_predict_module()(tensors())["default"]
    return scores


@pytest.mark.parametrize("kind", [simple.EveryInput, simple.Quantized, simple.Sharded])
def test_every_input_and_method_is_served(kind: type[SimpleFactory], tmp_path: Path) -> None:
    """Of a float model, and of one that its factory quantized, or sharded over two ranks."""
    weights = simple.seeded().state_dict() if kind is simple.EveryInput else None
    config = tmp_path / "config.yaml"
    config.write_text("torchrec: {sharding: {world_size: 2}}\n")
    archive = build(tmp_path, kind, weights=weights, config_file=config)
    predictor = load(archive, Options.model_validate({"sharding": {"world_size": 2}}), CPU)
    status, answer = ask(predictor, REQUEST)
    assert (status, answer["ids"]) == (200, [3, 69, 8])
    torch.testing.assert_close(torch.tensor(answer["default"]), expected(), atol=0.02, rtol=0)
    doubled = ask(predictor, REQUEST, "doubled")[1]["default"]
    torch.testing.assert_close(torch.tensor(doubled), 2 * torch.tensor(answer["default"]))
    bias = 3 * simple.seeded().layer.bias.detach()
    status, told = ask(predictor, {"times": 3}, "bias")
    assert status == 200
    torch.testing.assert_close(torch.tensor(told["bias"]), bias)


def test_other_results_are_said_by_name(tmp_path: Path) -> None:
    archive = build(tmp_path, simple.Several, weights=simple.seeded().state_dict())
    status, answer = ask(load(archive, Options(), CPU), REQUEST)
    assert (status, answer["ids"]) == (200, [[3, 69, 8]])
    assert answer["default"][0] == [-score for score in answer["default"][1]]


@pytest.mark.parametrize("packager", [DefaultPackager, OwnPackager, ForgetfulPackager])
def test_an_archive_by_plain_torch_model_archiver_has_its_own_copy(
    packager: type[PredictFactoryPackager], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_plain(tmp_path, simple.Quantized, packager=packager, archive_format="no-archive")
    records = PackageImporter(str(folder / PACKAGE)).zip_reader.get_all_records()
    assert [name for name in records if name.startswith("torchrec_handler")] == [
        "torchrec_handler/simple.py"
    ]
    monkeypatch.setitem(sys.modules, "torchrec_handler.simple", None)
    status, answer = ask(load(folder, Options(), CPU), REQUEST)
    assert status == 200
    torch.testing.assert_close(torch.tensor(answer["default"]), expected(), atol=0.02, rtol=0)


def test_training_code_imports_it_without_a_server() -> None:
    code = (
        "import sys; from torchrec_handler.simple import SimpleFactory;"
        "own = {name for name in sys.modules if name.startswith('torchrec_')};"
        "assert own == {'torchrec_handler', 'torchrec_handler.simple'}, own;"
        "assert 'ts' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# What is wrong.

ENDING = (
    ", with 1, 4, 16 and 64 rows; give requests that it takes with --samples, or build all the "
    "same with --allow-failing-samples"
)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (
            simple.NoModel,
            (
                "predict_factory.pt: making the factory raised TypeError: Can't instantiate "
                "abstract class NoModel with abstract methods forward, model"
            ),
        ),
        (
            simple.NothingBuilt,
            (
                "SimpleFactory.create_predict_module raised TypeError: NothingBuilt.model: "
                "returned a NoneType, expected a Module"
            ),
        ),
        (
            simple.NamesOnly,
            (
                "SimpleFactory.create_predict_module raised TypeError: "
                "NamesOnly.inputs['float_features']: received a list, expected dense(…), "
                "sparse(…), weighted_sparse(…) or embedding(…)"
            ),
        ),
        (
            simple.NoMethod,
            (
                "SimpleFactory.create_predict_module raised TypeError: NoMethod: names the method "
                "'halved', but has none"
            ),
        ),
        (
            simple.TakenName,
            (
                "SimpleFactory.create_predict_module raised TypeError: TakenName.train: a Module "
                "has a method of that name; choose another"
            ),
        ),
        (
            simple.NoDict,
            (
                "samples: forward raised TypeError: NoDict.forward: returned a Tensor, expected a "
                f"dict of tensors by output{ENDING}"
            ),
        ),
        (
            simple.Listed,
            (
                "samples: forward output 'default' is list, expected a tensor (dict_of_tensor)"
                f"{ENDING}"
            ),
        ),
        (
            simple.OtherName,
            (
                "samples: forward raised LookupError: OtherName.inputs: has no 'dense_features', "
                "expected one of float_features, id_list_features, id_score_list_features, "
                f"embedding_features{ENDING}"
            ),
        ),
    ],
)
def test_a_factory_that_is_wrong_fails_the_build(
    factory: type[SimpleFactory], message: str, tmp_path: Path
) -> None:
    with pytest.raises((BuildError, FactoryError)) as caught:
        build(tmp_path, factory, weights=simple.seeded().state_dict())
    assert unmangled(str(caught.value)) == message


@pytest.mark.parametrize("features", [(), ("user", "user"), (["user"],)])
def test_features_have_names_each_once(features: Any) -> None:
    for kind in (dense, sparse):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            kind(*features)
        assert str(caught.value) == (
            f"{kind.__name__}: received {features}, expected names, each once"
        )
