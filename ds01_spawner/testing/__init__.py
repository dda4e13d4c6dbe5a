"""Shipped fakes, one per failure and named after it, for our tests and for those of a site."""
