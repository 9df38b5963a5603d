"""Forgetting: a request's or a person's rows are removed from every place that holds them.

``run`` does it, ``places`` lists the places, and ``selection`` finds the rows.
:mod:`stillhouse.knowledge.forget_requests` remembers a request until it is carried out.
"""
