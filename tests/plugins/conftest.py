"""The projects in this folder are installed by tests, and their own tests run there."""

collect_ignore = ["acme_pump"]
