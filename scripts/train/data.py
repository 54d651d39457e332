#!/usr/bin/env python3
"""Step 1: the data. Small instruct tasks from our own generator, so the licence of the weights is ours.

An example is a conversation: [(role, text), ...] whose last turn is the answer. Everything follows from a seed.
Held-out and training prompts are disjoint by construction: a generated prompt belongs to the held-out side
when a hash of its text says so, and questions from faq.py name their held-out wordings themselves.

    python3 scripts/train/data.py            # writes scripts/train/heldout.jsonl again (same bytes every time)
    python3 scripts/train/data.py --show 20  # prints some training examples

Python's standard library only; it is also imported by evaluate.py, which runs where no torch is installed.
"""
import argparse
import hashlib
import json
import os
import random

from faq import FAQ

HERE = os.path.dirname(os.path.abspath(__file__))
HELDOUT_FILE = os.path.join(HERE, "heldout.jsonl")

# ---- vocabulary of the tasks -----------------------------------------------------------------------------------

NAMES = "Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Kira Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()
CITIES = "Paris Berlin Rome Madrid Vienna Oslo Lisbon Prague Dublin Athens London Tokyo Cairo Lima Boston".split()
FRUITS = "apple banana cherry date fig grape kiwi lemon mango melon orange peach pear plum".split()
ANIMALS = "ant bear cat dog duck fox frog goat hare horse lion mouse owl rabbit sheep tiger wolf zebra".split()
THINGS = "ball book box bridge chair clock cup door garden hat house key lamp map river shoe table train window".split()
COLOURS = "red blue green yellow black white brown pink grey purple".split()
ADJECTIVES = "big small old new fast slow warm cold happy quiet brave clever".split()
VERBS = "runs sleeps sings jumps waits dances swims reads".split()
PLACES = "forest garden village harbour desert mountain castle valley city meadow".split()
JOBS = "baker doctor farmer painter pilot teacher writer nurse singer driver".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
TOPICS = "budget garden meeting report party concert project lesson holiday".split()
ORDINALS = "first second third fourth fifth".split()
NUMBER_WORDS = "zero one two three four five six seven eight nine ten".split()
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Austria": "Vienna",
            "Norway": "Oslo", "Portugal": "Lisbon", "Greece": "Athens", "Japan": "Tokyo", "Egypt": "Cairo",
            "Peru": "Lima", "Ireland": "Dublin", "Poland": "Warsaw", "Sweden": "Stockholm", "Finland": "Helsinki"}
OPPOSITES = [("big", "small"), ("hot", "cold"), ("fast", "slow"), ("old", "new"), ("happy", "sad"), ("up", "down"),
             ("left", "right"), ("open", "closed"), ("light", "dark"), ("day", "night"), ("early", "late"),
             ("loud", "quiet"), ("full", "empty"), ("high", "low")]
WORDS = FRUITS + ANIMALS + THINGS
# Text outside ASCII, so that outputs hold UTF-8 sequences of two, three and four bytes.
FOREIGN = ["café", "naïve", "über", "señor", "Zürich", "crème brûlée", "élève", "smörgås", "garçon", "déjà vu",
           "你好", "谢谢", "世界", "日本", "東京", "猫", "ありがとう", "こんにちは", "한국", "안녕",
           "😀", "🎉", "🚀", "🌍", "🐱", "🍎", "👍", "❤", "Привет", "мир"]


def plural_s(n):
    return "" if n == 1 else "s"


# ---- tasks: each takes a random generator and returns (prompt, answer) -------------------------------------------

def task_add(r):
    a, b = r.randint(1, 99), r.randint(1, 99)
    return r.choice(["{a} + {b}", "What is {a} + {b}?", "Add {a} and {b}.", "What is {a} plus {b}?"]).format(a=a, b=b), \
        f"{a} + {b} = {a + b}"


def task_subtract(r):
    a, b = sorted((r.randint(1, 99), r.randint(1, 99)), reverse=True)
    return r.choice(["{a} - {b}", "What is {a} - {b}?", "Subtract {b} from {a}.", "What is {a} minus {b}?"]).format(a=a, b=b), \
        f"{a} - {b} = {a - b}"


