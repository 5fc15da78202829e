"""In-context learning by string operations and one tokenization per try."""


def text(prompt, row, answer):
    """The prompt filled by hand; answer None leaves the place to the model."""
    written = prompt.pattern
    for field, value in row.items():
        written = written.replace("{" + field + "}", value)
    if prompt.kind == "masked":
        return written.replace("{mask}", "<mask>" if answer is None else answer)
    return written if answer is None else f"{written} {answer}"


def tokens(prompt, tokenizer, row, demonstrations, max_length):
    """Token ids of the row after as many demonstrations as fit, and how many these are.

    Args:
        prompt: The task's.
        tokenizer: Whose mask is spelled ``<mask>``, if it has one.
        row: Field to text.
        demonstrations: ``(row, label)`` in order.
        max_length: In tokens.
    """
    for count in range(len(demonstrations), -1, -1):
        parts = [
            text(prompt, shown, prompt.label_words[label])
            for shown, label in demonstrations[:count]
        ]
        ids = tokenizer(" ".join([*parts, text(prompt, row, None)]))["input_ids"]
        if len(ids) <= max_length:
            return ids, count
    return None, 0
