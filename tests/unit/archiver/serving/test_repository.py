"""What Triton is told of an archive, and where its members lie in a repository."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.support.exact import EMBEDDING, INPUTS
from torchrec_archiver.serving.archive import Model
from torchrec_archiver.serving.repository import config, write_repository
from torchrec_handler.archive.format import (
    FORMAT_VERSION,
    INDEX,
    MANIFEST,
    SAMPLES,
    SAMPLES_KEY,
    Count,
    Index,
    InputSignature,
    OutputSplit,
    Signature,
    sha256,
)
from torchrec_handler.errors import ServeError

OF_ROWS = (Count(factor=1),)
SIGNATURE = Signature(
    inputs=INPUTS,
    methods={"forward": True, "pairs": True},
    result_metadata="dict_of_tensor",
    splits={
        "forward": {"default": (OutputSplit(counts=OF_ROWS, shape=()),)},
        "pairs": {
            "default": (OutputSplit(counts=OF_ROWS, shape=()),),
            "pair": (OutputSplit(counts=OF_ROWS, shape=(2,)),),
        },
    },
)
EXPECTED = """\
# Made by torchrec-archiver triton-repository from the archive's signature and options.
# Batches are of requests: a first axis of 1 is a request, of any number of rows.
name: "shop"
backend: "python"
max_batch_size: 32
dynamic_batching {
  max_queue_delay_microseconds: 500
}
instance_group [ { kind: KIND_CPU count: 2 } ]
version_policy { all { } }
parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value: { string_value: "yes" } }
parameters { key: "version 1" value: { string_value: "shop 1.0" } }
input [
  { name: "float_features" data_type: TYPE_FP32 dims: [ -1, 3 ] MORE },
  { name: "id_list_features.lengths" data_type: TYPE_INT32 dims: [ -1 ] MORE },
  { name: "id_list_features.values" data_type: TYPE_INT32 dims: [ -1 ] MORE },
  { name: "id_score_list_features.lengths" data_type: TYPE_INT32 dims: [ -1 ] MORE },
  { name: "id_score_list_features.values" data_type: TYPE_INT32 dims: [ -1 ] MORE },
  { name: "id_score_list_features.weights" data_type: TYPE_FP32 dims: [ -1 ] MORE },
  { name: "embedding_features" data_type: TYPE_FP32 dims: [ 2, -1, 4 ] MORE },
  { name: "body" data_type: TYPE_STRING dims: [ 1 ] MORE }
]
output [
  { name: "default" data_type: TYPE_FP32 dims: [ -1 ] },
  { name: "pair" data_type: TYPE_FP32 dims: [ -1, 2 ] },
  { name: "body" data_type: TYPE_STRING dims: [ 1 ] },
  { name: "content_type" data_type: TYPE_STRING dims: [ 1 ] }
]
""".replace("MORE", "allow_ragged_batch: true optional: true")
SETTINGS = "batchSize: 32\nminWorkers: 2\ntorchrec: {device: cpu}\n"


def archive(folder: Path, signature: Signature = SIGNATURE, version: str = "1.0") -> Path:
    """A folder with as much of an archive as nothing loads."""
    (folder / "MAR-INF").mkdir(parents=True)
    manifest = {
        "model": {
            "modelName": "shop",
            "modelVersion": version,
            "handler": "h",
            "serializedFile": "predict_factory.pt",
        }
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / "predict_factory.pt").write_bytes(b"")
    (folder / "model-config.yaml").write_text(SETTINGS)
    members = (MANIFEST, "predict_factory.pt", "model-config.yaml")
    index = Index(
        format_version=FORMAT_VERSION,
        versions={},
        signature=signature,
        tables=(),
        extra_files=(),
        sha256={name: sha256(folder / name) for name in members},
        samples=0,
    )
    (folder / INDEX).write_text(index.dumps())
    return folder


def model(folder: Path, signature: Signature) -> Model:
    archive(folder, signature)
    index = Index.loads((folder / INDEX).read_text())
    return Model(name="shop", version="1.0", archive=folder, folder=folder, index=index)


def test_the_configuration_is_the_signatures_and_the_options(tmp_path: Path) -> None:
    found = model(tmp_path / "shop", SIGNATURE)
    assert config(found, [found]) == EXPECTED
    assert "count: 3 }" in config(found, [found], 3)


def test_what_the_model_alone_knows_is_open(tmp_path: Path) -> None:
    wide = InputSignature(name="ids", type="sparse", is_wide=True)
    opened = replace(SIGNATURE, inputs=(wide, replace(EMBEDDING, num_features=None, width=None)))
    found = model(tmp_path / "shop", opened)
    text = config(found, [found])
    assert '{ name: "ids.values" data_type: TYPE_INT64 dims: [ -1 ]' in text
    assert '{ name: "embedding_features" data_type: TYPE_FP32 dims: [ -1, -1, -1 ]' in text


@pytest.mark.parametrize(
    ("result_metadata", "names"),
    [
        ("dict_of_tensors", ["default.0", "pair.0"]),
        ("dict_with_mask_tensor", ["default.values", "default.mask", "pair.values", "pair.mask"]),
    ],
)
def test_outputs_of_several_tensors(result_metadata: str, names: list[str], tmp_path: Path) -> None:
    found = model(tmp_path / "shop", replace(SIGNATURE, result_metadata=result_metadata))
    _, _, outputs = config(found, [found]).partition("output [")
    assert outputs.split('"')[1::2] == [*names, "body", "content_type"]


def test_outputs_whose_sizes_differ_or_are_none_are_open(tmp_path: Path) -> None:
    splits = {
        "forward": {"vector": (OutputSplit(counts=OF_ROWS, shape=(8, 0)),)},
        "short": {"vector": (OutputSplit(counts=OF_ROWS, shape=(4, 0)),)},
    }
    found = model(tmp_path / "shop", replace(SIGNATURE, splits=splits))
    assert '{ name: "vector" data_type: TYPE_FP32 dims: [ -1, -1, -1 ] }' in config(found, [found])


@pytest.mark.parametrize(
    ("result_metadata", "told"),
    [
        ("dict_of_tensor", ["pair TYPE_UINT16 [ -1, -1 ]"]),
        ("dict_of_tensors", ["pair.0 TYPE_UINT16 [ -1, -1 ]", "pair.1 TYPE_BOOL [ -1 ]"]),
        (
            "dict_with_mask_tensor",
            ["pair.values TYPE_UINT16 [ -1, -1 ]", "pair.mask TYPE_BOOL [ -1 ]"],
        ),
    ],
)
def test_outputs_that_nobody_can_cut_are_as_they_were_recorded(
    result_metadata: str, told: list[str], tmp_path: Path
) -> None:
    uncut = replace(SIGNATURE, splits={}, result_metadata=result_metadata)
    found = model(tmp_path / "shop", uncut)
    arrays = {
        "0/outputs/pair/0": np.zeros((4, 2), np.uint16),
        "0/outputs/pair/1": np.zeros(4, np.bool_),
    }
    calls = json.dumps([{"qualname": "forward", "rows": 4}])
    save_file(arrays, found.folder / SAMPLES, {SAMPLES_KEY: calls})
    _, _, outputs = config(found, [found]).partition("output [")
    lines = re.findall(r'name: "(.*?)" data_type: (\w+) dims: (\[.*?\])', outputs)
    assert [" ".join(line) for line in lines[:-2]] == told


def test_names_that_are_taken(tmp_path: Path) -> None:
    taken = replace(SIGNATURE, inputs=(replace(INPUTS[0], name="body"),))
    with pytest.raises(ServeError) as raised:
        config(model(tmp_path / "shop", taken), [])
    assert str(raised.value) == (
        "shop 1.0 has an input called body or content_type, which is taken here"
    )


def test_a_folder_is_served_in_place(tmp_path: Path) -> None:
    shop = archive(tmp_path / "store" / "shop")
    (one,) = write_repository([shop], tmp_path / "repository")
    written = tmp_path / "repository" / "shop"
    assert (str(one.model), one.place, one.archive) == (
        *("shop 1.0", written / "1", written / "1" / "archive"),
    )
    assert sorted(path.name for path in (written / "1").iterdir()) == [
        *("__pycache__", "archive", "ended", "model.py"),
    ]
    assert (written / "1" / "archive").readlink() == shop
    assert (written / "config.pbtxt").read_text() == EXPECTED
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository", "store"]


def test_a_model_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    shop, output = archive(tmp_path / "shop"), tmp_path / "repository"
    write_repository([shop], output)
    with pytest.raises(ServeError) as raised:
        write_repository([shop], output)
    assert str(raised.value) == f"{output / 'shop'} is there already; --force replaces it"
    write_repository([shop], output, instances=3, force=True)
    assert "count: 3 }" in (output / "shop" / "config.pbtxt").read_text()


def test_versions_have_numbers_and_one_configuration(tmp_path: Path) -> None:
    shops = [archive(tmp_path / f"shop-{at}", version=f"{at}.0") for at in (1, 2)]
    write_repository(shops, tmp_path / "repository")
    written = tmp_path / "repository" / "shop"
    assert (written / "2" / "archive").readlink() == shops[1]
    assert (
        'parameters { key: "version 2" value: { string_value: "shop 2.0" } }'
        in (written / "config.pbtxt").read_text()
    )


def test_versions_that_differ_are_no_model_of_tritons(tmp_path: Path) -> None:
    other = replace(SIGNATURE, inputs=INPUTS[:1])
    shops = [archive(tmp_path / "one"), archive(tmp_path / "two", other, "2.0")]
    with pytest.raises(ServeError) as raised:
        write_repository(shops, tmp_path / "repository")
    assert str(raised.value) == (
        "shop 1.0 and shop 2.0 take or give different tensors, or are served with other settings, "
        "which versions of one model of Triton's cannot be; give each a repository of its own"
    )
    assert not list((tmp_path / "repository").iterdir())
