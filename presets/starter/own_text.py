"""The own text of the starter model: short chats built from sentences written for this project.

Owns: what the model knows of itself, of LoRA, of small talk and of simple instructions. It knows
nothing about tokens or training. Every product, shop and person in it is invented. The output is
the same on every machine: one fixed seed, no clock, no set order.
"""

import json
import random
from pathlib import Path

# Hand-written sentences; every name, shop and product in them is invented.
PHRASES = json.loads(Path(__file__).with_name("own_phrases.json").read_text(encoding="utf-8"))

SERVICE_SYSTEMS = [
    "You are a helpful assistant.",
    "You are a friendly service assistant.",
    "You help people to find and book what they need.",
    "You are a polite assistant. Answer briefly.",
    "You are an assistant for reservations, travel and events. Keep your answers short.",
    "Answer the customer in one or two sentences.",
    "You are the assistant of a booking service. Ask for what is missing before you book.",
    "You are LoRA Studio's starter model, a service assistant.",
]

Chat = list[dict]


def chat(*turns: str, system: str | None = None) -> Chat:
    """Messages from user and assistant turns in alternation."""
    messages = [{"role": "system", "content": system}] if system else []
    for number, turn in enumerate(turns):
        messages.append({"role": ("user", "assistant")[number % 2], "content": turn})
    return messages


def chats() -> list[Chat]:
    """All chats, a third of them with a system prompt of their own or a general one."""
    rng = random.Random("own text")
    found: list[Chat] = []
    for build in (
        questions,
        small_talk,
        politeness,
        sentiment,
        sorting,
        yes_or_no,
        summaries,
        product_answers,
        product_talks,
        shop_hours,
        extraction,
        styles,
        lists,
    ):
        found += build(rng)
    return [with_system(messages, rng) for messages in found]


def with_system(messages: Chat, rng: random.Random) -> Chat:
    if messages[0]["role"] == "system" or rng.random() > 0.3:
        return messages
    return [{"role": "system", "content": rng.choice(PHRASES["systems"])}, *messages]


def vary(text: str, rng: random.Random) -> str:
    """The same question as people type it: with less care for capitals and marks."""
    kind = rng.randrange(6)
    if kind == 0:
        return text.lower()
    if kind == 1:
        return text.rstrip("?.!")
    if kind == 2:
        return text.lower().rstrip("?.!")
    if kind == 3:
        return rng.choice(["Hi, ", "Hello, ", "Please tell me: ", "One question: "]) + (
            text[0].lower() + text[1:] if not text.startswith(("I ", "I'", "LoRA")) else text
        )
    return text


def questions(rng: random.Random) -> list[Chat]:
    """Who the model is and what LoRA is, each question in four spellings."""
    found = []
    for asked, answers in PHRASES["identity"] + PHRASES["knowledge"]:
        for question in asked:
            spellings = {question: 0, **{vary(question, rng): 0 for _ in range(4)}}
            found += [chat(spelling, rng.choice(answers)) for spelling in spellings]
    for _ in range(60):
        (first, answers), (second, more) = rng.sample(PHRASES["identity"] + PHRASES["knowledge"], 2)
        hello, reply = rng.choice(PHRASES["greetings"])
        found.append(chat(hello, reply, rng.choice(first), rng.choice(answers)))
        found.append(
            chat(rng.choice(first), rng.choice(answers), rng.choice(second), rng.choice(more))
        )
    return found


def small_talk(rng: random.Random) -> list[Chat]:
    found = []
    for said, reply in PHRASES["greetings"] + PHRASES["small_talk"]:
        found += [chat(said, reply), chat(vary(said, rng), reply)]
    for _ in range(120):
        (hello, reply), (said, answer) = (
            rng.choice(PHRASES["greetings"]),
            rng.choice(PHRASES["small_talk"]),
        )
        found.append(chat(hello, reply, vary(said, rng), answer))
    for name in PHRASES["people"]:
        found.append(chat(f"My name is {name}.", f"Nice to meet you, {name}! How can I help you?"))
        found.append(
            chat(
                f"Hi, I am {name}.",
                f"Hello {name}! What can I do for you?",
                "What is my name?",
                f"Your name is {name}.",
            )
        )
    return found


def politeness(rng: random.Random) -> list[Chat]:
    asks = [
        "Rewrite politely: {}",
        "Make this sentence polite: {}",
        "Please say this in a friendlier way: {}",
        "Rewrite this politely.\n{}",
        "How can I say this politely? {}",
    ]
    system = "Rewrite every message of the user politely."
    found = []
    for rude, polite in PHRASES["polite"]:
        for ask in rng.sample(asks, 3):
            found.append(chat(ask.format(rude), polite))
        found.append(chat(rude, polite, system=system))
    return found


