"""From the queue to whoever receives: the sender and its sinks, Pub/Sub and a file."""
