"""The HTTP surface: routes, who may call, and how errors are told."""
