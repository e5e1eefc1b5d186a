"""Detection of code that counts a model's blocks or takes them from the end, such as the last block."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class CountedError(TypeError):
    """Error that a watched stack of blocks raises when code calls ``len`` on it.

    It is a ``TypeError``, because ``[*blocks]`` calls ``len`` only as a hint, and ignores a ``TypeError`` of ``len``.
    """


class Watch:
    """Recorder of the stacks of blocks whose length the model's code needs."""

    def __init__(self) -> None:
        self.counted: set[str] = set()  # names of stacks
        self._inside = False  # True while the container's __getitem__ runs, which calls len itself

    def spy(self, name: str, container: type[nn.Module]) -> type[nn.Module]:
        """Return a subclass of ``container`` that detects code which needs the container's length.

        A negative index or step adds ``name`` to ``counted``. ``len`` raises ``CountedError`` until the name is in
        ``counted``.
        """

        def length(stack: Any) -> int:
            if name not in self.counted and not self._inside:
                raise CountedError(name)
            return len(stack._modules)

        def item(stack: Any, index: Any) -> object:
            numbers = (index.start, index.stop, index.step) if isinstance(index, slice) else (index,)
            if any(isinstance(number, int) and number < 0 for number in numbers):
                self.counted.add(name)
            self._inside = True
            try:
                return getattr(container, "__getitem__")(stack, index)  # noqa: B009  # nn.Module itself has none
            finally:
                self._inside = False

        return type(container.__name__, (container,), {"__len__": length, "__getitem__": item})


@contextmanager
def watching(model: nn.Module, stacks: Collection[str]) -> Iterator[Watch]:
    """Context manager that observes the stacks with these names in a model."""
    watch = Watch()
    classes = [(stack, type(stack)) for stack in map(model.get_submodule, stacks)]
    for name, (stack, kind) in zip(stacks, classes, strict=True):
        stack.__class__ = watch.spy(name or "(the model itself)", kind)
    try:
        yield watch
    finally:
        for stack, kind in classes:
            stack.__class__ = kind
