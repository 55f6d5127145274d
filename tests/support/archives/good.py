"""A good archive of the ranking model: built, unpacked, loaded and asked in this process."""

import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torchrec.inference.modules import quantize_inference_model

from tests.support.factories.ranking import (
    DENSE,
    SPARSE,
    WEIGHTED,
    RankingPredictFactory,
    RankingPredictModule,
    seeded,
)
from torchrec_archiver import build_archive
from torchrec_handler.load.loader import load
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import read_options

CPU = torch.device("cpu")
ROWS = 5


def build(export_path: Path, **arguments: Any) -> Path:
    """An archive of the ranking model; arguments are build_archive's."""
    return build_archive(
        **{
            "model_name": "ranking",
            "version": "1.0",
            "factory": RankingPredictFactory,
            "export_path": export_path,
            **arguments,
        }
    )


def unpack(archive: Path, folder: Path) -> Path:
    """The folder of an archive's members, as TorchServe hands it to the handler."""
    if archive.is_dir():
        return archive
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as members:
            members.extractall(folder, filter="data")
        return folder / archive.name.removesuffix(".tar.gz")
    with zipfile.ZipFile(archive) as members:
        members.extractall(folder)  # noqa: S202  built by the test itself
    return folder


def load_folder(folder: Path, **options: Any) -> Predictor:
    """Load an archive's folder on the CPU; options are those under `torchrec:`."""
    return load(folder, read_options({"torchrec": options}), CPU)


def batch() -> dict[str, torch.Tensor]:
    """ROWS rows for the ranking model, with ids up to each table's last row."""
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(ROWS, DENSE, generator=generator)
    result = {"float_features": dense}
    for name, tables in (("id_list_features", SPARSE), ("id_score_list_features", WEIGHTED)):
        lengths = torch.randint(0, 4, (len(tables), ROWS), generator=generator)
        values = [
            torch.randint(0, rows, (int(of_feature.sum()),), generator=generator)
            for rows, of_feature in zip(tables.values(), lengths, strict=True)
        ]
        result[f"{name}.lengths"] = lengths.reshape(-1).to(torch.int32)
        result[f"{name}.values"] = torch.cat(values).to(torch.int32)
    count = len(result["id_score_list_features.values"])
    result["id_score_list_features.weights"] = torch.rand(count, generator=generator)
    return result


def request() -> dict[str, Any]:
    """`batch` as a request in JSON columns."""
    return {name: tensor.tolist() for name, tensor in batch().items()}


def scores(module: torch.nn.Module) -> torch.Tensor:
    """[ROWS] logits of `batch`."""
    logits: torch.Tensor = module(batch())["logit"]
    return logits


def expected_scores() -> torch.Tensor:
    """[ROWS] logits of `batch` by TorchRec's own quantized module, without an archive."""
    return scores(quantize_inference_model(RankingPredictModule(seeded(), "cpu")))


def unmangled(message: str) -> str:
    """A message without torch.package's counter of packages."""
    return re.sub(r"<torch_package_\d+>", "<torch_package>", message)
