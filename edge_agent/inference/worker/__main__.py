"""Runs the worker: `python -m edge_agent.inference.worker SOCKET PAGE`."""

from edge_agent.inference.worker.process import main

if __name__ == "__main__":
    main()
