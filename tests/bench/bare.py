"""The limit: a loop that does nothing but `invoke()`. `python -m tests.bench.bare MODEL SECONDS` prints samples/s."""

import sys
import time

from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    """Run the loop."""
    model, seconds = sys.argv[1], float(sys.argv[2])
    interpreter = Interpreter(model_path=model)
    interpreter.allocate_tensors()
    interpreter.invoke()
    count, start = 0, time.perf_counter()
    end = start + seconds
    while (now := time.perf_counter()) < end:
        interpreter.invoke()
        count += 1
    print(count / (now - start))


if __name__ == "__main__":
    main()
