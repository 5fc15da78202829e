"""Genetic search of a prompt's words that the model itself guides: GAP3.

Zhao et al., *Genetic Prompt Search via Exploiting Language Model Probabilities*, IJCAI 2023;
written from its description, with the settings of its code. A new individual has a hole, and the
token to fill it is the one that most helps the gold labels by Bayes' rule, summed over the train
set: ``log p(label | x, t) = log p(label | x) + log p(t | x, label) - log p(t | x)``.

Where the description is silent:

- A token counts only if the prompt, as a text, is read as that token again, so genes and tokens are
  the same; special tokens, and whatever contains, begins or ends a label word in any case, do not.
- A causal model reads its label last. It is asked which word follows the row and its label, against
  the row alone, wherever the hole is.
- A child that was there before gets a new token even where chance gave it none.
- Each new individual is compared with the best in turn.
"""

from dfolora.methods.gap3.search import Gap3

__all__ = ["Gap3"]
