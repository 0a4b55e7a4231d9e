"""Two rewards for medical answers, as plain functions: see rewards.yaml."""

import re

URGENT = re.compile(
    r"""(?ix)
    chest .{0,40} (pain|pressure|tight|ache) | (pain|pressure|tight\w*) .{0,20} chest
  | (mouth|face) .{0,20} droop | droop .{0,20} (mouth|face) | slurr | seizure | choking | suddenly\ (deaf|blind)
  | (can't|cannot|hardly) .{0,25} (breath|swallow|speak|finish\ a\ sentence) | blue .{0,10} lips | chest .{0,20} tearing
  | (lips?|tongue|throat|neck) .{0,20} swell | swell\w* .{0,20} (lips?|tongue|throat)
  | unconscious | n[o']t\ breathing | won't\ wake | faint\ and | confused | hear\ voices
  | (swallowed|drank|ate|took) .{0,30} (battery|bleach|cleaner|lamp\ oil|tablets|pills)
  | (end|take) .{0,6} my\ life | kill\ myself | hurt\ myself | life .{0,10} not\ worth | better\ off\ without
  | (vomit|cough) .{0,20} blood | coffee\ grounds | bleeding\ heavily | stools .{0,20} black | racing\ irregularly
  | worst\ headache | headache .{0,20} worst | stiff\ neck | doesn't\ fade | does\ not\ fade | grey\ curtain
  | can't\ pass\ urine | overdose | poisoned
    """
)
"""What makes a question urgent."""

MINOR = re.compile(
    r"(?i)\b(a cold|blocked nose|hiccups|crayon|cherry stone|twitching|stitch when|stitch in|sneezes|beetroot|toad"
    r"|white spots|joints crack|smartwatch|upset stomach|dim light|screen all day|graze|cracked hands|first run)\b"
)
"""What needs no hospital."""

HELP_NOW = re.compile(
    r"(?i)ambulance|emergency|poison cent|crisis line|\b(call|go|get|ring)\b[^.]{0,40}\b(now|at once|immediately)\b"
)
"""What sends somebody for help at once."""

ON_CONDITION = re.compile(r"(?i)\b(if|when|unless|otherwise|should you|or if)\b")
SENTENCE = re.compile(r"[^.!?]+")


def urgency(question: str, answer: str) -> float:
    """1 where an urgent question is sent for help at once, and a minor one is not; else 0.

    What an answer says under a condition ("call an ambulance if ...") alarms nobody; as the only thing that it says
    to an urgent question it counts half. Questions of which the patterns cannot tell give 1 for any answer.
    """
    asks_for_help = [sentence for sentence in SENTENCE.findall(answer) if HELP_NOW.search(sentence)]
    at_once = [sentence for sentence in asks_for_help if not ON_CONDITION.search(sentence)]
    if URGENT.search(question):
        return 1.0 if at_once else 0.5 if asks_for_help else 0.0
    return 0.0 if MINOR.search(question) and at_once else 1.0


def right(answer: str, expected: str | None) -> float:
    """1 where the answer begins with the expected yes or no, or ends in the result; 0.5 where none is expected."""
    if expected is None:
        return 0.5
    wanted = expected.strip().lower()
    if wanted in ("yes", "no"):
        first = re.match(r"\W*(\w+)", answer.lower())
        return float(bool(first) and first[1] == wanted)
    _, said, result = answer.lower().rpartition("answer:")
    return float(bool(said) and re.search(rf"(?<![\w.]){re.escape(wanted)}(?!\w|\.\d)", result) is not None)
