"""The page in the browser: over HTTP, and in a real browser where there is one.

Chromium, its driver and selenium are no requirement; without them the browser's test is skipped.
"""

import errno
import json
import os
import shutil
import signal
import socket
import time
import urllib.error
import urllib.request

import cv2
import numpy as np
import pytest

from datasets import get_meta
from datasets.synthetic import draw_scene
from utils.video_file import write_video

NO_OTHER = "(no other)"
STEPS = 60.0  # seconds after which a step in the browser has failed


@pytest.fixture
def serve(start, tmp_path):
    """Starts the page for some folders; gives its address. The server's files are in `served`."""
    pytest.importorskip("gradio", reason="the page needs gradio: pip install -e .[demo]")
    (tmp_path / "served").mkdir()
    processes = []

    def run(*folders, options=()):
        environment = {"TMPDIR": str(tmp_path / "served")}
        words = ["tools/web.py", "--weights", *folders, *options]
        processes.append(start(*words, env=environment))
        line = processes[-1].stdout.readline()
        assert line.startswith("open http://127.0.0.1:"), processes[-1].communicate()
        return line.split()[1]

    yield run
    for process in processes:
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and "Traceback" not in err, err
        assert out.endswith("ended\n")
    assert not list((tmp_path / "served").glob("rtseg-*"))


