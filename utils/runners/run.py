"""Run an exported network on pictures. No PyTorch is needed, but numpy, OpenCV or Pillow, and

    .onnx     onnxruntime
    .xml      openvino; the .bin of the same name must lie beside it
    .engine   tensorrt 8.5 or later, made from .onnx by trtexec as README.md says; NAME.json of the
              network must lie beside it

    python run.py NAME.onnx photograph.jpg [more pictures] [--out FOLDER]

For every picture it writes NAME_classes.png (class ids, 8 bits, at the picture's size) and
NAME_overlay.png (the picture under the colours of its classes), and prints the classes' shares.
Pictures that cannot be read are named and the others go on; the exit status is then 1.
"""

import argparse
import ctypes
import io
import json
import os
import sys

import numpy as np

try:
    import cv2
except ImportError:
    cv2 = None
    try:
        from PIL import Image, ImageOps
    except ImportError:
        sys.exit("error: pictures need a package: pip install opencv-python-headless, or pillow")

FORMAT = "rtseg-export-1"
KEYS = {"format", "output", "class_names", "palette", "size", "dynamic", "scaling", "precision"}
RUNTIME_LIBRARIES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0")


def main():
    """Read the command line, run every picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="exported file: .onnx, .xml or .engine")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--out", metavar="FOLDER", default=".", help="default: here")
    args = parser.parse_args()
    named = check_names(args.model, args.pictures)
    try:
        os.makedirs(args.out, exist_ok=True)
    except OSError as error:
        sys.exit(f"error: --out {args.out}: {error.strerror}")
    network = Network(args.model)
    failed = False
    for stem, path in named.items():
        try:
            picture = read(path)
            classes = network(picture)
        except Exception as error:  # noqa: BLE001  (each runtime has its own, without a common base)
            print(f"error: {path}: {sentence(error)}", file=sys.stderr)
            failed = True
            continue
        try:
            write(os.path.join(args.out, stem + "_classes.png"), classes)
            write(os.path.join(args.out, stem + "_overlay.png"), network.overlay(picture, classes))
        except OSError as error:
            sys.exit(f"error: {args.out} cannot be written to: {error.strerror or error}")
        counts = np.bincount(classes.ravel(), minlength=len(network.names))
        order = [index for index in np.argsort(-counts) if counts[index]]
        shares = [f"{network.names[i]} {100 * counts[i] / classes.size:.1f} %" for i in order]
        print(f"{path}: {', '.join(shares)}")
    return int(failed)


def sentence(error):
    """What an error says; of several lines the last, as runtimes begin with where they are."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1].strip()


def check_names(model, pictures):
    """Pictures by what their files are called. Ends where a name is wrong."""
    if not os.path.isfile(model):
        sys.exit(f"error: {model} {'is a folder' if os.path.isdir(model) else 'does not exist'}")
    named = {}
    for path in pictures:
        if os.path.isdir(path):
            sys.exit(f"error: {path} is a folder; name its pictures, such as {path}/*.jpg")
        stem = os.path.splitext(os.path.basename(path))[0]
        if stem in named:
            sys.exit(f"error: {named[stem]} and {path} would both become {stem}_classes.png")
        named[stem] = path
    return named


