"""Text to token ids and back, from the tokenizer's files alone: no transformers, no torch."""

from compiler.text.chat_template import ChatTemplate, Message
from compiler.text.stream import TextStream
from compiler.text.text_file import read_text
from compiler.text.tokenizer import TOKENIZER_FILES, Text

__all__ = ["TOKENIZER_FILES", "ChatTemplate", "Message", "Text", "TextStream", "read_text"]