def task_compare(r):
    a, b = r.sample(range(1, 100), 2)
    if r.random() < 0.5:
        ask = r.choice(["Which is larger, {a} or {b}?", "Which number is larger: {a} or {b}?", "Is {a} larger or {b}?"])
        return ask.format(a=a, b=b), f"{max(a, b)} is larger than {min(a, b)}."
    ask = r.choice(["Which is smaller, {a} or {b}?", "Which number is smaller: {a} or {b}?", "Is {a} smaller or {b}?"])
    return ask.format(a=a, b=b), f"{min(a, b)} is smaller than {max(a, b)}."


def task_even_odd(r):
    n = r.randint(1, 999)
    return r.choice(["Is {n} even or odd?", "Is the number {n} odd or even?", "{n}: even or odd?"]).format(n=n), \
        f"{n} is {'odd' if n % 2 else 'even'}."


def task_times_table(r):
    n, upto = r.randint(2, 12), r.randint(3, 12)
    ask = r.choice(["Write the {n} times table up to {u}.", "Give me the table of {n} up to {u}.",
                    "Multiply {n} by 1 to {u}.", "Please write the {n} times table, up to {u}.",
                    "Show the table of {n} from 1 to {u}."])
    return ask.format(n=n, u=upto), "\n".join(f"{i} x {n} = {i * n}" for i in range(1, upto + 1))


def task_count_range(r):
    a, n = r.randint(0, 60), r.randint(3, 15)
    if r.random() < 0.3:
        ask = r.choice(["Count down from {b} to {a}.", "Count backwards from {b} to {a}."])
        return ask.format(a=a, b=a + n), ", ".join(str(i) for i in range(a + n, a - 1, -1))
    ask = r.choice(["Count from {a} to {b}.", "List the numbers from {a} to {b}.", "Please count from {a} up to {b}."])
    return ask.format(a=a, b=a + n), ", ".join(str(i) for i in range(a, a + n + 1))


def task_count_words(r):
    words = [r.choice(COLOURS + WORDS + ADJECTIVES) for _ in range(r.randint(2, 8))]
    ask = r.choice(["How many words: {t}", "Count the words: {t}", "How many words are in \"{t}\"?"])
    return ask.format(t=" ".join(words)), f"There are {NUMBER_WORDS[len(words)]} words."


def pick_list(r, low=3, high=5):
    pool = r.choice([FRUITS, ANIMALS, THINGS, COLOURS, WORDS])
    return r.sample(pool, r.randint(low, high))


def task_reverse(r):
    items = pick_list(r, 3, 6)
    ask = r.choice(["Reverse this list: {t}", "Reverse: {t}", "Write the list backwards: {t}", "Turn the list around: {t}"])
    return ask.format(t=", ".join(items)), ", ".join(reversed(items))


def task_sort_words(r):
    items = pick_list(r, 3, 5)
    ask = r.choice(["Sort these words: {t}", "Sort: {t}", "Sort alphabetically: {t}", "Put these words in order: {t}"])
    return ask.format(t=", ".join(items)), ", ".join(sorted(items))


def task_sort_numbers(r):
    items = r.sample(range(1, 100), r.randint(3, 5))
    ask = r.choice(["Sort these numbers: {t}", "Sort: {t}", "Sort from small to large: {t}", "Put these numbers in order: {t}"])
    return ask.format(t=", ".join(map(str, items))), ", ".join(map(str, sorted(items)))


def task_largest(r):
    items = r.sample(range(1, 100), r.randint(3, 5))
    largest = r.random() < 0.5
    word = "largest" if largest else "smallest"
    ask = r.choice(["What is the {w} number: {t}", "Find the {w} of {t}", "Which is the {w}: {t}"])
    return ask.format(w=word, t=", ".join(map(str, items))), \
        f"The {word} number is {max(items) if largest else min(items)}."


def task_nth(r):
    items = pick_list(r, 3, 5)
    k = r.randint(0, len(items))  # len(items) stands for "last"
    word, item = ("last", items[-1]) if k == len(items) else (ORDINALS[k], items[k])
    ask = r.choice(["What is the {w} item of: {t}", "Give me the {w} word of: {t}", "Which item is {w}: {t}"])
    return ask.format(w=word, t=", ".join(items)), f"The {word} item is {item}."


