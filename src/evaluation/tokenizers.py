"""The tokenizers that `evaluation.tokenizer` offers: sacrebleu's own, for BLEU and ROUGE-L.

With 13a, ROUGE-L keeps rouge_score's own tokenizer, which sees a-z and 0-9 alone. Any other serves both.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from rouge_score.tokenize import tokenize as rouge_tokens
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from src.core.errors import InvalidParams
from src.core.params import TOKENIZERS

_CLASSES = {
    "intl": ("tokenizer_intl", "TokenizerV14International"),
    "zh": ("tokenizer_zh", "TokenizerZh"),
    "char": ("tokenizer_char", "TokenizerChar"),
    "ja-mecab": ("tokenizer_ja_mecab", "TokenizerJaMecab"),
    "ko-mecab": ("tokenizer_ko_mecab", "TokenizerKoMecab"),
    "flores101": ("tokenizer_spm", "Flores101Tokenizer"),
    "flores200": ("tokenizer_spm", "Flores200Tokenizer"),
}
_INSTALL = {"ja-mecab": "sacrebleu[ja]", "ko-mecab": "sacrebleu[ko]", "flores101": "sentencepiece",
            "flores200": "sentencepiece"}
_DOCS = "docs/evaluation.md#languages"
Tokens = tuple[list[str], list[str]]
"""What BLEU counts, and what ROUGE-L counts."""


class Splitter(Protocol):
    """One tokenizer at work; `name` is what a signature calls it, a dictionary's version included."""

    name: str

    def split(self, text: str) -> Tokens:
        """The tokens of a text for BLEU and for ROUGE-L."""


class WordTokens(dict[str, Tokens]):
    """A cache from each whitespace-separated word to its 13a and its ROUGE tokens.

    Both tokenizers treat words independently, except for the two patterns that `split` checks for.
    """

    name = "13a"

    def __init__(self) -> None:
        super().__init__()
        self._tokenize = Tokenizer13a()

    def __missing__(self, word: str) -> Tokens:
        """The tokens of a word that was not seen yet, kept for the next time."""
        self[word] = tokens = (self._tokenize(word).split(), rouge_tokens(word, None))
        return tokens

    def split(self, text: str) -> Tokens:
        """The 13a and the ROUGE tokens of a text."""
        if "-\n" in text or "<skipped>" in text:  # 13a removes both, which can join words
            return self._tokenize(text.rstrip()).split(), rouge_tokens(text, None)
        bleu: list[str] = []
        rouge: list[str] = []
        for word in text.split():
            bleu_part, rouge_part = self[word]
            bleu += bleu_part
            rouge += rouge_part
        return bleu, rouge


class SharedTokens:
    """One tokenizer for BLEU and ROUGE-L."""

    def __init__(self, name: str, tokenize: Callable[[str], str]) -> None:
        self.name = name
        self._tokenize = tokenize

    def split(self, text: str) -> Tokens:
        """The same tokens twice; sacrebleu, too, takes blanks off the end first."""
        tokens = self._tokenize(text.rstrip()).split()
        return tokens, tokens


def load(name: str) -> Splitter:
    """The tokenizer of this name.

    Raises InvalidParams for an unknown one, and for one whose package or model is not on this machine. Nothing is
    downloaded.
    """
    if name not in TOKENIZERS:
        raise InvalidParams(f"evaluation.tokenizer: {name!r} is unknown; choose one of {', '.join(TOKENIZERS)}")
    if name == WordTokens.name:
        return WordTokens()
    module, kind = _CLASSES[name]
    if module == "tokenizer_spm":
        _require_model(name, kind)
    try:
        tokenizer = getattr(import_module(f"sacrebleu.tokenizers.{module}"), kind)()
    except (ImportError, RuntimeError, AssertionError):  # AssertionError: a dictionary of another version
        raise InvalidParams(f"evaluation.tokenizer: {name} needs a package that is not installed here; run "
                            f"`pip install '{_INSTALL[name]}'`, or choose another ({_DOCS})") from None
    return SharedTokens(tokenizer.signature(), tokenizer)


def reads(text: str) -> bool:
    """Whether 13a and rouge_score see at least half of the letters and digits of a text.

    13a splits at blanks and ASCII punctuation, rouge_score drops all but a-z and 0-9: Chinese, Thai or Arabic answers
    that equal their references score 0 in most metrics.
    """
    seen, there = sum(map(len, rouge_tokens(text, None))), sum(letter.isalnum() for letter in text)
    return seen > 0 and 2 * seen >= there


def _require_model(name: str, kind: str) -> None:
    from sacrebleu.tokenizers.tokenizer_spm import SPM_MODELS
    from sacrebleu.utils import SACREBLEU_DIR

    path = Path(SACREBLEU_DIR, "models", Path(SPM_MODELS[name]["url"]).name)
    if not path.is_file():
        raise InvalidParams(f"evaluation.tokenizer: {name} needs its model in {path}; download it once with `pip "
                            f"install sentencepiece` and `python -c 'from sacrebleu.tokenizers.tokenizer_spm import "
                            f"{kind}; {kind}()'`, or choose another ({_DOCS})")
