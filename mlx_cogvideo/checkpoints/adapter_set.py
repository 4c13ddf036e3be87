"""The adapters of a model: loaded by name, used at a scale, or fused."""

from collections.abc import Sequence

from ..errors import InvalidInputError
from .adapter_scales import check_scale
from .adapters import Adapter


class AdapterSet:
    """The adapters of a model, by the names that callers give them.

    Attributes:
        used: adapters with their scales, the fused ones first.
    """

    def __init__(self) -> None:
        self.used: list[tuple[Adapter, float]] = []
        self._fused: list[tuple[Adapter, float]] = []
        self._before: list[tuple[Adapter, float]] = []
        self._named: dict[str, Adapter] = {}
        self._sizes: list[tuple[Adapter, int]] = []

    def new_name(self, given: str | None) -> str:
        """The name of an adapter that is about to be added; None is ``default_0`` and so on.

        Raises:
            InvalidInputError: another adapter has it.
        """
        name = f"default_{len(self._named)}" if given is None else given
        if name in self._named:
            raise InvalidInputError(f"there is an adapter {name!r} already: choose another name")
        return name

    def add(self, name: str, adapter: Adapter, scale: float, size: int) -> None:
        """Adds an adapter, and uses it.

        Args:
            size: bytes of its weights.
        """
        self._named[name] = adapter
        self._sizes.append((adapter, size))
        self.used.append((adapter, scale))

    @property
    def bytes(self) -> int:
        """Bytes of the weights that are used."""
        used = [adapter for adapter, _ in self.used]
        return sum(size for adapter, size in self._sizes if adapter in used)

    @property
    def active(self) -> list[str]:
        """Names of the adapters that are used and not fused."""
        used = [adapter for adapter, _ in self.used[len(self._fused) :]]
        return [name for name, adapter in self._named.items() if adapter in used]

    def choose(self, names: Sequence[str], scales: Sequence[float]) -> None:
        """Uses these adapters, and no others but the fused ones.

        Raises:
            InvalidInputError: no adapter has such a name, or a scale isn't a finite number.
        """
        if unknown := [name for name in names if name not in self._named]:
            known = ", ".join(self._named) or "none"
            raise InvalidInputError(f"no adapter {unknown[0]!r}; loaded: {known}")
        if len(names) != len(scales):
            raise InvalidInputError(f"give {len(names)} weights, one for each name")
        for scale in scales:
            check_scale(scale)
        chosen = [(self._named[name], scale) for name, scale in zip(names, scales, strict=True)]
        self.used = [*self._fused, *chosen]

    def fuse(self, scale: float) -> None:
        """Multiplies the scales of what is used, and keeps it until ``unfuse``."""
        check_scale(scale)
        self._before = list(self.used)
        self.used = [(adapter, own * scale) for adapter, own in self.used]
        self._fused = list(self.used)

    def unfuse(self) -> None:
        """Uses again what was used before ``fuse``, as far as it is still loaded."""
        loaded = list(self._named.values())
        self.used, self._fused = [one for one in self._before if one[0] in loaded], []

    def unload(self) -> None:
        """Removes all adapters but the fused ones."""
        self._named, self.used = {}, list(self._fused)
