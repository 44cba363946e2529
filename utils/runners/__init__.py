"""Programs that are copied beside exported files; they need no PyTorch and nothing of this folder.

Python 3.8 and later: that of the devices that the files are for.
"""
