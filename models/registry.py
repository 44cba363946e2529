"""Architectures and backbones by exact name."""

import difflib
import importlib.util
import inspect
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import nn

from .base import SegModel
from .errors import InputError

_VARIANTS: dict[str, tuple[Callable[..., SegModel], dict]] = {}
_BACKBONES: dict[str, tuple[Callable[..., nn.Module], dict]] = {}
_ALIASES: dict[str, str] = {}


class Extra(NamedTuple):
    """A part of setup.py's extras_require, and the module that it brings."""

    name: str
    module: str

    def is_installed(self) -> bool:
        """Whether the module is there; it is not imported."""
        return importlib.util.find_spec(self.module) is not None


_NEEDS: dict[str, Extra] = {}


def register(
    cls: Callable[..., SegModel],
    variants: Mapping[str, Mapping],
    aliases: Mapping[str, str] | None = None,
    needs: Extra | None = None,
) -> None:
    """Make every `variants` entry (name -> constructor options) buildable by its name.

    needs: without which none of them can be built.
    """
    _add(_VARIANTS, "architecture", cls, variants)
    _ALIASES.update(aliases or {})
    if needs is not None:
        _NEEDS.update(dict.fromkeys(variants, needs))


def register_backbone(cls: Callable[..., nn.Module], variants: Mapping[str, Mapping]) -> None:
    """The same for networks without a head, whose forward gives a list of features."""
    _add(_BACKBONES, "backbone", cls, variants)


def _add(table: dict, kind: str, cls: Callable, variants: Mapping[str, Mapping]) -> None:
    for name, options in variants.items():
        if name in table:
            raise InputError(f"{kind} {name} is registered twice")
        table[name] = (cls, dict(options))


def list_models(*, extras: bool = False) -> list[str]:
    """Names of the architectures that every installation builds, sorted, without aliases.

    extras: also those that need an extra that is installed. They are left out otherwise, so that
    what goes through all networks does not depend on the machine.
    """
    needs = {name: _NEEDS.get(name) for name in _VARIANTS}
    return sorted(n for n, extra in needs.items() if not extra or (extras and extra.is_installed()))


def list_backbones() -> list[str]:
    """Names of all backbones that can be built alone, sorted."""
    return sorted(_BACKBONES)


def resolve_name(name: str) -> str:
    """The canonical name behind `name` (itself or an alias). Raises ValueError on a miss."""
    canonical = _ALIASES.get(name, name)
    if canonical in _VARIANTS:
        return canonical
    if name in _BACKBONES:
        raise InputError(f"{name} is a backbone without a head; build_backbone builds it")
    near = difflib.get_close_matches(name, [*_VARIANTS, *_ALIASES], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise InputError(f"unknown architecture {name!r}{hint} Known: {', '.join(sorted(_VARIANTS))}")


def is_known(name: str | None) -> bool:
    """Whether `name` is an architecture or an alias of one."""
    return name in _VARIANTS or name in _ALIASES


def check_extra(name: str) -> None:
    """Raise ValueError if the architecture `name` needs what is not installed."""
    extra = _NEEDS.get(resolve_name(name))
    if extra is not None and not extra.is_installed():
        raise InputError(
            f"{name} needs {extra.module}, which is not installed: pip install -e .[{extra.name}]"
        )


def missing_extras() -> dict[Callable[..., SegModel], Extra]:
    """Classes of architectures that cannot be built here -> the extra that is not installed."""
    return {_VARIANTS[n][0]: extra for n, extra in _NEEDS.items() if not extra.is_installed()}


def build_model(name: str, num_classes: int, **options) -> SegModel:
    """Build an architecture with fresh weights.

    Args:
        name: exact registry name or alias.
        num_classes: classes of the main head; at least 2 (a binary task has 2).
        options: constructor arguments that replace the variant's own values.

    Raises:
        ValueError: unknown name, unknown option, fewer than 2 classes, or an extra is missing.
    """
    canonical = resolve_name(name)
    check_extra(canonical)
    if num_classes < 2:
        raise InputError(f"num_classes is {num_classes}; at least 2 are needed (binary = 2)")
    model = _build(canonical, *_VARIANTS[canonical], options, num_classes)
    model.architecture, model.options = canonical, dict(options)
    return model


def build_backbone(name: str, **options) -> nn.Module:
    """Build a backbone alone; its forward maps N, 3, H, W to features, the finest first.

    Raises:
        ValueError: there is no backbone of that name, or it has no such option.
    """
    if name not in _BACKBONES:
        raise InputError(f"unknown backbone {name!r}. Known: {', '.join(list_backbones())}")
    backbone = _build(name, *_BACKBONES[name], options)
    backbone.architecture = name
    return backbone


def accepted_options(name: str) -> list[str]:
    """Names of the constructor options of an architecture or backbone; ValueError on a miss."""
    alone = name in _BACKBONES and name not in _VARIANTS
    cls, _ = _BACKBONES[name] if alone else _VARIANTS[resolve_name(name)]
    return [p for p in inspect.signature(cls).parameters if p != "num_classes"]


def _build(name: str, cls: Callable, defaults: Mapping, options: Mapping, *arguments: int):
    accepted = [p for p in inspect.signature(cls).parameters if p != "num_classes"]
    unknown = sorted(set(options) - set(accepted))
    if unknown:
        raise InputError(
            f"{name} has no option {', '.join(unknown)}; it takes {', '.join(accepted)}"
        )
    endless = sorted(option for option, value in options.items() if not _is_finite(value))
    if endless:
        raise InputError(f"{name} with options {options}: {endless[0]} must be finite")
    try:
        model = cls(*arguments, **{**defaults, **options})
    except (TypeError, ValueError, RuntimeError, ArithmeticError, MemoryError) as error:
        reason = " ".join(str(error).split()) or "out of memory"
        raise InputError(f"{name} cannot be built with options {options}: {reason}") from error
    empty = next((key for key, p in model.named_parameters() if not p.numel()), None)
    if empty is not None:
        raise InputError(f"{name} with options {options} has nothing in {empty}")
    return model


def _is_finite(value: object) -> bool:
    """Whether no number in `value` is infinite or not a number."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)