class Network:
    """An exported file as a function from a picture to its class map.

    names: of the classes, in the order of their ids. facts: all that the file says of itself.
    """

    def __init__(self, path):
        ending = os.path.splitext(path)[1]
        if ending not in RUNTIMES:
            sys.exit(f"error: {path} is none of {', '.join(RUNTIMES)}")
        parts = os.path.splitext(path)[0] + ".bin"
        if ending == ".xml" and not os.path.isfile(parts):
            sys.exit(f"error: {parts} does not exist; it belongs to {path}")
        try:
            self.run, facts = RUNTIMES[ending](path)
        except ImportError as error:
            sys.exit(f"error: {path} needs {error.name}, which is not installed")
        except Exception as error:  # noqa: BLE001  (each runtime has its own, without a common base)
            sys.exit(f"error: {path} cannot be opened: {sentence(error)}")
        try:
            self.facts = json.loads(facts)
        except ValueError:
            sys.exit(f"error: {path} does not say what it is; tools/export.py has not written it")
        if not isinstance(self.facts, dict) or not KEYS <= self.facts.keys():
            sys.exit(f"error: {path} does not say what it is; tools/export.py has not written it")
        if self.facts["format"] != FORMAT or self.facts["output"] != "classes":
            sys.exit(f"error: {path} gives no class map of pictures; export without --output")
        self.names = self.facts["class_names"]
        self.palette = np.array(self.facts["palette"], np.uint8)
        if self.facts["dynamic"]:
            self.least, self.most = (self.facts["dynamic"][key] for key in ("least", "most"))
            # An engine is built for fewer sizes than its source takes.
            limits = getattr(self.run, "limits", None)
            self.least, self.most = limits or (self.least, self.most)

    def __call__(self, picture):
        """Class ids (H, W) uint8 of an RGB picture (H, W, 3) uint8, of any size."""
        size = self.size(picture.shape[:2])
        frame = np.ascontiguousarray(resized(picture, size, smooth=True))
        return resized(self.run(frame[None])[0], picture.shape[:2], smooth=False)

    def size(self, wanted):
        """The (height, width) at which a picture of that size is computed."""
        dynamic = self.facts["dynamic"]
        if not dynamic:
            return tuple(self.facts["size"])
        step, scaling = dynamic["multiple"], self.facts["scaling"]
        # As in training: until the short or the long side is that long, whichever comes first.
        factors = [
            scaling[key] / pick(wanted)
            for key, pick in (("short_side", min), ("long_side", max))
            if key in scaling
        ]
        scale = min(factors) if factors else 1
        sides = [max(1, round(scale * side / step)) * step for side in wanted]
        least, most = self.least, self.most
        return tuple(min(max(side, least[i]), most[i]) for i, side in enumerate(sides))

    def overlay(self, picture, classes, opacity=0.5):
        """The picture under the colours of its classes."""
        mixed = picture * (1 - opacity) + self.palette[classes] * opacity
        return np.rint(mixed).astype(np.uint8)


def open_onnx(path):
    """ONNX Runtime, on a GPU where its package for GPUs is installed."""
    import onnxruntime

    wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    session = onnxruntime.InferenceSession(path, providers=providers)
    name = session.get_inputs()[0].name
    facts = session.get_modelmeta().custom_metadata_map.get("rtseg", "{}")
    return lambda frame: session.run(None, {name: frame})[0], facts


def open_openvino(path):
    """OpenVINO, on the CPU."""
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    facts = model.get_rt_info("rtseg").astype(str)
    settings = {"PERFORMANCE_HINT": "LATENCY"}
    hints = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}  # int8: what OpenVINO prefers
    precision = json.loads(facts).get("precision")
    if precision in hints:
        settings["INFERENCE_PRECISION_HINT"] = hints[precision]
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    return lambda frame: request.infer([frame])[0].copy(), facts


def open_tensorrt(path):
    """TensorRT, on the first GPU."""
    import tensorrt

    with open(path, "rb") as stream:
        engine = tensorrt.Runtime(tensorrt.Logger()).deserialize_cuda_engine(stream.read())
    if engine is None:
        raise ValueError(
            "TensorRT cannot read it; engines belong to the GPU and version that made it"
        )
    context = engine.create_execution_context()
    taken, given = (engine.get_tensor_name(index) for index in range(2))
    cuda = cuda_runtime()
    memory = {}

    def place(name, size):
        if memory.get(name, (None, -1))[1] != size:
            pointer = ctypes.c_void_p()
            check(cuda.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(size)))
            memory[name] = (pointer, size)
            context.set_tensor_address(name, pointer.value)
        return memory[name][0]

    def run(frame):
        if not context.set_input_shape(taken, frame.shape):
            raise ValueError(f"the engine takes no frame of {frame.shape[1]}x{frame.shape[2]}")
        classes = np.empty(tuple(context.get_tensor_shape(given)), np.uint8)
        source, target = place(taken, frame.nbytes), place(given, classes.nbytes)
        check(cuda.cudaMemcpy(source, frame.ctypes.data_as(ctypes.c_void_p), frame.nbytes, 1))
        if not context.execute_async_v3(0):
            raise RuntimeError("TensorRT could not run the network")
        check(cuda.cudaDeviceSynchronize())
        check(cuda.cudaMemcpy(classes.ctypes.data_as(ctypes.c_void_p), target, classes.nbytes, 2))
        return classes

    profile = engine.get_tensor_profile_shape(taken, 0)
    run.limits = tuple(tuple(shape)[1:3] for shape in (profile[0], profile[2]))
    with open(json_beside(path), encoding="utf-8") as stream:
        return run, stream.read()


