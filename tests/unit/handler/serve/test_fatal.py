"""Errors of the process are told from those of a request."""

import pytest
import torch
import torch.distributed as dist

from torchrec_handler.serve import fatal

GONE = (
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer "
    "[127.0.0.1]:21023"
)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError(GONE),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_what_a_request_does_is_its_own(error: Exception) -> None:
    assert not fatal.is_fatal(error)


@pytest.mark.parametrize(
    "error", [dist.DistBackendError("NCCL error"), dist.DistNetworkError("recv")]
)
def test_what_ranks_do_to_each_other_is_the_process_s(error: Exception) -> None:
    assert fatal.is_fatal(error)


@pytest.mark.parametrize("ranks", [1, 2])
def test_gloo_s_errors_are_so_where_there_are_other_ranks(
    ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: ranks)
    assert fatal.is_fatal(RuntimeError(GONE)) is (ranks > 1)


@pytest.mark.parametrize("answers", [True, False])
def test_a_device_s_error_is_so_where_it_stays(
    *, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fatal, "_device_answers", lambda: answers)
    error = torch.AcceleratorError("CUDA error: device-side assert triggered")
    assert fatal.is_fatal(error) is not answers