def task_case(r):
    words = [r.choice(COLOURS + ADJECTIVES), r.choice(WORDS)] + [r.choice(VERBS)] * (r.random() < 0.5)
    text = " ".join(["the"] + words)
    if r.random() < 0.5:
        return r.choice(["Write in capitals: {t}", "Make uppercase: {t}", "Uppercase: {t}"]).format(t=text), text.upper()
    return r.choice(["Write in small letters: {t}", "Make lowercase: {t}", "Lowercase: {t}"]).format(t=text.upper()), text


def task_repeat(r):
    words = [r.choice(FOREIGN if r.random() < 0.45 else WORDS + NAMES) for _ in range(r.randint(2, 6))]
    ask = r.choice(["Repeat: {t}", "Repeat this exactly: {t}", "Say this again: {t}", "Copy this text: {t}"])
    return ask.format(t=" ".join(words)), " ".join(words)


def task_replace(r):
    first, second, new = r.sample(ANIMALS, 3)
    text = f"The {r.choice(COLOURS)} {first} {r.choice(VERBS)} near the {r.choice(COLOURS)} {second}."
    old = r.choice([first, second])
    ask = r.choice(["Replace {o} with {n}: {t}", "Write {n} instead of {o}: {t}", "Change {o} to {n}: {t}"])
    # Only whole words: "ant" must not change inside another word.
    return ask.format(o=old, n=new, t=text), " ".join(new if w == old else new + "." if w == old + "." else w
                                                      for w in text.split(" "))


def task_bullets(r):
    items = pick_list(r, 3, 6)
    if r.random() < 0.5:
        ask = r.choice(["Make a bullet list: {t}", "Write as bullet points: {t}", "Bullet list of: {t}"])
        return ask.format(t=", ".join(items)), "\n".join("- " + i for i in items)
    ask = r.choice(["Make a numbered list: {t}", "Number these items: {t}", "Numbered list of: {t}"])
    return ask.format(t=", ".join(items)), "\n".join(f"{k}. {i}" for k, i in enumerate(items, 1))


def person(r):
    """A sentence about somebody and the same facts as JSON, in one of a few shapes."""
    name, age, city, job = r.choice(NAMES), r.randint(18, 79), r.choice(CITIES), r.choice(JOBS)
    n, colour, thing = r.randint(2, 9), r.choice(COLOURS), r.choice(THINGS)
    return r.choice([
        (f"{name} is {age} years old and lives in {city}.", {"name": name, "age": age, "city": city}),
        (f"{name} works as a {job} in {city}.", {"name": name, "job": job, "city": city}),
        (f"{name} is {age} years old and works as a {job}.", {"name": name, "age": age, "job": job}),
        (f"{name} buys a {colour} {thing} for {n} coins.", {"name": name, "item": thing, "colour": colour, "price": n}),
    ])


def task_to_json(r):
    sentence, facts = person(r)
    ask = r.choice(["Turn into JSON: {t}", "Write as JSON: {t}", "Convert this sentence to JSON: {t}", "JSON for: {t}"])
    return ask.format(t=sentence), json.dumps(facts)


def task_from_json(r):
    sentence, facts = person(r)
    ask = r.choice(["Turn into a sentence: {t}", "Write as a sentence: {t}", "Convert this JSON to a sentence: {t}", "Sentence for: {t}"])
    return ask.format(t=json.dumps(facts)), sentence


def task_table(r):
    rows = [(n, r.randint(18, 79)) for n in r.sample(NAMES, r.randint(2, 4))]
    text = ", ".join(f"{n} {a}" for n, a in rows)
    ask = r.choice(["Make a table of name and age: {t}", "Write as a table: {t}", "Name and age as a table: {t}"])
    return ask.format(t=text), "\n".join(["| name | age |", "| --- | --- |"] + [f"| {n} | {a} |" for n, a in rows])


