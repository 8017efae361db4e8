"""What is hard to read, as regular expressions, each with what to write instead and an example that it must find."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from .passages import Passage

START = r"(?:^|(?<=[.!?:;] ))"
"""The beginning of a sentence or of a part of one."""
THINGS = (
    "answer|attribute|batch|call|character|client|completion|day|file|GB|host|label|line|loss|member|message|micro-batch|minute|model|"
    "node|pair|process|prompt|query|request|reward|row|sample|second|seed|step|text|token|word"
)
COUNTED = (
    r"(?<![-/.\w])(?:(?:bytes|characters|completions|heads|lines|nats|pairs|records|requests|rows|samples|seconds|texts|times|"
    r"tokens|values|words|one|two|three|four|five)|\d[\d,.]*%?(?: ?(?:s|ms|[KMG]i?B))?)"
)


@dataclass(frozen=True)
class Pattern:
    """A way of writing that makes readers stop, and what to write instead."""

    name: str
    expression: str
    instead: str
    example: str
    only_headings: bool = False
    in_docstrings: bool = True
    """False for what is hard in a page or a message, and common in a short line about code."""

    def hits(self, passage: Passage) -> Iterator[str]:
        """The places in a passage that it matches, with the words around them."""
        if (self.only_headings and not passage.is_heading) or (passage.is_docstring and not self.in_docstrings):
            return
        for match in re.finditer(self.expression, passage.text):
            before, after = passage.text[: match.start()].split(" "), passage.text[match.end() :].split(" ")
            yield f"{' '.join(before[-5:])}{match[0]}{' '.join(after[:5])}"


@dataclass(frozen=True)
class Measure:
    """A number of a sentence that is too large, and what to do about it."""

    name: str
    most: int
    count: Callable[[str], int]
    instead: str
    example: str
    in_docstrings: bool = True

    def hits(self, passage: Passage) -> Iterator[str]:
        """The sentences of a passage that have too much of it."""
        if passage.is_docstring and not self.in_docstrings:
            return
        for sentence in sentences(passage.text):
            if self.count(sentence) > self.most and not sentence.startswith(("Source:", "Formula:")):
                yield sentence


def sentences(text: str) -> list[str]:
    """The sentences of a passage."""
    text = re.sub(r"\b(e\.g|i\.e|vs|etc|arXiv|cf|no|et al)\.", r"\1", text)
    return re.split(r"(?<=[.!?])[)\"'”]*\s+", text)


def words_of(sentence: str) -> int:
    """The words of a sentence; a list of names or values in parentheses counts as one."""
    short = re.sub(r"\((?:[^()]*,){2,}[^()]*\)", "(list)", sentence)
    short = re.sub(r"\bCODE(?:(?:,| and| or|, and|, or| to) CODE)+", "CODE", short)
    return len(re.findall(r"[A-Za-z0-9][\w'’.,%-]*", short))


PATTERNS: list[Pattern | Measure] = [
    Pattern(
        "X is no Y",
        r"(?<!\b[Tt]here )\b(?:is|are|was|were|be) no (?!(?:longer|more|less|fewer|larger|smaller)\b)[\w'-]+",
        "is not a ...",
        "The body is no JSON.",
    ),
    Pattern(
        "none as a pronoun",
        r"\b[Nn]one of\b|(?<!\b[Tt]here )\b(?:is|are|was|were|be) none\b|(?:^|[.;:,] )[Nn]one (?:is|are|was|may|can|has|have|gets?)\b",
        "no ..., not any ..., is not a ...",
        "Phrases none of which may occur",
        in_docstrings=False,
    ),
    Pattern(
        "nobody, nothing tells",
        r"\b[Nn]obody\b|\b[Nn]othing (?:tells|says|is said|here)\b",
        "no client, no file ...; only; a sentence with a subject that does something",
        "Nobody is blamed for it.",
    ),
    Pattern(
        "behind for after",
        r"(?<!\bstay )(?<!\bleft )\b[Bb]ehind\b(?! (?:an?|the|your|our|this|another|several)? ?(?:reverse |same )?"
        r"(?:prox(?:y|ies)|load balancer|NAT|gateway|"
        r"firewall|limit)\b)",
        "after, following, in, inside",
        "Going ahead behind 20 rows",
    ),
    Pattern(
        "one a member",
        rf"\b{COUNTED} an? (?:{THINGS})\b(?!-)",
        "per: one per member, seconds per step",
        "give one a member",
    ),
    Pattern(
        "goes on",
        r"\b[Gg](?:o|oes|oing|one) on\b|\b[Ww]ent on\b",
        "continues, resumes",
        "Going on after 20 rows",
    ),
    Pattern(
        "to be had",
        r"\b(?:be|been|is|are) had\b",
        "available, unavailable",
        "PPO is not to be had with this TRL.",
    ),
    Pattern(
        "is to be",
        r"\b(?:is|are|was|were) to be\b",
        "must be, will be, can be",
        "a text that is to be scored",
    ),
    Pattern("hangs on", r"\b(?:hangs?|hung|hanging) on\b", "depends on", "What is drawn hangs on the seed."),
    Pattern(
        "wherever ... one",
        r"\b[Ww]herever\b.{0,60}\b(?:is|was|were|one)\b",
        "everywhere that ..., can be used in place of ...",
        "is a spec wherever the folder was one",
    ),
    Pattern(
        "says whether",
        r"\b(?:says?|said|tells?|told|states?) (?:whether|if|which|who|whose|so)\b",
        "the verb for what it does: checks that, shows whether, sets, names, warns",
        "verify says whether a folder still scores",
    ),
    Pattern(
        "is said",
        r"\b(?:is|are|was|were|be|been|not|what it|how it|which is) said\b|\bsaid aloud\b",
        "who says what: the error names ..., a warning says ...",
        "What is said of a tie",
    ),
    Pattern("hard put", r"\bhard(?:er)? put\b", "finds it hard to, can hardly", "it is harder put to find"),
    Pattern(
        "stands",
        r"\b[Ss](?:tands?|tood|tanding)\b(?!-| for\b| out\b| up\b| still\b|alone)",
        "is, is stored, is written, comes",
        "what rows begin with stands once",
    ),
    Pattern(
        "whatever",
        r"\b(?:[Ww]hatever|[Ww]hoever|[Ww]hichever|[Ww]homever)\b",
        "any ..., every ..., regardless of, what",
        "Whatever a reward is, it is named once",
    ),
    Pattern(
        "has not what",
        r"\b(?:has|have|had) not (?:what|the|an?|any|all|enough|one|that|its|their|those|these|such|as)\b",
        "lacks, does not have",
        "The dataset has not what the loss needs.",
    ),
    Pattern(
        "takes down",
        r"\b(?:takes?|took|taken|taking|bring|brings|brought)(?: [\w-]+){0,4} down\b",
        "affects, stops, crashes",
        "A plug-in that fails takes nothing else down.",
    ),
    Pattern("at will", r"\bat will\b", "optionally, as often as you like", "Prompts are dropped at will."),
    Pattern(
        "Of ..., first",
        r"(?:^|(?<=[.!?] ))Of (?!course\b)[^.,;:]{1,90}, ",
        "the subject first: Pairs with equal rewards ...",
        "Of pairs with equal rewards, the first is kept.",
    ),
    Pattern(
        "What ... as the subject",
        rf"{START}(?:What(?! (?:is|are|does|do|did|was|were|if|can|should|happens if)\b)|What (?:is|are|was) (?!an?\b|the\b)\w+)\b"
        r"(?![^.]*\?)(?=[^.:]* )",
        "name the thing: Errors ..., Tokens ..., Requests that fail ...",
        "What fails in one request changes nothing in another.",
        in_docstrings=False,
    ),
    Pattern(
        "two whats",
        r"\b[Ww]hat\b[^.;?]*(?<!and )(?<!or )\bwhat\b",
        "name the things",
        "It shows what the model saw of what was sent.",
        in_docstrings=False,
    ),
    Pattern(
        "of which",
        r"(?<!\bsome )(?<!\beach )(?<!\bone )(?<!\bmost )(?<!\bboth )(?<!\bmany )\bof (?:which|whom)\b",
        "two sentences, or that: an encoder without a sign of its kind",
        "An encoder of which the files reveal too little",
        in_docstrings=False,
    ),
    Pattern(
        "whose as a question",
        r"(?:^|[.:;] )Whose\b(?![^.]*\?)|\b(?:in|is|knows?|of|or|says?|shows?|tells?) whose\b",
        "which model gives the number, the owner of ...",
        "Whose number it is",
    ),
    Pattern(
        "figure of speech",
        r"\bmade-up\b|\b[Kk]eeps?\b[^.]{0,30}\bto (?:itself|themselves)\b|\bpays? for\b|\bhold(?:s|ing)? out\b|\b(?:is|are) taken in\b"
        r"|\bNothing is allowed\b|\btakes? offence\b|\bsteps? aside\b|\bhas its say\b|\bmakes? (?:it )?good\b|\bin one go\b",
        "the plain verb: invented, cannot be replaced, rewards, resists, is updated with, is ignored",
        "decoders that keep their attention to themselves",
    ),
    Pattern(
        "inverted condition",
        rf"{START}(?:Were|Had|Should|Be|Come) (?:it|they|the|this|that|there|he|one)\b[^?]*$",
        "if ...",
        "Were it cut, the score would change.",
    ),
    Pattern(
        "so does",
        r"\b(?:and|but|,) so (?:do|does|did|is|are|was|were|has|have|can|may|must|would)\b(?! (?:that|far|not)\b)"
        r"|" + START + r"So (?:do|does|did|is|are|was|were|has|have|can|may|must|would)\b",
        "also: ... also closes texts",
        "vLLM drops it, and so does its shape.",
    ),
    Pattern(
        "nor does",
        r"(?:^|[.,;] (?:and )?)(?:[Nn]or|[Nn]either) (?:do|does|did|is|are|was|were|has|have|can|may|must|would|will)\b",
        "... does not either",
        "Its server does not, nor does ours.",
    ),
    Pattern(
        "as does",
        r"\bas (?:do|does|did|has|have|had) (?!\w+ing\b)(?:\w+)",
        "like ...",
        "It reads the last token, as does OpenRLHF.",
    ),
    Pattern(
        "inverted after a negation",
        rf"{START}(?:Only|Never|Not|Nowhere|Rarely) (?:where|if|when|then|so|only|until|after|once|with)\b[^.]{{0,80}}?\b"
        r"(?:is|are|does|do|did|has|have|can|was|may|will) (?:the|it|they|this|any|its)\b",
        "the subject first: The request is refused only if ...",
        "Only where no row is left is the request refused.",
    ),
    Pattern(
        "for as because",
        r"[,;] for (?:it|they|this|that|these|those|there|he|we|\w+s) (?:is|are|was|were|has|have|had|can|may|might|would|will|needs?|"
        r"do|does|did|reads?|takes?|makes?)\b|[,;] for as an? ",
        "because",
        "The text is refused, for it has another score.",
    ),
    Pattern(
        "need not",
        r"\b(?:needs?|dares?) not\b",
        "does not have to",
        "Rows need not have the same keys.",
    ),
    Pattern(
        "old word",
        r"\b(?:[Aa]new|[Aa]loud|[Tt]hereof|[Tt]herein|[Tt]hereby|[Hh]ereby|[Tt]herewith|[Hh]enceforth|[Ll]est|[Aa]lbeit|"
        r"[Ww]hilst|[Aa]mongst|[Uu]pon|kin|[Nn]aught|[Ww]hence|[Ww]herein|[Ww]hereby|[Hh]itherto|[Ff]orthwith|[Ss]hall|[Mm]ends?|"
        r"[Mm]ended|[Ss]pelt|[Ss]poilt|[Vv]ouch(?:es)?|[Uu]nbidden|[Ff]ain|[Nn]igh|of late|forgone|betimes)\b",
        "again, also, the same, because, on, repair, will",
        "Lost scores are computed anew.",
    ),
    Pattern("becomes of", r"\b(?:becomes?|became) of\b", "happens to", "what becomes of a failure"),
    Pattern(
        "taken for",
        r"\b(?:is|are|was|were|be|been|not) taken (?:for|to)\b|\btakes? for (?:independent|one|an?)\b",
        "is assumed to be",
        "A function is taken to score each sample by itself.",
    ),
    Pattern(
        "more than may",
        r"\bthan (?:may|might)\b|\bcome again\b|\bcomes? back one after another\b",
        "the limit is ..., retry in ...",
        "more waits than may",
    ),
    Pattern("one's", r"\b[Oo]ne's\b", "your, its", "a server of one's choice"),
    Pattern(
        "the former, the latter",
        r"\b[Tt]he (?:former|latter)\b",
        "repeat the name",
        "Trainers read the latter from their configuration.",
    ),
    Pattern(
        "everything but",
        r"\b(?:[Nn]othing|[Aa]nything|[Ee]verything|[Ee]veryone|[Aa]ll|[Nn]one|[Nn]owhere|[Aa]ny|[Ee]ach)"
        r"(?: of [\w ]{1,20}| [\w-]+){0,2} but "
        r"(?!not\b|only\b|its\b|it\b|one\b|two\b|the (?:first|last)\b)",
        "only, except, all ... except",
        "It unpickles nothing but tensors.",
    ),
    Pattern(
        "chance",
        r"\b(?:one|work|is|are|none) of chance\b",
        "random; (not) statistically significant",
        "a difference that is none of chance",
    ),
    Pattern(
        "call it one",
        r"\b(?:called|call it|made it|takes it for) one\b|\bwas one(?=[.,;:)]|$)",
        "repeat the noun",
        "below 0.05 it is called one.",
    ),
    Pattern(
        "is that of",
        r"\b(?:is|are|was|were|be) (?:that|those) of\b",
        "repeat the noun, or use 's",
        "The fingerprint is that of the weights.",
        in_docstrings=False,
    ),
    Pattern(
        "for all that",
        r"\ball the same\b|\bas good as\b|\bfor all that\b|\bby and by\b|\bin so far\b|\binasmuch\b|\bsave for\b",
        "a plain word: still, also, almost, except",
        "bytes are read all the same",
    ),
    Pattern(
        "has it",
        r"\bas [\w'-]+(?: [\w'-]+)? has it\b",
        "like ...",
        "the end is cut, as longest_first has it",
    ),
    Pattern(
        "riddle as a heading",
        r"^(?:What|Whose|Which|How|Where|When|Why|Who|Is|Are|Does|Do|Can)\b.*|.*\?$",
        "the name of the topic: Resuming, Limits, Throughput",
        "What is said first",
        only_headings=True,
    ),
    Pattern(
        "parentheses in parentheses",
        r"(?<![\w])\((?![^()]*=)[^()]*[^()\w]\([^()]*\)[^()]*\)",
        "two sentences, or commas",
        "one limit (of bytes (and of values))",
    ),
    Measure(
        "long sentence",
        35,
        words_of,
        "two sentences, or a list",
        "The server gathers what arrives while one batch is scored into the next one, which is planned as one batch, and lets clients take "
        "turns, so that a client with many samples does not delay another one.",
    ),
    Measure(
        "semicolons",
        1,
        lambda sentence: len(re.findall(r";(?= )", re.sub(r"\([^()]*\)", "", sentence))),
        "separate sentences, or a list",
        "A folder is read; a link is not; a pipe is refused.",
        in_docstrings=False,
    ),
]
