"""The TensorFlow Lite runtimes: which there are, which gets along with the Edge TPU's library, and how to call them."""
