"""Processes of their own beside the hub, each its own small composition root."""
