"""Detection of blocks whose role depends on the model's depth, such as the last block."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from heterofl_flwr.nn.execution import tensors_in

Links = Mapping[str, frozenset[str]]
"""For each block, the blocks whose outputs it uses, except the block that runs immediately before it."""


class CountedError(TypeError):
    """Error that a watched stack of blocks raises when code calls ``len`` on it.

    It is a ``TypeError``, because ``[*blocks]`` calls ``len`` only as a hint and ignores a ``TypeError`` from it.
    """


class Watch:
    """Observer of a running model. For each block, it records the blocks whose outputs this block uses.

    It also records the stacks whose length the model's code needs, for ``len`` or for a negative index.
    """

    def __init__(self) -> None:
        self.counted: set[str] = set()
        self.raises = True  # whether len of a stack raises CountedError
        self._outputs: list[tuple[str, list[torch.Tensor]]] = []
        self._inside = False  # True while the container's __getitem__ runs, which calls len itself

    def end_run(self, stacks: Mapping[str, Sequence[str]]) -> Links:
        """Return, for each block that ran since the previous call, the earlier blocks whose outputs it used.

        The block that ran immediately before it is left out. If an earlier block is the last one of its stack, it is
        named ``last of <stack>``.
        """
        ends = {f"{stack}.{names[-1]}".lstrip("."): f"last of {stack}" for stack, names in stacks.items()}
        nodes = {tensor.grad_fn: name for name, tensors in self._outputs for tensor in tensors if tensor.grad_fn}
        links: dict[str, frozenset[str]] = {}
        before = ""
        for name, tensors in self._outputs:
            sources = _sources([tensor.grad_fn for tensor in tensors if tensor.grad_fn], nodes) - {name, before}
            links[name] = links.get(name, frozenset()) | {ends.get(source, source) for source in sources}
            before = name
        self._outputs.clear()
        return links

    def note_count(self, name: str) -> None:
        """Record that code reads the length of a stack. From now on, ``len`` of any stack raises no error."""
        self.counted.add(name)
        self.raises = False

    def note_output(self, name: str, block: nn.Module, inputs: object, output: object) -> None:
        """Record the output of a block."""
        self._outputs.append((name, list(tensors_in(output))))

    def spy(self, name: str, container: type[nn.Module]) -> type[nn.Module]:
        """Return a subclass of ``container`` that detects code which needs the container's length.

        A negative index adds ``name`` to ``counted``. ``len`` raises ``CountedError`` if ``raises`` is set.
        """

        def length(stack: Any) -> int:
            if self.raises and not self._inside:
                raise CountedError(name)
            return len(stack._modules)

        def item(stack: Any, index: Any) -> object:
            ends = (index.start, index.stop) if isinstance(index, slice) else (index,)
            if any(isinstance(end, int) and end < 0 for end in ends):
                self.counted.add(name)
            self._inside = True
            try:
                return getattr(container, "__getitem__")(stack, index)  # noqa: B009  # nn.Module itself has none
            finally:
                self._inside = False

        return type(container.__name__, (container,), {"__len__": length, "__getitem__": item})


def _sources(ends: list[Any], nodes: Mapping[Any, str]) -> set[str]:
    """Return the names of the nearest blocks before the nodes ``ends`` in autograd's graph."""
    blocks, seen = set(), set(ends)
    waiting = [node for end in ends for node, _ in end.next_functions]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node in nodes:
            blocks.add(nodes[node])
        else:
            waiting += [node for node, _ in node.next_functions]
    return blocks


@contextmanager
def watching(model: nn.Module, stacks: Mapping[str, Sequence[str]]) -> Iterator[Watch]:
    """Context manager that observes a model.

    ``stacks`` maps the name of each stack to the names of its blocks.
    """
    watch, classes, hooks = Watch(), [], []
    uses = Counter(block for name in stacks for block in model.get_submodule(name)._modules.values())
    for name, blocks in stacks.items():
        stack = model.get_submodule(name)
        classes.append((stack, type(stack)))
        stack.__class__ = watch.spy(name or "(the model itself)", type(stack))
        for block in blocks:
            layer = stack.get_submodule(block)
            if uses[layer] == 1:  # a block that is used in several places has no single role
                hooks.append(layer.register_forward_hook(partial(watch.note_output, f"{name}.{block}".lstrip("."))))
    try:
        yield watch
    finally:
        for hook in hooks:
            hook.remove()
        for stack, kind in classes:
            stack.__class__ = kind
