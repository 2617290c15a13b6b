"""Conversations: one row schema for every source, and the one function that makes token ids of a row."""

from tasks.conversations.schema import CONVERSATION, MESSAGES, Conversations, Finding

__all__ = ["CONVERSATION", "MESSAGES", "Conversations", "Finding"]
