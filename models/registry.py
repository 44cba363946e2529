"""Architectures by exact name."""

import difflib
import inspect
from collections.abc import Callable, Mapping

from models.base import SegModel

_VARIANTS: dict[str, tuple[Callable[..., SegModel], dict]] = {}
_ALIASES: dict[str, str] = {}


def register(
    cls: Callable[..., SegModel],
    variants: Mapping[str, Mapping],
    aliases: Mapping[str, str] | None = None,
) -> None:
    """Make every `variants` entry (name -> constructor options) buildable by its name."""
    for name, options in variants.items():
        if name in _VARIANTS:
            raise ValueError(f"architecture {name} is registered twice")
        _VARIANTS[name] = (cls, dict(options))
    _ALIASES.update(aliases or {})


def list_models() -> list[str]:
    """Names of all architectures, sorted; aliases are left out."""
    return sorted(_VARIANTS)


def resolve_name(name: str) -> str:
    """The canonical name behind `name` (itself or an alias). Raises ValueError on a miss."""
    canonical = _ALIASES.get(name, name)
    if canonical in _VARIANTS:
        return canonical
    near = difflib.get_close_matches(name, [*_VARIANTS, *_ALIASES], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"unknown architecture {name!r}{hint} Known: {', '.join(list_models())}")


def build_model(name: str, num_classes: int, **options) -> SegModel:
    """Build an architecture with fresh weights.

    Args:
        name: exact registry name or alias.
        num_classes: classes of the main head; at least 2 (a binary task has 2).
        options: constructor arguments that replace the variant's own values.

    Raises:
        ValueError: unknown name, unknown option, or fewer than 2 classes.
    """
    canonical = resolve_name(name)
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes}; at least 2 are needed (binary = 2)")
    cls, defaults = _VARIANTS[canonical]
    accepted = [p for p in inspect.signature(cls).parameters if p != "num_classes"]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise ValueError(
            f"{canonical} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}"
        )
    try:
        model = cls(num_classes, **{**defaults, **options})
    except TypeError as error:
        raise ValueError(f"{canonical} cannot be built with options {options}: {error}") from error
    model.architecture, model.options = canonical, dict(options)
    return model
