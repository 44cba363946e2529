"""Package metadata. The project also runs from its root without being installed.

Installed, its folders are `rtseg.models` and so on. What they are called there is decided here, as
a folder `rtseg` in the root would hide the installed package from programs that start there.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
WORLDS = ("datasets", "models", "utils")  # folders of the root, installed below rtseg
PACKAGES = {"rtseg": "package"}
for world in WORLDS:
    PACKAGES[f"rtseg.{world}"] = world
    for name in find_packages(str(ROOT / world), exclude=["speed"]):  # the entry points of models
        PACKAGES[f"rtseg.{world}.{name}"] = f"{world}/{name.replace('.', '/')}"
SOURCE = (ROOT / "package" / "__init__.py").read_text(encoding="utf-8")

ONNX = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

setup(
    name="rtseg",
    version=re.search(r'^__version__ = "(.+)"', SOURCE, re.MULTILINE)[1],
    description="Training, evaluation and timing of real-time semantic segmentation networks",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="RTSeg contributors",
    license="MIT",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Programming Language :: Python :: 3 :: Only",
        *(f"Programming Language :: Python :: {version}" for version in VERSIONS),
    ],
    python_requires=">=3.10",  # no upper bound: one here would only hide newer releases from pip
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    install_requires=[
        "torch>=2.11",
        "numpy>=2.0",
        "opencv-python-headless>=4.11",
        "pillow>=11.3,<13",
        "yacs>=0.1.8",
        "pyyaml>=6.0",
        "tensorboardX>=2.6",
        "safetensors>=0.5",
        "tqdm>=4.66",
        "matplotlib>=3.8",
    ],
    extras_require={
        "openvino": ["openvino>=2025.0", "nncf>=3.0"],
        # Tested: 5.20, the last one for Python 3.10, 5.23 and 5.24.
        "query": ["transformers>=5.20,<5.25", "scipy>=1.15"],
        "demo": ["gradio>=6.20,<6.32"],  # tested: 6.20.0 and 6.31.0
        "export": ONNX,
        "onnx": ONNX,  # its earlier name
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.15", "pre-commit>=4"],
    },
)
