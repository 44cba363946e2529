"""The published name of RTLinearFormer's speed test; `speed.py` does the work.

    python models/speed/rt_linear_transformer_speed_v5.py --a 'rtlinearformer' --c 19 --r 1024 2048

Takes the options of `speed.py`.
"""

from speed import main, run_main

if __name__ == "__main__":
    run_main(lambda: main(default_name="rtlinearformer"))
