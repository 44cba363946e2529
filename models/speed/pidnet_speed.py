"""The published name of PIDNet's speed test; `speed.py` does the work.

    python models/speed/pidnet_speed.py --a 'pidnet-s' --c 19 --r 1024 2048

Takes the options of `speed.py`, and the published spelling of names with hyphens.
"""

from speed import main, run_main

if __name__ == "__main__":
    run_main(lambda: main(default_name="pidnet_s", hyphens=True))
