"""Remember where each setting of a nested configuration came from."""

from __future__ import annotations

from collections.abc import Iterable

KeyPath = tuple[str | int, ...]
"""Keys of mappings and positions in lists, from the outside in."""


class Origins:
    """The place of a setting, and the places of the settings below it."""

    def __init__(self, place: str | None = None) -> None:
        self.place = place
        """Such as "config.yml:12"; None if only settings below it have a place."""
        self.below: dict[str | int, Origins] = {}

    def nearest(self, path: KeyPath) -> str | None:
        """Return the place of the nearest setting at or above `path`, or None."""
        found = self.place
        node = self
        for key in path:
            if key not in node.below:
                break
            node = node.below[key]
            found = node.place or found
        return found

    def child(self, key: str | int) -> Origins:
        """Return the places of a setting directly below, which is added if it is missing."""
        return self.below.setdefault(key, Origins())

    def set_place(self, path: KeyPath, place: str) -> None:
        """Set the place of one setting; those below it keep theirs."""
        node = self
        for key in path:
            node = node.child(key)
        node.place = place

    def paths(self, above: KeyPath = ()) -> Iterable[tuple[KeyPath, str]]:
        """Yield path and place of all settings."""
        for key, node in self.below.items():
            here = (*above, key)
            if node.place is not None:
                yield here, node.place
            yield from node.paths(here)
