"""The release folder: assembled in a temporary folder, renamed into place, and verified by its answers."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import shutil
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from src.core.errors import IntegrityError
from src.core.records import manifest, read_object, sync

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from src.evaluation.predictions import GeneratedAnswer, Prediction
    from src.models.merging import Model, Tokenizer

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CARD = "README.md"
EVAL_RESULTS = ".eval_results/evaluation.yaml"
_TEMPORARY = ".release."
_AGAIN = "run `dvc repro` to assemble it afresh"
_ALLOWED = re.compile(
    r"(config|generation_config|model\.safetensors\.index|tokenizer|tokenizer_config|special_tokens_map|added_tokens"
    r"|vocab|champion)\.json|model(-\d{5}-of-\d{5})?\.safetensors|tokenizer\.model|merges\.txt|chat_template\.jinja|README\.md"
    r"|\.eval_results/evaluation\.yaml"
)

# Merged and unmerged logits differ by rounding alone, on Llama shapes of 2 to 22 layers by at most 4e-6, 3e-3 (12
# layers) and 3.4e-2; the adapter itself moved them by 0.08 to 0.5. The largest relative difference that passes:
LOGITS_TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 8e-2}
_BATCH = 8192  # tokens that are answered at once: with TinyLlama's cache of 22 KB a token, 180 MB
_COMPARED = 512  # tokens whose logits are compared, over all rows: 33 MB with a vocabulary of 32,000
# In lower precision than float32, the other rows of a batch change near-ties. So far below the first choice a scored
# token may lie, in standard deviations of the logits.
TIE_TOLERANCE = {"float32": 0.0, "float16": 2e-2, "bfloat16": 2e-1}
# The same for answers that are read and not generated again. Reading an answer sums in another order than generating
# it token by token in a padded batch. In float32, on 4 to 22 layers, that changed logits by at most 1.1e-5 standard
# deviations, and so a gap between two of them by at most twice that.
READ_TOLERANCE = {**TIE_TOLERANCE, "float32": 1e-4}


@dataclass(frozen=True)
class Verification:
    """Counts of a verified release.

    rows: answers that were generated again. equal: those of them that are equal token for token.
    answers: answers that were read. near_ties: their tokens that are not the first choice, but nearly.
    logits_difference: the relative difference to base and adapter unmerged.
    """

    rows: int
    equal: int
    answers: int
    near_ties: int
    logits_difference: float


def assemble_release(model: Model, tokenizer: Tokenizer, destination: Path, *, max_new_tokens: int,
                     texts: Mapping[str, str]) -> dict[str, str]:
    """Write a merged model as a release folder; returns its manifest (path to sha256).

    The folder appears by one rename, flushed, with manifest.json written last; equal inputs give equal bytes. texts
    are the other files (champion.json, card, evaluation results), path to content. Raises IntegrityError if the disk
    is too small.
    """
    from safetensors import SafetensorError

    from src.evaluation.generation import set_greedy
    from src.models.merging import save

    parent = destination.parent
    parent.mkdir(parents=True, exist_ok=True)
    folder = temporary(parent)
    try:
        _require_space(parent, model.get_memory_footprint())
        set_greedy(model, tokenizer, max_new_tokens=max_new_tokens)
        save(model, tokenizer, folder)
        files = complete(folder, texts)
        _put_in_place(folder, destination)
    except (OSError, SafetensorError) as error:
        _require_space(parent, model.get_memory_footprint())  # another process may have filled the disk meanwhile
        raise IntegrityError(f"{parent}: the release could not be written: {error}; look at the disk and its quota, "
                             "and run it again") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return files


def temporary(parent: Path) -> Path:
    """A new folder beside the release; the next call removes it if this process dies."""
    _remove_leftovers(parent)
    folder = parent / f"{_TEMPORARY}{os.getpid()}.{secrets.token_hex(4)}"
    folder.mkdir(parents=True)  # the umask decides who may read it
    return folder


def complete(folder: Path, texts: Mapping[str, str]) -> dict[str, str]:
    """Turn a folder with a model into a release: write these files and the manifest; returns path to sha256.

    Raises IntegrityError if the folder holds a file that is no part of a release.
    """
    for name, text in texts.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    files = manifest(folder)
    _check_names(folder, files)
    (folder / MANIFEST).write_text(json.dumps(files, indent=2, sort_keys=True) + "\n", encoding="ascii")
    return files


def check_release(folder: Path) -> dict[str, str]:
    """Check that a release folder holds exactly the files of its manifest; returns path to sha256.

    Raises IntegrityError for a changed, missing or additional file, InvalidInput if there is no manifest.
    """
    stated = read_object(folder / MANIFEST)
    found = manifest(folder)
    del found[MANIFEST]
    _check_names(folder, found)
    differing = sorted(name for name in stated.keys() | found if stated.get(name) != found.get(name))
    if differing:
        raise IntegrityError(f"{folder / differing[0]}: is not what {MANIFEST} says; {_AGAIN}")
    return found


def verify_release(folder: Path, *, base: Path, adapter: Path, dtype: str, predictions: Sequence[Prediction],
                   again: Sequence[int]) -> Verification:
    """Check that a release is the model that gave the scored answers. Raises IntegrityError if it is not.

    1. Its files match its manifest.
    2. Loaded from disk, it generates the answers at the places `again`: in float32 token for token, in lower
       precision up to near-ties.
    3. Each token of every answer is its own choice after the tokens before it, up to near-ties.
    4. Its logits are those of base and adapter unmerged, within rounding.
    """
    from src.evaluation.generation import answer, prompt_tokens
    from src.models.merging import load, load_with_adapter, logits, logits_difference

    check_release(folder)
    released, tokenizer = load(folder, "auto")
    if str(released.dtype) != f"torch.{dtype}":
        raise IntegrityError(f"{folder}: weights are {released.dtype}, expected {dtype}; {_AGAIN}")
    prompts = [prompt_tokens(tokenizer, row.prompt()) for row in predictions]
    chosen = [(prompts[place], predictions[place]) for place in again]
    answers = answer(released, tokenizer, [row.prompt() for _, row in chosen], tokens_per_batch=_BATCH)
    equal = sum(_same_answer(released, prompt, row, found, TIE_TOLERANCE[dtype])
                for (prompt, row), found in zip(chosen, answers, strict=True))
    near_ties = sum(_read(released, prompt, row, READ_TOLERANCE[dtype])
                    for prompt, row in zip(prompts, predictions, strict=True))
    sequences = [[*prompt, *row.tokens] for prompt, row in chosen]
    last = max(1, _COMPARED // len(sequences))
    device, of_release = released.device, list(logits(released, sequences, last=last))
    del released  # one model at a time
    unmerged = load_with_adapter(base, adapter, dtype)[0].to(device)
    difference = logits_difference(logits(unmerged, sequences, last=last), of_release)
    if not difference <= LOGITS_TOLERANCE[dtype]:  # NaN fails too
        raise IntegrityError(f"{folder}: logits differ from base and adapter by {difference:.2g}, "
                             f"{LOGITS_TOLERANCE[dtype]:.2g} is allowed in {dtype}; {_AGAIN}")
    return Verification(rows=len(chosen), equal=equal, answers=len(predictions), near_ties=near_ties,
                        logits_difference=difference)


def _same_answer(model: Model, prompt: list[int], scored: Prediction, found: GeneratedAnswer, tolerance: float) -> bool:
    """True for an equal answer, False if the first difference is a near-tie; otherwise raises IntegrityError."""
    from src.models.merging import preference_gaps

    if found.tokens == scored.tokens and found.text == scored.prediction:
        return True
    pairs = zip(found.tokens, scored.tokens, strict=False)
    common = [token for token, _ in takewhile(lambda pair: pair[0] == pair[1], pairs)]
    if tolerance and len(common) < len(scored.tokens):
        gap = preference_gaps(model, [*prompt, *common], [scored.tokens[len(common)]])[0]
        if gap <= tolerance:
            return False
    raise _differs(scored, len(common))


def _read(model: Model, prompt: list[int], scored: Prediction, tolerance: float) -> int:
    """The number of near-ties: tokens of an answer that are not the model's first choice, but nearly.

    Under the settings of `set_greedy`, which `answer` requires, the first choice is the largest logit, and an answer
    ends with the first stop token or after max_new_tokens. Raises IntegrityError for any other token or end.
    """
    from src.models.merging import preference_gaps

    settings, count = model.generation_config, len(scored.tokens)
    limit, stops = settings.max_new_tokens, set(settings.eos_token_id)
    end = next((number for number, token in enumerate(scored.tokens, 1) if token in stops), limit)
    vocabulary = model.get_input_embeddings().num_embeddings
    known = list(takewhile(lambda token: 0 <= token < vocabulary, scored.tokens[:end]))
    gaps = preference_gaps(model, prompt, known)
    wrong = next((place for place, gap in enumerate(gaps) if not gap <= tolerance), len(known))  # NaN is wrong too
    if wrong < end or count != end:
        raise _differs(scored, wrong)
    return sum(gap > 0 for gap in gaps)


def _differs(scored: Prediction, common: int) -> IntegrityError:
    return IntegrityError(f"release: row {scored.id} is answered differently from token {common + 1} on than when it "
                          f"was scored; {_AGAIN}, and if that ends here again, `dvc repro --force evaluation`")


def _check_names(folder: Path, files: Mapping[str, str]) -> None:
    foreign = sorted(name for name in files if not _ALLOWED.fullmatch(name))
    if foreign:
        raise IntegrityError(f"{folder / foreign[0]}: is no part of a release; {_AGAIN}")


def _require_space(folder: Path, weights: int) -> None:
    needed, free = int(weights * 1.05) + 2**24, shutil.disk_usage(folder).free
    if free < needed:
        raise IntegrityError(f"{folder}: {free} bytes are free, a release needs {needed}; make room and run it again")


def _put_in_place(folder: Path, destination: Path) -> None:
    """Flush to disk and rename. For a moment there may be no release folder, but never an incomplete one."""
    for path in (*folder.rglob("*"), folder):
        sync(path)
    aside = folder.with_name(f"{folder.name}.old")
    if destination.exists():
        destination.rename(aside)
    folder.rename(destination)
    sync(destination.parent)
    shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(parent: Path) -> None:
    """Remove the temporary folders of processes that are gone."""
    for folder in parent.glob(f"{_TEMPORARY}*"):
        owner = folder.name.removeprefix(_TEMPORARY).partition(".")[0]
        if not (owner.isdecimal() and _is_alive(int(owner))):
            logger.info("removing %s, left by a process that is gone", folder)
            shutil.rmtree(folder, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
