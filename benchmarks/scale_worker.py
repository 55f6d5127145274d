"""One worker's steps without a server, for `benchmarks.scale`; prints its figures as JSON."""

import time

import torch

BEGAN = time.perf_counter()


def main() -> None:
    """Load the archive's folder named first, answer once, then time lookups."""
    import json  # noqa: PLC0415  what torch's import does not bring is part of the figure
    import statistics  # noqa: PLC0415
    import sys  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415
    from typing import Any  # noqa: PLC0415

    from benchmarks.criteo import DENSE_FEATURES, kjt  # noqa: PLC0415
    from benchmarks.ordinary import TABLES, hold_tables  # noqa: PLC0415
    from torchrec_handler.load.loader import load  # noqa: PLC0415
    from torchrec_handler.options import Options  # noqa: PLC0415

    folder = Path(sys.argv[1])
    ordinary = (folder / TABLES).exists()
    if ordinary:
        hold_tables()
    predictor = load(folder, Options(), torch.device("cpu"))
    tables = predictor.index.tables if predictor.index else ()
    rows = [entry.rows for entry in tables]
    generator = torch.Generator().manual_seed(0)

    def ids(count: int) -> torch.Tensor:
        drawn = [torch.randint(0, most, (count,), generator=generator) for most in rows]
        return torch.cat(drawn).int()

    with torch.inference_mode():
        answer = predictor.module(
            {
                "float_features": torch.zeros(1, DENSE_FEATURES),
                "id_list_features.lengths": torch.ones(len(rows), dtype=torch.int32),
                "id_list_features.values": ids(1),
            }
        )
        float(answer["default"])
        seconds = time.perf_counter() - BEGAN
        sparse_arch: Any = predictor.module.get_submodule("_module.sparse_arch")
        batches = [kjt(len(rows), ids(1000)) for _ in range(50)]
        spent = []
        for batch in batches * 3:
            began = time.perf_counter()
            sparse_arch(batch)
            spent.append((time.perf_counter() - began) * 1e6)
    figures = {
        "way": "ordinary" if ordinary else "mapped",
        "tables_gb": sum(entry.nbytes for entry in tables) / 1e9,
        "seconds_after_torch": seconds,
        "lookup_us": statistics.median(spent[len(batches) :]),
    }
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
