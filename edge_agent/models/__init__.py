"""Model versions: where they come from, which one is in use, and how a new one takes over."""
