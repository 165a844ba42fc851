"""A complete source of module 1 in miniature, for the tests of the notebook builder."""

HEAD = """\
# %% [markdown]
# # Introduction to Quantization Engineering
#
# Duration: 60 min · runs in about 3 s on 2 CPU cores

# %% [markdown]
# ## Objectives
#
# 1. Round a number. (q1)
# 2. Count bytes. (q2, q3)
# 3. Doubt a claim. (q4)

# %% [markdown]
# ## Prerequisites
#
# None.

# %%
import os

import quantlab as ql

# %% [markdown]
# ## What does rounding cost?

# %% [markdown] tags=["predict"]
# **Predict.** Is the rounding error of 0.30 on a grid of quarters above 0.1?

# %%
error = 0.3 - 0.25
print("the error is", ql.digits(error))

# %% tags=["signature"]
ql.table([("quarters", 4, error), ("eighths", 8, 0.375 - 0.3)], ["grid", "n", "error"])

# %%
from matplotlib.figure import Figure

figure = Figure(figsize=(2, 1))
_ = figure.subplots().bar([0, 1], [3, 5])
print("the bars are 3 and 5 high")
figure

# %% tags=["control"]
assert abs(0.3 - 0.0) > error
print("a coarser grid is worse: True")

# %% [markdown] tags=["myth"]
# ### Myth 001-7: numbers become integers

# %% tags=["myth"]
assert isinstance(0.25, float)
print("verdict: not always")

# %%
print("real model:", "on" if os.environ.get("QUANTLAB_ONLINE") else "skipped")
ql.show(ql.Scheme.parse)

# %% [markdown]
# **In the wild**: everywhere. See [What does rounding cost?](#What-does-rounding-cost?)

# %% [markdown]
# ## Exercises
"""
EXERCISE = """
# %% [markdown] tags=["exercise"]
# ### Exercise {letter}
# Difficulty: ●○○ · Importance: ●●● · 5 min. Stuck? `hint()`, then `solution()`.

# %% tags=["exercise"]
def answer_{letter}(x): ...
# ql.exercise("01_introduction.{letter}").check(answer_{letter})
print("not attempted")
"""
TAIL = """
# %% [markdown]
# ## Quiz

# %% tags=["quiz"]
# ql.quiz.practice("01_introduction")
print("quiz of", 6, "questions")

# %% [markdown]
# ## Summary
#
# Rounding costs something.

# %% [markdown]
# ## What we left out
#
# Nearly everything.

# %% [markdown]
# ## Sources
#
# Nagel et al. 2106.08295.
"""
DEMO = HEAD + "".join(EXERCISE.format(letter=letter) for letter in "abc") + TAIL
