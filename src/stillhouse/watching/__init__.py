"""One watch, station by station: the window, the evidence, the drift, the decision, what MLflow is told.

:mod:`~stillhouse.watching.run` puts the stations in order.
"""
