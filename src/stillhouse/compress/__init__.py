"""Smaller forms of a model, made and measured: see ``target`` first, then ``steps``, ``search`` and ``foreign``."""
