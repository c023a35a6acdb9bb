"""What becomes of a release on the device: its place on the disk, its acceptance, trial and way back, its shadow."""
