"""Commands of ``stillhouse`` that :mod:`stillhouse.cli` puts together."""
