"""What the public guides' loop weighs: `python -m tests.bench.guide MODEL` prints its memory in MiB.

One script with the same libraries: it runs the model, waits for each `publish(...).result()`, and asks the bucket once.
"""

import json
import sys
import time

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from google.cloud import pubsub_v1, storage

from tests.bench.processes import memory_mib

RESULTS = 200


def main() -> None:
    """Run the loop for a while."""
    interpreter = Interpreter(model_path=sys.argv[1])
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()[0]
    publisher = pubsub_v1.PublisherClient()
    topic = publisher.topic_path("project", "topic")
    blob = storage.Client(project="project").bucket("bucket").blob("model.tflite")
    blob.reload()
    sample = np.zeros(details["shape"], details["dtype"])
    for _ in range(RESULTS):
        interpreter.set_tensor(details["index"], sample)
        interpreter.invoke()
        message = {"device_id": "edge-001", "timestamp": int(time.time() * 1000), "model_version": "v1.2"}
        publisher.publish(topic, data=json.dumps(message).encode(), device_id="edge-001").result()
    print(json.dumps({"memory_mib": memory_mib(["self"])}))


if __name__ == "__main__":
    main()
