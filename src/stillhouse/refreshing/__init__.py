"""The steps of a refresh: data, teachers, a student by the requested mode, compression, proof, publication.

:mod:`~stillhouse.refreshing.run` runs the steps in order; each step works on the session of its refresh
(:class:`~stillhouse.refreshing.session.Session`).
"""
