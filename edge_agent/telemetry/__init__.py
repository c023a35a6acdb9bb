"""From results to delivered events: envelope, disk queue, sender and sinks."""
