"""The TOML file: schema and defaults, loading, and errors a person can act on.

This module stays empty: the worker imports `edge_agent.settings.units` and must not pay for pydantic.
"""
