"""The commands of ``stillhouse``, one per file; :mod:`stillhouse.cli` assembles them."""
