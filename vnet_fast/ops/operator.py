"""Operators of `torch.library` whose calls do not import PyTorch's compiler.

`torch.library.custom_op` keeps the compiler from what it calls, and imports `torch._dynamo` for this at the first call:
that takes longer than all of a command's start but the import of PyTorch. Here it is kept away once it is there.
Definitions, rules for shapes and gradients are PyTorch's, by the interface on which `custom_op` is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

Function = Callable[..., Any]


# by name; kept with PyTorch's namespace, so that a second import of the package finds those of the first
OPERATORS: dict[str, Operator] = vars(torch.ops.vnet_fast).setdefault("_operators", {})


class Operator:
    """An operator `torch.ops.vnet_fast.<name>`, which can be called as its function.

    Attributes:
        function: see below.

    Args:
        name: `vnet_fast::<name>`.
        function: computes it. Its types are those of `torch.library.infer_schema`; it returns new tensors, and writes
            to none of its arguments.
        differentiable: whether `register_autograd` is called; otherwise a backward pass is refused.
        device_types: `cpu` if it takes the tensors of no other device.
        schema: for a function whose types do not say it.
    """

    def __init__(
        self,
        name: str,
        function: Function,
        differentiable: bool = False,
        device_types: str | None = None,
        schema: str | None = None,
    ) -> None:
        self._name, self.function = name, function
        self._library: torch.library.Library
        if name in OPERATORS:
            OPERATORS[name]._library._destroy()
        OPERATORS[name] = self
        namespace, short = name.split("::")
        schema = schema or torch.library.infer_schema(function, mutates_args=())
        key = "CompositeExplicitAutograd" if device_types is None else device_types.upper()
        self._library = torch.library.Library(namespace, "FRAGMENT")
        self._library.define(f"{short}{schema}", tags=torch.Tag.pt2_compliant_tag)
        self._library.impl(short, _hidden_from_compiler(function), key)
        if not differentiable:
            self.register_autograd(self._refuse)
        self._overload = getattr(getattr(torch.ops, namespace), short).default

    def __call__(self, *arguments: Any) -> Any:
        """Its outputs."""
        return self._overload(*arguments)

    def register_fake(self, rule: Function) -> Function:
        """Says which shapes, types and layouts the outputs have; see `torch.library.register_fake`."""
        torch.library.register_fake(self._name, rule, lib=self._library)
        return rule

    def register_autograd(self, backward: Function, *, setup_context: Function | None = None) -> None:
        """Says what the gradients are; see `torch.library.register_autograd`."""
        torch.library.register_autograd(self._name, backward, setup_context=setup_context, lib=self._library)

    def _refuse(self, ctx: Any, *grads: Any) -> None:
        raise RuntimeError(f"{self._name} has no derivative: fused operations have no second derivative")


def operator(
    name: str, differentiable: bool = False, device_types: str | None = None
) -> Callable[[Function], Operator]:
    """Makes an operator of the function that it decorates; see `Operator`."""
    return lambda function: Operator(name, function, differentiable, device_types)


def _hidden_from_compiler(function: Function) -> Function:
    hidden: list[Function] = []

    def run(*arguments: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*arguments)
        if not hidden:
            hidden.append(torch.compiler.disable(function))
        return hidden[0](*arguments)

    return run
