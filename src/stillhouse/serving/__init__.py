"""The agent over HTTP: ``stillhouse serve`` with its workers, endpoints, limits and metrics."""
