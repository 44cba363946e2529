"""A foreign state dict in, a complete one of ours out, or one sentence that says why not."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .. import bisenetv1, bisenetv2, ddrnet, lrformer, pidnet, rdrnet, rtformer
from ..layers.reparam import fuse
from ..registry import build_backbone, build_model, list_backbones, list_models
from .bisenet import BISENETV1, BISENETV2
from .ddrnet import DDRNET
from .lrformer import LRFORMER, LRFORMER_BACKBONE, LRHEAD
from .pidnet import PIDNET
from .rdrnet import RDRNET
from .rtformer import CROSS_ATTENTION, GROUPED_ATTENTION, RTFORMER, RTFORMER_BLOCK
from .rules import (
    Dialect,
    Renaming,
    one_line,
    own_names,
    rename_keys,
    strip_wrappers,
)

# Class of a network or block -> the foreign dialects that it reads.
DIALECTS: dict[type[nn.Module], tuple[Dialect, ...]] = {
    pidnet.PIDNet: PIDNET,
    ddrnet.DDRNet: DDRNET,
    rdrnet.RDRNet: RDRNET,
    bisenetv1.BiSeNetV1: BISENETV1,
    bisenetv2.BiSeNetV2: BISENETV2,
    lrformer.LRFormer: LRFORMER,
    lrformer.LRFormerBackbone: LRFORMER_BACKBONE,
    lrformer.LRHead: LRHEAD,
    rtformer.RTFormer: RTFORMER,
    rtformer.RTFormerBlock: RTFORMER_BLOCK,
    rtformer.GroupedAttention: GROUPED_ATTENTION,
    rtformer.CrossAttention: CROSS_ATTENTION,
}


_MAX_CLASSES = 100_000
_MAX_KEYS = 5_000  # no network here has as many


@dataclass
class Conversion:
    """tensors: the whole state dict of the model. dropped: source key -> reason. filled, fresh:
    the model's keys that the source does not store, set to a constant or left as they were, and
    why. reset: keys that the caller kept."""

    dialect: str
    tensors: dict[str, Tensor]
    loaded: int
    dropped: dict[str, str]
    filled: dict[str, str] = field(default_factory=dict)
    fresh: dict[str, str] = field(default_factory=dict)
    reset: list[str] = field(default_factory=list)


def rename_for(
    model: nn.Module, keys: Iterable[str], done: dict[type, list[Renaming]] | None = None
) -> Renaming:
    """The keys of a state dict in the dialect that knows most of them, kept or dropped.

    Sources are as given, also where DistributedDataParallel or torch.compile prefixed them.
    `done` keeps what the foreign dialects make of the same keys, for further models of a class.
    """
    keys = list(keys)
    prefix = strip_wrappers(keys)
    bare = [k[len(prefix) :] for k in keys]
    is_backbone = isinstance(model, lrformer.LRFormerBackbone)
    own = [rename_keys(d, bare) for d in own_names(model.state_dict(), is_backbone=is_backbone)]
    done = {} if done is None else done
    if type(model) not in done:
        dialects = DIALECTS.get(type(model), ())
        done[type(model)] = [rename_keys(d, bare) for d in dialects if d.is_spoken(bare)]
    best = max(
        (*own, *done[type(model)]),
        key=lambda r: (len(r.sources) > 0, len(r.sources) + len(r.dropped)),
    )
    return Renaming(
        best.dialect,
        {target: prefix + source for target, source in best.sources.items()},
        {prefix + source: reason for source, reason in best.dropped.items()},
        [prefix + source for source in best.unknown],
    )


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
    source: str = "state dict",
) -> Conversion:
    """Rename and check `state` for `model`, which is not changed.

    Args:
        model: a network (or block) in its training form.
        state: key -> tensor, in any dialect that the model's family reads.
        reset: prefixes of submodules that keep the model's present values.
        source: what error texts call `state`.

    Raises:
        ValueError: a key that is not known, a tensor of another shape, a tensor of the model
            that is neither filled nor reset, or a reset prefix that names nothing.
    """
    own = model.state_dict()
    reset = (reset,) if isinstance(reset, str) else tuple(reset)
    is_reset = _reset_test(own, reset)
    renaming = rename_for(model, state)
    problem = _find_problem(own, state, renaming, is_reset)
    if problem:
        raise ValueError(f"{source} {_explain(model, own, state, renaming, problem, reset)}")
    dropped, tensors = dict(renaming.dropped), {}
    for target, key in renaming.sources.items():
        if is_reset(target):
            dropped[key] = "reset"
        else:
            tensors[target] = state[key].reshape(own[target].shape)
    result = Conversion(renaming.dialect.name, tensors, len(tensors), dropped)
    for target, value in own.items():
        if target in tensors:
            continue
        tensors[target] = value
        if is_reset(target):
            result.reset.append(target)
            continue
        fill = renaming.dialect.filled(target)
        if fill.value is None:
            result.fresh[target] = fill.reason
        else:
            result.filled[target] = fill.reason
            tensors[target] = torch.full_like(value, fill.value)
    return result


def _reset_test(own: Mapping[str, Tensor], reset: Sequence[str]):
    prefixes = tuple(f"{name.rstrip('.')}." for name in reset)
    for name, prefix in zip(reset, prefixes, strict=True):
        if not any(key.startswith(prefix) for key in own):
            modules = ", ".join(dict.fromkeys(key.partition(".")[0] for key in own))
            raise ValueError(
                f"reset names {name!r}, which the model does not have; it has {modules}"
            )
    return lambda key: key.startswith(prefixes) if prefixes else False


@dataclass
class _Problem:
    unknown: list[str]
    absent: list[str]
    misfits: list[str]

    def __bool__(self) -> bool:
        return bool(self.unknown or self.absent or self.misfits)


def _find_problem(own, state, renaming: Renaming, is_reset) -> _Problem:
    unknown = [
        *renaming.unknown,
        *(key for target, key in renaming.sources.items() if target not in own),
    ]
    missing = [key for key in own if key not in renaming.sources and not is_reset(key)]
    absent = [key for key in missing if renaming.dialect.filled(key) is None]
    misfits = [
        target
        for target, key in renaming.sources.items()
        if target in own and not is_reset(target) and not _fits(own[target], state[key])
    ]
    return _Problem(unknown, absent, misfits)


def _fits(own: Tensor, given: Tensor) -> bool:
    same_kind = own.is_floating_point() == given.is_floating_point()
    return same_kind and _matrix(own.shape) == _matrix(given.shape)


def _matrix(shape: Sequence[int]) -> tuple[int, ...]:
    """The weight of a 1x1 convolution is that of a linear layer."""
    return tuple(shape[:2]) if len(shape) == 4 and shape[2:] == (1, 1) else tuple(shape)


def _explain(model, own, state, renaming: Renaming, problem: _Problem, reset) -> str:
    """What is wrong, without the name of the source."""
    name = getattr(model, "architecture", "") or type(model).__name__
    classes = _class_mismatch(own, state, renaming, problem)
    if classes and not problem.unknown and not problem.absent:
        theirs, ours, heads = classes
        heads = tuple(dict.fromkeys((*reset, *heads)))
        return (
            f"has {theirs} classes, {name} here has {ours}. To fine-tune, set MODEL.RESET "
            f'"{heads!r}"'
        )
    if not _only_heads_absent(model, problem):
        other = recognise(state, besides=type(model).__name__)
        if other and other != name:
            return f"holds {other}, the model is {name}"
    if not renaming.sources:
        return (
            f"holds none of the tensors of {name} (first of {len(state)}: "
            f"{one_line(next(iter(state)))}); accepted are {_accepted(model)} names"
        )
    known = f"({len(renaming.sources)} of {len(state)} keys known as {renaming.dialect.name} names)"
    if problem.unknown:
        return f"{known} has {_list(problem.unknown)}, which {name} does not know"
    if problem.misfits:
        target = problem.misfits[0]
        key = renaming.sources[target]
        return (
            f"{known} does not fit {name}: {one_line(key)} is {_shape(state[key])}, {target} needs "
            f"{_shape(own[target])}{_more(problem.misfits)}"
        )
    parts = tuple(dict.fromkeys((*reset, *(key.partition(".")[0] for key in problem.absent))))
    return (
        f"{known} lacks {_list(problem.absent)} of {name}; only with MODEL.RESET "
        f'"{parts!r}" would these start afresh'
    )


def _class_mismatch(own, state, renaming, problem) -> tuple[int, int, list[str]] | None:
    """(classes in the source, classes of the model, heads) if that is all that misfits."""
    counts, heads = set(), {}
    for target in problem.misfits:
        ours, theirs = own[target].shape, state[renaming.sources[target]].shape
        if ours[1:] != theirs[1:] or len(ours) != len(theirs) or not ours:
            return None
        if ".classify." not in target:
            return None
        counts.add((theirs[0], ours[0]))
        heads[target.partition(".")[0]] = None
    if len(counts) != 1:
        return None
    (theirs, ours), *_ = counts
    return theirs, ours, list(heads)


def _only_heads_absent(model, problem: _Problem) -> bool:
    heads = tuple(f"{name}." for name in getattr(model, "training_only", ()))
    return (
        bool(heads)
        and not problem.unknown
        and not problem.misfits
        and all(key.startswith(heads) for key in problem.absent)
    )


def recognise(state: Mapping[str, Tensor], besides: str = "") -> str:
    """Which network these tensors are, in words, as far as it can be told; "" otherwise.

    Tries every registered architecture and backbone, then those in other sizes except the class
    `besides`.
    """
    families: dict[str, str] = {}
    if len(state) > _MAX_KEYS:
        return ""
    done: dict[type, list[Renaming]] = {}
    for name in (*list_models(), *list_backbones()):
        probe = _probe(name)
        kind, renaming = type(probe).__name__, rename_for(probe, state, done)
        own = probe.state_dict()
        problem = _find_problem(own, state, renaming, lambda key: False)
        if _class_mismatch(own, state, renaming, problem):
            problem.misfits.clear()  # another class count is the same architecture
        if not problem or _only_heads_absent(probe, problem):
            return name
        known = renaming.sources and not renaming.unknown and name in list_models()
        if known and kind != besides:
            families[kind] = renaming.dialect.name
        if renaming.unknown and _fused_keys(name).issuperset(state):
            return f"fused {kind} weights (load those from before fusing)"
    if len(families) == 1:
        (family, dialect), *_ = families.items()
        return f"{family} weights of other sizes ({dialect} names)"
    return ""


def class_count(name: str, keys: Mapping[str, Tensor], options: Mapping) -> int | None:
    """Classes of the main head that a state dict holds for an architecture; None without one."""
    with torch.device("meta"):
        sources = rename_for(build_model(name, 2, **options), keys).sources
    key = sources.get("head.classify.weight")
    if key is None:
        return None
    shape = tuple(keys[key].shape)
    if not shape or shape[0] > _MAX_CLASSES:
        raise ValueError(f"{one_line(key)} is {_shape(keys[key])}, which is no head of {name}")
    return shape[0]


@functools.cache
def _probe(name: str) -> nn.Module:
    """The names and shapes of an architecture, without values."""
    with torch.device("meta"):
        return build_model(name, 2) if name in list_models() else build_backbone(name)


@functools.cache
def _fused_keys(name: str) -> frozenset[str]:
    return frozenset(fuse(_probe(name)).state_dict())


def _accepted(model: nn.Module) -> str:
    return ", ".join(["this project's", *(d.name for d in DIALECTS.get(type(model), ()))])


def _list(keys: Sequence[str]) -> str:
    return ", ".join(map(one_line, keys[:3])) + _more(keys, 3)


def _more(keys: Sequence[str], shown: int = 1) -> str:
    return f" and {len(keys) - shown} more" if len(keys) > shown else ""


def _shape(tensor: Tensor) -> str:
    size = one_line("x".join(map(str, tensor.shape))) or "a scalar"
    return size if tensor.is_floating_point() else f"{size} of integers"
