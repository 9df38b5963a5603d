"""One refresh, station by station: data, teachers, a student by the mode asked for, compression, proof, publication.

:mod:`~stillhouse.refreshing.run` puts the stations in order; each works on the :class:`~stillhouse.refreshing.session.
Session` of its refresh.
"""
