"""What a release is: its manifest, its signatures, and for which devices it is."""
