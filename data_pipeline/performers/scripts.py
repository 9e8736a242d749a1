"""What performers say: sentence templates for each language, with words to fill in. Held-out templates are apart."""

from __future__ import annotations

import re

import numpy as np

Script = tuple[tuple[str, ...], tuple[str, ...], dict[str, tuple[str, ...]]]  # training, held out, fillings

_EN: Script = (
    (
        "I went to the {place} with my {person} {time}.", "We bought some {food} and a big {thing}.",
        "Do you want to come to the {place} {time}?", "My {person} makes the best {food}.",
        "Please put the {thing} on the table.", "I think the {thing} is still at the {place}.",
        "Have you ever tried {food} for breakfast?", "That sounds {good}, tell me more about it.",
        "First you open the {thing}, then you push the blue button.", "It was a {good} day at the {place}.",
        "Maybe we should ask my {person} about the {thing}.", "The weather was {good} {time}.",
        "I really love {food} with butter.", "Oh, I forgot my {thing} at the {place}.",
    ),
    (
        "Somebody moved the {thing} behind the {place}.", "Could your {person} bring more {food} {time}?",
        "Nobody believed that the {thing} was so {good}.", "Over there you will find a {good} {place}.",
    ),
    {
        "place": ("market", "park", "museum", "beach", "office", "farm", "library", "village"),
        "person": ("mother", "brother", "best friend", "boss", "family", "teacher"),
        "food": ("apples", "bread", "soup", "pizza", "cheese", "plum pie", "beans"),
        "thing": ("map", "book", "box", "lamp", "camera", "paper boat", "phone", "umbrella"),
        "time": ("today", "last summer", "before lunch", "tomorrow", "on Monday", "this morning"),
        "good": ("wonderful", "perfect", "beautiful", "pretty good", "fabulous", "amazing"),
    },
)  # fmt: skip
_DE: Script = (
    (
        "Ich war {time} mit meiner {person} am {place}.", "Wir haben {food} und ein Buch gekauft.",
        "Meine {person} backt das beste {food}.", "Möchtest du {time} mitkommen?", "Das klingt wirklich {good}.",
        "Bitte bring mir noch etwas {food} mit.", "Am {place} war es heute {good}.", "Hast du meine {person} gesehen?",
    ),
    ("Niemand wusste, wo die {person} blieb.", "Vielleicht fahren wir {time} zum {place}.", "Dort oben ist es {good}."),
    {
        "place": ("Bahnhof", "Markt", "Fluss", "Park", "Strand"), "person": ("Mutter", "Freundin", "Familie", "Oma"),
        "food": ("Brot", "Obst", "Gemüse", "Apfelmus"), "time": ("heute", "morgen", "am Montag", "im Sommer"),
        "good": ("wunderbar", "prima", "sehr schön", "gemütlich"),
    },
)  # fmt: skip
_FR: Script = (
    (
        "Je suis allé au {place} avec ma {person}.", "Nous avons acheté du {food} {time}.", "C'est vraiment {good}.",
        "Est-ce que tu veux du {food} ?", "Ma {person} habite près du {place}.", "On part {time} en bateau.",
        "Je pense que le {place} est {good}.", "Bonjour, comment vas-tu {time} ?",
    ),
    ("Personne ne connaît ma {person}.", "Il faudrait trouver un {place} {time}.", "Quelle histoire, c'est {good} !"),
    {
        "place": ("marché", "musée", "parc", "cinéma", "port"), "person": ("mère", "sœur", "famille", "voisine"),
        "food": ("pain", "fromage", "beurre", "poisson"), "time": ("ce matin", "demain", "lundi", "cet été"),
        "good": ("magnifique", "parfait", "très beau", "bizarre"),
    },
)  # fmt: skip
_ES: Script = (
    (
        "Ayer fui al {place} con mi {person}.", "Compramos {food} y una mesa bonita.", "Me parece muy {good}.",
        "¿Quieres comer {food} {time}?", "Mi {person} vive cerca del {place}.", "Vamos al {place} {time}.",
        "No sé dónde está mi {person}.", "El tiempo está {good} {time}.",
    ),
    ("Nadie vio a mi {person} {time}.", "Hubo un baile {good} en el {place}.", "Falta un poco de {food}."),
    {
        "place": ("mercado", "museo", "parque", "pueblo", "mar"), "person": ("madre", "amiga", "familia", "abuelo"),
        "food": ("pan", "sopa", "pescado", "pimientos"), "time": ("hoy", "mañana", "el lunes", "por la tarde"),
        "good": ("bueno", "perfecto", "bonito", "estupendo"),
    },
)  # fmt: skip
_IT: Script = (
    (
        "Ieri sono andato al {place} con mia {person}.", "Abbiamo comprato {food} e un libro.",
        "Mi sembra molto {good}.",
        "Vuoi mangiare {food} {time}?", "Mia {person} abita vicino al {place}.", "Andiamo al {place} {time}.",
        "Non so dove sia mia {person}.", "Il tempo è {good} {time}.",
    ),
    ("Nessuno ha visto mia {person}.", "Serve ancora un po' di {food}.", "Che posto {good}, questo {place}!"),
    {
        "place": ("mercato", "museo", "parco", "porto", "bar"), "person": ("madre", "amica", "famiglia", "nonna"),
        "food": ("pane", "pizza", "pesce", "formaggio"), "time": ("oggi", "domani", "lunedì", "di mattina"),
        "good": ("bello", "perfetto", "piacevole", "buono"),
    },
)  # fmt: skip
_PT: Script = (
    (
        "Ontem fui ao {place} com minha {person}.", "Compramos {food} e um livro bonito.", "Parece muito {good}.",
        "Você quer comer {food} {time}?", "Minha {person} mora perto do {place}.", "Vamos ao {place} {time}.",
        "Não sei onde está minha {person}.", "O tempo está {good} {time}.",
    ),
    ("Ninguém viu minha {person} {time}.", "Falta um pouco de {food}.", "Foi um baile {good} no {place}."),
    {
        "place": ("mercado", "museu", "parque", "porto", "bar"), "person": ("mãe", "amiga", "família", "avó"),
        "food": ("pão", "sopa", "peixe", "bolo"), "time": ("hoje", "amanhã", "na segunda", "de manhã"),
        "good": ("bom", "perfeito", "bonito", "ótimo"),
    },
)  # fmt: skip
_NL: Script = (
    (
        "Ik ben {time} met mijn {person} naar de {place} geweest.", "We hebben {food} en een boek gekocht.",
        "Wil je {time} {food} eten?", "Mijn {person} woont bij de {place}.", "Dat klinkt heel {good}.",
        "Het weer was {time} {good}.", "Waar is mijn {person} gebleven?", "Mag ik nog een beetje {food}?",
    ),
    ("Niemand heeft mijn {person} gezien.", "Straks is het {good} bij de {place}.", "Er moet meer {food} bij."),
    {
        "place": ("markt", "haven", "bakker", "rivier", "boom"), "person": ("moeder", "broer", "familie", "buurvrouw"),
        "food": ("brood", "soep", "kaas", "appelmoes"), "time": ("vandaag", "morgen", "op maandag", "in mei"),
        "good": ("mooi", "prima", "bijzonder", "fijn"),
    },
)  # fmt: skip
SCRIPTS = {"en-us": _EN, "en-gb-x-rp": _EN, "de": _DE, "fr": _FR, "es": _ES, "it": _IT, "pt-br": _PT, "nl": _NL}
BACKCHANNELS = ("mhm", "mm", "aha", "hm hm")
LAUGH = "ha"


def sentence(rng: np.random.Generator, language: str, held_out: bool = False) -> str:
    """A random sentence of ``language``; training and held-out sentences come from disjoint templates."""
    training, apart, words = SCRIPTS[language]
    template = str(rng.choice(apart if held_out else training))
    return re.sub(r"\{(\w+)\}", lambda m: str(rng.choice(words[m.group(1)])), template)
