"""Linear layers whose weights are laid out for oneDNN, the library behind torch on CPUs.

torch multiplies float32 matrices on a CPU through MKL, which on AMD processors leaves AVX-512 unused, and
lays the weights out anew in each call. The operators called here are those that torch's own compiler
inserts (`torch._inductor.fx_passes.mkldnn_fusion`).
"""

from __future__ import annotations

import itertools
import weakref
from collections import Counter
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn

PACKABLE = (torch.float32, torch.bfloat16)
_handles = itertools.count()
_layers: weakref.WeakValueDictionary[int, PackedLinear] = weakref.WeakValueDictionary()


class PackedLinear(nn.Module):
    """A linear layer that holds its weight packed, and no other copy of it but one that is tied.

    Whoever asks for the weight (`parameters`, `state_dict`, `to`, saving, copying) gets it whole: the layer
    unpacks it then, once and for good, and multiplies by plain torch from there on.
    """

    def __init__(self, linear: nn.Linear, tied: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self._handle = next(_handles)
        self._packed: Tensor | None = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        # In a tuple, so that torch does not see parameters in it.
        self._kept: tuple[nn.Parameter | None, nn.Parameter | None] = (linear.bias, tied)
        self._trained = linear.weight.requires_grad
        self.__dict__["_parameters"] = _OnDemand(self)
        self.training = linear.training
        _layers[self._handle] = self

    @property
    def packed(self) -> bool:
        """Whether the weight is packed still."""
        return self._packed is not None

    def unpack(self) -> None:
        """Turn into a plain layer: the weight becomes a parameter of its own again."""
        if self._packed is None:
            return
        bias, weight = self._kept
        if weight is None:
            weight = nn.Parameter(self._packed.to_dense(), requires_grad=self._trained)
        self._packed, self._kept = None, (None, None)
        self.__dict__["_parameters"] = {"weight": weight, "bias": bias}

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            # A packed weight cannot enter a graph; an operator that knows where it lies can.
            found: Tensor = _packed_linear(x, self._handle, self.out_features)
            return found
        return self.multiply(x)

    def multiply(self, x: Tensor) -> Tensor:
        """`x [..., in_features]` times the weight."""
        if self._packed is None:
            weight, bias = self._parameters["weight"], self._parameters["bias"]
            assert weight is not None
            return nn.functional.linear(x, weight, bias)
        plain = x.dtype != self._packed.dtype or torch.is_autocast_enabled("cpu")
        if plain or (x.requires_grad and torch.is_grad_enabled()):
            # What oneDNN's operator does not know: other precisions and gradients.
            return nn.functional.linear(x, self._packed.to_dense(), self._kept[0])
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._kept[0], "none", [], "")
        return product

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def __reduce_ex__(self, protocol: Any) -> Any:
        # Copied and pickled as the plain layer that it stands for.
        self.unpack()
        return super().__reduce_ex__(protocol)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._handle = next(_handles)
        _layers[self._handle] = self


_untouched: ContextVar[bool] = ContextVar("untouched", default=False)


@contextmanager
def kept_packed() -> Iterator[None]:
    """Within it packed layers show no parameters: for torch's compiler, which looks at all of them."""
    token = _untouched.set(True)
    try:
        yield
    finally:
        _untouched.reset(token)


class _OnDemand(MutableMapping[str, "nn.Parameter | None"]):
    """The parameters of a packed layer: the first look at them unpacks it."""

    def __init__(self, layer: PackedLinear) -> None:
        self._layer = weakref.ref(layer)

    def _unpacked(self) -> dict[str, nn.Parameter | None]:
        layer = self._layer()
        assert layer is not None
        if _untouched.get() and layer.packed:
            return {}
        layer.unpack()
        return layer._parameters

    def __getitem__(self, name: str) -> nn.Parameter | None:
        return self._unpacked()[name]

    def __setitem__(self, name: str, value: nn.Parameter | None) -> None:
        self._unpacked()[name] = value

    def __delitem__(self, name: str) -> None:
        del self._unpacked()[name]

    def __contains__(self, name: object) -> bool:
        return name in ("weight", "bias") and not _untouched.get()

    def __iter__(self) -> Iterator[str]:
        return iter(self._unpacked())

    def __len__(self) -> int:
        return 0 if _untouched.get() else 2

    def items(self) -> Any:
        return self._unpacked().items()

    def values(self) -> Any:
        return self._unpacked().values()


@torch.library.custom_op("dllm_sampling::packed_linear", mutates_args=())
def _packed_linear(x: Tensor, handle: int, out_features: int) -> Tensor:
    return _layers[handle].multiply(x)


@_packed_linear.register_fake
def _(x: Tensor, handle: int, out_features: int) -> Tensor:
    return x.new_empty(*x.shape[:-1], out_features)


def pack(model: nn.Module) -> int:
    """Replace every plain linear layer by a packed one, in place; return how many there were.

    Layers of other classes (adapters), with other weights (quantised, distributed) or with hooks
    (offloaded, parallel) stay as they are.
    """
    # An adapter's layers read the weights of the linear layers that they hold.
    adapters = [module for module in model.modules() if "base_layer" in module._modules]
    held = {id(inner) for adapter in adapters for inner in adapter.modules()}
    uses = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    found = 0
    for module in [module for module in model.modules() if id(module) not in held]:
        for name, child in list(module.named_children()):
            if _plain(child):
                weight = child._parameters["weight"]
                tied = weight if uses[id(weight)] > 1 else None
                setattr(module, name, PackedLinear(child, tied))
                found += 1
    if found:
        # What is left lies in the mapped checkpoint file, and would keep all of it in memory.
        for module in model.modules():
            kept = [module._kept[0]] if isinstance(module, PackedLinear) else module._parameters.values()
            for parameter in kept:
                if type(parameter) is nn.Parameter and parameter.device.type == "cpu":
                    parameter.data = parameter.data.clone()
    return found


def count(model: nn.Module) -> int:
    """How many layers of a model hold packed weights."""
    return sum(isinstance(module, PackedLinear) and module.packed for module in model.modules())


def _plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(module) is nn.Linear
        and type(module.weight) is nn.Parameter
        and module.weight.dtype in PACKABLE
        and module.weight.device.type == "cpu"
        and "forward" not in vars(module)
        and not (module._forward_hooks or module._forward_pre_hooks)
    )


def refusal(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why weights on that device are not packed; None where they can be."""
    if device.type != "cpu":
        return f"weights are packed on a CPU, not on {device.type}"
    if dtype not in PACKABLE:
        return f"{dtype} weights cannot be packed"
    if not processor_multiplies(dtype):
        name = str(dtype).removeprefix("torch.")
        return f"{name} weights are not packed: this processor or this torch has no kernel for them"
    return None


def processor_multiplies(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies packed weights of that dtype on this processor.

    The one place that asks: it tries. oneDNN needs AVX-512 or better for bfloat16, and may be kept from
    using what there is (ONEDNN_MAX_CPU_ISA), or not be in this torch at all.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    try:
        weight = torch.ops.mkldnn._reorder_linear_weight(torch.ones(16, 16, dtype=dtype), None)
        product = torch.ops.mkldnn._linear_pointwise(
            torch.ones(1, 16, dtype=dtype), weight, None, "none", [], ""
        )
        return bool((product == 16).all() and weight.to_dense().shape == (16, 16))
    except (RuntimeError, AttributeError):  # refused by the processor; no such operator
        return False
