"""Rules on results, and the commands they run."""
