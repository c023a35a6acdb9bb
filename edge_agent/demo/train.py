"""Trains the demo model: a vibration classifier for predictive maintenance, as usual Edge TPU guides have it.

    .venv/bin/pip install -e '.[train]'
    .venv/bin/python -m edge_agent.demo.train [--out DIR] [--seed N]

One sample is 128 vibration readings of a machine that is normal, wears out (warning) or is about to break
(failure). The data is drawn from three normal distributions; see `CLASSES`. What comes out is quantised to
integers throughout, with uint8 input and output and a fixed batch of one, as the Edge TPU compiler asks for.

Three things differ from the guides, because each of them ruins the result:

- The value ranges are calibrated on samples of all three classes. Calibrated on `np.random.rand`, the model's
  input ends at 1.0, and no failure is ever seen.
- Readings are rounded and clipped into uint8. A bare `astype(np.uint8)` wraps: 256 becomes 0.
- The converted model has a fixed batch size. Without it, its shapes are dynamic, which the compiler rejects.

The script measures both faults beside the right way and writes what it measured into the table of README.md.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

MODEL_NAME = "vibration_classifier.tflite"
LABELS_NAME = "vibration_labels.txt"
FACTS_NAME = f"{MODEL_NAME}.json"
"""What the agent is told of the model, as `x-goog-meta-` headers would in a bucket."""
VERSION = "v1"
README_NAME = "README.md"
TABLE_BEGIN, TABLE_END = "<!-- measured: begin -->\n", "<!-- measured: end -->"

READINGS = 128
TRAINING_SAMPLES = 8000
HELD_OUT_SAMPLES = 2000
CALIBRATION_SAMPLES = 300

Floats = npt.NDArray[np.float32]
Classes = npt.NDArray[np.int64]
Quantise = Callable[[Floats, float, int], npt.NDArray[np.uint8]]
"""Turns readings into the model's uint8 input, given its scale and zero point."""


@dataclass(frozen=True)
class Condition:
    """A state of the machine: how its readings are distributed, and how often it is met."""

    label: str
    mean: float
    deviation: float
    share: float


CLASSES = (
    Condition("normal", mean=0.5, deviation=0.1, share=0.7),
    Condition("warning", mean=1.2, deviation=0.3, share=0.2),
    Condition("failure", mean=2.5, deviation=0.8, share=0.1),
)


def samples(rng: np.random.Generator, classes: Classes) -> Floats:
    """Readings of shape (len(classes), 128): one row for each class number asked for."""
    means = np.array([condition.mean for condition in CLASSES])[classes]
    deviations = np.array([condition.deviation for condition in CLASSES])[classes]
    drawn = rng.normal(means[:, None], deviations[:, None], (len(classes), READINGS))
    return drawn.astype(np.float32)


def as_met(rng: np.random.Generator, count: int) -> tuple[Floats, Classes]:
    """`count` samples, and their class numbers, in the mix that `CLASSES` states."""
    classes = rng.choice(len(CLASSES), size=count, p=[condition.share for condition in CLASSES])
    return samples(rng, classes), classes


def training_set(seed: int) -> tuple[Floats, Classes]:
    """8000 samples and their classes."""
    return as_met(np.random.default_rng([seed, 0]), TRAINING_SAMPLES)


def held_out_set(seed: int) -> tuple[Floats, Classes]:
    """2000 samples that training never sees, and their classes; drawn apart from the training set."""
    return as_met(np.random.default_rng([seed, 1]), HELD_OUT_SAMPLES)


def calibration_set(seed: int) -> Floats:
    """300 samples, equally many of each class, so that the rare failures stretch the ranges as well."""
    classes = np.arange(CALIBRATION_SAMPLES) % len(CLASSES)
    return samples(np.random.default_rng([seed, 2]), classes)


def rounded(readings: Floats, scale: float, zero_point: int) -> npt.NDArray[np.uint8]:
    """Quantises by rounding; what lies outside the model's range becomes its nearest end."""
    quantised: npt.NDArray[np.uint8] = np.clip(np.rint(readings / scale + zero_point), 0, 255).astype(np.uint8)
    return quantised


def wrapped(readings: Floats, scale: float, zero_point: int) -> npt.NDArray[np.uint8]:
    """Quantises as a bare cast does: it truncates, and what is out of range comes in at the other end."""
    return (readings / scale + zero_point).astype(np.int64).astype(np.uint8)


def train(seed: int, epochs: int) -> Any:
    """A trained Keras model: 128 readings in, three probabilities out. Stops early when nothing improves."""
    import tensorflow as tf  # noqa: PLC0415 - only those who train need the 2 GB it takes

    tf.keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    model = _network(tf.keras.Input((READINGS,)))
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    readings, classes = training_set(seed)
    patience = tf.keras.callbacks.EarlyStopping(patience=5, restore_best_weights=True)
    model.fit(readings, classes, validation_split=0.2, epochs=epochs, batch_size=32, verbose=2, callbacks=[patience])
    return model


def _network(readings: Any) -> Any:
    import tensorflow as tf  # noqa: PLC0415 - see train()

    layers = tf.keras.layers
    return tf.keras.Sequential(
        [
            readings,
            layers.Reshape((READINGS, 1)),
            layers.Conv1D(16, 3, activation="relu", padding="same"),
            layers.MaxPooling1D(2),
            layers.Conv1D(32, 3, activation="relu", padding="same"),
            layers.MaxPooling1D(2),
            layers.Flatten(),
            layers.Dense(64, activation="relu"),
            layers.Dropout(0.3),
            layers.Dense(len(CLASSES), activation="softmax"),
        ]
    )


