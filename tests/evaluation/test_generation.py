"""Batches that do not fit the memory, which is really short here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.utils import get_max_memory
from transformers import GenerationConfig

from src.core.errors import InvalidParams
from src.evaluation import generation
from src.evaluation import generation as evaluation
from src.models import merging, placement
from tests.fakes import tiny_model

ROWS = 1200
REFUSED = f"""
import json, logging, re, resource, sys
from pathlib import Path
from src.evaluation import generation
from src.models import merging, placement
from tests.fakes import tiny_model
logging.basicConfig(stream=sys.stderr)
model, tokenizer = merging.load(Path(sys.argv[1]), "float32")
placement.fit_threads(model)
generation.set_greedy(model, tokenizer, max_new_tokens=3)
prompts = [generation.prompt_tokens(tokenizer, row.prompt()) for row in tiny_model.rows()] * ({ROWS} // 6)
expected, _ = generation.generate(model, prompts[:6], size=6)
used = 1024 * int(re.search(r"VmSize:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
resource.setrlimit(resource.RLIMIT_AS, (used + int(sys.argv[2]) * 1000**2, resource.RLIM_INFINITY))
answers, size = generation.generate(model, prompts, size={ROWS})
print(json.dumps([answers == expected * ({ROWS} // 6), size]))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model.write_base(folder)
    return folder


@pytest.fixture
def stopping(base: Path) -> merging.Model:
    """Every token is a stop token, so that an answer of any limit is one token long."""
    model, tokenizer = merging.load(base, "float32")
    model.generation_config = GenerationConfig(eos_token_id=list(range(300)))
    evaluation.set_greedy(model, tokenizer, max_new_tokens=1)
    return model


def limit_for(rows: int) -> int:
    """The max_new_tokens for which keys and values of so many rows just need the free memory of this machine."""
    bytes_per_token = 2 * 2 * 32 * 4  # keys and values, layers, hidden size, float32
    return int(get_max_memory()["cpu"] / (rows * bytes_per_token))


def refused(base: Path, megabytes: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", REFUSED, str(base), str(megabytes)], check=False, capture_output=True,
                          text=True, cwd=Path(__file__).parents[2])


def test_memory_that_is_refused_halves_the_batch_and_changes_no_answer(base: Path) -> None:
    done = refused(base, 60)
    assert done.returncode == 0, done.stderr
    same, size = json.loads(done.stdout)
    assert same
    assert 1 < size <= ROWS // 2
    assert f"generating {ROWS // 2} answers at a time" in done.stderr


def test_room_that_full_answers_would_lack_halves_the_batch_before_linux_kills(
    stopping: merging.Model, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [[5, 6, 7]] * 8
    stopping.generation_config.max_new_tokens = limit_for(6)
    answers, size = generation.generate(stopping, prompts, size=8)
    assert [len(answer) for answer in answers] == [1] * 8
    assert size == 4
    assert [record.message for record in caplog.records] == ["not enough memory: generating 4 answers at a time"]


def test_each_process_counts_on_its_share_of_the_room(
    stopping: merging.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping.generation_config.max_new_tokens = limit_for(6)
    monkeypatch.setattr(placement.state(), "num_processes", 2)
    _, size = generation.generate(stopping, [[5, 6, 7]] * 8, size=8)
    assert size == 2


def test_where_not_even_one_answer_fits_it_says_what_to_change(stopping: merging.Model) -> None:
    stopping.generation_config.max_new_tokens = 4 * limit_for(1)
    with pytest.raises(InvalidParams, match="not even one answer at a time fits the memory; lower"):
        generation.generate(stopping, [[5, 6, 7]] * 2, size=2)
