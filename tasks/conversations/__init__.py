"""Conversations: one row schema for every source, and the one function that makes token ids of a row."""

from tasks.conversations.answer import Answer
from tasks.conversations.call_style import ToolCall
from tasks.conversations.canonical import canonical_json, canonical_tools
from tasks.conversations.carried import carry_reader
from tasks.conversations.conversion import convert, detect, formats
from tasks.conversations.identity import row_ids
from tasks.conversations.preparation import Judge, Preparation, Render, prepare
from tasks.conversations.render import Renderer
from tasks.conversations.schema import CONVERSATION, MESSAGES, Conversations, Finding
from tasks.conversations.segments import gather, read_conversations, write_conversations, write_rows

__all__ = [
    "CONVERSATION",
    "MESSAGES",
    "Answer",
    "Conversations",
    "Finding",
    "Judge",
    "Preparation",
    "Render",
    "Renderer",
    "ToolCall",
    "canonical_json",
    "canonical_tools",
    "carry_reader",
    "convert",
    "detect",
    "formats",
    "gather",
    "prepare",
    "read_conversations",
    "row_ids",
    "write_conversations",
    "write_rows",
]
