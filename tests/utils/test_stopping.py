"""Signals that ask a run to stop: answered at once, and not lost to a second press."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from utils.stopping import SIGNALS, stopped

pytestmark = pytest.mark.medium  # every test starts a process
ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import signal, sys, time
sys.path.insert(0, {root!r})
if {nohup}:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from utils.stopping import StopRequest
import utils.stopping
utils.stopping.SECOND_THOUGHT = {thought}
stop = StopRequest({speaks})
print("ready", flush=True)
end = time.monotonic() + {seconds}
while time.monotonic() < end:
    time.sleep(0.01)
sys.exit(stop.status if stop else 0)
"""


def program(**settings):
    settings = {"nohup": False, "thought": 60, "speaks": True, "seconds": 1.5} | settings
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT), **settings)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_is_answered_and_noted(number):
    process = program()
    process.send_signal(number)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number and stopped(process.returncode)
    again = "; Ctrl-C again: discard" if number == signal.SIGINT else ""
    assert err == f"\nstopping after this step and saving{again}\n"


def test_a_second_press_soon_after_is_the_same_one_and_a_later_one_interrupts():
    process = program()
    for _ in range(3):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and err.count("stopping") == 1 and "Interrupt" not in err
    process = program(thought=0.05, seconds=60)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]


def test_one_of_several_processes_speaks_and_nohup_holds():
    process = program(speaks=False)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=60)[1] == "" and process.returncode == 143
    process = program(nohup=True)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == 0


def test_what_is_no_clean_stop():
    assert not any(map(stopped, (0, 1, 2, -9, -15, 137, 141)))
