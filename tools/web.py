"""Networks in the browser: pictures and short clips, overlays, and two networks compared.

    python tools/web.py

prints the address of a page that this machine alone reaches. It offers every trained network in
output/ and pretrained_models/ whose file says what it is. Uploads are deleted once they are read.
It needs the extra `demo`: pip install -e .[demo]
"""

import argparse
import ipaddress
import os
import tempfile
import time
from pathlib import Path

import _init_paths
import torch
from viewing import MOST_BYTES, Viewer

from utils.deploy import DTYPES, choose_runtime
from utils.distributed import choose_device, has_mps
from utils.errors import InputError
from utils.stopping import Interruption

FOLDERS = ("output", "pretrained_models")
# Gradio shall speak to the browser alone, and neither publish nor keep what it shows.
SILENT = ("ANALYTICS_ENABLED", "SHARE", "RUN_HISTORY", "MCP_SERVER", "SSR_MODE")


def main() -> None:
    args = parse_args()
    device = check_device(args.device, args.precision)
    folders = args.weights or [_init_paths.ROOT / name for name in FOLDERS]
    viewer = Viewer([f.absolute() for f in folders], _init_paths.ROOT, device, args.precision)
    with tempfile.TemporaryDirectory(prefix="rtseg-web-") as folder:
        prepare_environment(folder)
        try:
            from web_page import Page
        except ModuleNotFoundError as error:
            raise InputError(
                f"the page needs {error.name}, which is not installed: pip install -e .[demo]"
            ) from None
        blocks = Page(viewer, Path(folder)).blocks
        try:
            serve(blocks, args.host, args.port)
        finally:
            viewer.close()
            blocks.close(verbose=False)


def prepare_environment(folder: str) -> None:
    """What Gradio reads from the environment when it is imported. folder: for its files."""
    os.environ.update({f"GRADIO_{name}": "False" for name in SILENT})
    os.environ.update(GRADIO_TEMP_DIR=folder, GRADIO_ALLOWED_PATHS="", HF_HUB_OFFLINE="1")


def serve(blocks, host: str, port: int | None) -> None:
    """Serve the page until the process is told to end."""
    from web_page import CSS, theme

    try:
        _, address, _ = blocks.queue(max_size=16).launch(
            server_name=host, server_port=port, share=False, inbrowser=False, quiet=True,
            prevent_thread_lock=True, max_file_size=MOST_BYTES, state_session_capacity=8,
            enable_monitoring=False, ssr_mode=False, pwa=False, footer_links=[], theme=theme(),
            css=CSS,
        )  # fmt: skip
    except OSError:
        ports = f"port {port} of {host} is" if port else f"all ports of {host} that are tried are"
        raise InputError(f"{ports} taken, or {host} is no address of this machine") from None
    print(f"open {address} in a browser; Ctrl-C ends the server", flush=True)
    if not is_loopback(host):
        print("every machine that reaches this one can use it; there is no password", flush=True)
    Interruption()
    try:
        while True:
            time.sleep(1)
    except KeyboardInterrupt:
        print("ended")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what is bound to `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_device(name: str, precision: str) -> str:
    """The device behind `name`. Raises ValueError where it is not there or lacks the precision."""
    if name == "auto":
        name = str(choose_device(0, cuda=torch.cuda.is_available(), mps=has_mps()))
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # the second: a PyTorch without CUDA
        first = str(error).splitlines()[0]
        raise InputError(f"--device {name} cannot be used: {first}") from None
    choose_runtime("torch", torch.device(name), precision, announced=False)
    return name


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (%(default)s)")
    parser.add_argument("--port", type=int, help="its port; default: the first free from 7860 on")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, mps or auto")
    parser.add_argument("--precision", default="fp32", choices=DTYPES)
    parser.add_argument(
        "--weights", type=Path, nargs="+", metavar="FOLDER",
        help=f"folders to look for networks in; default: {' and '.join(FOLDERS)}",
    )  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    _init_paths.run_main(main)
