"""Stores: SQLite and Postgres behind one interface, their schema and migrations, and the LogStore.

Only this package and ``queue``, which is made of statements, speak SQL.
"""
