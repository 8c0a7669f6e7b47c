"""The two names of this package: `src` in the source tree, `dfine_dinov3` when it is installed.

Files of users may import either name, such as `from src.core import register` in a file that `__import__`
names. Both must be the same modules: a second copy would have a registry of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

IN_TREE = "src"
INSTALLED = "dfine_dinov3"


class _OtherName(MetaPathFinder, Loader):
    """Finds the modules of this package under its other name."""

    def __init__(self, own: str, other: str) -> None:
        self.own = own
        self.other = other

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the specification of a module of this package, or None for any other name."""
        top, _, below = fullname.partition(".")
        if top != self.other:
            return None
        if not below:
            if self.other == IN_TREE and self._is_of_a_user():
                return None
            return ModuleSpec(fullname, self, is_package=True)
        if sys.modules.get(self.other) is not sys.modules[self.own]:
            return None  # another package has this name
        found = importlib.util.find_spec(f"{self.own}.{below}")
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(fullname, self, is_package=is_package)

    def _is_of_a_user(self) -> bool:
        """Return whether the other name is that of a package of a user."""
        others = [finder for finder in sys.meta_path if finder is not self]
        return any(finder.find_spec(self.other, None) for finder in others)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module under its own name; the import system will change its `__spec__`."""
        _, dot, below = spec.name.partition(".")
        module = importlib.import_module(f"{self.own}{dot}{below}")
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the `__spec__`: the module has run already."""
        spec = module.__spec__
        assert spec is not None
        module.__spec__ = spec.loader_state


def import_under_both_names() -> None:
    """Make this package available under its other name too; repeated calls have no effect.

    A package of a user that is called `src` is not replaced. In the source tree, `dfine_dinov3` is this tree
    even if a copy is installed.
    """
    own = __name__.partition(".")[0]
    other = INSTALLED if own == IN_TREE else IN_TREE
    if other in sys.modules:
        return
    if any(isinstance(finder, _OtherName) for finder in sys.meta_path):
        return
    # first, because the usual finders would find the submodules once more, as other modules
    sys.meta_path.insert(0, _OtherName(own, other))
