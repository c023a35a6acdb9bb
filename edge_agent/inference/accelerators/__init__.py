"""The Edge TPU: which devices there are and how they are, how one is opened, and what is done when it fails."""
