"""Launchers: the code that turns an attempt into a process, a container or a Kubernetes Job."""
