"""The agent as a service: log lines and the conversation with systemd."""
