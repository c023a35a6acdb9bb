"""The publisher's side of a release: build, sign and publish it. None of it is needed on a device."""
