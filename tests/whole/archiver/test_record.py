"""What the build asks a model: it has to answer, and what it gives has to be told apart."""

import json
import logging
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torchrec.inference.modules import PredictFactory

from tests.support.answered import ask as answered
from tests.support.archives import good
from tests.support.factories import outputs
from torchrec_archiver import build_archive
from torchrec_archiver.report.terminal import show
from torchrec_handler.archive.format import SAMPLES, Count, OutputSplit
from torchrec_handler.archive.read import read_description, read_index
from torchrec_handler.archive.samples import read_samples
from torchrec_handler.errors import BuildError
from torchrec_handler.options import Limits, Options
from torchrec_handler.serve.engine import Engine
from torchrec_handler.serve.request import RawRequest


def build(folder: Path, factory: type[PredictFactory], **arguments: Any) -> Path:
    return build_archive(
        model_name="model",
        version="1.0",
        factory=factory,
        export_path=folder,
        archive_format="no-archive",
        **arguments,
    )


def error_of(folder: Path, factory: type[PredictFactory], **arguments: Any) -> str:
    with pytest.raises(BuildError) as caught:
        build(folder, factory, **arguments)
    assert not (folder / "model").exists()
    return str(caught.value)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.levelno == logging.WARNING]


def ask(archive: Path, *bodies: Mapping[str, Any], qualname: str = "forward") -> list[Any]:
    """The scores of requests in one batch, each row a forward call for those with many rows."""
    engine = Engine("model", good.load_folder(archive), Options(limits=Limits(rows_per_forward=2)))
    answers = answered(
        engine,
        [
            RawRequest(
                body=json.dumps(body).encode(), content_type="application/json", qualname=qualname
            )
            for body in bodies
        ],
    )
    documents = [json.loads(answer.body) for answer in answers]
    return [document.get("scores", document.get("message")) for document in documents]


def candidates(movies: list[list[int]], genres: list[list[int]]) -> dict[str, Any]:
    lists = movies + genres
    return {
        "batch_size": len(movies),
        "candidates.lengths": list(map(len, lists)),
        "candidates.values": [one for found in lists for one in found],
    }


# Outputs that count ids.


def test_scores_of_candidates_are_those_of_each_request_alone(tmp_path: Path) -> None:
    """Of one feature, and, in another method, of all; cut by rows and in one batch with others."""
    archive = build(tmp_path, outputs.CandidatesFactory)
    movie, everything = (Count(factor=1, input="candidates", features=at) for at in ((0,), ()))
    assert read_index(archive).signature.splits == {
        "forward": {"scores": (OutputSplit(counts=(movie,), shape=()),)},
        "everything": {"scores": (OutputSplit(counts=(everything,), shape=()),)},
    }
    printed = StringIO()
    show(read_description(archive), Console(width=120, file=printed))
    batched = (
        "forward by rows, scores by ids of candidates movie; everything by rows, scores by ids"
    )
    assert f"batched: {batched} of candidates\n" in printed.getvalue()
    module = good.load_folder(archive).module

    def alone(body: Mapping[str, Any], qualname: str) -> list[float]:
        tensors = {name: torch.tensor(value, dtype=torch.int32) for name, value in body.items()}
        with torch.inference_mode():
            return list(getattr(module, qualname)(tensors)["scores"].tolist())

    bodies = [
        candidates([[1, 2, 3]], [[4]]),
        candidates([[]], [[5, 6]]),
        candidates([[7], [8, 9], [], [10]], [[1, 2], [3], [4], []]),
    ]
    for qualname in ("forward", "everything"):
        received = ask(archive, *bodies, qualname=qualname)
        for scores, body in zip(received, bodies, strict=True):
            np.testing.assert_allclose(scores, alone(body, qualname), rtol=1e-6)


def test_what_cannot_be_told_fails_the_build_unless_it_is_said(tmp_path: Path) -> None:
    assert error_of(tmp_path, outputs.AlikeFactory) == (
        "outputs: forward: output 'scores': received [6] for 2 rows, [4] for 3 rows, [4] for 4 "
        "rows: its first axis may count the ids of 'movie' of candidates or the ids of 'genre' of "
        "candidates; to say what it counts, let PredictFactory.model_inputs_data()[INPUT]"
        "['outputs'] hold {'scores': FEATURE}, or be ['scores'] for all ids of the input"
    )
    archive = build(tmp_path, outputs.SaidFactory)
    first, second = ask(archive, candidates([[1, 2]], [[3, 4]]), candidates([[5]], [[6]]))
    assert (len(first), len(second)) == (2, 1)
    assert ask(archive, candidates([[5]], [[6]])) == [second]


def test_samples_tell_what_nothing_drawn_does(tmp_path: Path) -> None:
    """And where rows and ids fit them alike, a request that tells them apart gets its own."""
    samples = tmp_path / "samples.jsonl"
    one = candidates([[1, 2, 3, 4, 5, 6, 7]], [[1]])
    samples.write_text(json.dumps(one))
    assert error_of(tmp_path, outputs.FixedSlateFactory) == (
        "samples: forward raised ValueError: a slate has seven movies, with 1, 4, 16 and 64 rows; "
        "give requests that it takes with --samples, or build all the same with "
        "--allow-failing-samples"
    )
    archive = build(tmp_path, outputs.FixedSlateFactory, samples=samples)
    (split,) = read_index(archive).signature.splits["forward"]["scores"]  # type: ignore[index]
    assert [(count.factor, count.features) for count in split.counts] == [
        (7, ()),
        (1, (0,)),
        (7, (1,)),
    ]
    other = candidates([[7, 6, 5, 4, 3, 2, 1]], [[1, 2, 3]])
    first, second = ask(archive, one, other)
    assert second == first[::-1]


