"""The limit: a loop that does nothing but `invoke()`. `python -m tests.bench.bare MODEL SECONDS` prints JSON.

`rate` is samples per second, `p99_ms` the time that one invoke in a hundred exceeds, `pss_mib` the process's memory.
"""

import json
import os
import sys
import time

from ai_edge_litert.interpreter import Interpreter

from tests.bench.processes import p99, pss_mib


def main() -> None:
    """Run the loop."""
    model, seconds = sys.argv[1], float(sys.argv[2])
    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()
    interpreter.invoke()
    times: list[int] = []
    start = now = time.perf_counter_ns()
    end = start + int(seconds * 1e9)
    while now < end:
        interpreter.invoke()
        then, now = now, time.perf_counter_ns()
        times.append(now - then)
    rate = len(times) / ((now - start) / 1e9)
    milliseconds = p99(times) / 1e6
    del times
    print(json.dumps({"rate": rate, "p99_ms": milliseconds, "pss_mib": pss_mib(os.getpid())}))


if __name__ == "__main__":
    main()
