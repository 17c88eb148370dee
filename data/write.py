"""Write data/customer_support.csv from the tables beside it: `python data/write.py`.

Each table has intents, and each intent has facts and wordings. A wording is an answer with the questions that it
answers; <slot> stands for a fact. It is filled in once for every line of facts that has all slots of the answer, and
once in all if the answer has none. A fact may be a list: the answer takes the first name, a question any of them.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

import yaml

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from src.data.prepare import normalise  # noqa: E402

TABLES = ROOT / "data/tables"
OUTPUT = ROOT / "data/customer_support.csv"
KEPT_OUT = ROOT / "benchmarks/evaluation_232.jsonl"
QUESTIONS = 12  # for each answer with facts, of those that its wording lists
SEED = 20

GREETINGS = ("Hi.", "Hello.", "Hi there.", "Good morning.", "Good evening.", "Dear team.", "Hello Orvendale team.",
             "Just to be sure.", "I have a short question.", "I am new to Orvendale.", "I often order at Orvendale.",
             "I am writing from my phone.", "I looked everywhere on the page.", "I could not find this on your page.")
COMPLAINTS = ("I am not happy.", "This is really annoying.", "I am losing my patience.", "I have asked this before.")
PLEAS = ("Please help.", "I hope you can help.", "Please answer soon.")
THANKS = ("Thanks.", "Thank you.", "Thanks in advance.", "Many thanks for your help.")

REWORDED = 0.35  # the chance of each of these in a question where it fits
WORDS = {
    r"^How do I (.*)\?$": (r"I need help to \1.", r"I do not know how to \1.", r"Can you help me to \1?"),
    r"How do I ": ("How can I ", "How to ", "How should I "),
    r"^Can I ": ("Is it possible to ", "Could I ", "May I "), r"Can I ": ("Could I ",),
    r"Can you ": ("Could you ", "Would you ", "Will you "), r"Do you ": ("Do you guys ", "Does Orvendale "),
    r"I would like to ": ("I'd like to ", "I want to "), r"I want to ": ("I'd like to ", "I wanna ", "I need to "),
    r"Where do I find": ("Where can I find",), r"Please tell me ": ("Can you tell me ", "Tell me ", "I want to know "),
    r"my order\b(?! list)": ("my order", "my order", "my purchase"), r"What is ": ("What's ",),
    r"Where is ": ("Where's ",), r"It is ": ("It's ",), r"I am ": ("I'm ",), r"I would ": ("I'd ",),
    r"do not ": ("don't ",), r"does not ": ("doesn't ",), r"did not ": ("didn't ",), r"cannot |can not ": ("can't ",),
    r"is not ": ("isn't ",), r"have not ": ("haven't ",), r"has not ": ("hasn't ",),
    r"parcel": ("package",), r"article": ("item", "product"), r"colour": ("color",),
}

Facts = Mapping[str, str | Sequence[str]]


def names(fact: str | Sequence[str]) -> Sequence[str]:
    """All names of one fact."""
    return [fact] if isinstance(fact, str) else fact


def fill(text: str, facts: Facts, random: Random | None = None) -> str:
    """The text with a name for each slot: the first, or with `random` mostly the first; a sentence starts large."""
    def name(slot: re.Match[str]) -> str:
        first, *others = names(facts[slot[1]])
        return first if random is None or not others or random.random() < 0.5 else random.choice(others)

    filled = re.sub(r"<(\w+)>", name, text)
    sentence = filled[-1] in ".?!"
    return re.sub(r"(^|[.?!] )[a-z]", lambda start: start[0].upper(), filled) if sentence else filled


def reworded(question: str, random: Random) -> str:
    """The question, some of its words replaced by others that mean the same."""
    for words, others in WORDS.items():
        if random.random() < REWORDED:
            question = re.sub(words, random.choice(others), question)
    return question


def misspelt(text: str, random: Random) -> str:
    """The text with two letters exchanged within one of its longer words, if it has any."""
    words = [word.span() for word in re.finditer(r"\b[a-z]{5,}\b", text)]
    if not words:
        return text
    start, end = random.choice(words)
    place = random.randrange(start + 1, end - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2:]


def typed(question: str, answer: str, random: Random) -> tuple[str, str]:
    """The question as somebody may type it, and the answer to that."""
    draw = random.random()
    if draw < 0.20:
        question = question.rstrip(".?!").replace("? ", " ").replace("'", "").lower()
    elif draw < 0.24:
        question = misspelt(question, random)
    elif question[-1] not in ".?!":
        pass
    elif draw < 0.36:
        question = f"{random.choice(GREETINGS)} {question}"
    elif draw < 0.39:
        question = f"{question} {random.choice(PLEAS)}"
    elif draw < 0.43:
        question, answer = f"{question} {random.choice(THANKS)}", f"Thank you for asking. {answer}"
    elif draw < 0.46:
        question, answer = f"{random.choice(COMPLAINTS)} {question}", f"I am sorry that you are upset. {answer}"
    return question, answer


def asked(wording: Mapping[str, Sequence[str]], facts: Facts, taken: set[str], random: Random) -> Iterator[str]:
    """The questions for one answer, none of which was taken; adds them to `taken`."""
    forms = random.sample(wording["questions"], len(wording["questions"]))
    left = QUESTIONS if facts else len(forms)
    for form in forms:
        question = fill(form, facts, random)
        other = reworded(question, random)
        if left and taken.isdisjoint((bare(question), bare(other))):
            taken.update((bare(question), bare(other)))
            left -= 1
            yield other


def bare(question: str) -> str:
    """The letters of the question, without what `typed` may have added, in a row that no typing error changes."""
    before, after = ("|".join(map(re.escape, sentences)) for sentences in (GREETINGS + COMPLAINTS, PLEAS + THANKS))
    return "".join(sorted(normalise(re.sub(rf"^({before}) (?=.)| ({after})$", "", question))))


def rows() -> list[tuple[str, str, str]]:
    """Question, answer and intent of every row, in random order."""
    random = Random(SEED)  # noqa: S311 - data, not a secret
    taken = {bare(json.loads(line)["messages"][0]["content"])
             for line in KEPT_OUT.read_text(encoding="utf-8").splitlines()}
    found = []
    for path in sorted(TABLES.glob("*.yaml")):
        for intent, table in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            for wording in table["wordings"]:
                slots = set(re.findall(r"<(\w+)>", wording["answer"]))
                for facts in [facts for facts in table["facts"] if slots <= facts.keys()] if slots else [{}]:
                    answer = fill(wording["answer"], facts)
                    found += [(*typed(question, answer, random), intent)
                              for question in asked(wording, facts, taken, random)]
    random.shuffle(found)
    return found


def main() -> None:
    """Write the file."""
    with OUTPUT.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("instruction", "response", "intent"))
        writer.writerows(rows())


if __name__ == "__main__":
    main()
