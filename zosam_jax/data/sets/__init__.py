"""Data sets, a module for each: where it comes from and how it is read."""
