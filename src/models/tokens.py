"""Turn stored token ids into text again, without loading a model. No torch, unless a base has no tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

TOKENIZER_FILE = "tokenizer.json"


def decode(base: Path, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of token ids, stripped and without special tokens, by the tokenizer of a base model.

    It reads tokenizer.json itself; transformers, which generation uses, may read more (`decode_as_generated`).
    """
    path = base / TOKENIZER_FILE
    if not path.is_file():
        return decode_as_generated(base, sequences)
    tokenizer = Tokenizer.from_file(str(path))
    texts = tokenizer.decode_batch([list(tokens) for tokens in sequences], skip_special_tokens=True)
    return [text.strip() for text in texts]


def decode_as_generated(base: Path, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The same by transformers, as src.evaluation.generation does it; importing transformers takes seconds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    return [tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for tokens in sequences]
