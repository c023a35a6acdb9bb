"""edge-agent: TensorFlow Lite on a Google Coral Edge TPU, delivered to Google Cloud, online or offline."""

__version__ = "0.1.0"
