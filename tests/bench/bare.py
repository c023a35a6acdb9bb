"""The limit: a loop that does nothing but `invoke()`. `python -m tests.bench.bare MODEL SECONDS` prints samples/s.

With `script` as third argument it prints its memory instead, having imported what the public guides' script imports.
"""

import sys
import time

from ai_edge_litert.interpreter import Interpreter

from tests.bench.processes import pss_mib


def main() -> None:
    """Run the loop."""
    model, seconds = sys.argv[1], float(sys.argv[2])
    script = sys.argv[3:] == ["script"]
    if script:
        from google.cloud import pubsub_v1, storage  # noqa: F401, PLC0415  imported to be weighed
    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()
    interpreter.invoke()
    count, start = 0, time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        interpreter.invoke()
        count += 1
    print(pss_mib(["self"]) if script else count / (now - start))


if __name__ == "__main__":
    main()
