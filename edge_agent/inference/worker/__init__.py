"""The worker process: owns the source and the Edge TPU, and may die without harm."""
