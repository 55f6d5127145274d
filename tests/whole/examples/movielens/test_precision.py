"""AUC by data type of the tables: what quantizing may cost."""

from pathlib import Path

from examples.movielens.data import Dataset
from examples.movielens.precision import measure


def test_auc_by_data_type(trained: Path, dataset: Dataset, tmp_path: Path) -> None:
    """int8 stays within 0.0005 of float32, int4 within 0.003; fewer bits are fewer bytes."""
    test = dataset.test()
    found = {
        dtype: measure(trained, dtype, test, tmp_path)
        for dtype in ("float32", "int8", "int4", "int2")
    }
    float32 = found["float32"]
    assert float32.auc >= 0.775
    assert float32.output_change == 0
    assert abs(found["int8"].auc - float32.auc) <= 0.0005
    assert abs(found["int4"].auc - float32.auc) <= 0.003
    sizes = [one.table_bytes for one in found.values()]
    assert sizes == sorted(sizes, reverse=True)
    changes = [one.output_change for one in found.values()]
    assert changes == sorted(changes)
