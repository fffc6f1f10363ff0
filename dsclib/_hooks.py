"""Layers of any torch model, found by name, module or type, and hooks that always come off."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches

import torch
from torch import nn


class Hooks:
    """Hooks on a model, from construction to :meth:`remove`, as in torch itself.

    With ``with`` they come off at the end of the block, whatever happens in it.
    """

    def __init__(self):
        self.attached = False
        self._handles = []

    def __enter__(self):
        if not self.attached:
            raise ValueError(f"this {type(self).__name__} was removed, expected a new one: make it")
        return self

    def __exit__(self, *exception) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off the model; a second call does nothing."""
        # A compiled model keeps the code it traced; it is compiled anew because this changes.
        self.attached = False
        while self._handles:
            self._handles.pop().remove()


def uncompiled(model):
    """The model inside what ``torch.compile`` returns, or the model itself."""
    return getattr(model, "_orig_mod", model)


def find_layers(model, layers) -> dict[str, nn.Module]:
    """The layers meant, by name and in the order of ``model.named_modules()``, each once."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}, expected a torch.nn.Module")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(
            "model is scripted or traced by torch.jit, where hooks are not called, expected the "
            "model it was made from: set hooks on that, or use torch.compile"
        )
    model = uncompiled(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    single = isinstance(layers, str | nn.Module | type)
    if not single and (isinstance(layers, Mapping) or not isinstance(layers, Iterable)):
        raise _no_layer(layers, "layers is")
    wanted = {id(m) for x in ([layers] if single else layers) for m in _meant(x, modules)}
    if not wanted:
        raise ValueError("layers is empty, expected at least one: a name, a module or a type")
    return {name: m for name, m in model.named_modules() if id(m) in wanted}


def _meant(layer, modules: dict[str, nn.Module]) -> list[nn.Module]:
    if isinstance(layer, type) and issubclass(layer, nn.Module):
        found = [m for m in modules.values() if isinstance(m, layer)]
        if not found:
            types = sorted({type(m).__name__ for m in modules.values()})
            raise ValueError(
                f"the model has no {layer.__name__}, expected one of its types: {', '.join(types)}"
            )
        return found
    if isinstance(layer, nn.Module):
        layer = uncompiled(layer)
        if not any(m is layer for m in modules.values()):
            raise ValueError(
                f"a {type(layer).__name__} in layers is no part of the model, expected one that "
                "is: take it from model.named_modules(), after the model was moved or copied"
            )
        return [layer]
    if not isinstance(layer, str):
        raise _no_layer(layer, "layers has")
    if layer not in modules:
        near = get_close_matches(layer, modules, n=3) or list(modules)[1:6]
        raise ValueError(
            f"the model has no layer {layer!r}, expected a name of model.named_modules(), such "
            f"as {', '.join(map(repr, near))}"
        )
    return [modules[layer]]


def _no_layer(x, where: str) -> ValueError:
    kind = f"the type {x.__name__}" if isinstance(x, type) else f"a {type(x).__name__}"
    return ValueError(
        f"{where} {kind}, expected a name, a module, a type of module, or a list of these: for "
        "example nn.ReLU or ['conv1', 'conv2']"
    )
