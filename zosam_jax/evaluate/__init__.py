"""A trained network on clean and corrupted test images, and its calibration."""
