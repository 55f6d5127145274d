"""Writes a drawn-up factory, its settings, a request and how to go on."""

import json
import os
import re
import textwrap
from pathlib import Path
from typing import Any

from torchrec_archiver.draft.parts import Draft, DraftInput
from torchrec_handler.archive.format import MODEL_CONFIG
from torchrec_handler.errors import BuildError

FACTORY = "factory.py"
REQUEST = "request.json"
README = "README.md"

MODEL_CONFIG_TEXT = """\
# TorchServe's settings of this model.
minWorkers: 1
maxWorkers: 1           # a worker a core ranks most; all of them share one copy of the tables
batchSize: 64           # requests that share a forward call
maxBatchDelay: 1        # milliseconds to wait for them
responseTimeout: 8      # seconds for a batch, after which the worker is started again
startupTimeout: 600

# torchrec-serve's own, each with its default; docs/options.md tells all of them.
torchrec:
  device: auto          # the GPU that TorchServe gave to the worker, else the CPU
  threads: 1            # of one forward call on the CPU
  tables:
    dtype: int8         # float32, float16, int8, int4 or int2; the build tells what it changes
  kernels:
    dtype: float32      # bfloat16 or int8 compute faster, and less exactly
  out_of_range_ids: reject    # or zero, or modulo
"""

LARGEST_ID = 3
"""In the request, where tables have as many rows."""


def write_files(
    draft: Draft, folder: Path, *, weights: Path | None, imported: bool, force: bool
) -> list[Path]:
    """Write all files of a draft.

    Args:
        draft: what they say.
        folder: where; made where it is missing.
        weights: the checkpoint to build with.
        imported: whether the factory imports a module from the current folder.
        force: whether to replace files.

    Raises:
        BuildError: a file is there already, or cannot be written.
    """
    texts = {
        FACTORY: factory_text(draft),
        MODEL_CONFIG: MODEL_CONFIG_TEXT,
        REQUEST: request_text(draft),
        README: _readme(folder, weights, imported=imported),
    }
    paths = [folder / name for name in texts]
    there = [path for path in paths if path.exists()]
    if there and not force:
        message = f"init: {there[0]} already exists"
        raise BuildError(message, hint="name another folder, or replace it with --force")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in zip(paths, texts.values(), strict=True):
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        message = f"init: {error.filename or folder} cannot be written: {error.strerror or error}"
        raise BuildError(message) from error
    return paths


def factory_text(draft: Draft) -> str:
    """The module of the factory."""
    makers = sorted({one.type for one in draft.inputs})
    lines = [
        '"""Says how a server builds the model, feeds it and reads its answers.',
        "",
        draft.said,
        "It is yours to edit: names of numbers and outputs may be made up.",
        '"""',
        "",
        *["import torch", *draft.imports],
        f"from torchrec_handler.simple import SimpleFactory, {', '.join(makers)}",
        *(["", "", draft.code.strip()] if draft.code else []),
        "",
        "",
        "class Factory(SimpleFactory):",
        '    """What `--factory factory:Factory` packages."""',
        "",
        *_guessed(draft.guessed),
        *(f"    # {guess}." for guess in draft.guesses),
        "    # What requests hold, by input: the features of each, in their order.",
        "    inputs = {",
        *(f"        {json.dumps(one.name)}: {_input(one)}," for one in draft.inputs),
        "    }",
        "",
        "    def model(self, device):",
        '        """Build what was trained, by the names of its checkpoint."""',
        *(f"        {line}".rstrip() for line in draft.model),
        "",
        "    def forward(self, model, batch):",
        '        """Answer all rows of a batch: a dict of tensors, an output each.',
        "",
        "        Sparse inputs are KeyedJaggedTensors, dense ones tensors [rows, features].",
        '        """',
        *(f"        {line}".rstrip() for line in draft.forward),
    ]
    return "\n".join(lines) + "\n"


def _guessed(said: str) -> list[str]:
    if not said:
        return []
    *lines, last = textwrap.wrap(said, 84)
    texts = [json.dumps(f"{line} ") for line in lines] + [json.dumps(last)]
    return ["    guessed = (", *(f"        {text}" for text in texts), "    )", ""]


def request_text(draft: Draft) -> str:
    """A request of two rows: by features' names, or as columns where two inputs share a name."""
    names = [feature for one in draft.inputs for feature in one.features]
    if len(set(names)) == len(names):
        rows = [
            {name: _value(one, name, row) for one in draft.inputs for name in one.features}
            for row in (1, 2)
        ]
        lines = ",\n  ".join(json.dumps(row) for row in rows)
        return f'{{"instances": [\n  {lines}\n]}}\n'
    columns: dict[str, Any] = {}
    for one in draft.inputs:
        if one.type == "dense":
            columns[one.name] = [
                [_value(one, name, row) for name in one.features] for row in (1, 2)
            ]
            continue
        held = [_value(one, name, row) for name in one.features for row in (1, 2)]
        ids = [each for listed in held for each in listed]
        columns[f"{one.name}.lengths"] = [len(listed) for listed in held]
        if one.type == "weighted_sparse":
            columns[f"{one.name}.weights"] = [weight for _, weight in ids]
            ids = [each for each, _ in ids]
        columns[f"{one.name}.values"] = ids
    return json.dumps(columns) + "\n"


def _value(one: DraftInput, feature: str, row: int) -> Any:
    if one.type == "dense":
        return row / 2
    last = one.ids_below.get(feature, LARGEST_ID + 1) - 1
    ids = [min(at, last) for at in range(1, row + 1)]
    return [[each, 1.0] for each in ids] if one.type == "weighted_sparse" else ids


def _input(one: DraftInput) -> str:
    names = [json.dumps(name) for name in one.features]
    short = f"{one.type}({', '.join(names)})"
    if len(short) + len(one.name) < 84:
        return short
    return f"{one.type}(\n            " + ",\n            ".join(names) + ",\n        )"


def _from(folder: Path, path: Path) -> str:
    """A path as one says it in a folder: relative where that is near."""
    relative = os.path.relpath(path, folder)
    return relative if relative.count("..") < 3 else str(path.resolve())


def _readme(folder: Path, weights: Path | None, *, imported: bool) -> str:
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", folder.resolve().name).lstrip("-_.") or "model"
    path = f"PYTHONPATH={_from(folder, Path.cwd())} " if imported else ""
    given = f" \\\n  --weights {_from(folder, weights)}" if weights else ""
    return (
        f"# {name}\n\n"
        f"Written by `torchrec-archiver init`; yours to edit, `{FACTORY}` first. Here:\n\n"
        "```sh\n"
        f"{path}torchrec-archiver build --model-name {name} --version 1.0 --force \\\n"
        f"  --factory factory:Factory --config-file {MODEL_CONFIG}{given}\n"
        f"torchrec-archiver predict {name}.mar {REQUEST}  # an answer without a server\n"
        f"torchrec-archiver serve {name}.mar  # until Ctrl-C\n"
        f"torchrec-archiver inspect {name}.mar --html {name}.html  # what is in it\n"
        f"torchrec-archiver bench {name}.mar --picture {name}.svg  # rows a second, in 2 minutes\n"
        "```\n\n"
        "While it is served, another terminal asks it:\n\n"
        "```sh\n"
        f"curl -H 'Content-Type: application/json' http://127.0.0.1:8080/predictions/{name} \\\n"
        f"  --data @{REQUEST}\n"
        "```\n"
    )
