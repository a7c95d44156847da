"""A network as a function of a flat parameter vector: f(x; θ) for θ ∈ R^P.

This is the one place that knows what a network is. It works on a copy of the module: slices of θ
are written into the copy's parameter slots before each pass. ``torch.func``'s general mechanism
does the same and puts the old parameters back, which costs a small network a third of its step.

For several parameter vectors at once, θ ∈ R^{R×P}, a chain of linear layers and elementwise
functions lets the leading dimension through and its products become batched ones; any other module
goes through ``torch.vmap``, which is correct and several times slower.
"""

from __future__ import annotations

import copy
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from eoslib.linear_chain import affine
from eoslib.numerics import lacks_memory
from eoslib.second_derivatives import FastSecondDerivatives, operations

__all__ = ["BatchNormMode", "FunctionalModel"]

BatchNormMode = Literal["full_batch", "ghost", "running"]

_BATCH_NORM = nn.modules.batchnorm._BatchNorm
_RANDOM_LAYERS = (
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
_ELEMENTWISE = (
    nn.Identity,
    nn.Tanh,
    nn.ReLU,
    nn.ELU,
    nn.Softplus,
    nn.Hardtanh,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
)


#: Words of errors that come of a device, such as a lack of memory for its libraries.
_OF_DEVICES = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS")
#: Where PyTorch's own code lies.
_PYTORCH = Path(torch.__file__).parent
#: So many further passes are compared where a pass draws random numbers without visible effect.
_MORE_PASSES = 50


class FunctionalModel:
    """f(x; θ), and the names, shapes and initial values of θ's parts.

    Attributes:
        initial_point: the module's trainable parameters as one vector, ``(P,)``; a copy.
        num_parameters: P; a tied parameter counts once.
        mixes_examples: whether an example's output depends on the others in the same pass, which is
            so for batch normalisation with batch statistics.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        batch_norm: BatchNormMode | None,
        output: Callable[[Any], Tensor] | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        """Copy the module; the arguments are those of `Objective`.

        Raises:
            ValueError: a random layer in training mode, batch normalisation without a mode or a
                mode without batch normalisation, no trainable parameters, a parameter that is
                complex or has no values yet, or a module that cannot be copied.
        """
        _refuse_random_layers(module)
        _refuse_odd_parameters(module)
        self._module = _moved(_copied(module), device, dtype)
        self._module.zero_grad(set_to_none=True)
        self._template = copy.deepcopy(self._module)
        for layer in self._module.modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag):
                layer.sparse = False  # the same gradient, in a layout that is differentiated again
        self._output = output
        self.mixes_examples = _set_batch_norm_mode(self._module, batch_norm)
        self._collect_parameters()
        self._fused_attention = self._fused_weight_norm = self._fast = False
        self._chain = _linear_chain(self._module)
        # Slices of θ sit in the module's slots during a forward pass; a training in a background
        # thread (the explorer's) must not exchange them under another thread's pass. (A model with
        # activation checkpoints reads them in the backward pass too: one thread at a time.)
        self._lock = threading.Lock()

    def _collect_parameters(self) -> None:
        """List the trainable parameters, and every slot of the module that holds each of them."""
        slots: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for module in self._module.modules():
            for key, parameter in module._parameters.items():
                if parameter is not None and parameter.requires_grad:
                    slots.setdefault(id(parameter), []).append((module._parameters, key))
        named = [(name, p) for name, p in self._module.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("the model has no trainable parameters (requires_grad=True)")
        self._names = [name for name, _ in named]
        self._shapes = [p.shape for _, p in named]
        self._sizes = [p.numel() for _, p in named]
        self._slots = [slots[id(p)] for _, p in named]
        self.num_parameters = sum(self._sizes)
        self.initial_point = torch.cat([p.detach().reshape(-1) for _, p in named]).clone()
        with torch.no_grad():  # whoever still reads the original parameters will show it
            for _, parameter in named:
                parameter.fill_(torch.nan)

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Outputs ``(m, ...)`` for θ ``(P,)`` and inputs ``(m, ...)``; or ``(R, m, ...)``."""
        return self.apply(self.split(theta), x)

    def apply(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        """The same for θ in parts, as `split` returns them."""
        if self.holds_several(parts):
            return self._at_several_points(parts, x)
        with self._lock:
            self._fill_slots(parts)
            if self._fused_attention or self._fused_weight_norm:
                with ExitStack() as stack:
                    if self._fused_attention:
                        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
                    if self._fused_weight_norm:
                        stack.enter_context(_PlainWeightNorm())
                    outputs = self._module(x)
            else:
                outputs = self._module(x)
        return outputs if self._output is None else self._output(outputs)

    def hold(self, parts: Sequence[Tensor]) -> None:
        """Put the parts of θ into the module again, for a graph that another pass has come after.

        A checkpointed layer is run once more by the backward pass, and reads them there.
        """
        if not self.holds_several(parts):
            with self._lock:
                self._fill_slots(parts)

    def split(self, theta: Tensor) -> list[Tensor]:
        """The parts of θ in the shapes of the parameters; with R rows, ``(R, *shape)`` each."""
        parts = theta.split_with_sizes(self._sizes, dim=-1)
        rows = theta.shape[:-1]
        return [part.view(rows + shape) for part, shape in zip(parts, self._shapes, strict=True)]

    def holds_several(self, parts: Sequence[Tensor]) -> bool:
        """Whether these are the parts of R parameter vectors, not of one."""
        return parts[0].ndim > len(self._shapes[0])

    def linear_chain(self) -> list[tuple[nn.Module, int, int | None]] | None:
        """The layers of a chain that begins with a linear one, for `eoslib.linear_chain`.

        ``None`` for any other module.
        """
        chain = self._chain
        if chain is None or self._output is not None or not isinstance(chain[0][0], nn.Linear):
            return None
        places = {name: place for place, name in enumerate(self._names)}
        return [(layer, places.get(weight, -1), places.get(bias)) for layer, weight, bias in chain]

    def constants(self) -> list[Tensor]:
        """What the function is made of beside θ: buffers that enter it, and frozen parameters."""
        frozen = [p for p in self._template.parameters() if not p.requires_grad]
        return [*self._module.buffers(), *frozen]

    def layers(self) -> str:
        """The names and types of all layers, with their options."""
        return ", ".join(
            f"{name}: {type(layer).__qualname__}({layer.extra_repr()})"
            for name, layer in self._module.named_modules()
        )

    def module_at(self, theta: Tensor) -> nn.Module:
        """A fresh copy of the module as it was given, with θ for its parameters."""
        module = copy.deepcopy(self._template)
        parts = dict(zip(self._names, self.split(theta), strict=True))
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in parts:
                    parameter.copy_(parts[name])
        return module

    def check(self, x: Tensor, original: nn.Module) -> Tensor:
        """Run the network on one chunk: is it a deterministic, smooth function of θ and x?

        Args:
            x: inputs.
            original: the module that was copied; the outputs must not depend on its parameters.

        Returns:
            Its outputs at the initial point.

        Raises:
            ValueError: it is not, or it does not take these inputs; the message says why.
        """
        before, point = x.clone(), self.initial_point.clone()
        buffers = [buffer.clone() for buffer in self._module.buffers()]
        theta = self.initial_point
        with torch.no_grad(), _Functions() as functions:
            try:
                first = self(theta, x)
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                if (refusal := self.refusal(x, error)) is None:
                    raise
                raise refusal from error
            finally:  # a cast that does not fit the next layer's weights fails there
                functions.refuse_half_precision(self.initial_point.dtype)
        # PyTorch's fused attention cannot be differentiated twice; its plain form can. The second
        # derivative of its weight normalisation is wrong, and not symmetric (PyTorch 2.13).
        self._fused_attention = any("attention" in name for name in functions.names)
        self._fused_weight_norm = "_weight_norm" in functions.names
        with torch.no_grad():
            # The fused forms round differently, on a GPU visibly.
            if self._fused_attention or self._fused_weight_norm:
                first = self(theta, x)
            state = torch.get_rng_state()
            second = self(theta, x)
            draws = not torch.equal(state, torch.get_rng_state())
        if not _equal(point, theta):
            raise ValueError(
                "a forward pass changed the model's parameters (an embedding's max_norm? weights "
                "clipped in forward?), so the loss is no function of them. Change them after the "
                "optimizer's step, or make it a part of the function: torch.clamp(self.weight, ...)"
            )
        if not isinstance(first, Tensor):
            raise ValueError(
                f"the model returned {type(first).__name__}, expected one tensor of outputs; "
                "pass output=, a function from what the model returns to the tensor the loss "
                f"needs, for instance output=lambda result: result{_a_part_of(first)}"
            )
        if not torch.equal(before, x):
            raise ValueError(
                "the model overwrote its inputs; make its first layers work out of place "
                "(inplace=False)"
            )
        if bool(first.isnan().any()) and not self._template_gives_nan(x):
            raise ValueError(
                "the model reads parameters by a path of its own (a private list of weights?), "
                "so slices of a flat vector cannot stand in for them; read them as attributes "
                "of their module in forward"
            )
        if first.shape[:1] != x.shape[:1]:
            raise ValueError(
                f"the model returned outputs of shape {tuple(first.shape)} for {x.shape[0]} "
                "examples; expected one row per example"
            )
        changed = zip(buffers, self._module.buffers(), strict=True)
        if any(not _equal(a, b) for a, b in changed):
            raise ValueError(
                "a forward pass changed the model's buffers; measuring would change what is "
                "measured. Call model.eval() first"
            )
        size = float(first.detach().nan_to_num().abs().max()) if first.numel() else 0.0
        same = torch.allclose(first, second, rtol=1e-4, atol=1e-5 * size, equal_nan=True)
        if not same or (draws and self._differs(x if self.mixes_examples else x[:2])):
            raise ValueError(
                "two passes at the same parameters gave different outputs: the model is random; "
                "a Hessian needs a deterministic loss. Switch the randomness off (model.eval())"
            )
        if not self.mixes_examples:
            self._refuse_mixing(x, first, 1e-5 * max(size, 1.0))
        self._refuse_rough(x, [p for p in original.parameters() if p.requires_grad])
        if any("conv" in name or "batch_norm" in name for name in functions.names):
            self._fast = self._fast_products_agree(x[:2])
        return first

    def refusal(self, x: Tensor, error: BaseException) -> ValueError | None:
        """What is said of inputs at which a pass failed; ``None`` if they are not to blame."""
        if lacks_memory(error) or not self._raised_by_pytorch(error):
            return None
        return ValueError(_refusal(x, error))

    def _raised_by_pytorch(self, error: BaseException) -> bool:
        """Whether an error comes from a function or layer of PyTorch's, not from the caller's code.

        A list of layers that is too short raises an IndexError too, and has seen no data; and a
        device that fails says nothing of them.
        """
        if any(word in str(error) for word in _OF_DEVICES):
            return False
        frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        last = Path(frames[-1].co_filename)
        theirs = last.is_relative_to(_PYTORCH) and last.name != "container.py"
        ours = frames[-1].co_filename == __file__  # where `_Functions` calls PyTorch's
        return (theirs or ours) and getattr(self._output, "__code__", None) not in frames

    def _fast_products_agree(self, x: Tensor) -> bool:
        """Whether a product with the Hessian is the same with and without fast derivatives.

        They are not where something looks at the graph's making (activation checkpoints) or makes
        another one of it (``torch.compile``).
        """
        vector = torch.linspace(-1, 1, self.num_parameters).to(self.initial_point)

        def product() -> Tensor:
            leaf = self.initial_point.clone().requires_grad_()
            parts = self.split(leaf)
            with self.differentiated_twice(parts):
                total = self.apply(parts, x).square().sum()
            (gradient,) = torch.autograd.grad(total, leaf, create_graph=True)
            if not gradient.requires_grad:
                return torch.zeros_like(gradient)
            self.hold(parts)
            (image,) = torch.autograd.grad(gradient, leaf, vector, materialize_grads=True)
            return image

        with torch.enable_grad():
            slow = product()
            self._fast = True
            try:
                fast = product()
            except Exception as error:
                if lacks_memory(error):
                    raise
                return False
        difference = torch.linalg.vector_norm(fast - slow)
        return bool(difference <= 1e-3 * torch.linalg.vector_norm(slow))

    def differentiated_twice(self, parts: Sequence[Tensor]) -> AbstractContextManager[Any]:
        """In this block, a pass at θ in parts is made for a graph that gives Hessian products."""
        fast = self._fast and not self.holds_several(parts)
        return FastSecondDerivatives() if fast else nullcontext()

    def _differs(self, x: Tensor) -> bool:
        """Whether one of many passes gives other outputs, as where a layer is left out at times."""
        with torch.no_grad(), torch.random.fork_rng([]):  # the caller's numbers are not used up
            first = self(self.initial_point, x)
            atol = 1e-5 * float(first.nan_to_num().abs().max())
            others = (self(self.initial_point, x) for _ in range(_MORE_PASSES))
            return not all(
                torch.allclose(first, other, rtol=1e-4, atol=atol, equal_nan=True)
                for other in others
            )

    def _template_gives_nan(self, x: Tensor) -> bool:
        template = copy.deepcopy(self._template)
        _set_batch_norm_mode(template, "full_batch" if self.mixes_examples else None, check=False)
        with torch.no_grad():
            outputs = template(x)
        outputs = outputs if self._output is None else self._output(outputs)
        return bool(outputs.isnan().any())

    def _refuse_mixing(self, x: Tensor, outputs: Tensor, atol: float) -> None:
        # The later half, because what is taken for examples may be a sequence, read from its start.
        half = len(x) // 2
        try:
            with torch.no_grad():
                alone = self(self.initial_point, x[half:])
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if lacks_memory(error):
                raise
            first = str(error).strip().partition("\n")[0].rstrip(".")
            raise ValueError(
                f"the model takes these {len(x)} examples, but not {len(x) - half} of them alone "
                f"({first}); the number is built into it (view({len(x)}, -1), a buffer with a row "
                "for each example, torch.export without dynamic shapes?). Let it take any number: "
                "view(len(x), -1)"
            ) from error
        if not torch.allclose(alone, outputs[half:], rtol=1e-3, atol=atol, equal_nan=True):
            raise ValueError(
                "an example's output depends on which other examples are beside it, so the loss "
                "is no mean over examples. Remove what mixes them (a normalisation over the "
                "batch?), and let the first dimension count the examples (batch_first=True)"
            )

    def _refuse_rough(self, x: Tensor, original: Sequence[Tensor]) -> None:
        leaf = self.initial_point.clone().requires_grad_()
        astray, constant, own, unseen = False, False, set[str](), list[str]()
        try:
            with torch.enable_grad():
                parts = self.split(leaf)
                total = self.apply(parts, x[:2]).square().sum()
                constant = not total.requires_grad
                if not constant:
                    gradient, *others = torch.autograd.grad(
                        total, [leaf, *parts, *original], create_graph=True, allow_unused=True
                    )
                    slopes, others = others[: len(parts)], others[len(parts) :]
                    unseen = [
                        name
                        for name, slope in zip(self._names, slopes, strict=True)
                        if slope is None
                    ]
                    astray = gradient is None or any(other is not None for other in others)
                    if not astray and gradient.requires_grad:
                        torch.autograd.grad(gradient.sum(), leaf)
                    own = _custom_functions(total)
        except RuntimeError as error:
            if lacks_memory(error):
                raise
            first = str(error).partition("\n")[0].rstrip(".")
            raise ValueError(
                f"the model cannot be differentiated twice: {first}. {self._replacement()}"
            ) from error
        if constant:
            raise ValueError(
                "to the derivative the model's outputs are constants: none of them depends on a "
                "trainable parameter in a way that can be differentiated (torch.no_grad(), .data, "
                ".detach() or float() in forward, or argmax?), so gradient and Hessian would be "
                "zero. Take it out"
            )
        if astray:
            raise ValueError(
                "the copy of the model still reads parameters of the original (by a lambda or a "
                "hook that holds on to self?), so slices of a flat vector cannot stand in for "
                "them; make it a method, or a module of its own"
            )
        if name := next((name for name in unseen if self._depends_on(name, x[:2])), None):
            raise ValueError(
                f"the model's outputs depend on {name!r}, but not in a way that can be "
                "differentiated (torch.no_grad(), .detach(), or a reentrant activation checkpoint "
                "at inputs that need no gradient?), so gradient and Hessian would leave it out. "
                "Take that out (checkpoints: use_reentrant=False), or freeze the parameter: "
                "requires_grad_(False)"
            )
        if own and not any(self._differentiates(x[:2], seed) for seed in (0, 1)):
            raise ValueError(
                f"the second derivative of {', '.join(sorted(own))}, a torch.autograd.Function, is "
                "not the derivative of its first: differences of gradients differ from products "
                "with the Hessian. Its backward must be a differentiable function of what "
                "ctx.save_for_backward kept; a straight-through estimator has no Hessian"
            )

    def _depends_on(self, name: str, x: Tensor) -> bool:
        """Whether NaN in place of a parameter shows in the outputs.

        Where it only decides, as by argmax, it does not: then it has no derivative to be missed.
        """
        parts = dict(zip(self._names, self.split(self.initial_point), strict=True))
        spoilt = parts | {name: torch.full_like(parts[name], torch.nan)}
        try:
            with torch.no_grad():
                before, after = (self.apply(list(p.values()), x) for p in (parts, spoilt))
        except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
            if lacks_memory(error):
                raise
            return False  # it takes no NaN
        return bool((after.isnan() & ~before.isnan()).any())

    def _replacement(self) -> str:
        """What to do about an operation that has no second derivative."""
        compiled = [name for name, part in self._module.named_modules() if _is_compiled(part)]
        if "" in compiled:
            return (
                "torch.compile made it so: give the module that was compiled, model._orig_mod, "
                "which has the same parameters"
            )
        if compiled:
            return (
                f"torch.compile made it so, of {compiled[0]!r}: measure within "
                'torch.compiler.set_stance("force_eager")'
            )
        return (
            "Replace the operation named (activation checkpointing and fused kernels are common "
            "causes)"
        )

    def _differentiates(self, x: Tensor, seed: int) -> bool:
        """Whether products with the Hessian are differences of gradients, in a random direction.

        In float64, where the step may be so small that it hardly meets a kink. A function that is
        not to be had in float64 gets the benefit of the doubt.
        """
        module = _moved(copy.deepcopy(self._template), x.device, torch.float64)
        mode: BatchNormMode = "full_batch" if self.mixes_examples else "running"
        _set_batch_norm_mode(module, mode, check=False)
        inputs = x.double() if x.is_floating_point() else x
        point = self.initial_point.double()
        draw = torch.randn(
            len(point),
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
            device="cpu",
        )
        step = (1e-7 * draw).to(point)

        def gradient(leaf: Tensor) -> Tensor:
            values = dict(zip(self._names, self.split(leaf), strict=True))
            outputs = torch.func.functional_call(module, values, (inputs,))
            outputs = outputs if self._output is None else self._output(outputs)
            (slope,) = torch.autograd.grad(outputs.square().sum(), leaf, create_graph=True)
            return slope

        try:
            with torch.enable_grad():
                leaf = point.clone().requires_grad_()
                (product,) = torch.autograd.grad(gradient(leaf), leaf, step)
                ends = [gradient((point + s * step).requires_grad_()).detach() for s in (1, -1)]
        except (RuntimeError, TypeError, NotImplementedError):
            return True
        difference = (ends[0] - ends[1]) / 2
        return bool((difference - product).norm() <= 0.01 * difference.norm())

    def _fill_slots(self, parts: Sequence[Tensor]) -> None:
        for slots, part in zip(self._slots, parts, strict=True):
            for parameters, key in slots:
                parameters[key] = part

    # -- several parameter vectors at once ------------------------------------------------------

    def _at_several_points(self, parts: Sequence[Tensor], x: Tensor) -> Tensor:
        if self._chain is None or x.ndim != 2:
            return torch.vmap(self.apply, in_dims=(0, None))(list(parts), x)
        named = dict(zip(self._names, parts, strict=True))
        hidden = x.expand(len(parts[0]), *x.shape)
        for layer, weight, bias in self._chain:
            if isinstance(layer, nn.Linear):
                hidden = affine(hidden, named[weight], named.get(bias))
            else:
                hidden = layer(hidden)
        return hidden if self._output is None else torch.vmap(self._output)(hidden)


def _linear_chain(module: nn.Module) -> list[tuple[nn.Module, str, str]] | None:
    """The layers of a chain of linear layers and elementwise functions, with parameter names.

    ``None`` for any other module, and for one with frozen or shared parameters.
    """
    if type(module) is not nn.Sequential or any(map(_is_altered, module.modules())):
        return None
    chain: list[tuple[nn.Module, str, str]] = []
    for name, layer in module._modules.items():  # named_children() names a layer used twice once
        if type(layer) is nn.Linear:
            if not all(parameter.requires_grad for parameter in layer.parameters()):
                return None
            chain.append((layer, f"{name}.weight", f"{name}.bias"))
        elif type(layer) in _ELEMENTWISE:
            chain.append((layer, "", ""))
        elif not (type(layer) is nn.Flatten and not chain):  # inputs are flat already
            return None
    linear = [layer for layer, weight, _ in chain if weight]
    used = [p for layer in linear for p in (layer.weight, layer.bias) if p is not None]
    every_one_once = len(set(used)) == len(used) == len(list(module.parameters()))
    return chain if every_one_once else None


def _is_altered(module: nn.Module) -> bool:
    """Whether a module does something beside what its type says."""
    hooks = (module._forward_pre_hooks, module._forward_hooks, module._backward_hooks)
    return any(hooks) or "forward" in vars(module) or getattr(module, "inplace", False)


def _is_compiled(module: nn.Module) -> bool:
    """Whether `torch.compile` returned it; to ask for the type would load the compiler."""
    return type(module).__name__ == "OptimizedModule" and "_orig_mod" in module._modules


def _refusal(x: Tensor, error: BaseException) -> str:
    """What is said of inputs that a model does not take."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[-1 if "TorchScript" in lines[0] else 0].rstrip(".")
    if "missing" in first and "argument" in first:  # Python's words
        advice = (
            "A model of several inputs gets them as one tensor: wrap it in a module whose forward "
            "takes that apart"
        )
    elif not x.is_floating_point():
        advice = (
            "If they are numbers and no indices, convert them (inputs.float()); else give them in "
            "the shape and range that model(inputs) takes"
        )
    elif "Long" in first:
        advice = "If they are indices, of an embedding, give them as integers: inputs.long()"
    else:
        advice = "Give them in the shape that model(inputs) takes, examples first"
    values = ""
    if first.startswith("index out of range"):  # an embedding's words
        values = f", with values from {x.min().item()} to {x.max().item()}"
    return (
        f"the model does not take inputs of shape {tuple(x.shape)} ({len(x)} examples) and dtype "
        f"{x.dtype}{values}; PyTorch said: {first}. {advice}"
    )


class _Functions(TorchFunctionMode):
    """Records the names of PyTorch's functions as they are called.

    The operators below them would need a dispatch mode, which loads PyTorch's compiler: seconds.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self._in_half: dict[str, torch.dtype] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        self.names.add(name)
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.dtype in (torch.bfloat16, torch.float16):
            self._in_half.setdefault(name, result.dtype)
        return result

    def refuse_half_precision(self, dtype: torch.dtype) -> None:
        """Nothing that we give to a model is in half precision; so it went there by itself."""
        if self._in_half:
            name, found = next(iter(self._in_half.items()))
            raise ValueError(
                f"the model computes in {found} inside ({name!r}), although its parameters are in "
                f"{dtype} here: the rounding makes the loss a staircase, whose steps a Hessian "
                "cannot see. Take torch.autocast and casts such as x.bfloat16() out of forward"
            )


def _a_part_of(result: object) -> str:
    """How a tensor might be taken out of what a model returned."""
    if isinstance(result, dict) and result:
        return f"[{next(iter(result))!r}]"
    return "[0]" if isinstance(result, tuple | list) else ".logits"


def _custom_functions(outputs: Tensor) -> set[str]:
    """The names of the ``torch.autograd.Function`` that a graph was made by."""
    custom: Any = torch.autograd.function.BackwardCFunction
    found = (type(node) for node in operations(outputs) if isinstance(node, custom))
    return {kind.__name__.removesuffix("Backward") for kind in found}


class _PlainWeightNorm(TorchFunctionMode):
    """Weight normalisation from elementary functions, whose derivatives are right to any order."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch._weight_norm:
            func = _weight_norm
        return func(*args, **(kwargs or {}))


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    if dim != -1:  # which stands for all dimensions here
        dim %= v.ndim
    others = [other for other in range(v.ndim) if dim == -1 or other != dim]
    norm = torch.linalg.vector_norm(v, dim=others, keepdim=dim != -1) if others else v.abs()
    return v * (g / norm)


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy, also of a module that keeps results of its last pass.

    Such results (an activation, a pruned weight) have a graph, for which PyTorch refuses to copy
    them; their values are copied instead.
    """
    try:
        try:
            copied = copy.deepcopy(module)
        except RuntimeError:
            copied = copy.deepcopy(module, _results_kept(module))
    except Exception as error:  # whatever the module's attributes raise
        raise ValueError(
            f"the model cannot be copied ({type(error).__name__}: {error}); take out of it what is "
            "no part of the function, such as a lock, a file or a logger"
        ) from error
    if {id(p) for p in copied.parameters()} & {id(p) for p in module.parameters()}:
        raise ValueError(
            f"a deep copy of {type(module).__name__} shares parameters with the original, which "
            "would be overwritten; remove the __deepcopy__ that keeps them"
        )
    return copied


def _results_kept(module: nn.Module) -> dict[int, Any]:
    """Copies of the tensors with a graph among a module's attributes, by their identity."""
    copies: dict[int, Any] = {}
    seen: set[int] = set()

    def note(value: Any) -> None:
        if isinstance(value, Tensor):
            if not value.is_leaf:
                copies[id(value)] = value.detach().clone()
        elif isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            for item in value.values() if isinstance(value, dict) else value:
                note(item)

    for part in module.modules():
        note(vars(part))
    return copies


def _moved(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module on the device in the dtype; complex tensors stay complex, of that precision."""
    tensors = [*module.parameters(), *module.buffers()]
    if not any(tensor.is_complex() for tensor in tensors):
        return module.to(device, dtype)

    def converted(tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(device, dtype.to_complex())
        return tensor.to(device, dtype if tensor.is_floating_point() else None)

    moved: nn.Module = module._apply(converted)
    return moved


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have the same entries, NaN counting as equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _named_batch_norms(module: nn.Module) -> Iterator[tuple[str, nn.modules.batchnorm._BatchNorm]]:
    for name, layer in module.named_modules():
        if isinstance(layer, _BATCH_NORM):
            yield name, layer


def _set_batch_norm_mode(
    module: nn.Module, mode: BatchNormMode | None, *, check: bool = True
) -> bool:
    """Bring every batch-norm layer of a module of our own into the mode; see `Objective`.

    Returns:
        Whether the outputs now depend on the batch's statistics.
    """
    layers = dict(_named_batch_norms(module))
    if check and mode is None and layers:
        raise ValueError(
            f"layer {next(iter(layers))!r} is batch normalisation; say whose statistics it takes: "
            'batch_norm="full_batch" (all examples, as in full-batch training), "ghost" (each '
            'chunk of chunk_size examples) or "running" (the stored averages, as in model.eval()). '
            "They give different losses and different sharpnesses"
        )
    if check and mode is not None:
        if mode not in get_args(BatchNormMode):
            raise ValueError(
                f"batch_norm must be one of {', '.join(get_args(BatchNormMode))}, got {mode!r}"
            )
        if not layers:
            raise ValueError(
                f"batch_norm={mode!r} was given, but the model has no batch-norm layer"
            )
    for name, layer in layers.items():
        if mode == "running":
            if layer.running_mean is None:
                raise ValueError(
                    f'batch_norm="running" needs stored averages, but layer {name!r} has none '
                    '(track_running_stats=False); use "full_batch" or "ghost"'
                )
            layer.eval()
        elif mode is not None:
            # Without running statistics a layer takes the batch's, and has nothing to update.
            layer.running_mean = layer.running_var = layer.num_batches_tracked = None
    return bool(layers) and mode != "running"


def _refuse_odd_parameters(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(
                f"{name!r} has no shape yet: the layer is lazy and waits for its first inputs. "
                "Run model(inputs) once"
            )
        if tensor.is_meta:
            raise ValueError(
                f"{name!r} is on the meta device and has no values. Build the model on a real "
                "device, or model.to_empty(device=...) and load its weights"
            )
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and parameter.is_complex():
            raise ValueError(
                f"the parameter {name!r} is {parameter.dtype}, and θ is a real vector. Let the "
                "parameter be its real and imaginary parts, torch.view_as_real(w), and make "
                "torch.view_as_complex(w) of it in forward"
            )


def _refuse_random_layers(module: nn.Module) -> None:
    for name, layer in module.named_modules():
        if isinstance(layer, _RANDOM_LAYERS) and layer.training and layer.p > 0:
            raise ValueError(
                f"layer {name!r} is {type(layer).__name__}(p={layer.p}) in training mode: the "
                "loss would be random and has no Hessian. Call model.eval(), or set p=0"
            )
