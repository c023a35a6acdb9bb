"""Where samples come from: the `Source` interface and the built-in plugins."""
