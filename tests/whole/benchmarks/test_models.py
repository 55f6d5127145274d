"""The models that kernels are measured on: each loads, and tells its rows apart."""

import numpy as np
import pytest
import torch

from benchmarks.models import MODELS, Model
from benchmarks.models.contenders import Served
from benchmarks.models.inputs import draw, draw_request, draw_user
from benchmarks.models.loading import load, pack
from torchrec_handler.load.states import Predictor
from torchrec_handler.options import Kernels, Options
from torchrec_handler.serve.predict import HostResult, predict
from torchrec_handler.serve.validate import Validator

ROWS = 200

each_model = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)


def scores(predictor: Predictor, batch: dict[str, torch.Tensor]) -> HostResult:
    return predict(predictor.module, "forward", {**batch}, predictor.result_metadata)


def assert_equal(found: HostResult, expected: HostResult) -> None:
    assert found.keys() == expected.keys()
    for name, (own,) in expected.items():
        np.testing.assert_allclose(found[name][0], own, atol=1e-5, rtol=0)


@each_model
def test_kernels_give_the_scores_of_torchrec_which_differ_from_row_to_row(model: Model) -> None:
    package = pack(model)
    kernels = load(package, Options()).predictor
    stock = load(package, Options(kernels=Kernels(off="all"))).predictor
    assert not stock.report.replaced
    assert stock.tables is not None
    assert {entry.dtype for entry in stock.tables.entries.values()} == {"int8"}
    for batch in (draw(model, ROWS), draw_user(model, ROWS)):
        expected = scores(stock, batch)
        assert_equal(scores(kernels, batch), expected)
        for (own,) in expected.values():
            assert own.shape == (ROWS,)
            assert own.std() > 0.05


@each_model
def test_what_a_request_gives_once_scores_as_if_every_row_gave_it(model: Model) -> None:
    options = Options()
    predictor = load(pack(model), options).predictor
    request = Validator(predictor.signature, options)(draw_request(model, ROWS))
    shared = Served(model.name, predictor, options).rank(request)
    assert_equal(shared, scores(predictor, draw_user(model, ROWS)))


@each_model
def test_inputs_are_the_users_or_the_candidates(model: Model) -> None:
    inputs = model.factory().inputs
    assert set(model.shared) < inputs.keys()
    features = [name for entry in inputs.values() for name in entry.features]
    assert set(model.features) <= set(features)
    assert len(features) == len(set(features))
