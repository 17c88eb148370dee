"""Turn stored token ids into text again, without loading a model. No torch, unless a base has no tokenizer.json."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from src.core.errors import InvalidInput

TOKENIZER_FILE = "tokenizer.json"


def decode(base: Path, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The text of each sequence of token ids, stripped and without special tokens, by the tokenizer of a base model.

    It reads tokenizer.json itself; transformers, which generation uses, may read more (`decode_as_generated`). Raises
    InvalidInput for a tokenizer that cannot be read.
    """
    path = base / TOKENIZER_FILE
    if not path.is_file():
        return decode_as_generated(base, sequences)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises Exception itself for every unreadable file
        raise _unreadable(path, error) from error
    texts = tokenizer.decode_batch([list(tokens) for tokens in sequences], skip_special_tokens=True)
    return [text.strip() for text in texts]


def decode_as_generated(base: Path, sequences: Sequence[Sequence[int]]) -> list[str]:
    """The same by transformers, as src.evaluation.generation does it; importing transformers takes seconds."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise _unreadable(base, error) from error
    return [tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False).strip()
            for tokens in sequences]


def _unreadable(path: Path, error: Exception) -> InvalidInput:
    what = (str(error).splitlines() or [""])[0]
    return InvalidInput(f"{path}: holds no tokenizer that can be read ({what:.120}); run `dvc repro base_model` to "
                        "write it afresh")
