"""What the agent knows of the device it runs on."""
