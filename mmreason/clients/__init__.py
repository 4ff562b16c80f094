"""Clients of other people's models: endpoints that are never paid twice, judges, human votes."""
