"""The record of a run: its configuration, its folder and what is written there."""
