"""What an event holds, which results become one, and how important it is."""
