"""The steps of a watch: open the window, gather evidence, measure drift, decide on a response, log to MLflow.

:mod:`~stillhouse.watching.run` runs the steps in order.
"""
