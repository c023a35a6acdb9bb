"""Its native library aborts while it is loaded."""

import os

os.write(2, b"libacme: firmware too old\n")
os.abort()
