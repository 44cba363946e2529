"""Weight initialisation."""

from torch import nn


def kaiming_init(model: nn.Module, mode: str) -> None:
    """Convolutions: Kaiming normal for ReLU over `mode` ("fan_in" or "fan_out"), biases 0.

    BatchNorms: weight 1, bias 0. Shapes without values (the meta device) are left alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not module.weight.is_meta:
            nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def classifier_init(model: nn.Module) -> None:
    """The last convolution of every head (`classify`): normal with std 0.01, bias 0."""
    for name, module in model.named_modules():
        if name.endswith("classify") and not module.weight.is_meta:
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
