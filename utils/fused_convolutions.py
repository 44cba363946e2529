"""A network as one list of operations in which convolutions take what follows them along.

On a GPU a bias, a residual and a ReLU after a convolution are passes of their own over its output,
together as long as the convolution. cuDNN does all three while it writes. What belongs together is
found in the traced operations, so that models are written as their papers draw them and a ReLU is
found across the borders of modules, too.
"""

import torch
from torch import Tensor, fx, nn
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

aten = torch.ops.aten
refused: set[tuple] = set()  # kinds of convolution for which cuDNN has no such kernel


def convolution_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    residual: Tensor | None = None,
) -> Tensor:
    """relu(conv2d(x) + residual), by one kernel where cuDNN has one."""
    plain = (bias, stride, padding, dilation, groups)
    kind = (x.shape, x.dtype, weight.shape, residual is None, *map(str, plain[1:]))
    if x.is_cuda and kind not in refused:
        try:
            if residual is None:
                return aten.cudnn_convolution_relu(x, weight, *plain)
            return aten.cudnn_convolution_add_relu(x, weight, residual, 1, *plain)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            refused.add(kind)
    y = torch.conv2d(x, weight, *plain)
    return torch.relu_(y if residual is None else y.add_(residual))


def fuse_convolutions(network: nn.Module, image: Tensor) -> tuple[fx.GraphModule, int]:
    """`network` for images like this one only, without gradients, and how many ReLUs went.

    What depends on no image is computed once. `network` is run once and must always do the same
    operations.
    """
    with torch.inference_mode(False), torch.no_grad():
        traced = make_fx(functionalize(network, remove="mutations"))(image)
        _fold_constants(traced)
        merged = sum(_merge(traced.graph, node) for node in traced.graph.nodes)
    traced.graph.eliminate_dead_code()
    traced.recompile()
    return traced, merged


def _fold_constants(traced: fx.GraphModule) -> None:
    """Compute what depends on weights and sizes alone."""
    known: dict[fx.Node, Tensor] = {}
    for node in list(traced.graph.nodes):
        if node.op == "get_attr":
            known[node] = getattr(traced, node.target)
            node.meta["val"] = known[node]
        elif node.op == "call_function" and all(n in known for n in node.all_input_nodes):
            arguments, options = fx.map_arg((node.args, node.kwargs), known.__getitem__)
            value = node.target(*arguments, **options)
            if isinstance(value, Tensor) and torch.Tag.nondeterministic_seeded not in getattr(
                node.target, "tags", ()
            ):
                known[node] = value
    for index, (node, value) in enumerate(known.items()):
        if node.op == "get_attr" or all(user in known for user in node.users):
            continue
        name = f"folded{index}"
        traced.register_buffer(name, value)
        with traced.graph.inserting_before(node):
            constant = traced.graph.get_attr(name)
            constant.meta["val"] = value
            node.replace_all_uses_with(constant)
    traced.graph.eliminate_dead_code()


def _merge(graph: fx.Graph, relu: fx.Node) -> bool:
    """Let the convolution that `relu` ends do it, with an addition between the two."""
    if relu.target not in (aten.relu.default, aten.relu_.default):
        return False
    source, residual = relu.args[0], None
    if source.target == aten.add.Tensor and len(source.users) == 1 and not source.kwargs:
        pair = [n for n in source.args if isinstance(n, fx.Node)]
        found = [n for n in pair if _is_convolution(n) and _shape(n) == _shape(source)]
        if len(pair) < 2 or not found or len({_shape(n) for n in pair}) > 1:
            return False
        source = found[-1]
        residual = pair[0] if pair[1] is source else pair[1]
    if not _is_convolution(source):
        return False
    x, weight, bias, stride, padding, dilation, _, _, groups = source.args
    arguments = (x, weight, bias, stride, padding, dilation, groups, residual)
    with graph.inserting_before(relu):
        merged = graph.call_function(convolution_relu, arguments)
    merged.meta = dict(relu.meta)
    relu.replace_all_uses_with(merged)
    return True


def _is_convolution(node: fx.Node) -> bool:
    """Whether `node` is a convolution of one group whose output nothing else reads."""
    if node.target != aten.convolution.default or len(node.users) != 1:
        return False
    transposed, groups = node.args[6], node.args[8]
    return not transposed and groups == 1 and len(_shape(node)[0]) == 4


def _shape(node: fx.Node) -> tuple:
    value = node.meta.get("tensor_meta") or node.meta.get("val")
    return tuple(value.shape), value.dtype
