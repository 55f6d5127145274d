"""Prints the test AUC of one trained model with tables of every data type, side by side."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from examples.movielens.auc import auc
from examples.movielens.data import load
from examples.movielens.factory import MovieLensPredictFactory
from examples.movielens.files import DatasetMissingError
from torchrec_archiver import build_archive
from torchrec_handler.load import loader
from torchrec_handler.options import Options

if TYPE_CHECKING:
    from examples.movielens.rows import Rows

DTYPES = ("float32", "float16", "int8", "int4", "int2")


@dataclass(frozen=True, kw_only=True)
class Precision:
    """What tables of one data type give and cost."""

    dtype: str
    auc: float
    table_bytes: int
    output_change: float
    """Largest change of an output of the recorded samples."""


def measure(trained: Path, dtype: str, test: Rows, folder: Path) -> Precision:
    """Build an archive, load it as a worker does and score the test rows.

    Args:
        trained: what `train.py` wrote.
        dtype: of the tables.
        test: the rows to score.
        folder: for the archive.
    """
    config = folder / f"{dtype}.yaml"
    config.write_text(f"torchrec: {{tables: {{dtype: {dtype}}}}}\n", encoding="utf-8")
    archive = build_archive(
        model_name=dtype,
        version="1.0",
        factory=MovieLensPredictFactory,
        configs={"config.pkl": trained / "config.pkl"},
        weights=trained / "weights.pt",
        config_file=config,
        export_path=folder,
        archive_format="no-archive",
    )
    options = Options.model_validate({"tables": {"dtype": dtype}})
    predictor = loader.load(archive, options, torch.device("cpu"))
    with torch.inference_mode():
        answer = predictor.module(
            {
                "float_features": torch.from_numpy(test.dense),
                "id_list_features.lengths": torch.from_numpy(test.lengths).reshape(-1),
                "id_list_features.values": torch.from_numpy(test.values),
            }
        )
    index = predictor.index
    assert index is not None  # noqa: S101  the archiver wrote one
    return Precision(
        dtype=dtype,
        auc=auc(test.label > 0, answer["default"].numpy()),
        table_bytes=sum(entry.nbytes for entry in index.tables),
        output_change=index.output_change["forward"] or 0.0,
    )


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.movielens.precision", description=__doc__
    )
    parser.add_argument("--trained", type=Path, default=Path("build/movielens"))
    arguments = parser.parse_args()
    try:
        test = load().test()
    except DatasetMissingError as error:
        sys.stderr.write(f"ERROR {error}\n")
        return 1
    table = Table()
    for name in ("tables", "test AUC", "bytes", "output change"):
        table.add_column(name, justify="right")
    with tempfile.TemporaryDirectory() as folder:
        for dtype in DTYPES:
            found = measure(arguments.trained, dtype, test, Path(folder))
            table.add_row(
                dtype, f"{found.auc:.4f}", f"{found.table_bytes:,}", f"{found.output_change:.2g}"
            )
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
