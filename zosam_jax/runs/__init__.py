"""The record of a run: its configuration, its folder and the files in it."""