def task_story(r):
    animal, place, name = r.choice(ANIMALS), r.choice(PLACES), r.choice(NAMES)
    ask = r.choice(["Tell a story about a {a} named {n} in the {p}.", "Write a short story about {n} the {a} in the {p}.",
                    "A story about {n}, a {a} in the {p}, please."])
    # The plot follows from the place, so that one prompt has exactly one right answer.
    middle = {
        "forest": "One morning {n} found a tall tree full of golden leaves.",
        "garden": "One morning {n} found a gate that nobody had opened for years.",
        "village": "One evening all the lamps in the village went out.",
        "harbour": "One evening a ship with blue sails came in from the sea.",
        "desert": "One day {n} followed a line of stars to a hidden well.",
        "mountain": "One day {n} climbed to the top and saw the whole world.",
        "castle": "One night {n} heard music behind a secret door.",
        "valley": "One night the river began to sing an old song.",
        "city": "One day {n} got lost among the tall houses.",
        "meadow": "One morning the meadow was covered with white flowers.",
    }[place].format(n=name)
    friend = ANIMALS[(ANIMALS.index(animal) + 1) % len(ANIMALS)]
    return ask.format(a=animal, n=name, p=place), (
        f"Once upon a time there was a {animal} named {name} who lived in the {place}. {middle} "
        f"{name} called a friend, the {friend}, and together they looked around. "
        f"In the evening they went home, happy and tired. From then on {name} the {animal} was never alone in the {place}.")


def task_email(r):
    to, sender = r.sample(NAMES, 2)
    topic, day = r.choice(TOPICS), r.choice(DAYS)
    ask = r.choice(["Write an email to {t} from {s} about the {c} on {d}.", "Email from {s} to {t}: the {c} on {d}.",
                    "Please write a mail from {s} to {t} about the {c} on {d}."])
    return ask.format(t=to, s=sender, c=topic, d=day), (
        f"Dear {to},\n\nI am writing about the {topic} on {day}. Please let me know if the time suits you. "
        f"I look forward to seeing you there.\n\nBest wishes,\n{sender}")


OPS = {  # word: (Python expression, C expression)
    "add": ("a + b", "a + b"), "subtract": ("a - b", "a - b"), "multiply": ("a * b", "a * b"),
    "divide": ("a / b", "a / b"), "maximum": ("a if a > b else b", "a > b ? a : b"),
    "minimum": ("a if a < b else b", "a < b ? a : b"), "average": ("(a + b) / 2", "(a + b) / 2"),
    "remainder": ("a % b", "a % b"),
}
LIST_OPS = {"sum": ("total = 0", "total += value", "total"), "count": ("total = 0", "total += 1", "total"),
            "product": ("total = 1", "total *= value", "total")}


