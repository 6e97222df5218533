"""Graphs of a run's tasks, drawn with the characters of a terminal and as SVG."""
