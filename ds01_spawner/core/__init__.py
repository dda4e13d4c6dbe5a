"""Decides: plain data and functions, standard library only; no clock, disk, socket or event loop."""
