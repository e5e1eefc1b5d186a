"""Masks of the entries that a slice has in each tensor of the full model, computed by a rule for each operator.

Entries that the slice lacks are set to zero after each operator, so they add nothing to a sum. An operator that counts
entries (a mean, a variance) counts those in the mask. Norms, softmax and many others are decomposed by torch into
simpler operators.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from heterofl_flwr.common.errors import HeteroFLError, first_line

aten = torch.ops.aten
Rule = Callable[["Masks", Any, Sequence[Any], Mapping[str, Any]], Any]
RULES: dict[str, Rule] = {}

# Pointwise operators without torch's tag for them.
_ENTRYWISE = (
    *("_to_copy", "zero", "fill", "cumsum", "hardswish", "hardtanh", "relu6", "_prelu_kernel", "polar", "tril", "triu"),
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "native_dropout"),
)
# Value of entries that the slice lacks, in the operator's input.
_INSTEAD = {
    **dict.fromkeys(("sum", "any", "linalg_vector_norm", "_fft_r2c", "_fft_c2c", "_fft_c2r"), 0.0),
    **dict.fromkeys(("amax", "max", "argmax", "topk", "sort", "argsort"), -math.inf),
    **dict.fromkeys(("amin", "min", "argmin"), math.inf),
    **dict.fromkeys(("prod", "all"), 1.0),
}
_POOLS = (
    *("avg_pool{}d", "max_pool{}d_with_indices", "_adaptive_avg_pool{}d", "adaptive_max_pool{}d"),
    *("upsample_nearest{}d", "upsample_linear{}d", "upsample_bilinear{}d", "upsample_bicubic{}d"),
    *("reflection_pad{}d", "replication_pad{}d", "_upsample_bilinear{}d_aa", "_upsample_bicubic{}d_aa"),
)


class UnprovenError(HeteroFLError):
    """An operator has no rule for masks, so the right output of a slice is unknown."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the rule of operators, and of their in-place forms."""

    def add(function: Rule) -> Rule:
        RULES.update({form: function for name in names for form in (name, f"{name}_")})
        return function

    return add


