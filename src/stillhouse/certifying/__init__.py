"""Compute a recorded verdict again from the stored data and models, and say whether it is identical.

:mod:`~stillhouse.certifying.run` has the entry point, :func:`~stillhouse.certifying.run.verify`. This is about
decisions: whether the figures and rules behind a verdict are true. Whether the files of a model are the signed ones is
another question, which a device answers without any data, with :mod:`stillhouse.verifying`.
"""
