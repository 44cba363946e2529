"""Package metadata. The project also runs from its root without being installed."""

from pathlib import Path

from setuptools import setup

VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")

setup(
    name="rtseg",
    version="0.1.0",
    description="Training, evaluation and timing of real-time semantic segmentation networks",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
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
    packages=[],  # the folders of the root are imported from there, not installed
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
        "openvino": ["openvino>=2025.0"],
        "query": ["transformers>=5.23,<5.25", "scipy>=1.15"],  # tested: 5.23 and 5.24
        "onnx": ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"],
        "dev": ["pytest>=8", "pytest-xdist>=3.6", "ruff>=0.15", "pre-commit>=4"],
    },
)