def cuda_runtime():
    """CUDA's own library, which is wherever TensorRT is."""
    for name in RUNTIME_LIBRARIES:
        try:
            cuda = ctypes.CDLL(name)
        except OSError:
            continue
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        cuda.cudaMemcpy.argtypes = [pointer, pointer, size, ctypes.c_int]
        return cuda
    sys.exit(f"error: none of {', '.join(RUNTIME_LIBRARIES)} is found")


def check(status):
    """End where a call of CUDA has failed."""
    if status:
        sys.exit(f"error: CUDA reports status {status}")


def json_beside(path):
    """The .json of the network in the folder of an engine, which is called NAME.anything.engine."""
    folder, name = os.path.split(path)
    while name:
        name = name.rpartition(".")[0]
        if os.path.isfile(os.path.join(folder, name + ".json")):
            return os.path.join(folder, name + ".json")
    sys.exit(f"error: the .json that was exported with the network must lie beside {path}")


RUNTIMES = {".onnx": open_onnx, ".xml": open_openvino, ".engine": open_tensorrt}


def read(path):
    """A picture as RGB (H, W, 3), uint8, upright. Raises ValueError."""
    if not os.path.isfile(path):
        raise ValueError("does not exist")
    if cv2 is None:
        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened)
                if picture.mode.startswith("I"):  # 16 bits
                    picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
                return np.array(picture.convert("RGB"))
        except Exception as error:  # (whatever a decoder meets in a damaged file)
            raise ValueError("is not a picture, or damaged") from error
    data = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise ValueError("is not a picture, or damaged")
    return np.ascontiguousarray(picture[..., ::-1])


def write(path, picture):
    """An RGB picture or a class map; whole or not at all. Raises OSError."""
    if cv2 is None:
        held = io.BytesIO()
        Image.fromarray(picture).save(held, "PNG")
        data = held.getvalue()
    else:
        data = cv2.imencode(".png", picture[..., ::-1] if picture.ndim == 3 else picture)[1]
        data = data.tobytes()
    temporary = path + ".part"
    try:
        with open(temporary, "wb") as stream:
            stream.write(data)
        os.replace(temporary, path)
    except OSError:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise


def resized(array, size, smooth):
    """A picture, smoothly, or a class map, by the nearest pixel, at (height, width).

    The picture as evaluation resizes it: between the four nearest pixels, without blurring first,
    which Pillow would do.
    """
    if array.shape[:2] == tuple(size):
        return array
    if cv2 is not None:
        how = cv2.INTER_LINEAR if smooth else cv2.INTER_NEAREST
        return cv2.resize(array, (size[1], size[0]), interpolation=how)
    if not smooth:
        rows, columns = (
            np.minimum((np.arange(new) * (1 / (new / old))).astype(int), old - 1)
            for new, old in ((size[0], array.shape[0]), (size[1], array.shape[1]))
        )
        return array[rows][:, columns]
    array = array.astype(np.float32)
    for axis, new in enumerate(size):
        old = array.shape[axis]
        place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
        first = place.astype(int)
        share = (place - first).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        near, far = (array.take(np.minimum(first + k, old - 1), axis) for k in (0, 1))
        array = near + (far - near) * share
    return np.rint(array).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