# Samples that raise.


def test_a_model_that_raises_on_every_sample_fails_the_build(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = "samples: forward raised KeyError: 'dense_features', with 1, 4, 16 and 64 rows"
    assert error_of(tmp_path, outputs.ToldWrongInputFactory) == (
        f"{message}; give requests that it takes with --samples, or build all the same with "
        "--allow-failing-samples"
    )
    caplog.clear()
    archive = build(tmp_path, outputs.ToldWrongInputFactory, allow_failing_samples=True)
    assert not (archive / SAMPLES).exists()
    assert read_index(archive).signature.splits == {}
    assert f"{message}; these calls are not recorded" in warnings(caplog)


def test_what_is_left_to_be_written_is_said_without_advice_on_samples(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    message = "samples: forward raised NotImplementedError: to be written"
    assert error_of(tmp_path, outputs.UnwrittenFactory) == message
    caplog.clear()
    assert build(tmp_path, outputs.UnwrittenFactory, allow_failing_samples=True).exists()
    allowed = f"{message}, with 1, 4, 16 and 64 rows; these calls are not recorded"
    assert allowed in warnings(caplog)


def test_so_does_one_that_raises_where_nothing_can_be_drawn(tmp_path: Path) -> None:
    assert error_of(tmp_path, outputs.WrongInputFactory) == (
        "samples: forward raised KeyError: 'dense_features', with one row; let "
        "PredictFactory.model_inputs_data() tell the features of float_features, which the model "
        "does not show, give requests with --samples, or build all the same with "
        "--allow-failing-samples"
    )
    assert build(tmp_path, outputs.WrongInputFactory, allow_failing_samples=True).exists()


def test_a_hidden_number_of_features_is_tried_before_a_model_is_refused(tmp_path: Path) -> None:
    """It raises on any but three."""
    three = tmp_path / "three"
    three.mkdir()
    assert build(three, outputs.HiddenWidthFactory).exists()
    assert error_of(tmp_path, outputs.HiddenFaultFactory) == (
        "samples: forward raised ValueError: 1 features, with one row; let "
        "PredictFactory.model_inputs_data() tell the features of float_features, which the model "
        "does not show, give requests with --samples, or build all the same with "
        "--allow-failing-samples"
    )


def test_a_model_whose_inputs_nobody_can_draw_is_built_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = build(tmp_path, outputs.HiddenFactory)
    assert warnings(caplog)[-2:] == [
        (
            "samples: none are drawn, so no worker tests itself and no error of an output is "
            "measured; let PredictFactory.model_inputs_data() tell the features of float_features, "
            "which the model does not show, or give requests with --samples"
        ),
        (
            "outputs: requests of forward are called one by one, since it is not known how to cut "
            "what a batch gives"
        ),
    ]
    assert not (archive / SAMPLES).exists()


def test_forward_has_to_take_all_samples(tmp_path: Path) -> None:
    assert error_of(tmp_path, outputs.FewRowsFactory) == (
        "samples: forward raised ValueError: too many rows, with 64 rows, but not with 1, 4 and "
        "16; give requests that it takes with --samples, or build all the same with "
        "--allow-failing-samples"
    )
    samples = tmp_path / "samples.jsonl"
    rows = [json.dumps({"float_features": [[0.0] * 3] * count}) for count in (1, 17)]
    samples.write_text("\n".join(rows))
    assert error_of(tmp_path, outputs.FewRowsFactory, samples=samples) == (
        "samples: forward raised ValueError: too many rows, with 17 rows, but not with 1; "
        "mend the samples, or build all the same with --allow-failing-samples"
    )


def test_another_method_has_to_take_one_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive = build(tmp_path, outputs.RaisingFactory)
    assert warnings(caplog) == [
        (
            "samples: few raised ValueError: too many rows, with 16 and 64 rows, but not with 1 "
            "and 4; these calls are not recorded"
        )
    ]
    recorded = [(one.qualname, one.rows) for one in read_samples(archive / SAMPLES)]
    assert recorded == [
        *(("forward", 1), ("few", 1), ("forward", 4), ("few", 4)),
        *(("forward", 16), ("forward", 64)),
    ]
    (tmp_path / "other").mkdir()
    assert error_of(tmp_path / "other", outputs.BrokenMethodFactory).startswith(
        "samples: broken raised KeyError: 'dense_features', with 1, 4, 16 and 64 rows; "
    )


def test_a_feature_of_a_module_s_own_embedding_is_drawn_from_few_ids(tmp_path: Path) -> None:
    """No collection tells how many it has; as many as 32 bits hold are too many."""
    archive = build(tmp_path, outputs.CountriesFactory)
    drawn = read_samples(archive / SAMPLES)
    assert drawn
    for sample in drawn:
        lengths = sample.inputs["candidates.lengths"].reshape(2, -1).sum(dim=1).tolist()
        movies, countries = torch.split(sample.inputs["candidates.values"], lengths)
        assert countries.max() <= 1
        assert len(movies) < 5 or movies.max() > 1
    bodies = [{"candidates.lengths": [1, 1], "candidates.values": [7, at]} for at in (4, 2)]
    assert [len(scores) for scores in ask(archive, *bodies)] == [1, 1]
