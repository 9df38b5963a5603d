"""The knowledge base of an agent: its Delta tables, windows of them, the spool, the flush, imports and upkeep."""

from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.content import content_keys, tidy, tidy_outcomes

__all__ = ["KnowledgeBase", "content_keys", "tidy", "tidy_outcomes"]
