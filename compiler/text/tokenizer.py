"""A folder's tokenizer files as one object: encode, decode, chat, and the ids that end a text."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from compiler.contracts.errors import RunError
from compiler.text.chat_template import ChatTemplate, Message, chat_template_source

if TYPE_CHECKING:
    from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
# What a bundle carries of its checkpoint beside the weights, where it is present.
TOKENIZER_FILES: tuple[str, ...] = (
    TOKENIZER_FILE,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Text:
    """Text to token ids and back. Without a tokenizer, ids run and text is refused.

    Attributes:
        eos: Every id that ends a generation.
        template: The chat template, or None.
    """

    def __init__(
        self,
        tokenizer: "Tokenizer | None",
        *,
        eos: Sequence[int] = (),
        template: ChatTemplate | None = None,
        where: str = "",
    ) -> None:
        self.eos = frozenset(eos)
        self.template = template
        self._tokenizer = tokenizer
        self._where = where
        self._settling = _settling_ids(tokenizer)

    @staticmethod
    def open(folder: Path) -> "Text":
        """Read the tokenizer's files of a bundle or a checkpoint folder; all may be absent.

        The ids that end a text are those of generation_config.json; where it names none, those of
        config.json; then the tokenizer's own.

        Raises:
            RunError: A file is not what it should be.
        """
        tokenizer = _load_tokenizer(folder / TOKENIZER_FILE)
        tokenizer_config = _read_json(folder / "tokenizer_config.json")
        special = _special_tokens(tokenizer_config, _read_json(folder / "special_tokens_map.json"))
        found = chat_template_source(folder, tokenizer_config)
        template = None
        if found is not None:
            template = ChatTemplate(found[0], special_tokens=special, where=found[1])
        eos = _eos_ids(folder / "generation_config.json") or _eos_ids(folder / "config.json")
        if not eos and tokenizer is not None and "eos_token" in special:
            named = tokenizer.token_to_id(special["eos_token"])
            eos = () if named is None else (named,)
        return Text(tokenizer, eos=eos, template=template, where=str(folder))

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be encoded and decoded."""
        return self._tokenizer is not None

    def encode(self, text: str) -> list[int]:
        """Token ids, with the special tokens that the tokenizer's post-processor adds.

        Raises:
            RunError: There is no tokenizer, or the text is not Unicode.
        """
        return self._ids(text, add_special_tokens=True)

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """Token ids of a conversation up to where the assistant answers.

        Raises:
            RunError: There is no tokenizer or chat template, or the template refuses.
        """
        self._require()
        if self.template is None:
            raise RunError(
                "there is no chat template (chat_template.jinja, or chat_template in"
                " tokenizer_config.json)",
                where=self._where,
                hint="give the whole prompt as text, without a conversation",
                code="no-chat-template",
            )
        # The template writes the special tokens itself.
        return self._ids(self.template.render(messages), add_special_tokens=False)

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of ids, without special tokens; empty without a tokenizer."""
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(list(tokens), skip_special_tokens=True)

    def is_settled_by(self, token: int) -> bool:
        """Whether the text before and of `token` can no longer change by what follows.

        A decoder with a byte fallback (SentencePiece's `<0xE4>`) reads bytes in runs, and a token
        that is left out of the text does not end a run. Half a character is for the caller to see.
        """
        if self._settling is None:
            return True
        return token in self._settling

    def _ids(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokenizer = self._require()
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RunError(
                f"the text holds half a character (a lone surrogate) at {error.start}",
                hint="give it as UTF-8",
                code="not-unicode",
            ) from error
        return tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def _require(self) -> "Tokenizer":
        if self._tokenizer is None:
            raise RunError(
                f"there is no {TOKENIZER_FILE}, so text cannot be encoded",
                where=self._where,
                hint="give token ids (--token-ids 1,2,3)",
                code="no-tokenizer",
            )
        return self._tokenizer


def _load_tokenizer(path: Path) -> "Tokenizer | None":
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the Rust library raises nothing narrower
        raise RunError(
            f"the tokenizer cannot be read: {error}", where=str(path), code="tokenizer"
        ) from error
    # A file may carry the training's lengths; a prompt is never cut or padded.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _read_json(path: Path) -> Mapping[str, object]:
    if not path.is_file():
        return {}
    try:
        tree = json.loads(path.read_bytes())
    except ValueError as error:
        raise RunError(f"not valid JSON: {error}", where=str(path), code="tokenizer") from error
    if not isinstance(tree, dict):
        raise RunError("expected a JSON object", where=str(path), code="tokenizer")
    return tree


def _special_tokens(*sources: Mapping[str, object]) -> dict[str, str]:
    """`bos_token` -> `<s>`, ...: earlier sources go before later ones."""
    found: dict[str, str] = {}
    for tree in sources:
        for name, value in tree.items():
            content = value.get("content") if isinstance(value, dict) else value
            if name.endswith("_token") and isinstance(content, str):
                found.setdefault(name, content)
    return found


def _eos_ids(path: Path) -> tuple[int, ...]:
    value = _read_json(path).get("eos_token_id")
    listed = value if isinstance(value, list) else [] if value is None else [value]
    ids = tuple(one for one in listed if isinstance(one, int) and not isinstance(one, bool))
    if len(ids) < len(listed):
        raise RunError(
            f"eos_token_id is {value!r}, expected an id or a list of ids",
            where=str(path),
            code="tokenizer",
        )
    return ids


def _settling_ids(tokenizer: "Tokenizer | None") -> frozenset[int] | None:
    """Ids that end a run of bytes; None where the decoder knows no runs."""
    if tokenizer is None or "ByteFallback" not in str(tokenizer.decoder):
        return None
    left_out = {id_ for id_, added in tokenizer.get_added_tokens_decoder().items() if added.special}
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    in_runs = {id_ for token, id_ in vocabulary.items() if _BYTE_TOKEN.fullmatch(token)}
    return frozenset(vocabulary.values()) - in_runs - left_out
