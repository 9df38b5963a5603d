"""What the labels of an agent are, and the words for them on every surface.

An agent's labels are its outcomes. An agent without outcomes has the answers that its teacher gave without regard to
the champion instead; then a model that decides like its labels is no more than in *agreement* with the teacher.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from stillhouse.records.base import Record
from stillhouse.records.verdicts import LabelKind, Verdict

__all__ = ["Words", "words_for"]


class Words(Record):
    """The words for the labels of an agent; :func:`words_for` has them.

    >>> words = words_for("teacher answers")
    >>> words.say("accuracy .93 on 60 outcomes, `outcomes.delay` has passed")
    "agreement .93 on 60 teacher's answers, `outcomes.delay` has passed"
    >>> words_for("outcomes").say("accuracy .93 on 60 outcomes")
    'accuracy .93 on 60 outcomes'
    """

    kind: LabelKind
    label: str
    labels: str
    accuracy: str
    right: str

    def say(self, text: str) -> str:
        """A sentence about outcomes in these words. What is quoted, a key or a name with ``_`` or ``.`` stays."""
        if self.kind == "outcomes":
            return text
        plain = {"outcome": self.label, "outcomes": self.labels, "accuracy": self.accuracy, "is right on": self.right}
        return _WORD.sub(lambda match: match[0] if match["kept"] else _replace(match[0], plain), text)

    def say_verdict(self, verdict: Verdict) -> Verdict:
        """The verdict with its summary and the texts of its reasons in these words; its evidence stays."""
        if self.kind == "outcomes":
            return verdict
        reasons = tuple(reason.model_copy(update={"text": self.say(reason.text)}) for reason in verdict.reasons)
        return verdict.model_copy(update={"summary": self.say(verdict.summary), "reasons": reasons})


def words_for(kind: LabelKind) -> Words:
    """The words for this kind of labels."""
    return _WORDS[kind]


# --------------------------------------------------------------------------- inside

_WORDS: Mapping[LabelKind, Words] = {
    "outcomes": Words(
        kind="outcomes", label="outcome", labels="outcomes", accuracy="accuracy", right="is right on"
    ),
    "teacher answers": Words(
        kind="teacher answers",
        label="teacher's answer",
        labels="teacher's answers",
        accuracy="agreement",
        right="agrees on",
    ),
}

_WORD = re.compile(
    r"""(?P<kept>`[^`]*`|(?<!\w)'[^'\s][^']*'(?!\w)|"[^"]*"|[\w.]*[_.][\w.]*\w)|(?<![\w.'-])(?:[Oo]utcomes?|[Aa]ccuracy|is right on)(?![\w'-])"""
)


def _replace(found: str, plain: Mapping[str, str]) -> str:
    word = plain[found[0].lower() + found[1:]]
    return word[0].upper() + word[1:] if found[0].isupper() else word
