"""A model ready to run: what goes into its interpreter, and what its file says of itself."""
