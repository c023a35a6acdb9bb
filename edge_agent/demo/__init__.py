"""The demo: a small vibration classifier, its labels, and the script that trained it."""
