"""The agent's side of the worker: starts it, watches it, and brings it back."""
