"""Looks and acts: vendor types and vendor errors stop here; nothing here chooses."""