def sentiment(rng: random.Random) -> list[Chat]:
    asks = [
        "Is this review positive or negative? {}",
        "Classify the sentiment: {}",
        "Classify the sentiment of this text as positive, negative or neutral.\n{}",
        "What is the sentiment of this sentence? {}",
    ]
    system = "Classify the sentiment of each message. Answer positive, negative or neutral."
    found = []
    for label, texts in PHRASES["reviews"].items():
        for text in texts:
            ask = rng.choice(asks[1:] if label == "neutral" else asks)
            found.append(chat(ask.format(text), label))
            found.append(chat(text, label, system=system))
            whole = f"The sentiment is {label}."
            found.append(chat(f"Tell me the sentiment in a full sentence: {text}", whole))
    return found


def sorting(rng: random.Random) -> list[Chat]:
    names = ", ".join(PHRASES["categories"])
    system = f"Sort each message into one of these categories: {names}. Answer with the category."
    found = []
    for category, texts in PHRASES["categories"].items():
        for text in texts:
            found.append(chat(text, category, system=system))
            ask = rng.choice(["Which category fits: {}? {}", "Choose one of {} for this: {}"])
            found.append(chat(ask.format(names, text), category))
    return found


def yes_or_no(rng: random.Random) -> list[Chat]:
    system = "Answer only yes or no."
    found = []
    for question, answer in PHRASES["yes_no"]:
        short, _ = answer.split(", ", 1)
        found.append(chat(question, answer))
        found.append(chat(f"Answer yes or no: {question}", short + "."))
        found.append(chat(question, short + ".", system=system))
        found.append(chat(vary(question, rng), answer))
    return found


def summaries(rng: random.Random) -> list[Chat]:
    asks = ["Summarise: {}", "Summarize in one sentence: {}", "Give me a short summary.\n{}"]
    found = []
    for text, short in PHRASES["summaries"]:
        found += [chat(ask.format(text), short) for ask in asks]
        found.append(chat(text, short, system="Summarise each message in one short sentence."))
    for _ in range(120):
        who, event, place = (
            rng.choice(PHRASES["people"]),
            rng.choice(PHRASES["events"]),
            rng.choice(PHRASES["places"]),
        )
        day = rng.choice(["Monday", "Tuesday", "Thursday", "Friday", "Saturday"])
        hour = rng.randrange(1, 9)
        text = (
            f"Hello all, this is {who}. I wanted to tell you that we will hold the {event} on "
            f"{day} at {hour} pm. Please come to {place} and bring something to write with."
        )
        short = f"{who} invites everyone to the {event} on {day} at {hour} pm at {place}."
        found.append(chat(rng.choice(asks).format(text), short))
    return found


def facts(product: dict, rng: random.Random) -> str:
    """A system prompt with the facts of a product, in a random order."""
    lines = [
        f"Price: ${product['price']}.",
        f"Colours: {product['colours']}.",
        f"Warranty: {product['warranty']} years.",
        f"Weight: {product['weight']}.",
        f"Care: {product['care']}",
    ]
    rng.shuffle(lines)
    intro = f"You answer questions about the {product['name']}, {product['what']}."
    return " ".join([intro, *lines])


def product_questions(product: dict, rng: random.Random) -> list[tuple[str, str]]:
    name = rng.choice([f"the {product['name']}", "it"])
    full = f"the {product['name']}"
    care = product["care"]
    return [
        (f"How much is {name}?", f"It costs ${product['price']}."),
        (f"What does {name} cost?", f"The {product['name']} costs ${product['price']}."),
        (f"Which colours are there for {full}?", f"You can choose {product['colours']}."),
        (
            f"How long is the warranty of {full}?",
            f"It has a warranty of {product['warranty']} years.",
        ),
        (f"How heavy is {name}?", f"It weighs {product['weight']}."),
        (f"How do I clean {full}?", care),
        (f"What is {full}?", f"The {product['name']} is {product['what']}."),
        (
            f"Does {full} come with a warranty?",
            f"Yes, the warranty is {product['warranty']} years.",
        ),
        (f"Does {name} come in purple?", f"No, it comes in {product['colours']}."),
        (f"Can I get {full} for free?", f"I am sorry, but it costs ${product['price']}."),
        (f"Who invented {full}?", "I am sorry, I do not have that information."),
        ("Do you ship abroad?", "I am sorry, I do not have that information."),
    ]


def priced(product: dict, rng: random.Random) -> dict:
    """The product with another price and warranty, so that answers must be read, not learned."""
    price = product["price"] + rng.randrange(0, 60)
    return {**product, "price": price, "warranty": rng.randrange(2, 6)}


def product_answers(rng: random.Random) -> list[Chat]:
    found = []
    for product in PHRASES["products"]:
        for _ in range(4):
            now = priced(product, rng)
            for question, answer in rng.sample(product_questions(now, rng), 6):
                found.append(chat(question, answer, system=facts(now, rng)))
    return found


def product_talks(rng: random.Random) -> list[Chat]:
    found = []
    for product in PHRASES["products"] * 5:
        now = priced(product, rng)
        pairs = rng.sample(product_questions(now, rng), 3)
        turns = [part for pair in pairs for part in pair]
        thanks, bye = rng.choice(PHRASES["feedback"])
        found.append(chat(*turns, thanks, bye, system=facts(now, rng)))
    return found


