"""What a publisher should think about before devices run a model."""

from collections.abc import Iterator

from edge_agent.inference.checks.inspection import ModelFacts
from edge_agent.inference.interpreter.edgetpu_package import NEWEST_RUNTIME


def about_model(model: ModelFacts, labels: list[str] | None) -> Iterator[str]:
    """Say what is odd about a model, for the Edge TPU and for a classifier."""
    yield from _about_package(model) if model.compiled else _obstacles(model)
    if labels is not None and (classes := number_of_classes(model)) is not None and len(labels) != classes:
        yield f"{len(labels)} labels, but the model has {classes} outputs; a classifier would be refused"


def _about_package(model: ModelFacts) -> Iterator[str]:
    if model.on_cpu:
        yield f"{_number(model.on_cpu)} on the CPU: {_listed(model.on_cpu)}"
    if model.package is None:
        yield "its Edge TPU package is not understood, so nobody can say which runtime it needs"
    elif model.package.runtime > NEWEST_RUNTIME:
        yield (
            f"it needs an Edge TPU runtime of version {model.package.runtime}, and that of libedgetpu 16.0 is "
            f"{NEWEST_RUNTIME}: compile it with edgetpu_compiler --min_runtime_version {NEWEST_RUNTIME}"
        )


def _obstacles(model: ModelFacts) -> Iterator[str]:
    """Say what keeps the model from being compiled for the Edge TPU."""
    if any(length < 0 for tensor in model.inputs for length in tensor.shape):
        yield f"an input has no fixed shape ({model.inputs[0]}): the Edge TPU's compiler wants batch_shape=(1, …)"
    elif model.dynamic:
        yield f"{model.dynamic} tensors have no fixed shape: the Edge TPU's compiler refuses them"
    if not model.floating:
        return
    if sum(model.floating.values()) == sum(model.operators.values()):
        yield "the model is not quantised to 8 bits: the Edge TPU cannot run it"
    else:
        yield (
            f"{_number(model.floating)} on the CPU, with all that comes after, as the Edge TPU has no floating-point "
            f"numbers: {_listed(model.floating)}"
        )


def _number(operators: dict[str, int]) -> str:
    count = sum(operators.values())
    return "1 operator stays" if count == 1 else f"{count} operators stay"


def _listed(operators: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in sorted(operators.items()))


def number_of_classes(model: ModelFacts) -> int | None:
    """Return how many classes a classifier has: one output of shape (1, classes). A length of -1 tells nothing."""
    shape = model.outputs[0].shape
    is_row = len(model.outputs) == 1 and len(shape) == 2 and shape[-1] > 0  # noqa: PLR2004  (1, classes)
    return shape[-1] if is_row else None
