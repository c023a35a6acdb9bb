"""What a model's output tensors mean: a module for each `[inference].task`."""