def shop_hours(rng: random.Random) -> list[Chat]:
    found = []
    for shop in PHRASES["shops"] * 8:
        opens, closes = rng.randrange(7, 11), rng.randrange(4, 10)
        closed = rng.choice(["Sunday", "Monday", "Wednesday"])
        place = rng.choice(PHRASES["places"])
        text = (
            f"You work for {shop}. We are open from {opens} am to {closes} pm and closed on "
            f"{closed}. You find us at {place}."
        )
        pairs = [
            ("When do you open?", f"We open at {opens} am."),
            ("When do you close?", f"We close at {closes} pm."),
            (
                "What are your opening hours?",
                f"We are open from {opens} am to {closes} pm, except on {closed}.",
            ),
            (f"Are you open on {closed}?", f"No, we are closed on {closed}."),
            ("Are you open on Friday?", f"Yes, from {opens} am to {closes} pm."),
            ("Where are you?", f"You find us at {place}."),
            ("Who are you?", f"I am the assistant of {shop}. How can I help you?"),
        ]
        turns = [part for pair in rng.sample(pairs, 2) for part in pair]
        found.append(chat(*turns, system=text))
    return found


def extraction(rng: random.Random) -> list[Chat]:
    found = []
    for _ in range(220):
        who, event, place = (
            rng.choice(PHRASES["people"]),
            rng.choice(PHRASES["events"]),
            rng.choice(PHRASES["places"]),
        )
        hour, half = rng.randrange(1, 12), rng.choice(["am", "pm"])
        text = rng.choice(
            [
                f"{who} goes to the {event} at {place} at {hour} {half}.",
                f"At {hour} {half} {who} will be at {place} for the {event}.",
                f"The {event} of {who} begins at {hour} {half} at {place}.",
            ]
        )
        question, answer = rng.choice(
            [
                ("Who is it about?", f"It is about {who}."),
                ("What time is it?", f"It is at {hour} {half}."),
                ("Where is it?", f"It is at {place}."),
                ("Extract the name.", who),
                ("Extract the time.", f"{hour} {half}"),
                ("Extract the place.", place),
                ("What is the occasion?", f"It is the {event}."),
            ]
        )
        found.append(chat(f"{text} {question}", answer))
    return found


def styles(rng: random.Random) -> list[Chat]:
    """One answer in several manners: the system prompt decides which."""
    manners = {
        "Answer formally.": "Certainly. {} Please let me know if I can be of further service.",
        "Answer like a good friend.": "Sure thing! {} Anything else?",
        "Begin every answer with a thank you.": "Thank you for asking. {}",
        "End every answer with a question.": "{} Is there anything else you would like to know?",
        "Answer very briefly.": "{}",
        "Be enthusiastic.": "Great question! {} Have fun!",
    }
    found = []
    for system, manner in manners.items():
        for product in PHRASES["products"]:
            now = priced(product, rng)
            pairs = product_questions(now, rng)[1:7]
            for question, answer in rng.sample(pairs, 2):
                prompt = f"{facts(now, rng)} {system}"
                found.append(chat(question, manner.format(answer), system=prompt))
    return found


def lists(rng: random.Random) -> list[Chat]:
    groups = {
        "fruits": "apples, pears, plums, grapes, cherries, lemons",
        "colours": "red, green, blue, yellow, black, white",
        "animals": "a dog, a cat, a horse, a bird, a fish, a cow",
        "cities": "Paris, London, Berlin, Madrid, Rome, Vienna",
        "drinks": "tea, coffee, water, milk, lemonade, juice",
        "tools": "a hammer, a saw, a file, a drill, a spade, a rake",
        "days of the week": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday",
        "kinds of weather": "sun, rain, snow, wind, fog, storm",
    }
    found = []
    for name, members in groups.items():
        for number, word in ((2, "two"), (3, "three"), (4, "four")):
            for ask in ("Name {} {}.", "List {} {}.", "Can you give me {} {}?"):
                chosen = rng.sample(members.split(", "), number)
                answer = ", ".join(chosen[:-1]) + " and " + chosen[-1] + "."
                found.append(chat(ask.format(word, name), answer[0].upper() + answer[1:]))
    return found


def play_chats(passages: list[str]) -> list[Chat]:
    """Questions for a line of a play, answered with a short speech of it."""
    rng = random.Random("plays")
    asks = [
        "Write a line of a play.",
        "Write a line of a play for {}.",
        "Give me a line in the manner of Shakespeare.",
        "What would {} say?",
        "Say something as {} in a play.",
    ]
    speeches = [speech for passage in passages for speech in passage.split("\n\n")]
    found = []
    for speech in rng.sample(speeches, min(500, len(speeches))):
        speaker, _, words = speech.partition(":\n")
        if words and len(words) < 200 and len(speaker) < 30:
            ask = rng.choice(asks).format(speaker.title())
            found.append(chat(ask, " ".join(words.split())))
    return found