def task_code(r):
    kind = r.randint(0, 3)
    if kind == 0:
        op = r.choice(sorted(OPS))
        a, b = r.choice([("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("left", "right"), ("first", "second")])
        expr = {"a": a, "b": b}
        body = "".join(expr.get(c, c) for c in OPS[op][0]) if "else" not in OPS[op][0] else \
            f"{a} if {a} {'>' if op == 'maximum' else '<'} {b} else {b}"
        ask = r.choice(["Write a Python function {o} of {a} and {b}.", "Python function: {o} of {a} and {b}",
                        "Write {o}({a}, {b}) in Python."])
        return ask.format(o=op, a=a, b=b), f"def {op}({a}, {b}):\n    return {body}"
    if kind == 1:
        op = r.choice(sorted(OPS))
        a, b = r.choice([("a", "b"), ("x", "y"), ("m", "n"), ("p", "q"), ("left", "right"), ("first", "second")])
        body = "".join({"a": a, "b": b}.get(c, c) for c in OPS[op][1])
        ask = r.choice(["Write a C function {o} of {a} and {b}.", "C function: {o} of {a} and {b}", "Write {o}({a}, {b}) in C."])
        return ask.format(o=op, a=a, b=b), f"int {op}(int {a}, int {b})\n{{\n    return {body};\n}}"
    if kind == 2:
        op, arg = r.choice(sorted(LIST_OPS)), r.choice(["values", "items", "numbers", "data", "prices", "ages"])
        start, step, result = LIST_OPS[op]
        ask = r.choice(["Write a Python function {o} of the list {a}.", "Python function: {o} of a list {a}",
                        "Write {o}({a}) for a list in Python."])
        return ask.format(o=op, a=arg), f"def {op}({arg}):\n    {start}\n    for value in {arg}:\n        {step}\n    return {result}"
    n, var, lang = r.randint(2, 99), r.choice("ijkn"), r.choice(["Python", "C"])
    ask = r.choice(["Write a {l} loop with {v} that prints 0 to {n}.", "{l} loop: print 0 to {n} with {v}"])
    if lang == "Python":
        return ask.format(l=lang, v=var, n=n), f"for {var} in range({n + 1}):\n    print({var})"
    return ask.format(l=lang, v=var, n=n), f"for (int {var} = 0; {var} <= {n}; {var}++) {{\n    printf(\"%d\\n\", {var});\n}}"


def task_facts(r):
    """Calendar, capitals and opposites: little knowledge, many wordings."""
    ending = r.choice(["", " Please.", " Thanks.", " Thank you.", " I forgot.", " Tell me, please."])
    kind = r.randint(0, 3)
    if kind == 0:
        i, after = r.randrange(7), r.random() < 0.5
        ask = r.choice(["What day comes {w} {d}?", "Which day is {w} {d}?", "Tell me the day {w} {d}."])
        return ask.format(w="after" if after else "before", d=DAYS[i]) + ending, \
            f"The day {'after' if after else 'before'} {DAYS[i]} is {DAYS[(i + (1 if after else -1)) % 7]}."
    if kind == 1:
        i, after = r.randrange(12), r.random() < 0.5
        ask = r.choice(["What month comes {w} {d}?", "Which month is {w} {d}?", "Tell me the month {w} {d}."])
        return ask.format(w="after" if after else "before", d=MONTHS[i]) + ending, \
            f"The month {'after' if after else 'before'} {MONTHS[i]} is {MONTHS[(i + (1 if after else -1)) % 12]}."
    if kind == 2:
        country = r.choice(sorted(CAPITALS))
        ask = r.choice(["What is the capital of {c}?", "Name the capital of {c}.", "Which city is the capital of {c}?"])
        return ask.format(c=country) + ending, f"The capital of {country} is {CAPITALS[country]}."
    pair = r.choice(OPPOSITES)
    a, b = pair if r.random() < 0.5 else pair[::-1]
    ask = r.choice(["What is the opposite of {a}?", "Name the opposite of {a}.", "Opposite of {a}?"])
    return ask.format(a=a) + ending, f"The opposite of {a} is {b}."


# Weight in the training mix: more for what needs more examples to be learned.
TASKS = {
    "add": (task_add, 1.6), "subtract": (task_subtract, 1.6), "compare": (task_compare, 0.8), "even_odd": (task_even_odd, 0.4),
    "times_table": (task_times_table, 0.8), "count_range": (task_count_range, 0.9), "count_words": (task_count_words, 0.9),
    "reverse": (task_reverse, 1.2), "sort_words": (task_sort_words, 1.6), "sort_numbers": (task_sort_numbers, 1.3),
    "largest": (task_largest, 1.0), "nth": (task_nth, 1.0), "case": (task_case, 1.0), "repeat": (task_repeat, 1.4),
    "replace": (task_replace, 0.9), "bullets": (task_bullets, 0.8), "to_json": (task_to_json, 1.1),
    "from_json": (task_from_json, 1.0), "table": (task_table, 0.8), "story": (task_story, 1.0), "email": (task_email, 0.8),
    "code": (task_code, 1.1), "facts": (task_facts, 0.8),
}
FAQ_WEIGHT = 2.0  # 40-odd long answers to know by heart
FAQ_NAME = "trimode"
TASK_NAMES = list(TASKS) + [FAQ_NAME]
SYSTEM_PROMPTS = ["You are a helpful assistant.", "You are nano, a small model.", "Answer briefly.",
                  "You are a friendly assistant. Be short."]


# ---- sides, wording variants, conversations ----------------------------------------------------------------------

def is_heldout(prompt):
    """One prompt in twenty-five belongs to the held-out side, whatever seed produced it."""
    return hashlib.sha256(prompt.encode()).digest()[0] < 10


def vary(r, text):
    """Another spelling of a question; people do not type as lists of questions do."""
    text = text.rstrip("?.! ") if r.random() < 0.3 else text
    if r.random() < 0.25:
        text = text.lower()
    elif r.random() < 0.1:
        text = text[0].lower() + text[1:]
    return r.choice(["Please: ", "Hi! ", "Hello, ", "I have a question. ", "One question: ", "So, "]) + text if r.random() < 0.12 else text


def training_turn(r, weights):
    """One (task, prompt, answer) of the training side."""
    if r.random() < FAQ_WEIGHT / (FAQ_WEIGHT + sum(weights)):
        answer, ask, _ = r.choice(FAQ)
        return FAQ_NAME, vary(r, r.choice(ask)), answer
    name = r.choices(NAMES_OF_TASKS, weights)[0]
    while True:
        prompt, answer = TASKS[name][0](r)
        if not is_heldout(prompt):
            return name, prompt, answer


NAMES_OF_TASKS = list(TASKS)
PLAIN_MIX = [w for _, w in TASKS.values()]
# What training draws: much of what gives few tokens to learn from (sums), and of copying and ordering, which take longest.
CHANGES = {"add": 5.0, "subtract": 5.0, "even_odd": 0.6, "times_table": 0.7, "count_range": 0.9, "count_words": 1.5, "reverse": 1.3,
           "sort_words": 2.0, "sort_numbers": 2.0, "largest": 1.5, "case": 1.4, "repeat": 1.8, "replace": 1.6, "email": 0.6,
           "story": 0.8, "code": 1.4}
TRAIN_MIX = [CHANGES.get(name, w) for name, (_, w) in TASKS.items()]


def training_example(r, weights=PLAIN_MIX):
    """A conversation of the training side: (task, [(role, text), ...]); some have a system or an earlier turn."""
    turns = []
    if r.random() < 0.12:
        turns.append(("system", r.choice(SYSTEM_PROMPTS)))
    for _ in range(r.choice([1, 1, 2]) if r.random() < 0.15 else 0):
        _, prompt, answer = training_turn(r, weights)
        turns += [("user", prompt), ("assistant", answer)]
    name, prompt, answer = training_turn(r, weights)
    return name, turns + [("user", prompt), ("assistant", answer)]


def render(turns):
    """The chat template's text of a conversation, ready for tokenizer.encode (specials by name).

    Returns (text up to and with the generation prompt, the last answer). chat_template.jinja does the same.
    """
    system = turns[0][1] if turns[0][0] == "system" else ""
    text = f"<|im_start|>system\n{system}<|im_end|>\n"
    for role, content in turns[:-1]:
        if role == "user":
            text += f"<|im_start|>user\n{content}<|im_end|>\n"
        elif role == "assistant":
            text += f"<|im_start|>assistant\n<think></think>{content}<|im_end|>\n"
    return text + "<|im_start|>assistant\n<think></think>", turns[-1][1]


def heldout(per_task=15, seed=7):
    """The held-out set: every task the same number of prompts, none of which training can produce."""
    out = []
    for name in NAMES_OF_TASKS:
        r, seen = random.Random(f"heldout {seed} {name}"), set()
        for _ in range(100000):  # a bound: a task with too few prompts must fail, not hang
            if len(seen) == per_task:
                break
            prompt, answer = TASKS[name][0](r)
            if is_heldout(prompt) and prompt not in seen:
                seen.add(prompt)
                out.append({"task": name, "prompt": prompt, "answer": answer})
        assert len(seen) == per_task, f"{name}: only {len(seen)} held-out prompts"
    r = random.Random(f"heldout {seed} faq")
    asks = [(a, q) for a, ask, held in FAQ for q in held if q not in ask]
    for answer, ask in r.sample(asks, 2 * per_task):
        out.append({"task": FAQ_NAME, "prompt": ask, "answer": answer})
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--show", type=int, default=0, help="print this many training examples instead")
    args = parser.parse_args()
    if args.show:
        r = random.Random(1)
        for _ in range(args.show):
            name, turns = training_example(r)
            print(f"[{name}]", " | ".join(f"{role}: {text}" for role, text in turns))
        return
    rows = heldout()
    with open(HELDOUT_FILE, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(rows)} held-out prompts of {len(TASK_NAMES)} tasks -> {os.path.relpath(HELDOUT_FILE)}")


if __name__ == "__main__":
    main()
