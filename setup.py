"""Package metadata. The project also runs from its root without being installed."""

from pathlib import Path

from setuptools import setup

setup(
    name="rtseg",
    version="0.1.0",
    description="Training, evaluation and timing of real-time semantic segmentation networks",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.10,<3.13",
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
    extras_require={"dev": ["pytest>=8", "ruff>=0.15"]},
)