def convert(trained: Any, calibration: Floats) -> bytes:
    """The model as a TensorFlow Lite file: integers only, its ranges taken from the calibration samples."""
    import tensorflow as tf  # noqa: PLC0415 - see train()

    fixed_batch = _network(tf.keras.Input(batch_shape=(1, READINGS)))
    fixed_batch.set_weights(trained.get_weights())

    def representative_dataset() -> Iterator[list[Floats]]:
        for sample in calibration:
            yield [sample[None]]

    converter = tf.lite.TFLiteConverter.from_keras_model(fixed_batch)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = representative_dataset
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    converter.inference_output_type = tf.uint8
    return bytes(converter.convert())


def accuracy_of_float(trained: Any, readings: Floats, classes: Classes) -> float:
    """Share of samples that the unconverted model gets right."""
    return float(np.mean(np.argmax(trained.predict(readings, verbose=0), axis=1) == classes))


class Quantised:
    """A converted model, ready to run."""

    def __init__(self, model: bytes) -> None:
        import tensorflow as tf  # noqa: PLC0415 - see train()

        self._interpreter = tf.lite.Interpreter(model_content=model)
        self._interpreter.allocate_tensors()
        entry = self._interpreter.get_input_details()[0]
        self._input: int = entry["index"]
        self._output: int = self._interpreter.get_output_details()[0]["index"]
        self.scale = float(entry["quantization"][0])
        self.zero_point = int(entry["quantization"][1])

    def accuracy(self, readings: Floats, classes: Classes, quantise: Quantise) -> float:
        """Share of samples that it gets right when they are quantised in this way."""
        rows = quantise(readings, self.scale, self.zero_point)
        return float(np.mean([self._class_of(row) for row in rows] == classes))

    def _class_of(self, row: npt.NDArray[np.uint8]) -> int:
        self._interpreter.set_tensor(self._input, row[None])
        self._interpreter.invoke()
        return int(np.argmax(self._interpreter.get_tensor(self._output)))


def measure(trained: Any, model: bytes, seed: int) -> dict[str, str]:
    """What README.md states of the model: names and values of its table, in order."""
    readings, classes = held_out_set(seed)
    ours = Quantised(model)
    unit_range = np.random.default_rng([seed, 3]).random((200, READINGS)).astype(np.float32)
    guides = Quantised(convert(trained, unit_range))
    failures = classes == len(CLASSES) - 1
    return {
        "TensorFlow": importlib.metadata.version("tensorflow"),
        "seed": str(seed),
        "size": f"{len(model)} bytes",
        "input scale": f"{ours.scale:.9g}",
        "input zero point": str(ours.zero_point),
        "accuracy, float32 before the conversion": f"{accuracy_of_float(trained, readings, classes):.4f}",
        "accuracy, uint8": f"{ours.accuracy(readings, classes, rounded):.4f}",
        "accuracy, uint8, wrapping cast": f"{ours.accuracy(readings, classes, wrapped):.4f}",
        "accuracy, calibrated on 0..1": f"{guides.accuracy(readings, classes, rounded):.4f}",
        "accuracy, calibrated on 0..1, wrapping cast": f"{guides.accuracy(readings, classes, wrapped):.4f}",
        "failures recognised, uint8": f"{ours.accuracy(readings[failures], classes[failures], rounded):.4f}",
        "failures recognised, calibrated on 0..1": (
            f"{guides.accuracy(readings[failures], classes[failures], rounded):.4f}"
        ),
        "failures recognised, calibrated on 0..1, wrapping cast": (
            f"{guides.accuracy(readings[failures], classes[failures], wrapped):.4f}"
        ),
    }


def facts(measured: dict[str, str]) -> str:
    """The JSON of the file beside the model."""
    accuracy = float(measured["accuracy, uint8"])
    labels = [condition.label for condition in CLASSES]
    return json.dumps({"version": VERSION, "accuracy": accuracy, "labels": labels}, indent=2) + "\n"


def table(measured: dict[str, str]) -> str:
    """The measured values as a Markdown table."""
    rows = [f"| {name} | {value} |\n" for name, value in measured.items()]
    return "".join(["| measured | value |\n", "|---|---|\n", *rows])


def update_readme(path: Path, new_table: str) -> bool:
    """Puts the table between the two marks in this file. False, and nothing done, if there are no marks."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    before, begin, rest = text.partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not end:
        return False
    path.write_text(before + begin + new_table + end + after, encoding="utf-8")
    return True


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m edge_agent.demo.train", description="Train the demo model.")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent,
        metavar="DIR",
        help="where model and labels go, and whose README.md is updated (default: beside this script)",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="same seed, same data (default: 1)")
    parser.add_argument("--epochs", type=int, default=20, metavar="N", help="at most so many (default: 20)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Trains, converts, measures and writes the demo model. Returns the exit status."""
    arguments = _arguments(argv)
    if importlib.util.find_spec("tensorflow") is None:
        sys.stderr.write("training needs TensorFlow; in a clone: pip install -e '.[train]'\n")
        return 1
    trained = train(arguments.seed, arguments.epochs)
    model = convert(trained, calibration_set(arguments.seed))
    measured = measure(trained, model, arguments.seed)
    new_table = table(measured)

    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / MODEL_NAME).write_bytes(model)
    labels = "".join(f"{condition.label}\n" for condition in CLASSES)
    (arguments.out / LABELS_NAME).write_text(labels, encoding="utf-8")
    (arguments.out / FACTS_NAME).write_text(facts(measured), encoding="utf-8")
    update_readme(arguments.out / README_NAME, new_table)
    sys.stdout.write(f"\n{new_table}\nwritten to {arguments.out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
