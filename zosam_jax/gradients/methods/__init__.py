"""The methods, one in each file: constructor, pure form and pieces."""
