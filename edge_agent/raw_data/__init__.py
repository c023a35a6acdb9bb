"""Pictures kept for retraining: from the worker's hand-over folder to a bucket or a folder."""
