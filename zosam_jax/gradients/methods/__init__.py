"""A file for each method: its constructor, its pure form, and its own pieces."""
