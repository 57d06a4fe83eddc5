"""Tables of items that register themselves in their own files; the files are imported when a table is first read."""

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from backend.errors import UserError

LAST = 1000.0  # the place of an item that names none: after all that do

Item = TypeVar("Item")
Registered = TypeVar("Registered")


class Registry(Mapping[str, Item]):
    """Items by name, such as attacks or metrics, in the order of lists and pages.

    Args:
        kind: What an item is called in messages, for example "attack".
        package: The package whose modules register items, for example "backend.attacks"; a new module needs no list.
        others: Full names of modules elsewhere that register items too.
    """

    def __init__(self, kind: str, package: str, *others: str) -> None:
        self.kind = kind
        self._package = package
        self._others = others
        self._items: dict[str, Item] = {}
        self._orders: dict[str, float] = {}
        self._complete = False

    def add(self, name: str, item: Item, order: float = LAST) -> None:
        """Add an item; items of the same order stay as they were added.

        Raises:
            ValueError: Another item has this name.
        """
        if name in self._items:
            raise ValueError(f"there are two {self.kind}s named {name}")
        self._items[name] = item
        self._orders[name] = order

    def register(
        self, name: str, make: Callable[[Any], Item], order: float = LAST
    ) -> Callable[[Registered], Registered]:
        """Return a decorator for a function or class that adds `make(decorated)` and changes nothing."""

        def decorate(decorated: Registered) -> Registered:
            self.add(name, make(decorated), order)
            return decorated

        return decorate

    def find(self, name: str) -> Item:
        """Return one item, or raise a UserError that names them all."""
        if name not in self:
            raise UserError(f"There is no {self.kind} named {name}.", f"Choose one of: {', '.join(self)}.")
        return self[name]

    def discover(self) -> None:
        """Import every module that registers items; those that are imported already cost nothing."""
        folders = importlib.import_module(self._package).__path__
        modules = [module.name for module in pkgutil.iter_modules(folders, f"{self._package}.")]
        for module in (*modules, *self._others):
            before = set(self._items)
            try:
                importlib.import_module(module)
            except BaseException:  # its next import registers its items again
                for name in self._items.keys() - before:
                    del self._items[name], self._orders[name]
                raise
        self._complete = True

    def _all(self) -> dict[str, Item]:
        if not self._complete:
            self.discover()
        return self._items

    def __getitem__(self, name: str) -> Item:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._all(), key=self._orders.__getitem__))

    def __len__(self) -> int:
        return len(self._all())
