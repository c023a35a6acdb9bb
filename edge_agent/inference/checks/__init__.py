"""What is tried in a throw-away process first, because it may crash or hang."""