@pytest.fixture
def uploads(tmp_path):
    """A folder with a picture, a clip, and files that are neither."""
    folder = tmp_path / "uploads"
    folder.mkdir()
    scenes = [draw_scene(number, 0, 120, 160)[0] for number in range(2)]
    cv2.imwrite(str(folder / "street.png"), scenes[0][..., ::-1])
    write_video(folder / "clip.webm", (scenes[n // 10] for n in range(20)), 10.0)
    street, clip = ((folder / name).read_bytes() for name in ("street.png", "clip.webm"))
    (folder / "cut.png").write_bytes(street[: len(street) // 2])
    (folder / "cut.webm").write_bytes(clip[:200])
    (folder / "text.png").write_text("hello")
    (folder / "<b>drawing<i>.jpg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    return folder


def test_without_gradio_it_is_one_sentence(run, tmp_path):
    (tmp_path / "gradio.py").write_text("raise ModuleNotFoundError('gone', name='gradio')")
    ended = run("tools/web.py", status=2, env={"PYTHONPATH": str(tmp_path)})
    (line,) = ended.stderr.strip().splitlines()
    assert line == (
        "error: the page needs gradio, which is not installed: pip install -e .[demo]"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "tpu9"], ["--device tpu9 cannot be used"]),
        (["--device", "cuda"], ["--device cuda cannot be used"]),
        (["--precision", "fp16"], ["fp16 needs CUDA"]),
    ],
)
def test_what_cannot_run_is_refused_before_it_starts(refuses, options, words):
    refuses(words, "tools/web.py", *options)


@pytest.mark.slow
def test_over_http(serve, run, weights, uploads, root, tmp_path):
    """All that the page does, and uploads that do harm."""
    client = pytest.importorskip("gradio_client", reason="gradio brings it, which is missing")
    empty = tmp_path / "weights"
    address = serve(empty)
    port = int(address.rstrip("/").rpartition(":")[2])
    with socket.socket() as other:  # no other address of this machine is listened on
        other.settimeout(5)
        assert other.connect_ex(("127.0.0.2", port)) == errno.ECONNREFUSED
    taken = run("tools/web.py", "--port", port, status=2).stderr
    assert taken.startswith(f"error: port {port} of 127.0.0.1 is taken") and taken.count("\n") == 1
    page = client.Client(address, verbose=False)

    def send(name, first=None, second=NO_OTHER, opacity=0.5):
        file = client.handle_file(str(uploads / name))
        return page.predict(file, first, second, opacity, api_name="/on_file")

    message, image, *_ = send("street.png")
    assert "make demo" in message and cv2.imread(image).shape == (120, 160, 3)

    weights("pidnet_s", "a/best.pt"), weights("rtlinearformer_slim", "b/best.pt")
    first, second, message = page.predict(None, NO_OTHER, api_name="/on_look")
    titles = [title for title, _ in first["choices"]]
    assert message == "2 trained networks." and len(titles) == 2 and len(second["choices"]) == 3
    waiting = page.predict(titles[0], NO_OTHER, 0.5, api_name="/on_found")  # the picture of before
    assert "pidnet_s" in waiting[2]

    harmless = {"cut.png": "truncated PNG", "cut.webm": "cannot be decoded", "text.png": "a text"}
    for name, words in harmless.items():
        assert name in (message := send(name, titles[0])[0]) and words in message
    drawing = send("<b>drawing<i>.jpg", titles[0])[0]
    assert "is an SVG drawing" in drawing and "<i>" not in drawing
    (uploads / "large.png").write_bytes(bytes(51_000_000))
    with pytest.raises(Exception, match=r"(?i)size"):
        send("large.png")

    message, image, table, other, *_ = send("street.png", titles[0], titles[1])
    assert message == "" and cv2.imread(image).shape == cv2.imread(other).shape == (120, 160, 3)
    assert " ms from a picture" in table and any(n in table for n in get_meta("camvid").class_names)
    plain = page.predict(0.0, 0, api_name="/on_slider")[1]
    scene = draw_scene(0, 0, 120, 160)[0]
    assert np.abs(cv2.imread(plain)[..., ::-1].astype(int) - scene).mean() < 8  # a JPEG
    moving = send("clip.webm", titles[0])
    assert any(isinstance(part, dict) and "webm" in str(part.get("value")) for part in moving)
    for secret in (empty / "a/best.pt", root / "setup.py", "/etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match=r"40[34]"):
            urllib.request.urlopen(f"{address}gradio_api/file={secret}", timeout=30)
    left = {path.name for path in (tmp_path / "served").rglob("*")}
    assert not left & {path.name for path in uploads.iterdir()} and "image.jpeg" in left


class Browser:
    """Chromium without a window, and the page in it."""

    def __init__(self, address):
        webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
        chromium = shutil.which("chromium") or shutil.which("google-chrome")
        driver = shutil.which("chromedriver")
        if not chromium or not driver:
            pytest.skip("Chromium and chromedriver are not installed")
        options = webdriver.ChromeOptions()
        options.binary_location = chromium
        options.add_argument("--headless=new")
        options.add_argument("--no-sandbox")  # for root, as in containers
        options.add_argument("--disable-dev-shm-usage")
        options.add_argument("--window-size=1280,1000")
        options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(driver))
        self.driver.get(address)

    def find(self, selector):
        return self.driver.find_elements("css selector", selector)

    def text(self, selector):
        return " ".join(element.text for element in self.find(selector))

    def source(self, selector):
        return [element.get_attribute("src") for element in self.find(selector)]

    def wait(self, condition):
        """Until `condition()` is true, which it returns; fails after STEPS seconds."""
        end = time.monotonic() + STEPS
        while not (value := condition()):
            assert time.monotonic() < end, f"not seen; the page says: {self.text('body')[:2000]}"
            time.sleep(0.1)
        return value

    def upload(self, path):
        self.wait(lambda: self.find("#file input[type=file]"))[0].send_keys(str(path))

    def choose(self, dropdown, words):
        """Open a dropdown and take the entry that holds `words`."""
        self.find(f"{dropdown} input")[0].click()
        entries = lambda: [e for e in self.find("[role=option]") if words in e.text]  # noqa: E731
        self.wait(entries)[0].click()

    def addresses(self):
        """Of everything that was asked for, from wherever."""
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                yield message["params"]["request"]["url"]


@pytest.mark.slow
def test_in_a_browser(serve, weights, uploads, tmp_path):
    weights("pidnet_s", "a/best.pt")
    address = serve(weights("rtlinearformer_slim", "b/best.pt"))
    browser = Browser(address)
    try:
        look_around(browser, uploads)
        picture = os.environ.get("RTSEG_SCREENSHOT", tmp_path / "page.png")
        assert browser.driver.save_screenshot(str(picture))
        assert len(np.unique(cv2.imread(str(picture)).reshape(-1, 3), axis=0)) > 1000
        asked = list(browser.addresses())
        own = (address, "data:", "blob:", "chrome")
        assert len(asked) > 20 and [a for a in asked if not a.startswith(own)] == []
    finally:
        browser.driver.quit()


def look_around(browser, uploads):
    """A damaged upload, a picture, the opacity, a second network, a drawn scene, a clip."""
    browser.wait(lambda: "2 trained networks" in browser.text("#message"))
    browser.upload(uploads / "cut.png")
    browser.wait(lambda: "cut.png is a truncated PNG" in browser.text("#message"))
    browser.upload(uploads / "street.png")
    browser.wait(lambda: "%" in browser.text("#table") and browser.find("#image img"))
    assert "truncated" not in browser.text("#message") and not browser.find("#other_image img")
    first, timed = browser.source("#image img"), browser.text("#table")
    for _ in range(4):
        browser.find("#opacity input[type=range]")[0].send_keys("\ue014")  # the right arrow key
    browser.wait(lambda: browser.source("#image img") not in ([], first))
    assert browser.text("#table") == timed  # no network ran: its time is what it was
    browser.choose("#second", "rtlinearformer_slim")
    browser.wait(lambda: browser.find("#difference img") and browser.find("#other_image img"))
    assert "They disagree on" in browser.text("#swaps")
    browser.wait(lambda: browser.find("#scenes button img"))[2].click()
    browser.wait(lambda: browser.text("#table") != timed)
    browser.upload(uploads / "clip.webm")
    ready = "const v = document.querySelector('#clip video'); return v && v.videoWidth"
    assert browser.wait(lambda: browser.driver.execute_script(ready)) == 320  # side by side
    assert browser.find("#frame input[type=range]")
