"""Everything around the weights of a folder that is served: identity, tokenizer, chat template, generation settings."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from serving.identity import VALIDATION, BundleIdentity, Origin, ServedModel, parse_object
from serving.settings import IDENTITY, SettingError


class BadConversation(Exception):
    """The chat template does not take these messages; the text says why."""


@dataclass(frozen=True)
class Bundle:
    """What is needed around the weights."""

    folder: Path
    identity: ServedModel
    origin: Origin
    weights: tuple[str, ...]  # of int8, int4 and safetensors
    tokenizer: Tokenizer
    template: str
    special: Mapping[str, str]  # bos_token and the like, as the template may use them
    stop_tokens: frozenset[int]
    max_new_tokens: int  # as evaluated
    context: int  # tokens, question and answer together

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Read a bundle, or a plain release; raises SettingError for one that lacks a file or was changed."""
        folder = folder.resolve()
        recorded = BundleIdentity.load(folder) if (folder / IDENTITY).is_file() else None
        if recorded:
            recorded.check_files(folder, contents=False)  # the digests of gigabytes would take too long at every start
        config, generation = _read(folder / "config.json"), _read(folder / "generation_config.json")
        stops = generation.get("eos_token_id", config.get("eos_token_id"))
        tokenizer_config = _read(folder / "tokenizer_config.json")
        template = folder / "chat_template.jinja"
        text = template.read_text(encoding="utf-8") if template.is_file() else tokenizer_config.get("chat_template")
        if not isinstance(text, str) or not (folder / "tokenizer.json").is_file():
            raise SettingError(f"{folder}: lacks tokenizer.json or a chat template; is it a release of a chat model?")
        return cls(
            folder=folder,
            identity=recorded.model if recorded else _named_by(folder),
            origin=recorded.origin if recorded else Origin.of_release(folder),
            weights=recorded.weights if recorded else ("safetensors",),
            tokenizer=Tokenizer.from_file(str(folder / "tokenizer.json")),
            template=text,
            special={name: value["content"] if isinstance(value, dict) else value
                     for name, value in tokenizer_config.items() if name.endswith("_token") and value},
            stop_tokens=frozenset(stops if isinstance(stops, list) else [stops] if stops is not None else []),
            max_new_tokens=generation.get("max_new_tokens", 256),
            context=config.get("max_position_embeddings", 2048),
        )

    def encode(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """The tokens of a conversation, up to the assistant's turn; raises BadConversation."""
        clean = [{**message, "content": self._without_markers(message["content"])} for message in messages]
        try:
            text = self._compiled.render(messages=clean, add_generation_prompt=True, **self.special)
        except TemplateError as error:
            raise BadConversation(f"the model's chat template does not take these messages: {error}") from error
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decoder(self) -> Callable[[Sequence[int]], str]:
        """From an answer's tokens to the text they add; a character of several tokens comes with its last one."""
        stream = DecodeStream(skip_special_tokens=True)
        return lambda tokens: "".join(stream.step(self.tokenizer, token) or "" for token in tokens)

    def examples(self) -> list[str]:
        """Questions that this very bundle answered well when it was validated; none if it was not."""
        path = self.folder / VALIDATION
        if not path.is_file():
            return []
        found = parse_object(path.read_text(encoding="utf-8"), path)
        examples: list[str] = found.get("examples", [])  # older validations have none
        return examples if found.get("model_digest") == self.identity.digest else []

    @cached_property
    def _compiled(self) -> Any:
        environment = ImmutableSandboxedEnvironment(  # as transformers renders them
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(self.template)

    @cached_property
    def _markers(self) -> re.Pattern[str]:
        added = self.tokenizer.get_added_tokens_decoder().values()
        return re.compile("|".join(sorted(re.escape(token.content) for token in added if token.special)) or r"(?!)")

    def _without_markers(self, text: str) -> str:
        """Without the tokens that part the speakers, so that no message can speak as somebody else.

        Raises BadConversation if the rest contains such a token again; cutting on and on could take seconds.
        """
        cut = self._markers.sub("", text)
        if self._markers.search(cut):
            raise BadConversation("a message hides the tokens that part the speakers in one another")
        return cut


def _named_by(folder: Path) -> ServedModel:
    """A plain release is named by its folder, or in the Hub's cache by the repository and the commit."""
    cached = re.fullmatch(r"models--(.+)", folder.parents[1].name) if folder.parent.name == "snapshots" else None
    if cached:
        return ServedModel(cached[1].replace("--", "/"), None, folder.name, None)
    return ServedModel(folder.name, None, None, None)


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _read(path: Path) -> dict[str, Any]:
    try:
        return parse_object(path.read_text(encoding="utf-8"), path)
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"{path}: cannot be read: {error}; run prepare_assets.py again") from error
