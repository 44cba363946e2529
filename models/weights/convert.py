"""A foreign state dict in, a complete one of ours out, or one sentence that says why not."""

import functools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import (
    bisenetv1,
    bisenetv2,
    ddrnet,
    gcnet,
    lrformer,
    lrformer_plus,
    pidnet,
    rdrnet,
    rtformer,
)
from ..errors import InputError
from ..layers.reparam import fuse
from ..registry import (
    build_backbone,
    build_model,
    is_known,
    list_backbones,
    list_models,
    missing_extras,
)
from .bisenet import BISENETV1, BISENETV2
from .ddrnet import DDRNET
from .gcnet import GCNET
from .lrformer import LRFORMER, LRFORMER_BACKBONE, LRFORMER_PLUS
from .pidnet import PIDNET
from .rdrnet import RDRNET
from .rtformer import RTFORMER
from .rules import (
    PASSES_ON,
    Dialect,
    Fill,
    Renaming,
    one_line,
    own_dialects,
    rename_keys,
    strip_wrappers,
)

# Class of a network or block -> the foreign dialects that it reads.
DIALECTS: dict[type[nn.Module], tuple[Dialect, ...]] = {
    pidnet.PIDNet: PIDNET,
    ddrnet.DDRNet: DDRNET,
    rdrnet.RDRNet: RDRNET,
    gcnet.GCNet: GCNET,
    bisenetv1.BiSeNetV1: BISENETV1,
    bisenetv2.BiSeNetV2: BISENETV2,
    lrformer.LRFormer: LRFORMER,
    lrformer.LRFormerBackbone: LRFORMER_BACKBONE,
    lrformer_plus.LRFormerPlus: LRFORMER_PLUS,
    rtformer.RTFormer: RTFORMER,
}
_MAX_CLASSES = 100_000
_MAX_KEYS = 5_000  # no network here has as many


def rename_for(model: nn.Module, keys: Iterable[str]) -> Renaming:
    """The keys of a state dict in the dialect that knows most of them, kept or dropped.

    Sources are as given, also where DistributedDataParallel or torch.compile prefixed them.
    """
    keys = list(keys)
    prefix = strip_wrappers(keys)
    bare = tuple(key[len(prefix) :] for key in keys)
    is_backbone = isinstance(model, lrformer.LRFormerBackbone)
    own = [rename_keys(d, bare) for d in own_dialects(model.state_dict(), is_backbone=is_backbone)]
    best = max(
        (*own, *_foreign(type(model), bare)),
        key=lambda r: (len(r.sources) > 0, len(r.sources) + len(r.dropped)),
    )
    return Renaming(
        best.dialect,
        {target: prefix + source for target, source in best.sources.items()},
        {prefix + source: reason for source, reason in best.dropped.items()},
        [prefix + source for source in best.unknown],
        best.parts,
    )


@functools.lru_cache(maxsize=32)  # the networks of one class are asked one after the other
def _foreign(kind: type[nn.Module], keys: tuple[str, ...]) -> tuple[Renaming, ...]:
    return tuple(rename_keys(d, keys) for d in DIALECTS.get(kind, ()) if d.is_spoken(keys))


def absent_training_heads(model: nn.Module, keys: Iterable[str]) -> tuple[str, ...]:
    """Heads that only training uses and of which `keys` has nothing at all."""
    targets = rename_for(model, keys).sources
    heads = getattr(model, "training_only", ())
    return tuple(h for h in heads if not any(target.startswith(f"{h}.") for target in targets))


def convert_state_dict(
    model: nn.Module,
    state: Mapping[str, Tensor],
    reset: Sequence[str] = (),
    *,
    inference: bool = False,
    ignored: Mapping[str, str] | None = None,
    source: str = "state dict",
) -> tuple[dict[str, Tensor], str]:
    """Rename and check `state` for `model`, which is not changed.

    Args:
        model: a network (or block) in its training form.
        state: key -> tensor, in any dialect that the model's family reads.
        reset: prefixes of submodules that keep the model's present values.
        inference: heads that only training uses may be absent as a whole.
        ignored: what stood beside `state` and is no tensor -> why, for the report.
        source: what error texts call `state`.

    Returns:
        the whole state dict of the model, and a line, `N tensors loaded, M dropped (why), ...`.

    Raises:
        ValueError: a key that is not known, a tensor of another shape, a tensor of the model
            that is neither filled nor reset, or a reset prefix that names nothing.
    """
    own, renaming = model.state_dict(), rename_for(model, state)
    reset = (reset,) if isinstance(reset, str) else tuple(reset)
    if inference:
        reset += absent_training_heads(model, state)
    kept = _prefixes(own, reset)
    problem = _find_problem(own, state, renaming, kept)
    if any(problem):
        raise InputError(f"{source} {_explain(model, state, renaming, problem, reset)}")
    tensors: dict[str, Tensor] = {}
    dropped = {**(ignored or {}), **renaming.dropped}
    for target, key in renaming.sources.items():
        if target.startswith(kept):
            dropped[key] = "reset"
        else:
            tensors[target] = renaming.tensor(target, state).reshape(own[target].shape)
    loaded = len({renaming.sources[target] for target in tensors})
    plural = "" if loaded == 1 else "s"
    parts = [f"{loaded} tensor{plural} loaded", _count(dropped, "dropped"), "none missing"]
    constant, fresh = {}, {}  # target -> why
    for target in (key for key in own if key not in tensors):
        is_kept = target.startswith(kept)
        fill = Fill(None, "reset") if is_kept else renaming.dialect.filled(target)
        tensors[target] = own[target]
        if fill.value is None:
            fresh[target] = fill.reason
        else:
            constant[target] = fill.reason
            tensors[target] = _filled(own[target], fill.value)
    parts += [_count(constant, "constant")] if constant else []
    parts += [_count(fresh, "left fresh")] if fresh else []
    return tensors, f"{', '.join(parts)}; its keys have {renaming.dialect.name} names"


