"""The knowledge base: everything the agent has lived through, as Delta tables with windows by time."""

from stillhouse.knowledge.base import KnowledgeBase, content_keys, tidy, tidy_outcomes

__all__ = ["KnowledgeBase", "content_keys", "tidy", "tidy_outcomes"]
