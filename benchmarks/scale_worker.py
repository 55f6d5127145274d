"""One worker's steps without a server, for `benchmarks.scale`; prints its figures as JSON."""

import time

import torch

BEGAN = time.perf_counter()


def main() -> None:
    """Load an archive's folder in one of the ways, answer once, then time lookups."""
    import json  # noqa: PLC0415  what torch's import does not bring is part of the figure
    import statistics  # noqa: PLC0415
    import sys  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415
    from typing import Any  # noqa: PLC0415

    from benchmarks.criteo import CRITEO_ROWS, DENSE_FEATURES, kjt  # noqa: PLC0415

    folder, way = Path(sys.argv[1]), sys.argv[2]
    if way == "converted":
        from benchmarks.ordinary import convert  # noqa: PLC0415

        torch.set_num_threads(1)
        module = convert(folder)
    else:
        from torchrec_handler.load.loader import load  # noqa: PLC0415
        from torchrec_handler.load.process import become_worker  # noqa: PLC0415
        from torchrec_handler.options import Options  # noqa: PLC0415

        if way == "read":
            from benchmarks.ordinary import hold_tables  # noqa: PLC0415

            hold_tables()
        become_worker(Options(), torch.device("cpu"))
        module = load(folder, Options(), torch.device("cpu")).module
    features = len(CRITEO_ROWS)
    with torch.inference_mode():
        answer = module(
            {
                "float_features": torch.zeros(1, DENSE_FEATURES),
                "id_list_features.lengths": torch.ones(features, dtype=torch.int32),
                "id_list_features.values": torch.zeros(features, dtype=torch.int32),
            }
        )
        float(answer["default"])
        seconds = time.perf_counter() - BEGAN

        from torchrec_handler.archive.read import read_index  # noqa: PLC0415

        rows = [entry.rows for entry in read_index(folder).tables]
        generator = torch.Generator().manual_seed(0)
        sparse_arch: Any = module.get_submodule("_module.sparse_arch")
        batches = [
            kjt(
                features,
                torch.cat(
                    [torch.randint(0, most, (1000,), generator=generator) for most in rows]
                ).int(),
            )
            for _ in range(50)
        ]
        spent = []
        for batch in batches * 3:
            began = time.perf_counter()
            sparse_arch(batch)
            spent.append((time.perf_counter() - began) * 1e6)
    figures = {
        "seconds_after_torch": seconds,
        "lookup_us": statistics.median(spent[len(batches) :]),
    }
    print(json.dumps(figures))  # noqa: T201


if __name__ == "__main__":
    main()
