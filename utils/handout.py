"""What lies beside exported files: what they are, a program that runs them, a page on both."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .export import FORMAT, Description
from .gate import FAILED
from .records import atomic_write, write_json

RUNNER = Path(__file__).resolve().parent / "runners" / "run.py"
PAGE = """# {name}

{architecture}, {count} classes, {precision}; written by RTSeg's tools/export.py. The .json beside
this page says what the classes are called and how they are coloured; so do the files themselves.

{contract}

{files}{runs}"""
CLASSES = """One input: `frame`, 1 x {height} x {width} x 3, uint8, RGB, as a camera gives it.
One output: `classes`, 1 x {height} x {width}, uint8, places in the list of classes.
Normalisation, the resize of the logits and their maximum are within the graph.{dynamic}"""
LOGITS = """One input: `image`, 1 x 3 x {height} x {width}, float32, RGB: (value / 255 - mean) / std
with mean {mean} and std {std}.
One output: `logits`, 1 x {count} x h x w, float32, at 1/{stride} of the input.{dynamic}"""
DYNAMIC = """
H and W are multiples of {multiple}, from {least[0]} and {least[1]} to {most[0]} and {most[1]}."""
FILE = """- `{file}`; how it was checked: `{file}.gate.txt`
"""
RUN = """
## Run

Needs Python 3.8 or later, numpy, OpenCV or Pillow, and the runtime; no PyTorch.{parts}

```bash
python run.py {file} photograph.jpg --out pictures
```
"""
PARTS = " A `.xml` belongs with the `.bin` of its name: copy both."
IN_PYTORCH = """
## Run in PyTorch

`{file}` needs PyTorch alone:

```python
import torch

run = {load}
{name_of_input} = {example}
{name_of_output} = run({name_of_input})
```
"""
LOADERS = {
    ".aoti.pt2": 'torch._inductor.aoti_load_package("{file}")',
    ".pt2": 'torch.export.load("{file}").module()',
}
TENSORRT = """
## TensorRT, on a Jetson or another GPU

TensorRT has not run `{file}` yet. On the device:

```bash
trtexec --onnx={file} --saveEngine={name}.engine{shapes}{flags}
```

{advice}{engine}
"""
ENGINE = """
`run.py` takes the engine as it takes other files, where the .json lies beside it."""
ADVICE = {
    "fp32": """TensorRT takes TF32 where the GPU has it; `--noTF32` forbids that.""",
    "fp16": """With TensorRT 10 write `--stronglyTyped` instead of `--fp16`; later ones take
neither, as the types of the graph alone say what is computed in half precision.""",
    "int8": """The scales are in the graph: no calibration is needed. From TensorRT 11 on leave
`--int8 --fp16` out, as the types of the graph alone say what is computed in which.""",
}
FLAGS = {"fp32": "", "fp16": " --fp16", "int8": " --int8 --fp16"}


def write_handout(folder: Path, description: Description) -> None:
    """Write NAME.json, run.py for class maps, and README.md on all exported files in `folder`."""
    write_json(folder / f"{description.name}.json", description.to_dict())
    if description.output == "classes":
        atomic_write(folder / "run.py", RUNNER.read_bytes())
    pages = [page(*export) for export in exports_in(folder)]
    atomic_write(folder / "README.md", "\n".join(pages))


def exports_in(folder: Path) -> list[tuple[Description, list[str]]]:
    """The exported files in `folder` that did not fail, by what they are, told by their reports."""
    found: dict[str, tuple[Description, list[str]]] = {}
    for path in sorted(folder.glob("*.gate.json")):
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            facts = {key: value for key, value in told["description"].items() if key != "format"}
            known = told["description"]["format"] == FORMAT and told["status"] != FAILED
            description = Description(**facts)
        except (ValueError, KeyError, TypeError):  # not of this program, or of an earlier one
            continue
        if known and (folder / told["file"]).is_file():
            found.setdefault(description.name, (description, []))[1].append(told["file"])
    return list(found.values())


def page(description: Description, files: Sequence[str]) -> str:
    """The text of README.md."""
    height, width = ("H", "W") if description.dynamic else description.size
    facts: dict[str, Any] = {
        "name": description.name,
        "architecture": description.architecture,
        "count": len(description.class_names),
        "precision": description.precision,
        "stride": description.stride,
        "mean": ", ".join(map(str, description.mean)),
        "std": ", ".join(map(str, description.std)),
        "height": height,
        "width": width,
    }
    dynamic = DYNAMIC.format(**facts, **description.dynamic) if description.dynamic else ""
    of_frames = description.output == "classes"
    ours = [file for file in files if file.endswith((".onnx", ".xml"))]
    parts = PARTS if any(file.endswith(".xml") for file in ours) else ""
    runs = RUN.format(file=ours[0], parts=parts) if ours and of_frames else ""
    runs += "".join(_in_pytorch(file, description) for file in files if file.endswith(".pt2"))
    # In 8 bits only the file that is made for TensorRT has its zeros where TensorRT wants them.
    ending = ".tensorrt.onnx" if description.precision == "int8" else ".onnx"
    if theirs := sorted((f for f in files if f.endswith(ending)), key=len):
        runs += TENSORRT.format(
            **facts,
            file=theirs[-1],
            shapes=_shapes(description),
            flags=FLAGS[description.precision],
            advice=ADVICE[description.precision],
            engine=ENGINE if of_frames else "",
        )
    return PAGE.format(
        **facts,
        contract=(CLASSES if of_frames else LOGITS).format(**facts, dynamic=dynamic),
        files="".join(FILE.format(file=file) for file in files),
        runs=runs,
    )


def _in_pytorch(file: str, description: Description) -> str:
    """How PyTorch runs a file of its own."""
    loader = next(text for ending, text in LOADERS.items() if file.endswith(ending))
    height, width = description.size
    if description.output == "classes":
        names = "frame", f"torch.zeros(1, {height}, {width}, 3, dtype=torch.uint8)", "classes"
    else:
        names = "image", f"torch.zeros(1, 3, {height}, {width})", "logits"
    return IN_PYTORCH.format(
        file=file,
        load=loader.format(file=file),
        name_of_input=names[0],
        example=names[1],
        name_of_output=names[2],
    )


def _shapes(description: Description) -> str:
    """What trtexec has to know of a dynamic input."""
    if not description.dynamic:
        return ""
    least, most = description.dynamic["least"], description.dynamic["most"]
    largest = [min(end, max(2048, side)) for end, side in zip(most, description.size, strict=True)]
    sizes = {"min": least, "opt": description.size, "max": largest}
    if description.output == "classes":
        name, order = "frame", "1x{}x{}x3"
    else:
        name, order = "image", "1x3x{}x{}"
    parts = (f" --{key}Shapes={name}:{order.format(*size)}" for key, size in sizes.items())
    return "".join(parts)
