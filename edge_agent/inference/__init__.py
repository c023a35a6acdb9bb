"""The worker process that owns the Edge TPU and the source, and the supervisor that keeps it going."""
