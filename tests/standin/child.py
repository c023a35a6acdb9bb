"""A process that does with a model what it is told, step by step, and prints one line of JSON for each step.

    python child.py STEP...        open=DEVICE  load=MODEL  plain=MODEL  invoke=VALUE  close  close_wrongly  pause  wait

`open` loads the driver, `load` a model on it, `plain` a model without it; `invoke` fills the input with VALUE; `close`
lets go of both, `close_wrongly` of the driver first; `pause` waits for a line on standard input, `wait` for its end. A
line holds the step, the seconds it took and, as it applies, `output` (all values, in one list) or `error`.
"""

import json
import sys
import time
from typing import Any

import numpy as np
from ai_edge_litert.interpreter import Interpreter, load_delegate


class Child:
    def __init__(self) -> None:
        self._delegate: Any = None
        self._interpreter: Any = None

    def open(self, device: str) -> None:
        self._delegate = load_delegate("libedgetpu.so.1", {"device": device} if device else {})

    def load(self, model: str) -> None:
        self._interpreter = Interpreter(model_path=model, experimental_delegates=[self._delegate])
        self._interpreter.allocate_tensors()

    def plain(self, model: str) -> None:
        self._interpreter = Interpreter(model_path=model)
        self._interpreter.allocate_tensors()

    def invoke(self, value: str) -> list[float]:
        entry = self._interpreter.get_input_details()[0]
        self._interpreter.set_tensor(entry["index"], np.full(entry["shape"], int(value), entry["dtype"]))
        self._interpreter.invoke()
        output = self._interpreter.get_tensor(self._interpreter.get_output_details()[0]["index"])
        return [float(value) for value in output.ravel()]

    def close(self, _: str) -> None:
        self._interpreter = None
        self._delegate = None

    def close_wrongly(self, _: str) -> None:
        self._delegate.__del__()
        self.close("")

    def pause(self, _: str) -> None:
        sys.stdin.readline()

    def wait(self, _: str) -> None:
        sys.stdin.read()

    def do(self, step: str) -> dict[str, Any]:
        verb, _, argument = step.partition("=")
        started = time.monotonic()
        try:
            answer = {"output": getattr(self, verb)(argument)}
        except (OSError, RuntimeError, ValueError) as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        return {"step": step, "seconds": time.monotonic() - started, **answer}


def main() -> None:
    child = Child()
    for step in sys.argv[1:]:
        sys.stdout.write(json.dumps(child.do(step)) + "\n")
        sys.stdout.flush()
    child.close("")


if __name__ == "__main__":
    main()