def _filled(own: Tensor, value: float | str) -> Tensor:
    """A tensor like `own` of what a `Fill` says."""
    if value == PASSES_ON:
        return nn.init.dirac_(torch.empty_like(own))
    return torch.full_like(own, value)


def _count(reasons: Mapping[str, str], what: str) -> str:
    """How many keys, and why."""
    counts = Counter(reasons.values())
    each = list(counts) if len(counts) < 2 else [f"{n} {reason}" for reason, n in counts.items()]
    return f"{len(reasons) or 'none'} {what}" + (f" ({'; '.join(each)})" if each else "")


def _prefixes(own: Mapping[str, Tensor], reset: Sequence[str]) -> tuple[str, ...]:
    prefixes = tuple(f"{name.rstrip('.')}." for name in reset)
    for name, prefix in zip(reset, prefixes, strict=True):
        if not any(key.startswith(prefix) for key in own):
            heads = ", ".join(dict.fromkeys(key.partition(".")[0] for key in own))
            raise InputError(f"reset names {name!r}, which the model does not have; it has {heads}")
    return prefixes


class _Problem(NamedTuple):
    """Keys of the source; the model's keys that nothing fills; the model's keys whose tensor in
    the source is of another shape."""

    unknown: list[str]
    absent: list[str]
    misfits: list[str]


def _find_problem(own, state, renaming: Renaming, kept: tuple[str, ...] = ()) -> _Problem:
    sources, filled = renaming.sources, renaming.dialect.filled
    needed = [key for key in own if not key.startswith(kept)]
    return _Problem(
        [*renaming.unknown, *dict.fromkeys(k for t, k in sources.items() if t not in own)],
        [key for key in needed if key not in sources and filled(key) is None],
        [k for k in needed if k in sources and not _fits(own[k], renaming.tensor(k, state))],
    )


def _fits(own: Tensor, given: Tensor) -> bool:
    """Whether shape and kind are the same; a 1x1 convolution's weight is a linear layer's."""
    shapes = {t.shape[:2] if t.shape[2:] == (1, 1) else t.shape for t in (own, given)}
    return len(shapes) == 1 and own.is_floating_point() == given.is_floating_point()


def _explain(model, state, renaming: Renaming, problem: _Problem, reset: tuple[str, ...]) -> str:
    """What is wrong, without the name of the source."""
    own, name = model.state_dict(), getattr(model, "architecture", "") or type(model).__name__
    classes = _class_mismatch(model, state, renaming, problem)
    if classes and not problem.unknown and not problem.absent:
        theirs, ours = classes
        return (
            f"has {theirs} classes, {name} here has {ours}. To fine-tune, set MODEL.RESET "
            f'"{_heads(reset, problem.misfits)!r}"'
        )
    if not _only_heads_absent(model, problem):
        other = recognise(state, besides=type(model).__name__)
        if other and other != name:
            return f"holds {other}, the model is {name}"
    if not renaming.sources:
        accepted = ["this project's", *(d.name for d in DIALECTS.get(type(model), ()))]
        return (
            f"holds none of the tensors of {name} (first of {len(state)}: "
            f"{one_line(next(iter(state)))}); accepted are {', '.join(accepted)} names"
        )
    read = len(set(renaming.sources.values()))
    known = f"({read} of {len(state)} keys known as {renaming.dialect.name} names)"
    if problem.unknown:
        return f"{known} has {_list(problem.unknown)}, which {name} does not know"
    if problem.misfits:
        target = problem.misfits[0]
        key = renaming.sources[target]
        return (
            f"{known} does not fit {name}: {one_line(key)} is {_shape(state[key])}, {target} needs "
            f"{_shape(own[target])}{_more(problem.misfits)}"
        )
    return (
        f"{known} lacks {_list(problem.absent)} of {name}; only with MODEL.RESET "
        f'"{_heads(reset, problem.absent)!r}" would these start afresh'
    )


