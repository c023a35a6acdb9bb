"""The TOML file: schema and defaults, loading, and errors a person can act on.

This module stays empty: the agent imports `schema` and `faults`, the worker `units`, and neither may pay for pydantic.
"""
