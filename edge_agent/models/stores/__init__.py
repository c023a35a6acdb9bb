"""Where releases come from: Cloud Storage or a folder, plain objects or a manifest, and what of it is believed."""
