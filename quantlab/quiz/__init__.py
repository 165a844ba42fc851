"""Practice quizzes and exercise checks.

>>> from quantlab.quiz import practice
>>> quiz = practice("02_number_formats")       # a widget in a notebook, text elsewhere
>>> quiz.answer("q2")
q2 \u25cb not attempted: write an answer first
"""

from quantlab.quiz.bank import bank_names
from quantlab.quiz.check import Exercise, exercise
from quantlab.quiz.expect import NotAttempted, Wrong
from quantlab.quiz.runner import Practice, practice, practice_in_terminal

__all__ = [
    "Exercise",
    "NotAttempted",
    "Practice",
    "Wrong",
    "bank_names",
    "exercise",
    "practice",
    "practice_in_terminal",
]
