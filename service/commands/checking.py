"""onequota check: one decision from the shell."""

from service.client.question import Question
from service.commands import words
from service.commands.asking import Asked
from service.commands.screen import Shown


def check(asked: Asked, question: Question) -> Shown:
    """Ask, and tell the answer. Raises OnequotaError."""
    [answer] = asked.decide([question])
    text = words.verdict(answer, peek=question.peek or question.cost == 0)
    return Shown(text=text, document=words.document(answer), code=0 if answer.allowed else 1)
