"""Make the bundle that the app serves: `python space/prepare_assets.py --model results/release`."""

import argparse
import json
import logging
import os
import secrets
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import packages  # noqa: F401 - a missing package is one line
from bundling.source import COMPRESSED, ExportError, Source, SourceError, compress, find, lacking
from files import read_lines, shown
from serving.identity import BundleError, BundleIdentity, Origin, ServedModel

logger = logging.getLogger("space")

HERE = Path(__file__).parent
_AROUND = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
           "README.md")
_QUESTIONS = 500


def main() -> int:
    """Exit 0 with a bundle in place, 2 if there is no release, 7 for one that asks for files outside of its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a release, or NAME[@REVISION] on the Hub")
    parser.add_argument("--output", type=Path, default=HERE / "assets",
                        help="default: space/assets; what other libraries print goes to a file beside it, assets.log")
    parser.add_argument("--weights", default="int8,int4", help="int8,int4 or one of them, or safetensors")
    parser.add_argument("--questions", type=Path, help="conversations (JSON lines) that the fallback may answer from")
    parser.add_argument("--version", type=int, help="version in the registry, if the release does not state it")
    parser.add_argument("--if-changed", action="store_true",
                        help="do nothing if the bundle there is of this model, name and version already")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    wanted = arguments.weights.split(",")
    if not set(wanted) <= {*COMPRESSED} and wanted != ["safetensors"]:
        parser.error(f"--weights {arguments.weights}: expected int8, int4, int8,int4 or safetensors")
    try:
        source = find(arguments.model, arguments.version)
        title = _served(source).title
        if arguments.if_changed and is_of(arguments.output, source):
            logger.info("%s: bundle of %s, up to date", shown(arguments.output), title)
            return 0
        logger.info("making the bundle of %s from %s", title, arguments.model)
        weights = prepare(source, arguments.output, wanted, arguments.questions)
    except (SourceError, BundleError, OSError) as error:
        logger.critical("%s", error)
        return error.code if isinstance(error, SourceError) else 2
    except KeyboardInterrupt:
        logger.critical("interrupted; run it again")
        return 130
    size = sum(path.stat().st_size for path in arguments.output.rglob("*") if path.is_file())
    logger.info("%s: bundle of %s, weights in %s, %.1f MB", shown(arguments.output), title,
                " and ".join(weights), size / 1e6)
    return 0


def is_of(output: Path, source: Source) -> bool:
    """Whether a complete bundle of this source lies there; never for a source that states no model digest."""
    try:
        identity = BundleIdentity.load(output)
    except BundleError:
        return False
    wanted = _served(source)
    return bool(wanted.digest) and identity.model == wanted and not identity.differences(output, contents=False)


def _served(source: Source) -> ServedModel:
    return ServedModel(source.model, source.version, source.commit, source.model_digest)


def prepare(source: Source, output: Path, wanted: list[str], questions: Path | None) -> list[str]:
    """Write the bundle beside its place and rename it there; returns the weights that it holds."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = output.with_name(f".bundle.{secrets.token_hex(4)}")
    folder.mkdir()  # the umask decides who may read it
    try:
        for name in _AROUND:
            if (source.folder / name).is_file():
                shutil.copyfile(source.folder / name, folder / name)
        log = output.with_name(f"{output.name}.log")
        log.unlink(missing_ok=True)
        weights = _write_weights(source.folder, folder, wanted, log)
        if questions:
            text = json.dumps(_first_turns(questions), indent=1)
            (folder / "questions.json").write_text(text + "\n", encoding="ascii")
        BundleIdentity.of(folder, _served(source), weights, Origin.of_release(source.folder)).write(folder)
        _replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return weights


def _write_weights(release: Path, folder: Path, wanted: list[str], log: Path) -> list[str]:
    if wanted != ["safetensors"]:
        reason = f"{', '.join(lacking())} missing in this environment" if lacking() else ""
        try:
            if not reason:
                for precision in wanted:
                    logger.info("compressing the weights to %s", precision)
                    with output_to(log):
                        compress(release, folder, precision)
                return wanted
        except ExportError as error:
            reason = str(error)
            for precision in wanted:
                shutil.rmtree(folder / precision, ignore_errors=True)
        logger.warning("not compressed: %s. The bundle holds the released weights; to serve them, torch and "
                       "transformers are needed, more memory and more time", reason)
    for path in release.glob("model*.safetensors*"):
        shutil.copyfile(path, folder / path.name)
    return ["safetensors"]


@contextmanager
def output_to(log: Path) -> Iterator[None]:
    """Append what is printed to a file, by C++ code too; names the file if the block fails."""
    kept = [os.dup(stream) for stream in (1, 2)]
    try:
        with log.open("a", encoding="utf-8") as file:
            for stream in (1, 2):
                os.dup2(file.fileno(), stream)
        yield
    except Exception:
        os.dup2(kept[1], 2)
        logger.error("what the libraries printed is in %s", shown(log))  # noqa: TRY400 - whoever catches it tells the error
        raise
    finally:
        sys.stdout.flush()
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)


def _first_turns(path: Path) -> list[dict[str, str]]:
    """First questions of the conversations with their answers, each once, up to a limit: every answer before any twice.

    With many questions for each answer, the first rows alone would leave most answers out.
    """
    found: dict[str, str] = {}
    for line in read_lines(path):
        messages = [each for each in line["messages"] if each["role"] != "system"]
        found.setdefault(messages[0]["content"], messages[1]["content"])
    seen = Counter[str]()
    ranked: list[tuple[int, dict[str, str]]] = []
    for question, answer in found.items():
        ranked.append((seen[answer], {"question": question, "answer": answer}))
        seen[answer] += 1
    return [each for _, each in sorted(ranked, key=lambda pair: pair[0])[:_QUESTIONS]]


def _replace(folder: Path, output: Path) -> None:
    aside = output.with_name(f".{output.name}.old.{os.getpid()}")
    if output.exists():
        output.rename(aside)
    folder.rename(output)
    shutil.rmtree(aside, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
