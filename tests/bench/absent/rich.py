"""In the way of a library that comes with the tools of the tests, and that structlog would load into every process.

The package does not have it, and what is weighed shall be what runs on a device: about 5 MiB less in each process.
"""

raise ModuleNotFoundError("rich is not part of edge-agent", name="rich")
