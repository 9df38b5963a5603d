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

    def say(self, text: str) -> str:
        """A sentence about outcomes in these words. What is quoted, a key or a name with ``_`` or ``.`` stays."""
        if self.kind == "outcomes":
            return text
        return _PHRASE.sub(lambda match: match[0] if match["kept"] else _ANSWER_PHRASES[match[0]], text)

    def say_verdict(self, verdict: Verdict) -> Verdict:
        """The verdict with its summary and reasons in these words; its evidence stays."""
        if self.kind == "outcomes":
            return verdict
        reasons = tuple(
            reason.model_copy(update={"text": self.say(reason.text), "measure": _name_measure(reason.measure)})
            for reason in verdict.reasons
        )
        return verdict.model_copy(update={"summary": self.say(verdict.summary), "reasons": reasons})


def words_for(kind: LabelKind) -> Words:
    """The words for this kind of labels."""
    return _WORDS[kind]


# --------------------------------------------------------------------------- inside

_WORDS: Mapping[LabelKind, Words] = {
    "outcomes": Words(kind="outcomes", label="outcome", labels="outcomes", accuracy="accuracy"),
    "teacher answers": Words(
        kind="teacher answers", label="teacher's answer", labels="teacher's answers", accuracy="agreement"
    ),
}

_ANSWER_PHRASES: Mapping[str, str] = {
    "an outcome": "a teacher's answer",
    "outcome": "teacher's answer",
    "outcomes": "teacher's answers",
    "accuracy": "agreement",
    "Accuracy": "Agreement",
    "is right on": "agrees on",
    "errs more than it did": "agrees less with the recorded answers than it did",
}
"""What sentences about outcomes say, and what they say where there are none."""

_PHRASE = re.compile(
    r"""(?P<kept>`[^`]*`|(?<!\w)'[^'\s][^']*'(?!\w)|"[^"]*"|[\w.]*[_.][\w.]*\w)"""
    rf"""|(?<![\w.'-])(?:{"|".join(sorted(_ANSWER_PHRASES, key=len, reverse=True))})(?![\w'-])"""
)


def _name_measure(measure: str) -> str:
    """The name of a reason's measure: ``agreement_drop`` for ``accuracy_drop``."""
    return _ANSWER_MEASURES.get(measure, re.sub(r"^accuracy:", "agreement:", measure))


_ANSWER_MEASURES: Mapping[str, str] = {
    "accuracy_drop": "agreement_drop",
    "evidence_student_outcomes": "evidence_student_answers",
    "outcomes": "labels",
}
