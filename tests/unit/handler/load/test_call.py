"""In which mode a module's methods are called: without gradients, whatever the module does."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from torchrec_handler.load.call import call_observed, look_for_scripts, no_gradients

SCRIPTS = "ignore:`torch.jit.script:"
X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 0.0, -1.0]])


class Saliency(torch.nn.Module):
    """Scores, and how each changes with each input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            (gradient,) = torch.autograd.grad((x**2).sum(), x)
        return gradient


class Raising(torch.nn.Module):
    """Cannot be called."""

    def forward(self, _: torch.Tensor) -> torch.Tensor:
        message = f"no mode will do, inference {torch.is_inference_mode_enabled()}"
        raise RuntimeError(message)


class Mode(torch.nn.Module):
    """Tells in which mode it is called."""

    def forward(self) -> tuple[bool, bool]:
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled()


class Around(torch.nn.Module):
    """Holds a module or a function somewhere inside."""

    def __init__(self, inner: Callable[..., Any]) -> None:
        super().__init__()
        self.mode = Mode()
        self.inner = inner


def warmed_up() -> torch.jit.ScriptModule:
    """A script that was called with gradients, as TorchRec's own factory does it."""
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Sigmoid())
    script: torch.jit.ScriptModule = torch.jit.script(torch.nn.Sequential(layer, layer, layer))
    call(script)
    return script


def call(script: torch.jit.ScriptModule) -> torch.Tensor:
    """As often as it takes TorchScript to choose how it runs a script."""
    for _ in range(2):
        script(X)
    result: torch.Tensor = script(X)
    return result


def function(x: torch.Tensor) -> torch.Tensor:
    return x * 2


def test_a_module_is_called_in_inference_mode() -> None:
    module = Mode()
    assert call_observed(module, "forward") == (True, False)
    look_for_scripts(module)
    with no_gradients(module):
        assert module() == (True, False)


@pytest.mark.filterwarnings(SCRIPTS)
def test_a_script_is_called_as_it_was_warmed_up() -> None:
    script = warmed_up()
    fails = pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward")
    with fails, torch.inference_mode():
        call(script)
    script = warmed_up()
    look_for_scripts(script)
    expected = script(X)
    with no_gradients(script):
        assert torch.equal(call(script), expected)


@pytest.mark.filterwarnings(SCRIPTS, "ignore:`torch.jit.trace:")
@pytest.mark.parametrize(
    "make",
    [
        warmed_up,
        lambda: torch.jit.trace(torch.nn.Linear(3, 2), X),  # type: ignore[no-untyped-call]
        lambda: torch.jit.script(function),
        lambda: torch.nn.ModuleList([torch.jit.script(torch.nn.ReLU())]),
    ],
    ids=["scripted", "traced", "function", "inside"],
)
def test_a_module_that_holds_a_script_is_called_outside_of_inference_mode(
    make: Callable[[], Any],
) -> None:
    module = Around(make())
    look_for_scripts(module)
    with no_gradients(module):
        assert module.mode() == (False, False)


def test_a_module_that_differentiates_is_found_by_calling_it() -> None:
    module = Saliency()
    with pytest.raises(RuntimeError), torch.inference_mode():
        module(X)
    assert torch.equal(call_observed(module, "forward", X), 2 * X)
    with no_gradients(module):
        assert torch.equal(module(X), 2 * X)


def test_what_no_mode_helps_raises_as_it_did_in_inference_mode() -> None:
    module = Raising()
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^no mode will do, inference True$"):
            call_observed(module, "forward", X)
