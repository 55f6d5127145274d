"""What a --config-file says is kept as it is; what it leaves open has our defaults."""

from pathlib import Path

import pytest
import yaml

from torchrec_archiver.model_config import DEFAULT_MODEL_CONFIG, read_model_config
from torchrec_handler.errors import BuildError
from torchrec_handler.options import Options

ADDED = "# What is not said above, by torchrec-archiver.\n"


def read(folder: Path, content: str | bytes) -> str:
    path = folder / "my.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_model_config(path)[0].decode()


def test_without_a_file_every_default_is_written() -> None:
    assert read_model_config(None)[0].decode() == (
        "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 64\nmaxBatchDelay: 1\njobQueueSize: 4000\n"
        "clientTimeoutInMills: 0\nresponseTimeout: 8\nstartupTimeout: 600\n"
    )


def test_what_is_not_said_is_added_behind_the_user_s_own_text(tmp_path: Path) -> None:
    text = "# Ours.\ntorchrec:\n  threads: 1  # one core\nbatchSize: 8"
    assert read(tmp_path, text) == (
        f"{text}\n{ADDED}"
        "minWorkers: 1\nmaxWorkers: 1\nmaxBatchDelay: 1\njobQueueSize: 4000\n"
        "clientTimeoutInMills: 0\nresponseTimeout: 8\nstartupTimeout: 600\n"
    )
    assert read_model_config(tmp_path / "my.yaml")[1].threads == 1


def test_a_file_that_says_all_is_kept_byte_by_byte(tmp_path: Path) -> None:
    text = yaml.safe_dump({**DEFAULT_MODEL_CONFIG, "startupTimeout": 30}) + "# the end"
    assert read(tmp_path, text) == text


@pytest.mark.parametrize(
    ("said", "minimum", "maximum"),
    [
        ("minWorkers: 4", 4, 4),
        ("maxWorkers: 4", 1, 4),
        ("minWorkers: 0", 0, 1),
        ("maxWorkers: 0", 0, 0),
        ("minWorkers: 2\nmaxWorkers: 3", 2, 3),
        ("parallelType: tp\ntorchrun: {nproc-per-node: 2}", 1, 1),
    ],
)
def test_one_number_of_workers_fits_the_other(
    tmp_path: Path, said: str, minimum: int, maximum: int
) -> None:
    document = yaml.safe_load(read(tmp_path, said))
    assert (document["minWorkers"], document["maxWorkers"]) == (minimum, maximum)


@pytest.mark.parametrize(
    "content",
    [
        "{torchrec: {threads: 1}, deviceType: cpu}\n",
        "{}",
        "---\ntorchrec: {threads: 1}\n...\n",
        "  torchrec: {threads: 1}\n",
        "%YAML 1.1\n---\nnote: |+\n  größer\n\n\n",
        "torchrec: &ours {threads: 1}\nmine: *ours\n",
        "note: größer\n".encode("utf-16"),
    ],
)
def test_any_form_of_yaml_keeps_its_meaning(tmp_path: Path, content: str | bytes) -> None:
    document = yaml.safe_load(content)
    assert yaml.safe_load(read(tmp_path, content)) == {**document, **DEFAULT_MODEL_CONFIG}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("batchSize: '8'", "batchSize: received '8', expected a whole number from 1 on"),
        ("batchSize: 0", "batchSize: received 0, expected a whole number from 1 on"),
        ("jobQueueSize: 0", "jobQueueSize: received 0, expected a whole number from 1 on"),
        (
            "clientTimeoutInMills: -1",
            "clientTimeoutInMills: received -1, expected a whole number from 0 on",
        ),
        ("minWorkers:", "minWorkers: received None, expected a whole number from 0 on"),
        ("maxBatchDelay: 0.5", "maxBatchDelay: received 0.5, expected a whole number from 0 on"),
        (
            "startupTimeout: true",
            "startupTimeout: received True, expected a whole number from 1 on",
        ),
        (
            "minWorkers: 3\nmaxWorkers: 2",
            "minWorkers: received 3, expected at most 2, which is maxWorkers",
        ),
    ],
)
def test_what_torchserve_would_pass_over_is_refused(
    tmp_path: Path, content: str, message: str
) -> None:
    with pytest.raises(BuildError) as caught:
        read(tmp_path, content)
    assert str(caught.value) == f"config file: {tmp_path}/my.yaml: {message}"


@pytest.mark.parametrize("content", ["", "# nothing yet\n", "---\n"])
def test_a_file_that_says_nothing_leaves_all_to_the_defaults(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model-config.yaml"
    path.write_text(content)
    written, options = read_model_config(path)
    assert yaml.safe_load(written) == DEFAULT_MODEL_CONFIG
    assert options == Options()


@pytest.mark.parametrize(
    ("content", "name", "near"),
    [
        ("batchsize: 8", "batchsize", "batchSize"),
        ("maxWorker: 2", "maxWorker", "maxWorkers"),
        ("jobqueueSize: 100", "jobqueueSize", "jobQueueSize"),
        ("clientTimeoutInMillis: 100", "clientTimeoutInMillis", "clientTimeoutInMills"),
        ("torchserve: 1\ntorch_rec: {}", "torch_rec", "torchrec"),
    ],
)
def test_a_setting_misspelt_is_refused(content: str, name: str, near: str, tmp_path: Path) -> None:
    path = tmp_path / "model-config.yaml"
    path.write_text(content)
    with pytest.raises(BuildError) as caught:
        read_model_config(path)
    assert str(caught.value) == (
        f"config file: {path}: {name}: neither TorchServe nor torchrec-serve reads it; "
        f"did you mean {near}?"
    )
