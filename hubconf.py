"""Entry points of torch.hub:

    predictor = torch.hub.load("FOLDER OF THIS REPOSITORY", "load", "best.pt", source="local")
    network = torch.hub.load("FOLDER", "build_model", "pidnet_s", 19, source="local")

The folders become `rtseg.models` and so on, as if the package were installed: `models` and `utils`
are names that the importing program may use itself.
"""

import importlib.util
import sys
from pathlib import Path

dependencies = ["torch", "numpy", "cv2", "PIL", "yaml", "safetensors"]


def import_package():
    """The package, out of the folders of this repository."""
    if "rtseg" not in sys.modules:
        root = Path(__file__).resolve().parent
        spec = importlib.util.spec_from_file_location(
            "rtseg",
            root / "package" / "__init__.py",
            submodule_search_locations=[str(root / "package"), str(root)],
        )
        sys.modules["rtseg"] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(sys.modules["rtseg"])
        except BaseException:  # a later call starts anew, as with any import
            del sys.modules["rtseg"]
            raise
    return sys.modules["rtseg"]


def load(path, architecture=None, classes=None, **arguments):
    """A trained network as a function from pictures to class maps; see package/__init__.py."""
    return import_package().load(path, architecture, classes, **arguments)


def build_model(name, num_classes, **options):
    """A network with random weights by its name in the README's table."""
    return import_package().models.build_model(name, num_classes, **options)