def _class_mismatch(model, state, renaming, problem: _Problem) -> tuple[int, int] | None:
    """(classes in the source, classes of the model) if that is all that misfits."""
    own, counts = model.state_dict(), set()
    for target in problem.misfits:
        ours, theirs = own[target].shape, state[renaming.sources[target]].shape
        if ours[:1] != (getattr(model, "num_outputs", None),):
            return None
        if len(theirs) != len(ours) or theirs[1:] != ours[1:]:
            return None
        beside = model.num_outputs - model.num_classes
        counts.add((theirs[0] - beside, ours[0] - beside))
    return counts.pop() if len(counts) == 1 else None


def _only_heads_absent(model, problem: _Problem) -> bool:
    heads = tuple(f"{name}." for name in getattr(model, "training_only", ()))
    misread = problem.unknown or problem.misfits or not heads
    return not misread and all(key.startswith(heads) for key in problem.absent)


def recognise(state: Mapping[str, Tensor], besides: str = "") -> str:
    """Which network these tensors are, in words, as far as it can be told; "" otherwise.

    Tries every registered architecture and backbone, then those in other sizes except the class
    `besides`.
    """
    families: dict[str, str] = {}
    if len(state) > _MAX_KEYS:
        return ""
    if needing := needs_extra(state):
        return needing
    plain = list_models()
    extra = [name for name in list_models(extras=True) if name not in plain]
    for name in (*plain, *extra, *list_backbones()):
        probe = _probe(name)
        kind, renaming = type(probe).__name__, rename_for(probe, state)
        own = probe.state_dict()
        problem = _find_problem(own, state, renaming)
        if _class_mismatch(probe, state, renaming, problem):
            problem.misfits.clear()  # another class count is the same architecture
        if not any(problem) or _only_heads_absent(probe, problem):
            return name
        known = renaming.sources and not renaming.unknown and name in plain
        if known and kind != besides:
            families[kind] = renaming.dialect.name
        if renaming.unknown and _is_fused(name, state):
            return f"fused {kind} weights (load those from before fusing)"
    if len(families) == 1:
        (family, dialect), *_ = families.items()
        return f"{family} weights of other sizes ({dialect} names)"
    return ""


def needs_extra(keys: Iterable[str]) -> str:
    """What published tensors are that nothing can be made of without an extra that is not
    installed, and the command; "" for others."""
    keys = list(keys)
    wrapper = len(strip_wrappers(keys))
    bare = tuple(key[wrapper:] for key in keys)
    for kind, extra in missing_extras().items():
        for renaming in _foreign(kind, bare):
            headed = any(target.startswith("head.") for target in renaming.sources)
            if headed and not renaming.unknown:
                return (
                    f"{renaming.dialect.name} weights, which need {extra.module}: pip install -e "
                    f".[{extra.name}]"
                )
    return ""


def class_count(name: str, keys: Mapping[str, Tensor], options: Mapping) -> int | None:
    """Classes of the main head that a state dict holds for an architecture; None without one."""
    with torch.device("meta"):
        model, other = (build_model(name, classes, **options) for classes in (2, 3))
    own, sources = other.state_dict(), rename_for(model, keys).sources
    for target, tensor in model.state_dict().items():
        if target in sources and target.startswith("head.") and own[target].shape != tensor.shape:
            key, shape = sources[target], keys[sources[target]].shape
            if not shape or shape[0] > _MAX_CLASSES:
                raise InputError(
                    f"{one_line(key)} is {_shape(keys[key])}, which is no head of {name}"
                )
            return shape[0] - (model.num_outputs - model.num_classes)
    return None


@functools.cache
def _probe(name: str) -> nn.Module:
    """The names and shapes of an architecture, without values."""
    with torch.device("meta"):
        return build_model(name, 2) if is_known(name) else build_backbone(name)


@functools.cache
def _fused_keys(name: str) -> frozenset[str]:
    return frozenset(fuse(_probe(name)).state_dict())


def _is_fused(name: str, keys: Iterable[str]) -> bool:
    """Whether an architecture has these keys once fused. Fusing is slow: it must have these
    modules for a start."""
    modules = {module for module, _ in _probe(name).named_children()}
    if any(key.partition(".")[0] not in modules for key in keys):
        return False
    return _fused_keys(name).issuperset(keys)


def _heads(reset: tuple[str, ...], keys: Iterable[str]) -> tuple[str, ...]:
    """`reset` and the submodules that hold `keys`, each once."""
    return tuple(dict.fromkeys((*reset, *(key.partition(".")[0] for key in keys))))


def _list(keys: Sequence[str]) -> str:
    return ", ".join(map(one_line, keys[:3])) + _more(keys, 3)


def _more(keys: Sequence[str], shown: int = 1) -> str:
    return f" and {len(keys) - shown} more" if len(keys) > shown else ""


def _shape(tensor: Tensor) -> str:
    size = one_line("x".join(map(str, tensor.shape))) or "a scalar"
    return size if tensor.is_floating_point() else f"{size} of integers"