class Masks(TorchDispatchMode):
    """Dispatch mode that calls each operator on values and on masks; it begins with the parameters' masks."""

    def __init__(self, known: Mapping[int, tuple[Tensor, Tensor]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = dict(known)  # has the tensors too, because the id() of a freed tensor is used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
        """Call the operator by its rule, or by the rules of the operators into which it decomposes."""
        name, given = func.overloadpacket.__name__, dict(kwargs or {})
        if name in RULES:
            return RULES[name](self, func, args, given)
        plain = getattr(aten, name.removesuffix("_"), func.overloadpacket)  # the in-place form may lack the tag
        forms = (func, *(getattr(plain, form) for form in plain.overloads()))
        if any(torch.Tag.pointwise in one.tags for one in forms):
            return entrywise(self, func, args, given)
        if all(bool(self.of(one).all()) for one in tree_leaves((args, given)) if isinstance(one, Tensor)):
            return func(*args, **given)
        parts = decomposition_table.get(func) or (func.decompose if func._can_decompose() else None)
        if parts is None:
            raise UnprovenError(f"no rule says which entries of a result of {func.overloadpacket} a slice has")
        with self:
            return parts(*args, **given)

    def of(self, tensor: Tensor) -> Tensor:
        """Return a tensor's mask; all entries for a tensor without one."""
        if id(tensor) not in self._known:
            self._known[id(tensor)] = tensor, torch.ones_like(tensor, dtype=torch.bool)
        return self._known[id(tensor)][1]

    def length(self, tensor: Tensor, axis: int) -> int:
        """Return the number of entries of an axis that the slice has."""
        return int(self.of(tensor).movedim(axis, 0).flatten(1).any(1).sum())

    def set(self, output: Any, mask: Tensor) -> Any:
        """Set the mask of tensors, in their memory layout, and set entries outside of it to zero."""
        for tensor in tree_leaves(output):
            own = torch.empty_like(tensor, dtype=torch.bool).copy_(mask)
            if id(tensor) in self._known:  # changed in place: change the mask in place too, for the masks of views
                own = self.of(tensor).copy_(own)
            self._known[id(tensor)] = tensor, own
            if not own.all():
                tensor.masked_fill_(~own, 0)
        return output

    def pair(self, output: Any, masks: Any) -> Any:
        """Set masks that the operator computed from masks, so that a view of a tensor has a view of its mask."""
        for tensor, mask in zip(tree_leaves(output), tree_leaves(masks), strict=True):
            self._known[id(tensor)] = tensor, mask
        return output


def _named(func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments by name in the operator's schema, with defaults."""
    arguments = func._schema.arguments
    defaults = {one.name: one.default_value for one in arguments if one.has_default_value()}
    return {**defaults, **dict(zip((one.name for one in arguments), args, strict=False)), **given}


@rule(*_ENTRYWISE)
def entrywise(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Pointwise operators: the result has the entries that all operands have."""
    mask = torch.ones((), dtype=torch.bool)
    for one in tree_leaves((args, given)):
        mask = mask & masks.of(one) if isinstance(one, Tensor) else mask
    return masks.set(func(*args, **given), mask)


@rule("new_zeros", "new_empty", "new_ones", "new_full", "new_empty_strided")
def created(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Creation operators: the slice has all entries of a new tensor."""
    return func(*args, **given)


@rule("view", "_unsafe_view", "_reshape_alias", "permute", "transpose", "t", "slice", "select", "split", "unbind")
@rule("split_with_sizes", "unsafe_split", "expand", "squeeze", "unsqueeze", "alias", "detach", "clone", "flip", "roll")
@rule("stack", "index", "_unsafe_index", "index_select", "gather", "embedding", "repeat", "as_strided", "unfold")
@rule("diagonal", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "lift_fresh")
@rule("copy", "index_copy", "index_put", "_index_put_impl", "_unsafe_index_put", "scatter")
def moved(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Operators that move entries: masks move in the same way; the slice has entries that are added."""
    output, its = func(*args, **given), _of_masks(masks, func, args, given)
    its.update({name: value for name, value in (("value", True), ("accumulate", False)) if name in its})
    found = _call_on_masks(func, its)
    return masks.set(output, found) if any(output is one for one in args) else masks.pair(output, found)


@rule("cat", "constant_pad_nd")
def joined(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Concatenation and padding: along its axis, the slice has all added entries.

    Along the other axes, the slice has an added entry where it has existing entries.
    """
    if func.overloadpacket is aten.cat:
        parts, dims = [masks.of(one) for one in args[0]], [_named(func, args, given)["dim"]]
        found = torch.cat(parts, dims[0])
    else:
        parts, dims = [masks.of(args[0])], sorted({-1 - place // 2 for place, width in enumerate(args[1]) if width})
        found = func(parts[0], args[1], True)
    for part in parts:
        found = found & part.any(dims, keepdim=True) if part.numel() and dims else found
    return masks.set(func(*args, **given), found)


@rule(*(name.format(dimensions) for name in _POOLS for dimensions in (1, 2, 3)), "convolution", "_convolution")
@rule("mm", "bmm", "_trilinear", "_grouped_mm", "index_add", "scatter_add", "col2im")
def summed(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Operators that sum products: the result has each sum with a term that the slice has.

    The mask is found by calling the operator on masks as numbers: it has the entries that are not 0.
    """
    bias = _named(func, args, given).get("bias")
    its = {**_of_masks(masks, func, args, given), **({} if bias is None else {"bias": None})}
    its = {key: one.float() if isinstance(one, Tensor) and one.dtype == torch.bool else one for key, one in its.items()}
    output, found = func(*args, **given), tree_leaves(_call_on_masks(func, its))[0] != 0
    if bias is not None:
        found = found & masks.of(bias).view(-1, *[1] * (output.dim() - 2))
    masks.set(tree_leaves(output)[0], found)
    return output


def _of_masks(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments with each tensor replaced by its mask, except indices."""

    def mask_of(one: Any) -> Any:
        return masks.of(one) if isinstance(one, Tensor) else one

    said = _named(func, args, given)
    return {name: one if name in ("index", "indices", "offs") else tree_map(mask_of, one) for name, one in said.items()}


def _call_on_masks(func: Any, its: Mapping[str, Any]) -> Any:
    """Call an operator on masks; if a mask has another memory layout than its tensor, a view becomes a copy."""
    try:
        return func(**its)
    except RuntimeError as error:
        if func.overloadpacket in (aten.view, aten._unsafe_view, aten._reshape_alias) and "size" in its:
            return its["self"].reshape(its["size"])
        raise UnprovenError(f"the mask of {func.overloadpacket} cannot be computed: {first_line(error)}") from error


@rule("view_as_complex", "view_as_real", "linalg_solve_triangular", "_cdist_forward")
def others(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Complex views, triangular solves and distances.

    Real and imaginary parts have equal masks; a solution has the mask of the right-hand side; a distance has an entry
    if both rows have one.
    """
    first, name = masks.of(args[0]), func.overloadpacket.__name__
    if name == "_cdist_forward":
        mask = first.any(-1).unsqueeze(-1) & masks.of(args[1]).any(-1).unsqueeze(-2)
    elif name == "linalg_solve_triangular":
        mask = masks.of(args[1])
    else:
        mask = first.unsqueeze(-1) if name == "view_as_real" else first.all(-1)
    return masks.set(func(*args, **given), mask)


@rule(*_INSTEAD, "mean", "var", "var_mean")
def reduced(masks: Masks, func: Any, args: Sequence[Any], given: Mapping[str, Any]) -> Any:
    """Reductions: the result has an entry if the slice has any of the entries that are reduced to it."""
    x, mask, name, said = args[0], masks.of(args[0]), func.overloadpacket.__name__, _named(func, args, given)
    dim = said.get("dim")
    dims = list(range(x.dim())) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    if name in _INSTEAD:
        whole = _INSTEAD[name] == 0 or mask.all()
        output = func(x if whole else x.masked_fill(~mask, _INSTEAD[name]), *args[1:], **given)
    else:
        count = mask.sum(dims, keepdim=True)
        mean = x.sum(dims, keepdim=True, dtype=said.get("dtype")) / count.clamp(min=1)
        correction = said.get("correction", said.get("unbiased"))
        correction = 1 if correction is None else int(correction)
        variance = ((x - mean) ** 2 * mask).sum(dims, keepdim=True) / (count - correction).clamp(min=1e-9)
        output = {"mean": mean, "var": variance, "var_mean": (variance, mean)}[name]
        output = output if said.get("keepdim") else tree_map(lambda one: one.squeeze(tuple(dims)), output)
    there = mask.any(dims, keepdim=True) if dims else mask
    for one in tree_leaves(output):
        masks.set(one, there if one.dim() == x.dim() or not dims else there.squeeze(tuple(dims)))
    return output
